"""Loss balancers for multi-task learning: loss functions of T losses that also choose their weights.

::

    balancer = GradNorm(net.fork, wrt=net.trunk[-1], alpha=0.12)
    loss = balancer(losses)
    loss.backward()
"""

from .audit import ForkError
from .base import LossBalancer
from .capture import CapturedStep
from .equal import EqualWeighting
from .fork import Fork
from .gradients import GradientBalancer
from .gradnorm import GradNorm
from .heads import LinearHeads
from .registry import create, get, names, register
from .static import StaticWeighting
from .uncertainty import UncertaintyWeighting

__all__ = [
    "CapturedStep",
    "EqualWeighting",
    "Fork",
    "ForkError",
    "GradNorm",
    "GradientBalancer",
    "LinearHeads",
    "LossBalancer",
    "StaticWeighting",
    "UncertaintyWeighting",
    "create",
    "get",
    "names",
    "register",
]
