"""Shared machinery of all methods: base classes, the fork, measurements, state, distributed ranks and the registry."""

from .base import LossBalancer
from .declared import Range, option, state
from .declared_method import DeclaredMethod
from .gradients import GradientBalancer
from .learned_state import LearnedState
from .loss_input import Losses
from .method_registry import register
from .period_means import PeriodMeans
from .readings import Read, Result, State
from .residuals import ResidualBalancer
from .rng import Draws
from .second_batch import SecondBatchBalancer

__all__ = [
    "DeclaredMethod",
    "Draws",
    "GradientBalancer",
    "LearnedState",
    "LossBalancer",
    "Losses",
    "PeriodMeans",
    "Range",
    "Read",
    "ResidualBalancer",
    "Result",
    "SecondBatchBalancer",
    "State",
    "option",
    "register",
    "state",
]
