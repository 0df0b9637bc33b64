"""What every method stands on: the base classes, the fork, what is measured, state, ranks and the registry."""
