"""Draw the picture that `lossbench show` makes of a problem."""

import tomllib
from collections.abc import Sequence
from typing import Any

import tasks
from bench.run import result_picture
from bench.run.result_picture import Picture
from bench.run.spec import Method, RunSpec
from bench.run.training import Training
from tasks import Conflict2D, MissingDataError

from . import landscape_paths

SEED = 1
"""Seed of the data and of the training."""


class NothingToDrawError(Exception):
    """The problem does not exist, its data are missing, its training failed, or it draws nothing."""


def draw(name: str, options: Sequence[str], trained: bool) -> Picture:
    """Draw a problem's data and, if ``trained``, what its model predicts after a default run of equal weighting.

    Args:
        name: the registered name of the problem.
        options: options of the problem, each ``KEY=VALUE`` with a value in TOML.
        trained: True to train the model first. For `conflict-2d`, this draws the paths that several methods take.

    Raises:
        NothingToDrawError: the problem cannot be made, its data are missing, its training fails, or it draws nothing.
    """
    try:
        problem = tasks.create(name, **_options(options))
        problem.require()
    except (ValueError, TypeError, MissingDataError) as error:
        raise NothingToDrawError(str(error)) from error
    if trained and isinstance(problem, Conflict2D):
        return landscape_paths.picture(_options(options))
    spec = RunSpec(name, _options(options), problem.recipe, Method("equal", None, {}), SEED, "tuning", "cpu", 1)
    training = Training(spec)
    if trained:
        training.run()
        if training.result.status == "failed":
            raise NothingToDrawError(f"{name} can't be trained: {training.result.reason}")
    else:
        training.prepare()
    picture = result_picture.draw(training.problem, training.data, training.model if trained else None)
    if not picture.png:
        raise NothingToDrawError(f"{name} draws nothing")
    return picture


def _options(options: Sequence[str]) -> dict[str, Any]:
    try:
        return tomllib.loads("\n".join(options))
    except tomllib.TOMLDecodeError as error:
        raise NothingToDrawError(f"--option takes KEY=VALUE as in a suite ({error})") from error
