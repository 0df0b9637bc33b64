"""Write the section of a method's page that says how the method did in the evidence, problem by problem.

It reads the tables of `results/reference/core`, which `python -m bench.evidence tables` writes.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from page_text import heading, table

from bench.report import results_folder
from bench.report.evidence_answer import equivalent
from bench.report.results_folder import Results
from bench.style import numbers

FOLDER = Path(__file__).resolve().parents[2] / "results" / "reference" / "core"
KINDS = ("method", "static", "control")
"""Kinds of rows that have a section; the others are equal weighting at several lengths of training."""
TEXT = (
    "Final test scores relative to those of equal weighting, on fresh seeds, each at its own learning rate and with "
    "short-memory Adam, so that step length matters less; the gates check what is left. Brackets hold 95 % intervals. "
    "*Equivalent steps* say for how many times as long equal weighting has to train to reach the same score. "
    ":doc:`/results` has the rest."
)
FAILS = (
    "† fails the gate of a control, where there is nothing to balance, so its gains and losses elsewhere may come from "
    "the length of its steps."
)


def evidence(method: str) -> list[str]:
    """Return the section for a method, by its registered name; empty if the evidence has no row of it."""
    rows = _results().tables["rows"]
    if not _results().has_claims:
        return []
    labels = list(rows.loc[(rows["name"] == method) & rows["kind"].isin(KINDS), "balancer"])
    failed = _results().failed_gates.intersection(labels)
    cells = [(f"{label} †" if label in failed else label, *cell) for label in labels for cell in _cells(label)]
    if not cells:
        return []
    header = ("row", "problem", "score relative to equal weighting", "verdict", "equivalent steps")
    if len(labels) == 1 and not failed:  # the label is then the method's own name
        header, cells = header[1:], [cell[1:] for cell in cells]
    section = [heading("How it did in the evidence", "-"), f"{TEXT}\n", table(header, cells)]
    return [*section, f"{FAILS}\n"] if failed else section


def _cells(label: str) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each problem for one row of the evidence."""
    tables = _results().tables
    pages = tables["problems"].set_index("problem")["name"]
    steps = tables["pays"].set_index(["problem", "balancer"])
    compared = tables["comparisons"]
    for row in compared[(compared["balancer"] == label) & (compared["table"] != "B")].itertuples():
        here = (row.problem, label)
        yield (
            f":doc:`{row.problem} </problems/{pages[row.problem]}>`",
            numbers.relative(row.scale, row.relative, row.low, row.high),
            row.verdict or numbers.NOTHING,
            equivalent(steps.loc[here], "q_") if here in steps.index else numbers.NOTHING,
        )


@cache
def _results() -> Results:
    return results_folder.load(FOLDER)
