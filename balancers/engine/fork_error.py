"""The error of a model or a step whose gradients can't be measured at a fork."""


class ForkError(ValueError):
    """The losses depend on the network in a way that makes measurements at the fork wrong."""
