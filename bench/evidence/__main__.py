"""``python -m bench.evidence``: run the evidence part by part, time its steps, make its tables, repeat its runs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import joblib
import pandas as pd
import typer
from rich.console import Console
from rich.text import Text

from bench.analysis import SuiteTables
from bench.diagnose import kept_evidence
from bench.diagnose.gradient_profile import ProfileError
from bench.execute import run_suite
from bench.execute.job import EngineError
from bench.execute.run_suite import NotDoneError
from bench.execute.workforce import Workforce
from bench.report import report_page
from bench.run import atomic_file, machine_facts, suite_text
from bench.run.atomic_file import BadFileError
from bench.run.code_hash import ChangedCodeError
from bench.suite import suite_file
from bench.suite.claimed_folder import BusyError
from bench.suite.toml_table import SuiteError
from tasks import MissingDataError

from . import (
    evidence_folder,
    evidence_parts,
    evidence_tables,
    kept_tables,
    markdown_tables,
    repeated_runs,
    tested_advice,
)
from .evidence_parts import TABLES
from .evidence_rows import EvidenceRows, evidence_rows

CORES = joblib.cpu_count()
KEPT = machine_facts.ROOT / "results" / "reference" / "core"

Which = Literal["scores", "practice", "memory", "reserved-scores", "reserved-practice", "regrets", "candidates"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
PartsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="PART...", help="Parts, tables or problems: A/scenes, A, scenes.", show_default="all"),
]
ReservedOption = Annotated[
    bool,
    typer.Option(
        "--reserved", help="The reserved problems in place of the others. Refused until all parts of A and B are kept."
    ),
]
JobsOption = Annotated[int, typer.Option(min=0, help="Number of runs at a time here; 0: in this process.")]
SchedulerOption = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="Run on the workers of this Dask scheduler.")
]
ResultsOption = Annotated[Path, typer.Option(help="Folder that holds results folders.")]
KeptOption = Annotated[Path, typer.Option(help="Folder of the tables that are kept.")]
AdviceOutOption = Annotated[
    Path | None, typer.Option(help="Folder to write.", show_default="that of `lossbench diagnose`")
]


@app.command()
def run(
    only: PartsArgument = None,
    reserved: ReservedOption = False,
    jobs: JobsOption = CORES,
    scheduler: SchedulerOption = None,
    results: ResultsOption = Path("results"),
    kept: KeptOption = KEPT,
) -> None:
    """Do the runs of the evidence, and keep the tables of each part as it ends.

    A part of which some runs are not done is not kept, and the next ones
    follow. A stopped command continues where it stopped. Scores do not depend on what
    else the machine does; steps are timed by `costs`. The reserved problems are
    run last (rule 33 of the protocol): `--reserved` is refused until all parts
    of A and B are kept.

    Exit codes: 0, success; 1, some runs are not done; 2, nothing can be run.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    complete = True
    with _errors(console):
        _refuse_early(reserved, kept)
    with _errors(console), _workforce(jobs, scheduler, console) as workforce:
        for part in evidence_parts.parts(only or (), reserved):
            console.print(Text(part.name))
            folder = part.folder(results)
            try:
                summary = run_suite.run(part.suite, folder, workforce, console)
            except NotDoneError as error:
                _print_not_done(error, console)
                console.print(f"{error}, so this part is not kept")
                complete = False
                continue
            atomic_file.write(kept / part.name / "environment.json", (folder / "environment.json").read_bytes())
            kept_tables.keep(folder / "tables", kept / part.name)
            console.print(f"{summary.computed} runs computed, {summary.reused} already stored")
            for done in summary.failed:
                console.print(
                    Text(f"failed: {done.planned.balancer}, seed {done.planned.spec.seed}: {done.result.reason}")
                )
    if not complete:
        raise typer.Exit(1)


