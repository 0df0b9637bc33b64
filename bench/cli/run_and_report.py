"""Run a suite for a command, report it, and say what failed."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.text import Text

from bench.suite.toml_table import SuiteError

from .user_errors import MOST_FAILURES, user_errors

if TYPE_CHECKING:
    from bench.execute.run_suite import Summary
    from bench.execute.workforce import Workforce
    from bench.suite.suite_entries import Suite


def file_of(name: str, results: Path | None = None) -> Path:
    """Return the file of a suite, which a folder of ``results`` may keep; check that it is a text."""
    from bench.run.suite_text import ENCODING
    from bench.suite import suite_file

    path = suite_file.find(name, results)
    try:
        path.read_text(encoding=ENCODING)
    except UnicodeDecodeError as error:
        raise SuiteError(f"{path} is not a text in UTF-8: {error}") from error
    return path


@contextmanager
def workforce(
    loaded: "Suite | None", jobs: int | None, scheduler: str | None, cluster: str | None, console: Console
) -> "Iterator[Workforce]":
    """Yield whoever does runs: the workers of a cluster if one is named, otherwise processes of this machine."""
    import joblib

    from bench.execute.job import EngineError
    from bench.execute.workforce import Workforce, visible_gpus

    def tell(sentence: str) -> None:
        console.print(Text(sentence))

    with user_errors(console):
        for option, given in (("--scheduler", scheduler), ("--cluster", cluster)):
            if given is not None and not given.strip():
                raise SuiteError(f"{option} is empty; is a variable of the shell not set?")
        if scheduler and cluster:
            raise SuiteError("give --scheduler or --cluster, not both")
        if jobs and (scheduler or cluster):
            raise SuiteError(
                "--jobs is for this machine; on a cluster, the workers say how many at a time (--nthreads)"
            )
        if scheduler or cluster:
            try:
                made = Workforce.at(scheduler, tell) if scheduler else Workforce.made_by(str(cluster), tell)
            except EngineError as error:
                raise SuiteError(str(error)) from error
        else:
            gpus = visible_gpus() if loaded is not None and loaded.device == "cuda" else []
            at_a_time = len(gpus) * loaded.runs_per_gpu if loaded is not None and gpus else joblib.cpu_count()
            made = Workforce.of(jobs or at_a_time, tell, gpus)
    with made:
        yield made


def run(loaded: "Suite", folder: Path, workers: "Workforce", console: Console, file: Path) -> None:
    """Run a suite, report it, and exit with 1 if a run failed whose own score the report shows.

    Args:
        loaded: the suite.
        folder: its results folder.
        workers: whoever does the runs.
        console: where the progress and the failures are printed.
        file: the user's file that the suite comes from.
    """
    from bench.execute import run_suite

    with user_errors(console):
        try:
            summary = run_suite.run(loaded, folder, workers, console, file)
        except KeyboardInterrupt:
            console.print("stopped; the same command continues from here")
            raise typer.Exit(130) from None
        report(folder)
    _print_summary(summary, folder, console)
    if summary.lacks_scores:
        raise typer.Exit(1)


def report(folder: Path) -> None:
    """Print the leaderboard and the short answer of a results folder, and write its page."""
    from bench.report import answer, leaderboard_terminal, report_page, results_folder

    leaderboard_terminal.print_leaderboard(folder)
    report_page.write(folder)
    for sentence in answer.answer(results_folder.load(folder)):
        Console(highlight=False, soft_wrap=True).print(Text(sentence))
    Console(soft_wrap=True).print(Text(f"report: {folder / 'report.html'}"))


def _print_summary(summary: "Summary", folder: Path, console: Console) -> None:
    """Print how many runs were done, how many were already stored, and which failed for what reason."""
    from bench.style.numbers import counted

    console.print(f"{summary.computed} runs computed, {summary.reused} already stored, {len(summary.failed)} failed")
    failures = Counter((run.planned.balancer, run.planned.problem, run.result.reason) for run in summary.failed)
    for (balancer, problem, reason), count in list(failures.items())[:MOST_FAILURES]:
        console.print(Text(f"  {balancer} on {problem}, {counted(count, 'run')}: {reason}"))
    if len(failures) > MOST_FAILURES:
        console.print(f"  and {sum(list(failures.values())[MOST_FAILURES:])} more, for other reasons")
    if tuning := len(summary.failed_tuning):
        console.print(f"  tuning runs among them, which only decide on learning rates and options: {tuning}")
    if summary.failed:
        console.print(Text(f"Failed runs are stored too; {folder / 'tables' / 'runs.csv'} lists their keys."))
        console.print(Text(f"To do a run again, remove {folder / 'runs' / 'KEY.parquet'} and repeat this command."))
