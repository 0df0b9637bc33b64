"""The machinery that all methods share, in rooms. Each room imports only those below it:

- `method_registry` finds methods by name, and `captured_step` runs a training step as a CUDA graph;
- `classes` has what a method is a subclass of;
- `steps` follow a call through its backward pass;
- `forks` and `measuring`: where the tasks' gradients are told apart, and how they are measured;
- `method` has the parts of a method;
- `loss_input`, `fork_error`, `user_warnings`, `ranks`, `passes`, `own_precision`, `graph_behind` and `host_copy` are
  single modules, and `torch_internals` has all that is private to PyTorch.

At run time, steps call back into the balancer that they were given. A name that begins with an underscore is private to
the engine: its rooms use such names of each other, and users do not.
"""

from .classes.base import LossBalancer
from .classes.gradients import GradientBalancer
from .classes.learned_state import LearnedState
from .classes.period_means import PeriodMeans
from .classes.residuals import ResidualBalancer
from .classes.second_batch import SecondBatchBalancer
from .loss_input import Losses
from .method.declared import Range, option, state
from .method.declared_method import DeclaredMethod
from .method.readings import Read, Result, State
from .method.rng import Draws
from .method_registry import register

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
