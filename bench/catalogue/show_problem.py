"""Draw the picture that `lossbench show` makes of a problem."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tasks
from bench.run import plugins, result_picture
from bench.run.result_picture import Picture
from bench.run.spec import Method, RunSpec
from bench.run.training import Training, reason
from tasks import Conflict2D, MissingDataError

from . import landscape_paths

SEED = 1
"""Seed of the data and of the training."""


class NothingToDrawError(Exception):
    """The problem does not exist, its data are missing, its training or its drawing failed, or it draws nothing."""


def named(problem: str) -> list[str]:
    """Return the name of the problem, or if ``problem`` is the path of a Python file, of those that it registers.

    Raises:
        NothingToDrawError: the file registers no problem.
        PluginError: there is no such file, or it can't be loaded.
    """
    if not problem.endswith(".py"):
        return [problem]
    names = plugins.registered(Path(problem)).problems
    if not names:
        raise NothingToDrawError(f"{problem} registers no problem; docs/add-a-problem.md shows how a file does that")
    return names


def given_options(options: Sequence[str]) -> dict[str, Any]:
    """Return options of a problem from texts ``KEY=VALUE`` with a value in TOML.

    Raises:
        NothingToDrawError: a text is not of that form.
    """
    try:
        return tomllib.loads("\n".join(options))
    except tomllib.TOMLDecodeError as error:
        raise NothingToDrawError(f"--option takes KEY=VALUE as in a suite ({error})") from error


def draw(name: str, options: Sequence[str], trained: bool) -> Picture:
    """Draw a problem's data and, if ``trained``, what its model predicts after a default run of equal weighting.

    Args:
        name: the registered name of the problem.
        options: options of the problem, each ``KEY=VALUE`` with a value in TOML.
        trained: True to train the model first. For `conflict-2d`, this draws the paths that several methods take.

    Raises:
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
