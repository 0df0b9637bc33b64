"""Draw the picture that `lossbench show` makes of a problem."""

from collections.abc import Sequence

import tasks
from bench.run import result_picture
from bench.run.problem_argument import given_options
from bench.run.result_picture import Picture
from bench.run.spec import Method, RunSpec
from bench.run.training import Training, reason
from tasks import Conflict2D, MissingDataError

from . import landscape_paths

SEED = 1
"""Seed of the data and of the training."""


class NothingToDrawError(Exception):
    """The problem does not exist, its data are missing, its training or its drawing failed, or it draws nothing."""


def draw(name: str, options: Sequence[str], trained: bool) -> Picture:
    """Draw a problem's data and, if ``trained``, what its model predicts after a default run of equal weighting.

    Args:
        name: the registered name of the problem.
        options: options of the problem, each ``KEY=VALUE`` with a value in TOML.
        trained: True to train the model first. For `conflict-2d`, this draws the paths that several methods take.

    Raises:
        ProblemArgumentError: an option is not of that form.
        NothingToDrawError: the problem can't be made, its data are missing, its training or its drawing fails, or it
            draws nothing.
    """
    given = given_options(options)
    try:
        problem = tasks.create(name, **given)
        problem.require()
    except (ValueError, TypeError, MissingDataError) as error:
        raise NothingToDrawError(str(error)) from error
    except (Exception, SystemExit) as error:
        raise NothingToDrawError(f"{name} can't be made: {reason(error)}") from error
    if trained and isinstance(problem, Conflict2D):
        return landscape_paths.picture(given)
    spec = RunSpec(name, given, problem.recipe, Method("equal", None, {}), SEED, "tuning", "cpu", 1)
    training = Training(spec)
    if trained:
        training.run()
        if training.result.status == "failed":
            raise NothingToDrawError(f"{name} can't be trained: {training.result.reason}")
    try:
        if not trained:
            training.prepare()
        picture = result_picture.draw(training.problem, training.data, training.model if trained else None)
    except (Exception, SystemExit) as error:  # of a problem that a user is writing
        raise NothingToDrawError(f"{name} can't be drawn: {reason(error)}") from error
    if not picture.png:
        raise NothingToDrawError(f"{name} draws nothing: it does not define draw, or draw returns no caption")
    return picture
