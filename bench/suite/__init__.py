"""Which runs a suite consists of, and their results as tables."""
