"""Solve the small problems inside gradient methods on the device, one file per problem.

Each solver is a pure function of a Gramian ``(..., T, T)`` of T gradients. It never waits for the device: the number of
iterations is fixed, and no Python branch depends on a value. It computes in float64 and returns the Gramian's type. The
gradients' common scale does not affect how accurate a result is.
"""
