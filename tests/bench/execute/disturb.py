"""Disturb suites on a Dask cluster at random moments, and see whether they end in the undisturbed tables.

python -m tests.bench.execute.disturb --moments 10 --out results/disturb.jsonl

Each try has a scheduler, three workers and a results folder of its own. It starts a suite by the command line, disturbs
it at a moment, starts again what was killed and has no one else to start it, and calls the same command until it ends.
Then it compares all tables to the bit with those of this machine alone. Each try is a line of the output file; a
command that was stopped goes on from there.

Moments are spread evenly over the progress of the suite, not over its time: a busy computer that starts slowly would
else have most of them before the first run.
"""

import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from .dask_processes import ROOT, DaskProcesses
from .separate_host import SeparateHost, separate_host, why_not
from .suite_processes import finished, same_tables, start

PLUGINS = [str(Path(__file__).parents[1] / "plugins" / name) for name in ("small.py", "methods.py")]
STEPS = 60
"""The steps of a run."""
LAST_STEPS = 30
"""The last steps of a run, in which nothing starts to go wrong: the memory limit is reached after some twenty steps."""
MOST_COMMANDS = 5
"""The number of times that the command is called before a try counts as endless."""
LONGEST = 300.0
"""Seconds after which a command counts as hung."""
START, END = 10.0, 3.0
"""Seconds from the start of the command to its first runs, and from its last run to its end, at least."""
CUT, SHORT_CUT = 60.0, 10.0
"""Seconds of a cut link, more and less than the half minute after which Dask gives up a silent peer."""

SUITE = """
description = "Runs of half a second"
evaluations = 4
plugins = {plugins}
[seeds]
reported = {reported}
tuning = [11, 12]
{tuned}
[cost]
rounds = {rounds}
{limits}
[[problems]]
name = "small"
steps = {steps}
"""
BALANCER = """
[[balancers]]
name = "{name}"
label = "{label}"
options = {{{options}}}
"""
BAD: Mapping[str, tuple[str, str, str]] = {
    "exit": ("killing", "", "its process was killed by signal 9"),
    "hang": ("hanging", "[limits]\nseconds = 30", "it took longer than the suite's limit of 30 s"),
    "memory": ("hoarding", "[limits]\nmemory = 1.5", "its process needed more than 1.5 GiB of memory"),
}
"""Kinds of runs that go wrong: the method, the suite's limits, and the reason that is listed."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Moment:
    """So many stored runs, and then so many seconds."""

    runs: int
    seconds: float

    @staticmethod
    def at(share: float, runs: int) -> "Moment":
        """Return the moment at a share of the progress of a suite of so many runs.

        The start of the suite counts as much as two runs, and its end with the step timing too.
        """
        place = share * (runs + 3) - 2
        if place < 0:
            return Moment(0, (2 + place) / 2 * START)
        stored = min(1 + int(place), runs)
        return Moment(stored, (place + 1 - stored) * (1.0 if stored < runs else END / 2))


@dataclass
class Try:
    """A suite that is run on a cluster, and disturbed."""

    folder: Path
    suite: Path
    dask: DaskProcesses
    draws: random.Random
    moment: "Moment"
    within: Sequence[str] = ()
    """What the command is put behind to be run on another host."""
    process: "subprocess.Popen[bytes] | None" = None
    codes: list[int | str] = field(default_factory=list)
    """How each call of the command ended."""
    output: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else the line of the output file says."""

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def begin(self) -> None:
        """Start the command."""
        self.process = start(self.suite, self.results, "--scheduler", self.dask.address, within=self.within)

    def until_moment(self) -> None:
        """Wait for the moment of the disturbance."""
        begun = time.monotonic()
        while finished(self.results) < self.moment.runs and self.running().poll() is None:
            time.sleep(0.01)
        end = time.monotonic() + self.moment.seconds
        while time.monotonic() < end and self.running().poll() is None:
            time.sleep(0.01)
        self.facts |= {"moment": round(time.monotonic() - begun, 2), "kept": finished(self.results)}
        if self.running().poll() is not None:
            self.facts["had ended"] = True

    def running(self) -> "subprocess.Popen[bytes]":
        """Return the command's process."""
        assert self.process is not None
        return self.process

    def wait(self) -> None:
        """Wait until the command ends."""
        process = self.running()
        try:
            output = process.communicate(timeout=LONGEST)[0]
            self.codes.append(process.returncode)
        except subprocess.TimeoutExpired:
            process.kill()
            output = process.communicate()[0]
            self.codes.append("hung")
        self.output += output.decode()
        self.process = None