@app.command()
def costs(
    only: PartsArgument = None,
    reserved: ReservedOption = False,
    results: ResultsOption = Path("results"),
    kept: KeptOption = KEPT,
) -> None:
    """Time the steps of all methods of table A, or of the reserved problems. Nothing else should be running.

    `--reserved` is refused until all parts of A and B are kept.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with _errors(console):
        _refuse_early(reserved, kept)
    table = "reserved" if reserved else "A"
    rounds = suite_file.load(suite_file.find(TABLES[table])).cost_rounds
    with _errors(console), _workforce(1, None, console) as workforce:
        for part in evidence_parts.parts(only or [table], reserved):
            rows = run_suite.step_costs(
                replace(part.suite, cost_rounds=rounds), part.folder(results), workforce, console
            )
            atomic_file.write_parquet(kept / part.name / "costs.parquet", pd.DataFrame(rows))
            machine_facts.write(kept / part.name / evidence_folder.TIMED_ON, jobs=1)


@app.command()
def tables(
    kept: KeptOption = KEPT,
    out: Annotated[Path | None, typer.Option(help="Folder to write.", show_default=str(KEPT))] = None,
) -> None:
    """Make all tables from what is kept of the parts, and the page of the evidence.

    Parts that are not there yet are named. While one of table A is missing,
    only a folder that --out names is written. Reserved problems are left out
    until all parts of A and B are kept.

    Exit codes: 0, success; 2, there is no part of table A, or one is missing
    and --out is not given.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with _errors(console):
        if out is None and (lacking := evidence_parts.missing(kept, ["A"])):
            raise SuiteError(
                f"{KEPT} is for the tables of all problems, and {kept} lacks {', '.join(lacking)}; to see those of the "
                "others, name a folder with --out"
            )
        made = evidence_tables.make_so_far(kept)
        evidence_folder.write(made, kept, out or KEPT)
        ranges = tested_advice.candidate_ranges(made["pays"], made["problems"], _rows())
        if len(ranges):
            _write_for_diagnose(out, {kept_evidence.RANGES: ranges})
        absent = made["parts"][~made["parts"]["there"].astype(bool)]
        for table, problem in zip(absent["table"], absent["problem"], strict=True):
            console.print(Text(f"missing: {evidence_parts.part_name(table, problem)}"))
        console.print(Text(f"report: {report_page.write(out or KEPT)}"))


@app.command()
def markdown(
    which: Annotated[Which, typer.Argument(help="Which table.", show_default=False)], kept: KeptOption = KEPT
) -> None:
    """Print a table as the documentation shows it.

    `scores` are relative to those of equal weighting; `practice` is what a user
    gets for the time of a step; `memory` is how scores change with Adam's long
    memory; `reserved-scores` and `reserved-practice` are of the reserved problems;
    `regrets` and `candidates` are the result of `advice`, which comes with the
    package.

    Exit codes: 0, success; 2, there is no part of table A, or no result.
    """
    with _errors(Console(stderr=True, highlight=False, soft_wrap=True)):
        if which in markdown_tables.WRITERS:
            made = evidence_tables.make_so_far(kept)
            if which.startswith("reserved") and not made["problems"]["reserved"].any():
                raise SuiteError("no reserved problem is there: python -m bench.evidence run --reserved")
            typer.echo(markdown_tables.WRITERS[which](made))
            return
        regrets, candidates = kept_evidence.regrets(), kept_evidence.candidates()
        if regrets is None or candidates is None:
            raise SuiteError("there is no result yet; python -m bench.evidence advice makes it")
        regret_table = markdown_tables.regret_table(regrets)
        typer.echo(regret_table if which == "regrets" else markdown_tables.candidate_table(regrets, candidates))


