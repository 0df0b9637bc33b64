"""List the runs of a suite, and make tables of their results."""
