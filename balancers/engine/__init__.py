"""Shared machinery of all methods: base classes, the fork, measurements, state, distributed ranks and the registry."""
