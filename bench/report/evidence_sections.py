"""Make the page's tables that only the evidence has: q/c, gates, doubling, step length, claims, and the rest."""

from collections.abc import Callable, Collection, Mapping
from typing import TypedDict

import numpy as np
import pandas as pd

from bench.analysis.gates import MARGIN
from bench.style.numbers import NOTHING, counted, join, number, p_value, relative
from bench.style.short_label import short

from .evidence_answer import bare, equivalent, quotient
from .results_folder import Results


class JudgedCell(TypedDict):
    """A cell: its text, a quiet second and third line, a class for its looks, and the number to sort it by."""

    text: str
    below: list[str]
    looks: str
    sort: float | None


class JudgedRow(TypedDict):
    """A row, named by a method, a problem or both; ``place`` is the problem's position in the suite, None for none."""

    head: str
    method: str
    place: int | None
    cells: list[JudgedCell]


class JudgedTable(TypedDict):
    """A table of judged rows, and a ``note`` to print below it.

    ``columns`` are the positions of the problems that columns belong to, None for others.
    """

    header: list[str]
    columns: list[int | None]
    rows: list[JudgedRow]
    note: str


def cell(text: str, *below: str, looks: str = "", sort: float | None = None) -> JudgedCell:
    """Return a cell; ``text`` may hold an interval in brackets, which becomes the line below it."""
    first, _, bounds = text.partition(" [")
    lines = ([f"[{bounds}"] if bounds else []) + [line for line in below if line not in ("", NOTHING)]
    finite = None if sort is None or not np.isfinite(sort) else float(sort)
    return {"text": first, "below": lines, "looks": looks, "sort": finite}


def sections(results: Results) -> dict[str, JudgedTable | None]:
    """Return the page's tables by name; None for one without rows."""
    made = {name: make(results) for name, make in MAKERS.items()}
    return {name: table if table["rows"] else None for name, table in made.items()}


def practice(results: Results) -> JudgedTable:
    """Return the table of *q*/*c*: problems by choices of a practitioner."""
    table = results.tables["practice"]
    columns = list(dict.fromkeys(table["column"]))
    found = {(row["problem"], row["column"]): row for _, row in table.iterrows()}
    rows = [
        _row(
            results,
            problem,
            problem,
            [_choice(found.get((problem, column)), column, results.failed_gates) for column in columns],
        )
        for problem in results.problems_in(table)
    ]
    header = ["Problem", *(column[0].upper() + column[1:] for column in columns)]
    return _table(header, rows, note=chord_note(results))


def chord_note(results: Results) -> str:
    """Return a sentence on how much too large interpolation on a chord can make *q*; empty if it is not known."""
    facts = results.tables["problems"]
    if not results.has_claims:
        return ""
    chords = facts.loc[~facts["control"].astype(bool)].set_index("problem")["chord"].astype(float)
    excess = chords.dropna() - 1
    if excess.empty:
        return ""
    unknown = [str(problem) for problem in chords.index[chords.isna()]]
    except_for = f" (not known on {join(unknown)})" if unknown else ""
    least, most = (f"{100 * value:.0f}" for value in (excess.min(), excess.max()))
    return (
        "Between two lengths of training, q is interpolated on a straight line. A learning curve that flattens lies "
        f"below that line, so q comes out too large: by at most {least if least == most else f'{least} to {most}'} %, "
        f"depending on the problem{except_for}, measured against a power law through three neighbouring lengths. A q/c "
        "that exceeds 1 by less than this does not show that a method pays."
    )


def _choice(row: pd.Series | None, column: str, failed: Collection[str]) -> JudgedCell:
    if row is None:
        return cell(NOTHING)
    fails = row["balancer"] in failed
    named = fails or column.startswith(("best", "Gramian"))
    name = short(row["balancer"], 30) + " †" * fails if named else ""
    if not np.isfinite(float(row["cost"])):
        return cell(NOTHING, f"q {equivalent(row, 'q_')}", "c not timed", name)
    steps = f"q {equivalent(row, 'q_').partition(' ')[0]}, c {float(row['cost']):.2f}"
    looks = {"pays": "pays", "train longer": "longer"}.get(row["verdict"], "")
    return cell(quotient(row), row["verdict"], steps, name, looks=looks, sort=float(row["q_per_cost"]))


