"""The small problems inside gradient methods, solved on the device: pure functions of a Gramian ``(..., T, T)`` of T
gradients, one file a problem. They never wait for the device: a fixed number of iterations, no Python branch on a
value. Computed in float64, given back in the Gramian's type; no result depends on the gradients' common scale.
"""