def lose_a_worker(each: Try) -> None:
    """Kill a worker's computer, or one of the two processes that Dask has for a worker."""
    nanny = each.dask.workers["one"]
    how = each.facts["how"] = each.draws.choice(("all its processes", "its nanny", "the worker under its nanny"))
    under = subprocess.run(["pgrep", "-P", str(nanny.pid)], capture_output=True, text=True).stdout.split()
    if how == "all its processes":
        each.dask.lose("one")
    elif how == "its nanny" or not under:
        nanny.kill()
    else:
        subprocess.run(["kill", "-9", *under], check=False)


def lose_all_workers(each: Try) -> None:
    """Kill all workers, and start another one a little later."""
    for name in ("one", "two", "three"):
        each.dask.lose(name)
    wait = each.facts["seconds without"] = round(each.draws.uniform(0, 5), 1)
    time.sleep(wait)
    each.dask.start_worker("four")


def lose_the_scheduler(each: Try) -> None:
    """Kill the scheduler. Start it and other workers again, at once or when the command has ended."""
    assert each.dask.scheduler is not None
    each.dask.scheduler.kill()
    each.dask.scheduler.wait()
    at_once = each.facts["at once"] = each.draws.random() < 0.5
    if not at_once:
        each.wait()
        for name in ("one", "two", "three"):
            each.dask.lose(name)
    each.dask.start_scheduler()
    for name in ("four", "five", "six"):
        each.dask.start_worker(name)


def lose_the_client(each: Try) -> None:
    """Kill the command."""
    each.running().kill()


def add_another_version(each: Try) -> None:
    """Start a worker whose code differs."""
    other = each.folder / "other"
    for package in ("bench", "balancers", "tasks"):
        shutil.copytree(ROOT / package, other / package, ignore=shutil.ignore_patterns("__pycache__"))
    training = other / "bench" / "run" / "training.py"
    training.write_text(training.read_text() + "\nCHANGED = 1\n")
    each.dask.start_worker("old", PYTHONPATH=str(other))


def cut_link(each: Try, host: SeparateHost) -> None:
    """Cut a link, mostly for a minute, else for less than Dask waits for a silent peer."""
    seconds = each.facts["seconds of cut"] = CUT if each.draws.random() < 0.7 else SHORT_CUT
    host.cut()
    end = time.monotonic() + seconds
    while time.monotonic() < end and (each.within or each.running().poll() is None):
        time.sleep(0.1)
    host.join()


def nothing(each: Try) -> None:
    """Disturb in no way: the runs themselves do, or nobody."""


DISTURBANCES: Mapping[str, Callable[[Try], None]] = {
    "nothing": nothing,
    "worker": lose_a_worker,
    "all-workers": lose_all_workers,
    "scheduler": lose_the_scheduler,
    "client": lose_the_client,
    "other-version": add_another_version,
    **dict.fromkeys(BAD, nothing),
}
LINKS = ("link", "client-link")
"""Disturbances of the link to a second host: it has a worker, or the client."""


