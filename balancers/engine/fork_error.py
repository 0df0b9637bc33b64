"""The error of a model or a step whose gradients can't be measured at a fork."""


class ForkError(ValueError):
    """The losses depend on the network in a way that makes measurements at the fork wrong.

    Example::

        balancer = PCGrad(net.fork, wrt=net.trunk)
        try:
            balancer.audit(losses)
        except ForkError as error:
            print(error)  # names the task, and says how its loss goes past the fork
    """
