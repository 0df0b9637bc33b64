"""Multi-task problems: each a data set, a model and T tasks, known by a name.

::

    problem = create("regression", sigmas=(1, 100))
    data = problem.data(torch.Generator().manual_seed(1), "cpu")
    model = problem.model()
    for batch in problem.batches(data, torch.Generator().manual_seed(2), problem.recipe.batch_size):
        losses = problem.losses(model, batch)
        ...
"""

from .base import Baseline, Metric, MissingDataError, Problem, Recipe, Shared, Split, evaluating
from .conflict_2d import Conflict2D
from .multi_token import MultiToken
from .registry import create, get, names, register
from .regression import Regression
from .same_tasks import SameTasks

__all__ = [
    "Baseline",
    "Conflict2D",
    "Metric",
    "MissingDataError",
    "MultiToken",
    "Problem",
    "Recipe",
    "Regression",
    "SameTasks",
    "Shared",
    "Split",
    "create",
    "evaluating",
    "get",
    "names",
    "register",
]
