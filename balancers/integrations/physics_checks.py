"""Refuse balancers that need more than the losses of one step, which frameworks for physics-informed networks give."""

from ..engine import LossBalancer


def check_fits(balancer: LossBalancer, framework: str) -> None:
    """Raise if a balancer needs what ``framework`` doesn't have: a fork, or a second batch.

    Raises:
        TypeError: ``balancer`` is not a balancer, was made with a fork, or learns from a second batch.
    """
    if not isinstance(balancer, LossBalancer):
        raise TypeError(f"balancer is of type {type(balancer).__name__}; expected a balancer")
    method = type(balancer).__name__
    if getattr(balancer, "fork", None) is not None:
        raise TypeError(
            f"{method} was made with a fork, but residuals are derivatives of the network's output, and all losses in "
            f"{framework} come from that one output: make the balancer with fork=None and the network as wrt"
        )
    if balancer.needs_second_batch:
        raise TypeError(
            f"{method} learns from a second batch, and {framework} computes the losses of one batch in a step: take a "
            f"method that reads the losses, their gradients or the residuals"
        )