@app.command()
def main(
    moments: Annotated[int, typer.Option(min=1, help="Number of moments of each disturbance.")] = 10,
    only: Annotated[str, typer.Option(help="Names of disturbances, with commas between.")] = ",".join(
        (*DISTURBANCES, *LINKS)
    ),
    seed: Annotated[int, typer.Option(help="Seed of the moments.")] = 1,
    out: Annotated[Path, typer.Option(help="File that a line is added to for each try.")] = Path("disturb.jsonl"),
) -> None:
    """Disturb suites at random moments, and print how they ended."""
    names = only.split(",")
    if unknown := set(names) - {*DISTURBANCES, *LINKS}:
        raise typer.BadParameter(f"no disturbance {', '.join(sorted(unknown))}")
    if {*LINKS} & {*names} and (reason := why_not()):
        raise typer.BadParameter(f"a link {reason}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        bench = _Tries(Path(folder), seed, rows, out)
        for number in range(moments):
            for name in names:
                bench.do(name, number)
    print(_table([row for row in rows if row["disturbance"] in names]))


class _Tries:
    """All tries of a command.

    Args:
        folder: an empty folder.
        seed: seed of the moments.
        rows: the tries of earlier commands, to which those of this one are added.
        out: the file that has them.
    """

    def __init__(self, folder: Path, seed: int, rows: list[dict[str, Any]], out: Path) -> None:
        self._folder, self._seed, self._rows, self._out = folder, seed, rows, out
        self.do("nothing", 0)
        [undisturbed] = [row for row in rows if row["disturbance"] == "nothing" and row["number"] == 0]
        self._runs: int = undisturbed["runs"]

    def do(self, name: str, number: int) -> None:
        """Make a try, unless it was made."""
        if any((row["disturbance"], row["number"]) == (name, number) for row in self._rows):
            return
        draws = random.Random(f"{self._seed} {name} {number}")
        share = draws.random()
        row = {"disturbance": name, "number": number, **self._tried(name, number, draws, share)}
        self._rows.append(row)
        with self._out.open("a") as file:
            print(json.dumps(row), file=file)
        print(json.dumps({key: value for key, value in row.items() if key != "output"}), flush=True)

    def _tried(self, name: str, number: int, draws: random.Random, share: float) -> dict[str, Any]:
        folder = self._folder / f"{name}-{number}"
        (folder / "dask").mkdir(parents=True)
        suite = folder / "mine.toml"
        text, facts = bad_suite(name, share) if name in BAD else (good_suite(), {})
        suite.write_text(text)
        undisturbed = self._folder / ("good" if name not in BAD else name)
        if name in BAD or not undisturbed.exists():  # runs that were done are not done again
            start(suite, undisturbed, "--jobs", "2").communicate()
        at_once = name in BAD or name == "nothing"
        moment = Moment(0, 0.0) if at_once else Moment.at(share, self._runs)
        if name in LINKS:
            with separate_host() as host:
                dask = DaskProcesses(folder / "dask", host=host.address)
                far, client = (host.within, ()) if name == "link" else ((), host.within)
                each = Try(folder, suite, dask, draws, moment, client, facts=facts)
                dask.start_worker("one", within=far)
                row = self._ended(each, lambda each: cut_link(each, host), undisturbed, ("two", "three"))
        else:
            dask = DaskProcesses(folder / "dask")
            each = Try(folder, suite, dask, draws, moment, facts=facts)
            row = self._ended(each, DISTURBANCES[name], undisturbed, ("one", "two", "three"), expected=name in BAD)
        if name in BAD:
            row["listed"] = sum(BAD[name][2] in line for line in each.output.splitlines())
        shutil.rmtree(folder)
        return row

    def _ended(
        self, each: Try, disturb: Callable[[Try], None], undisturbed: Path, workers: tuple[str, ...], expected: int = 0
    ) -> dict[str, Any]:
        """Run a suite to its end, and return the facts about it; ``expected`` is the exit code of the command."""
        try:
            for name in workers:
                each.dask.start_worker(name)
            begun = time.monotonic()
            each.begin()
            each.until_moment()
            disturb(each)
            while True:
                if each.process is not None:
                    each.wait()
                if each.codes[-1] == expected or len(each.codes) == MOST_COMMANDS:
                    break
                each.begin()
            row = {**each.facts, "exit codes": each.codes, "seconds": round(time.monotonic() - begun, 1)}
            row["runs"] = finished(each.results)
        finally:
            if each.process is not None:
                each.process.kill()
            each.dask.stop()
        try:
            same_tables(each.results / "mine", undisturbed / "mine")
            row["equal"] = each.codes[-1] == expected
        except AssertionError as error:
            row |= {"equal": False, "differ": str(error)}
        told = ("not used", "not done", "lost", "gone", "anew", "no scheduler", " on small, ", "Error")
        row["output"] = [line for line in each.output.splitlines() if any(part in line for part in told)][-20:]
        return row


def good_suite() -> str:
    """Return a suite of runs that end well, with tuning and step costs."""
    text = SUITE.format(
        plugins=json.dumps(PLUGINS),
        reported=[1, 2, 3],
        tuned="[learning_rates]\ngrid = [0.003, 0.01]",
        rounds=2,
        limits="",
        steps=STEPS,
    )
    return text + "".join(_slow(k) for k in range(2))


def bad_suite(name: str, share: float) -> tuple[str, dict[str, Any]]:
    """Return a suite in which the run of one method goes wrong, and where; ``share`` draws its place and step."""
    places = 6
    place = int(share * places)
    step = int((share * places - place) * (STEPS - LAST_STEPS))
    balancers = [_slow(k) for k in range(places - 1)]
    balancers.insert(place, BALANCER.format(name=BAD[name][0], label=BAD[name][0], options=f"after = {step}"))
    text = SUITE.format(plugins=json.dumps(PLUGINS), reported=[1], tuned="", rounds=0, limits=BAD[name][1], steps=STEPS)
    return text + "".join(balancers), {"method": place, "step": step}


def _slow(k: int) -> str:
    return BALANCER.format(name="slow", label=f"slow {k}", options=f"seconds = {0.008 + k / 1000}")


def _table(rows: list[dict[str, Any]]) -> str:
    """Return the numbers of tries and equal tables, the most calls of the command, and the median of the seconds."""
    lines = [f"{'disturbance':14} tries  equal  commands  seconds"]
    for name in dict.fromkeys(row["disturbance"] for row in rows):
        own = [row for row in rows if row["disturbance"] == name]
        equal, commands = sum(row["equal"] for row in own), max(len(row["exit codes"]) for row in own)
        seconds = statistics.median(row["seconds"] for row in own)
        lines.append(f"{name:14} {len(own):5}  {equal:5}  {commands:8}  {seconds:7.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    app()
