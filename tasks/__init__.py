"""Multi-task problems. Each has a name, a data set, a model and T tasks.

A training loop takes everything that it needs from the problem:

::

    problem = create("regression", sigmas=(1, 100))
    data = problem.data(torch.Generator().manual_seed(1), "cpu")
    model = problem.model()
    for batch in problem.batches(data, torch.Generator().manual_seed(2), problem.recipe.batch_size):
        losses = problem.losses(model, batch)
        ...
"""

from .apart import Apart
from .burgers import Burgers
from .cityscapes import Cityscapes
from .conflict_2d import Conflict2D
from .digit_pairs import DigitPairs
from .flights import Flights
from .helmholtz import Helmholtz
from .image_codec import ImageCodec
from .multi_token import MultiToken
from .nyuv2 import NYUv2
from .poisson_l_shape import PoissonLShape
from .problem import Baseline, Metric, MissingDataError, Problem, Recipe, Shared, Split, evaluating
from .problem_registry import create, get, names, register
from .reaction_diffusion import ReactionDiffusion
from .recommender import Recommender
from .regression import Regression
from .same_tasks import SameTasks
from .scenes import Scenes

__all__ = [
    "Apart",
    "Baseline",
    "Burgers",
    "Cityscapes",
    "Conflict2D",
    "DigitPairs",
    "Flights",
    "Helmholtz",
    "ImageCodec",
    "Metric",
    "MissingDataError",
    "MultiToken",
    "NYUv2",
    "PoissonLShape",
    "Problem",
    "ReactionDiffusion",
    "Recipe",
    "Recommender",
    "Regression",
    "SameTasks",
    "Scenes",
    "Shared",
    "Split",
    "create",
    "evaluating",
    "get",
    "names",
    "register",
]
