"""Write the evidence's main tables in Markdown, as the pages of the documentation show them."""

from collections.abc import Callable, Mapping
from functools import partial
from math import exp, nan

import pandas as pd

from bench.analysis import failed_gates
from bench.report.evidence_answer import equivalent, quotient
from bench.style import numbers
from bench.style.markdown_table import markdown_table

from .evidence_tables import PRACTICE

MARKS = {"better": "**", "worse": "*", "pays": "**", "train longer": "*"}
"""The mark on both sides of a number, by its verdict; other verdicts have none."""
FAILS = " †"
"""Follows the name of a row that fails the gate."""
RESERVED = " (reserved)"
"""Follows the name of a reserved problem where others stand beside it."""
Tables = Mapping[str, pd.DataFrame]


def score_table(tables: Tables, of: str = "A") -> str:
    """Return the scores relative to those of equal weighting, one row per row of the evidence.

    Static weights come first, then methods, then equal weighting at other lengths of training. The columns are the
    problems that are no controls. Bold numbers are better, those in italics are worse.

    Args:
        tables: What `evidence_tables.make` returns.
        of: The table of the evidence: A, B or reserved.
    """
    compared = tables["comparisons"][tables["comparisons"]["table"] == of]
    facts = tables["problems"]
    chosen = facts["problem"].isin(compared["problem"]) & ~facts["control"].astype(bool)
    problems = list(facts.loc[chosen, "problem"])
    cells = {
        (row["balancer"], row["problem"]): _marked(numbers.relative(row["scale"], row["relative"], nan, nan), row)
        for _, row in compared.iterrows()
    }
    failing = failed_gates(tables["gates"])
    kinds = tables["rows"].set_index("balancer")["kind"]
    labels = [label for kind in ("static", "method", "yardstick") for label in kinds.index[kinds == kind]]
    lines = [
        [f"{label}{FAILS if label in failing else ''}", *(cells.get((label, problem), "") for problem in problems)]
        for label in labels
        if any((label, problem) in cells for problem in problems)
    ]
    return markdown_table(["", *problems], lines)


def practice_table(tables: Tables, reserved: bool = False) -> str:
    """Return what a user gets for the time: *q/c*, or *q* alone where the steps were not timed.

    The rows are problems. Bold numbers lie above 1 with their interval, those in italics below it. The last four
    columns name the method that has the best validation score.

    Args:
        tables: What `evidence_tables.make` returns.
        reserved: Whether the rows are the reserved problems, in place of the others.
    """
    failing = failed_gates(tables["gates"])
    rows = tables["practice"].set_index(["problem", "column"])
    is_reserved = tables["problems"].set_index("problem")["reserved"].astype(bool)
    lines = []
    for problem in dict.fromkeys(tables["practice"]["problem"]):
        if is_reserved[problem] != reserved:
            continue
        line = [str(problem)]
        for column in PRACTICE:
            if (problem, column) not in rows.index:
                line.append("")
                continue
            row = rows.loc[(problem, column)]
            known = pd.notna(row["q_per_cost"])
            gain = quotient(row).replace(", ", ",\N{NO-BREAK SPACE}")  # an interval in one line
            text = _marked(gain, row) if known else f"*q* {equivalent(row, 'q_')}"
            by, label = PRACTICE[column][0], row["balancer"]
            line.append(f"{text} ({label}{FAILS if label in failing else ''})" if by == "family" else text)
        lines.append(line)
    return markdown_table(["", *PRACTICE], lines)


def memory_table(tables: Tables) -> str:
    """Return by what Adam's long memory, table B, multiplies a score that table A has with the short one.

    Each cell has the change of the score relative to that of equal weighting, and in parentheses the change of the
    score itself. Numbers are bold if their interval excludes no change. There is a row for each static row or method
    that is in both tables and passes its gate.

    Args:
        tables: What `evidence_tables.make` returns.
    """
    found = tables["step_length"]
    facts = tables["problems"]
    there = facts["problem"].isin(found["problem"]) & ~facts["control"].astype(bool)
    problems = list(facts.loc[there, "problem"])
    cells = {(row["balancer"], row["problem"]): _changes(row) for _, row in found.iterrows()}
    failing = failed_gates(tables["gates"])
    kinds = tables["rows"].set_index("balancer")["kind"]
    labels = [label for kind in ("static", "method") for label in kinds.index[kinds == kind] if label not in failing]
    lines = [
        [label, *(cells.get((label, problem), "") for problem in problems)]
        for label in labels
        if any((label, problem) in cells for problem in problems)
    ]
    return markdown_table(["", *problems], lines)


def _changes(row: pd.Series) -> str:
    texts = []
    for column, settled in (("change", "step_length"), ("own_change", "own_changes")):
        text = numbers.relative(row["scale"], row[column], nan, nan)
        texts.append(f"**{text}**" if row[settled] else text)
    return f"{texts[0]} ({texts[1]})"


WRITERS: Mapping[str, Callable[[Tables], str]] = {
    "scores": score_table,
    "practice": practice_table,
    "memory": memory_table,
    "reserved-scores": partial(score_table, of="reserved"),
    "reserved-practice": partial(practice_table, reserved=True),
}
"""The functions that write a table from those of the evidence, by the table's name."""


SIDES = {"advice": "rule", "opponent": "opponent"}
"""The word for who has the lower regret."""


def regret_table(regrets: pd.DataFrame) -> str:
    """Return what the rule of ``lossbench diagnose`` and its opponent advise, and the errors over the best candidate's.

    Args:
        regrets: A frame of `bench.evidence.tested_advice.REGRETS`. Problems that are not there are left out.
    """
    lines = [
        [
            f"{row['problem']}{RESERVED if row['reserved'] else ''}",
            *(str(row["advised"]), _over_best(row["regret"])),
            *(str(row["opponent"]), _over_best(row["opponent_regret"]), SIDES.get(str(row["lower"]), "neither")),
        ]
        for _, row in _there(regrets).iterrows()
    ]
    return markdown_table(["", "the rule advises", "error", "its opponent advises", "error", "better"], lines)


def candidate_table(regrets: pd.DataFrame, candidates: pd.DataFrame) -> str:
    """Return the mean and the largest error over the best candidate's, of each candidate, the opponent and the rule.

    The best candidate of the list was chosen on the problems that judge it. The opponent was not: it advises what is
    best on the other problems.

    Args:
        regrets: As for `regret_table`.
        candidates: What `bench.diagnose.regret.always` returns.
    """
    rows = list(candidates[["candidate", "regret", "worst_regret", "worst"]].itertuples(index=False, name=None))
    there = _there(regrets)
    for label, column in (
        ("*the best on the other problems*", "opponent_regret"),
        ("*what the rule chooses*", "regret"),
    ):
        worst = there.sort_values(column).iloc[-1]
        rows.append((label, there[column].mean(), worst[column], worst["problem"]))
    return markdown_table(
        ["always", "mean", "worst", "on"],
        ([str(label), f"{exp(mean):.2f}×", f"{exp(most):.2f}×", str(problem)] for label, mean, most, problem in rows),
    )


def _there(regrets: pd.DataFrame) -> pd.DataFrame:
    return regrets[regrets["there"].astype(bool)]


def _over_best(regret: float) -> str:
    return f"{exp(regret):.4f}×"


def _marked(text: str, row: pd.Series) -> str:
    mark = MARKS.get(row["verdict"], "")
    return f"{mark}{text}{mark}"
