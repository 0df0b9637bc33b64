"""Run the experiments of all claims, one after another, and write their tables and figures."""

from collections.abc import Collection, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.execute.progress import Progress
from bench.execute.workforce import Workforce
from bench.run import atomic_file
from bench.run.atomic_file import BadFileError
from bench.style.figure_style import save, theme
from bench.style.markdown_table import markdown_table
from bench.style.numbers import NOTHING
from bench.suite.claimed_folder import BusyError

from .claim import SETTINGS, Claim, Outcome, RateSetting, rows, stored_findings
from .claim_alpha import ALPHA
from .claim_growth import GROWTH
from .claim_overhead import OVERHEAD
from .claim_static import STATIC
from .claim_toy import ORDER, SCORE
from .claim_verdicts import ClaimVerdict
from .experiments import Effort, Lab

CLAIMS = (SCORE, ORDER, GROWTH, STATIC, ALPHA, OVERHEAD)
HEADER = ("GradNorm's claim", "one learning rate", "each tuned")
TEXT = ("short", "caption", "setting", "finding", "measured", "unit", "verdict", *SETTINGS)
"""Columns of the tables of claims and of findings that hold text."""
EMPTY = {column: [""] for column in ("value", "low", "high")}
"""Columns of numbers, and what stands there for a missing one."""


class Judged(NamedTuple):
    """A claim and the outcome of its experiment."""

    claim: Claim
    outcome: Outcome

    @property
    def verdicts(self) -> list[ClaimVerdict]:
        """Verdicts of both settings; the same verdict twice for a claim that does not depend on learning rates."""
        settings: tuple[RateSetting, ...] = ("",) if self.outcome.verdict("") else SETTINGS
        found = [verdict for setting in settings if (verdict := self.outcome.verdict(setting))]
        return found * (len(SETTINGS) // len(found))


def judge(
    folder: Path, scale: Effort, workforce: Workforce, console: Console, only: Collection[int] = ()
) -> Iterator[Judged]:
    """Run the experiments, and yield each claim as soon as it is judged.

    Results that are already in ``folder`` are not computed again.

    Args:
        folder: folder for the results.
        scale: how much is run.
        workforce: whoever does the runs.
        console: progress is shown here.
        only: numbers of the claims to judge; empty for all.

    Raises:
        BusyError: another process is working in ``folder``.
        EngineError: no further run can be done.
        NotDoneError: some runs were given up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / ".lock", timeout=0), Progress(console) as progress:
            atomic_file.remove_unfinished(folder)
            lab = Lab(folder, scale, workforce, progress)
            for claim in CLAIMS:
                if not only or claim.number in only:
                    lab.claim = f"claim {claim.number}"
                    yield Judged(claim, claim.experiment(lab))
            if lab.failed:
                console.print(f"{lab.failed} runs failed and count with an imputed score")
    except filelock.Timeout:
        raise BusyError(f"another process is at work in {folder}") from None


def stored(folder: Path) -> list[Judged]:
    """Return the claims that earlier calls judged and wrote into ``folder``, as far as their figures are still there.

    Raises:
        BadFileError: a table is damaged.
    """
    tables = folder / "tables"
    if not (tables / "claims.csv").is_file():
        return []
    claims, findings = (_read(tables / f"{name}.csv") for name in ("claims", "findings"))
    try:
        return [
            _stored(claim, row, findings[findings["claim"] == claim.number], tables)
            for claim in CLAIMS
            for row in claims[claims["claim"] == claim.number].to_dict("records")
            if (folder / "figures" / f"claim-{claim.number}.svg").is_file()
        ]
    except KeyError as error:
        raise BadFileError(f"claims.csv or findings.csv in {tables} is damaged: it has no column {error}") from error


def _stored(claim: Claim, row: Mapping[Hashable, Any], findings: pd.DataFrame, tables: Path) -> Judged:
    """Return a claim from its row in ``claims.csv`` and its ``findings``; earlier versions stored no caption."""
    table = _read(tables / f"claim-{claim.number}.csv")
    one = Judged(claim, Outcome(stored_findings(findings), None, row.get("caption", ""), table))
    if findings.empty or verdict_columns(one) != {setting: row[setting] for setting in SETTINGS}:
        raise BadFileError(f"claims.csv and findings.csv in {tables} differ on claim {claim.number}; remove claims.csv")
    return one


def merged(earlier: list[Judged], judged: list[Judged]) -> list[Judged]:
    """Return all claims in the order of their numbers: those ``judged`` now, and of the ``earlier`` ones the others."""
    by_number = {one.claim.number: one for one in (*earlier, *judged)}
    return [by_number[number] for number in sorted(by_number)]


def write(judged: list[Judged], folder: Path) -> None:
    """Write ``claims.csv`` and ``findings.csv``, and for each claim its figure and the table behind the figure.

    A figure that an earlier call has drawn stays, and so does its table.
    """
    tables = folder / "tables"
    for one in judged:
        if one.outcome.figure is not None:
            _write(one.outcome.table, tables / f"claim-{one.claim.number}.csv")
            with theme():
                save(one.outcome.figure(), folder / "figures", f"claim-{one.claim.number}")
    claims = [
        {"claim": one.claim.number, "short": one.claim.short, **verdict_columns(one), "caption": one.outcome.caption}
        for one in judged
    ]
    findings = [row for one in judged for row in rows(one.outcome.findings, one.claim)]
    _write(pd.DataFrame(claims), tables / "claims.csv")
    _write(pd.DataFrame(findings), tables / "findings.csv")


def verdict_columns(one: Judged) -> dict[str, str]:
    """Return the verdicts by setting."""
    return dict(zip(SETTINGS, one.verdicts, strict=True))


def table(judged: list[Judged]) -> Table:
    """Return the claims, findings and verdicts as a table for the terminal."""
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in ("", "claim and findings", "measured", "verdict"):
        shown.add_column(head, overflow="fold")
    for claim, outcome in judged:
        shown.add_section()
        shown.add_row(Text(str(claim.number), style="bold"), Text(claim.short, style="bold"))
        for setting in (*SETTINGS, ""):
            whole = outcome.verdict(setting)
            if whole is None:
                continue
            shown.add_row(
                "", Text(setting or "independent of learning rates", style="italic"), "", Text(whole, style="bold")
            )
            for one in outcome.findings:
                if one.setting == setting:
                    shown.add_row("", Text(f"  {one.text}"), Text(one.measured), Text(one.verdict or NOTHING))
    return shown


def markdown(claims: pd.DataFrame) -> str:
    """Return the Markdown table of verdicts for the documentation, from the table ``claims.csv``."""
    lines = [
        (f"{row['claim']}. {row['short']}", *(_emphasised(row[setting]) for setting in SETTINGS))
        for row in claims.to_dict("records")
    ]
    return markdown_table(HEADER, lines)


def _emphasised(verdict: str) -> str:
    return f"**{verdict}**" if verdict == "holds" else verdict


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype=dict.fromkeys(TEXT, str), keep_default_na=False, na_values=EMPTY)
    except (ValueError, OSError) as error:
        raise BadFileError(f"{path} can't be read: {error}") from error


def _write(frame: pd.DataFrame, path: Path) -> None:
    atomic_file.write(path, frame.to_csv(index=False, float_format="%.6g").encode())
