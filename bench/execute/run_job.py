"""Do one run as a job: everything that it needs comes with it, and everything that is kept of it goes back.

Whoever does the run writes no file of the suite. Its results are bytes, which the client stores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import tasks
from bench.cost import measure_step
from bench.run import plugins, result_file, result_picture
from bench.run.code_hash import ChangedCodeError
from bench.run.evaluation_check import EvaluationError
from bench.run.machine_facts import gpu, processor
from bench.run.pace import Pace, pace
from bench.run.plugins import Source
from bench.run.result_picture import Picture
from bench.run.spec import provenance
from bench.run.training import Training, reason
from bench.suite.plan import Planned
from tasks import MissingDataError

from .job import CannotRunError, OtherVersionError

NAMES: Mapping[str, str] = {
    "protocol": "the protocol",
    "code": "the code of lossbench or of a plugin",
    "data": "the data",
    "torch": "PyTorch",
}
"""Names, for messages, of the things besides its specification that a result depends on."""
TIMES_FORECAST = 20.0
"""A run is given up after this many times its forecast."""
BUSY = 0.3
"""The number of cores that other programs may use while steps are timed, without a warning."""


@dataclass(frozen=True)
class PortableRun:
    """A run, what its result depends on at the client, and the plugins that it needs."""

    run: Planned
    provenance: Mapping[str, str]
    plugins: Sequence[Source]

    @staticmethod
    def of(run: Planned, plugins: Sequence[Source]) -> "PortableRun":
        """Return ``run`` as this process would do it."""
        return PortableRun(run, provenance(run.spec), plugins)


@dataclass(frozen=True)
class RunOutcome:
    """A run's result as the content of its file, and its picture if it was to have one."""

    result: bytes
    failed: bool
    picture: Picture | None


@dataclass(frozen=True)
class FailedStart:
    """A run that failed in its first steps; ``reason`` says why, as for a stored run."""

    reason: str


def do(portable: PortableRun) -> RunOutcome:
    """Do a run.

    Raises:
        CannotRunError: the run's result would not be that of the client, or this computer lacks the run's data or GPU.
    """
    _prepare(portable)
    run = portable.run
    training = Training(run.spec)
    training.run()
    result = training.result
    result.processor = processor()
    picture = result_picture.of(training) if run.pictured else None
    return RunOutcome(result_file.encode(run.spec, result), result.status == "failed", picture)


def first_steps(portable: PortableRun) -> Pace | FailedStart:
    """Return how long the parts of a run take here, or why its first steps fail.

    Raises:
        CannotRunError: see `do`.
    """
    _prepare(portable)
    try:
        return pace(portable.run.spec)
    except EvaluationError as error:
        return FailedStart(str(error))
    except (Exception, SystemExit) as error:
        return FailedStart(reason(error))


def time_limit(portable: PortableRun) -> float:
    """Return the seconds after which a run is given up on this computer; 0 if its first steps fail.

    Raises:
        CannotRunError: see `do`.
    """
    start = first_steps(portable)
    return TIMES_FORECAST * (start.load + start.run(portable.run.spec)) if isinstance(start, Pace) else 0.0


def step_cost(portable: PortableRun, rounds: int) -> list[dict[str, Any]]:
    """Measure the cost of a step; see `bench.cost.measure_step.measure`, whose errors propagate.

    Raises:
        CannotRunError: see `do`.
    """
    _prepare(portable)
    return measure_step.measure(portable.run.spec, rounds)


def kind_of_machine() -> tuple[str, str | None]:
    """Return the names of this computer's processor and GPU."""
    return processor(), gpu()


def busy_cores() -> float:
    """Return the number of this computer's cores that its programs use now; 0 if that is not known."""
    try:
        import psutil
    except ImportError:
        return 0.0
    return float(psutil.cpu_percent(interval=1.0)) / 100 * (psutil.cpu_count() or 1)


def _prepare(portable: PortableRun) -> None:
    spec = portable.run.spec
    try:
        plugins.load_sources(portable.plugins)
        tasks.create(spec.problem, **spec.problem_options).require()
        here = provenance(spec)
    except (MissingDataError, ChangedCodeError) as error:
        raise CannotRunError(str(error)) from None
    except (Exception, SystemExit) as error:  # another version may lack the problem, the method or one of its options
        raise CannotRunError(f"{type(error).__name__}: {error}") from error
    differing = [NAMES[what] for what, value in portable.provenance.items() if here[what] != value]
    if differing:
        raise OtherVersionError(
            f"{' and '.join(differing)} differ{'s' if len(differing) == 1 else ''} from the client's"
        )
    if spec.device == "cuda" and spec.phase != "cost" and not torch.cuda.is_available():
        raise CannotRunError("the suite's device is cuda, but PyTorch finds no CUDA device")