def gates(results: Results) -> JudgedTable:
    """Return the table of the gates: methods by controls."""
    table = results.tables["gates"]
    controls = results.problems_in(table)
    found = {(row["balancer"], row["problem"]): row for _, row in table.iterrows()}
    rows = []
    for label in results.balancers_in(table):
        passed = label not in results.failed_gates
        judged = cell("passes" if passed else "FAILS", looks="" if passed else "verdict-worse")
        rows.append(_row(results, label, None, [_gate(found.get((label, control))) for control in controls] + [judged]))
    return _table(["Method", *controls, "Gate"], rows, [None, *map(results.problems.index, controls), None])


def _gate(row: pd.Series | None) -> JudgedCell:
    if row is None:
        return cell(NOTHING)
    score = relative(row["scale"], row["relative"], row["relative_low"], row["relative_high"])
    verdict, looks = ("", "") if row["passes"] else ("fails", "verdict-worse")
    return cell(equivalent(row, bounds=MARGIN), verdict, f"score {score}", looks=looks, sort=row["q"])


def doubling(results: Results) -> JudgedTable:
    """Return the table of what twice the steps give equal weighting, with the smallest effect that seeds detect."""
    effects = results.tables["detectable"]
    detectable = dict(zip(effects["problem"], effects["detectable"].astype(float), strict=True))
    rows = []
    for _, row in results.tables["doubling"].iterrows():
        value = relative(row["scale"], row["doubling"], row["low"], row["high"])
        smallest = relative(row["scale"], detectable.get(row["problem"], np.nan), np.nan, np.nan)
        told = cell("converged" if row["converged"] else "not converged")
        cells = [cell(value, sort=row["doubling"]), told, cell(smallest), cell(str(row["seeds"]))]
        rows.append(_row(results, row["problem"], row["problem"], cells))
    return _table(["Problem", "Equal weighting for twice the steps", "Verdict", "Detectable effect", "Seeds"], rows)


def step_length(results: Results) -> JudgedTable:
    """Return the table of step length: in each cell the method's score in table A and in table B, and the change."""
    table = results.tables["step_length"]
    problems = results.problems_in(table)
    found = {(row["balancer"], row["problem"]): row for _, row in table.iterrows()}
    rows = [
        _row(results, label, None, [_change(found.get((label, problem))) for problem in problems])
        for label in results.balancers_in(table)
    ]
    return _table(["Method", *problems], rows, [None, *map(results.problems.index, problems)])


def _change(row: pd.Series | None) -> JudgedCell:
    if row is None:
        return cell(NOTHING)
    short_memory, published = bare(row, "short_memory"), bare(row, "as_published")
    change = relative(row["scale"], row["change"], row["change_low"], row["change_high"])
    own = f"own score {bare(row, 'own_change')}{'' if row['own_changes'] else ', not settled'}"
    verdict, looks = ("step length matters", "pays") if row["step_length"] else ("", "")
    return cell(f"{short_memory} → {published}", change, own, verdict, looks=looks, sort=float(row["change"]))


def claims(results: Results) -> JudgedTable:
    """Return the table of all tests of balancing, with what keeps each from being claimed."""
    rows = []
    for _, row in results.tables["claims"].iterrows():
        cells = [
            cell(row["problem"]),
            cell(row["role"]),
            _against(row, "relative", "relative_low", "relative_high"),
            _against(row, "static_relative", "static_low", "static_high", short(row["static"], 30)),
            *_p_values(row, results),
            _claim(row),
        ]
        rows.append(_row(results, row["balancer"], row["problem"], cells))
    header = ["Method", "Problem", "Role", "Against equal", "Against the best static row", "p", "p, corrected"]
    return _table([*header, "p, first seeds", "p, other seeds", "Verdict"], rows)