@app.command()
def advice(kept: KeptOption = KEPT, out: AdviceOutOption = None) -> None:
    """Profile each problem that is kept, and compare the regret of the advice with that of its opponent.

    Reserved problems are left out until all parts of A and B are kept.

    Exit codes: 0, success; 2, a problem can't be profiled, or a candidate has no scores on it.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with _errors(console):
        made = evidence_tables.make_so_far(kept)
        there = set(made["problems"].loc[~made["problems"]["control"].astype(bool), "problem"])
        suites = [suite_file.load(suite_file.find(TABLES[table])) for table in ("A", "reserved")]
        facts = tested_advice.advised([entry for suite in suites for entry in suite.problems if entry.label in there])
        base = SuiteTables(problems=made["problems"], scores=made["scores"])
        try:
            judgement = tested_advice.judge(base, facts, _rows(), tested_advice.planned_problems())
        except ValueError as error:  # a candidate without scores
            raise SuiteError(str(error)) from error
        _write_for_diagnose(out, {kept_evidence.REGRETS: judgement.regrets, kept_evidence.CANDIDATES: judgement.always})
        console.print(Text(judgement.sentence))


@app.command()
def repeat(
    only: PartsArgument = None,
    reserved: ReservedOption = False,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds of each row.")] = 1,
    jobs: JobsOption = CORES,
    results: ResultsOption = Path("results"),
    kept: KeptOption = KEPT,
) -> None:
    """Repeat runs whose scores are kept, and tell which scores differ.

    On the same processor with the same versions, a score is the same to the last
    bit. Elsewhere rounding differs, and training lets small differences grow.

    Exit codes: 0, no score differs; 1, some do; 2, nothing can be repeated.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    differs = False
    with _errors(console):
        _refuse_early(reserved, kept)
    with _errors(console), _workforce(jobs, None, console) as workforce:
        for part in evidence_parts.parts(only or (), reserved):
            if not evidence_parts.is_kept(part.table, part.problem, kept):
                console.print(Text(f"missing: {part.name}"))
                continue
            runs = repeated_runs.planned(part, kept, seeds)
            found = repeated_runs.repeat(part, runs, kept, results / "evidence" / "repeated" / part.name, workforce)
            for line in found.lines:
                console.print(Text(line))
            differs = differs or len(found.differing) > 0
    if differs:
        raise typer.Exit(1)


def _refuse_early(reserved: bool, kept: Path) -> None:
    """Raise a `SuiteError` if reserved problems are asked for before all parts of A and B are kept."""
    if reserved and (missing := evidence_parts.missing(kept)):
        raise SuiteError(
            f"reserved problems come after all parts of A and B (rule 33 of the protocol); {kept} lacks "
            f"{', '.join(missing)}"
        )


def _write_for_diagnose(out: Path | None, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write tables that ``lossbench diagnose`` reads into its folder, or into ``advice`` in the folder ``out``."""
    for name, table in tables.items():
        path = (kept_evidence.FOLDER if out is None else out / "advice") / name
        atomic_file.write(path, table.to_csv(index=False).encode())


def _rows() -> EvidenceRows:
    return evidence_rows(TABLES["A"], suite_text.read(suite_file.find(TABLES["A"])))


@contextmanager
def _workforce(jobs: int, scheduler: str | None, console: Console) -> Iterator[Workforce]:
    def tell(sentence: str) -> None:
        console.print(Text(sentence))

    with Workforce.at(scheduler, tell) if scheduler else Workforce.of(jobs, tell) as workforce:
        yield workforce


@contextmanager
def _errors(console: Console) -> Iterator[None]:
    """Print an error that tells a user what to change, and end."""
    try:
        yield
    except NotDoneError as error:
        _print_not_done(error, console)
        raise typer.Exit(1) from None
    except EngineError as error:
        console.print(Text(f"error: {error}. What is finished is kept; the same command continues from there."))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("stopped; the same command continues from here")
        raise typer.Exit(130) from None
    except (SuiteError, BusyError, ProfileError, BadFileError, ChangedCodeError, MissingDataError, OSError) as error:
        console.print(Text(f"error: {error}"))
        raise typer.Exit(2) from None


def _print_not_done(error: NotDoneError, console: Console) -> None:
    for planned, why in error.runs:
        console.print(Text(f"not done: {planned.balancer} on {planned.problem}, seed {planned.spec.seed}: {why}"))


if __name__ == "__main__":
    app()
