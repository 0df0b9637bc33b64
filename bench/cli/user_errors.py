"""How the command line tells of errors: one line each, and an exit code."""

import errno
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text

from bench.suite.toml_table import SuiteError

NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
"""The numbers of errors of a file or folder that can't be written."""
MOST_FAILURES = 20
"""Maximum number of distinct failures to print."""


def messages() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def user_errors(console: Console, writes_to: str = "--results") -> Iterator[None]:
    """Print user errors as one line and exit with 2; if no run can be done, or some are given up, exit with 1.

    Args:
        console: where the line is printed.
        writes_to: the option that names where the command writes, for a user who may not write there.
    """
    from bench.catalogue.show_problem import NothingToDrawError
    from bench.cost.subject import SubjectError
    from bench.diagnose.gradient_profile import ProfileError
    from bench.execute.job import EngineError
    from bench.execute.run_suite import NotDoneError
    from bench.run.atomic_file import BadFileError
    from bench.run.code_hash import ChangedCodeError
    from bench.run.plugins import PluginError
    from bench.run.problem_argument import ProblemArgumentError
    from bench.run.spec import FingerprintError
    from bench.style.numbers import counted
    from bench.suite.claimed_folder import BusyError
    from tasks import MissingDataError

    ours = (
        *(SuiteError, SubjectError, PluginError, ProblemArgumentError, NothingToDrawError, ProfileError),
        *(BusyError, BadFileError, ChangedCodeError, FingerprintError, MissingDataError),
    )
    try:
        yield
    except (*ours, OSError) as error:
        told, remedy = str(error), ""
        if isinstance(error, OSError) and error.strerror and error.filename is not None:
            told = f"{error.strerror}: {error.filename}"
            if error.errno in NOT_WRITABLE:
                remedy = f"; if nothing can be written there, {writes_to} names another place"
        console.print(Text(f"error: {told}{remedy}"))
        raise typer.Exit(2) from None
    except EngineError as error:
        console.print(Text(f"error: {error}. What is finished is kept; the same command continues from there."))
        raise typer.Exit(1) from None
    except NotDoneError as error:
        reasons = Counter((run.balancer, run.problem, why) for run, why in error.runs)
        for (balancer, problem, why), count in list(reasons.items())[:MOST_FAILURES]:
            console.print(Text(f"not done: {balancer} on {problem}, {counted(count, 'run')}: {why}"))
        if len(reasons) > MOST_FAILURES:
            console.print(f"not done: {len(reasons) - MOST_FAILURES} more like these")
        console.print(
            f"error: {error}. Everything else is kept, and the same command tries them again. To count runs that take "
            "too long as failed, state [limits] seconds in the suite."
        )
        raise typer.Exit(1) from None