def _p_values(row: pd.Series, results: Results) -> list[JudgedCell]:
    """Return the cells of a test's p-values; empty ones unless the method's mean is better, as they are two-sided."""
    facts = results.tables["problems"].set_index("problem").loc[row["problem"]]
    higher, none = bool(facts["higher_is_better"]), 1 if row["scale"] == "ratio" else 0
    against = [row["static_relative"]] if facts["only_static"] else [row["relative"], row["static_relative"]]
    better = all(mean > none if higher else mean < none for mean in against)
    columns = ("p", "holm_p", "reported_p", "repeated_p")
    return [cell(p_value(row[column]), sort=row[column]) if better else cell(NOTHING) for column in columns]


def _claim(row: pd.Series) -> JudgedCell:
    """Return the cell that says whether a test is claimed, and what is to be said of the claim or against it."""
    if not row["claimed"]:
        return cell("not claimed", row["why_not"])
    exploratory = " (exploratory)" if row["role"] == "exploratory" else ""
    beside = {
        "worse": "worse than a constant predictor",
        "tie": "not shown to be better than a constant predictor",
        "not settled": "not shown to be better than a constant predictor",
    }
    return cell(f"claimed{exploratory}", beside.get(row["constant_verdict"], ""), looks="pays")


def free(results: Results) -> JudgedTable:
    """Return table C: each method with the better of the two memories, chosen on validation."""
    rows = []
    table = results.tables["free"]
    for _, row in table[table["verdict"] != ""].iterrows():
        verdict = cell(row["verdict"], looks=f"verdict-{row['verdict'].partition(' ')[0]}")
        chosen = [cell(row["table"]), cell(row["equal_table"])]
        cells = [cell(row["problem"]), *chosen, _against(row, "relative", "low", "high"), verdict]
        rows.append(_row(results, row["balancer"], row["problem"], cells))
    header = ["Method", "Problem", "Memory chosen", "Memory chosen for equal", "Against equal", "Verdict"]
    return _table(header, rows)


def training(results: Results) -> JudgedTable:
    """Return the table of training scores beside test scores, with the number of seeds and of failed runs."""
    rows = []
    for _, row in results.tables["training_scores"].iterrows():
        pairs = [
            cell(number(float(row[split])), bare(row, f"{split}_relative"), sort=float(row[split]))
            for split in ("train", "test")
        ]
        failed = f"{counted(int(row['failed']), 'run')} failed" if row["failed"] else ""
        seeds = cell(str(row["seeds"]), failed, sort=float(row["seeds"]))
        rows.append(_row(results, row["balancer"], row["problem"], [cell(row["problem"]), *pairs, seeds]))
    return _table(["Method", "Problem", "Training score", "Test score", "Seeds"], rows)


MAKERS: Mapping[str, Callable[[Results], JudgedTable]] = {
    "practice": practice,
    "gates": gates,
    "doubling": doubling,
    "step_length": step_length,
    "claims": claims,
    "free": free,
    "training": training,
}


def _table(
    header: list[str], rows: list[JudgedRow], columns: list[int | None] | None = None, note: str = ""
) -> JudgedTable:
    return {"header": header, "columns": columns or [None] * len(header), "rows": rows, "note": note}


def _row(results: Results, head: str, problem: str | None, cells: list[JudgedCell]) -> JudgedRow:
    method = head if head in results.balancers and head != problem else ""
    place = None if problem is None else results.problems.index(problem)
    return {"head": head, "method": method, "place": place, "cells": cells}


def _against(row: pd.Series, mean: str, low: str, high: str, *below: str) -> JudgedCell:
    """Return the cell of a comparison; ``mean``, ``low`` and ``high`` are its columns."""
    value = float(row[mean])
    return cell(relative(row["scale"], value, float(row[low]), float(row[high])), *below, sort=value)
