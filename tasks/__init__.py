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
from .registry import create, get, names, register
from .regression import Regression

__all__ = [
    "Baseline",
    "Metric",
    "MissingDataError",
    "Problem",
    "Recipe",
    "Regression",
    "Shared",
    "Split",
    "create",
    "evaluating",
    "get",
    "names",
    "register",
]
