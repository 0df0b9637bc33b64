"""Make all tables of the evidence from what is kept of its parts.

The tables are those of a results folder: the base tables of table A and of the reserved problems, what every suite
derives from them, and what only the evidence has. Parts that are not there yet are named, and nothing is claimed before
all controls are there.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd

import tasks
from bench.analysis import (
    Roles,
    SuiteTables,
    balancing_claims,
    chord_excess,
    delta_m,
    derived_tables,
    detectable_effects,
    doubling,
    equivalent_steps,
    free_comparisons,
    gates,
    passed_gates,
    paying_methods,
    pooled_comparisons,
    pooled_scores,
    primary_rows,
    step_length,
    training_scores,
)
from bench.run import suite_text
from bench.run.suite_text import SuiteText
from bench.suite import suite_file

from . import kept_tables
from .evidence_parts import TABLES, is_kept, missing, part_name, planned
from .evidence_rows import ONLY_STATIC, RELATIVE, EvidenceRows, evidence_rows

PARTS = ["table", "problem", "there"]
PRACTICE = {
    "one over the initial loss": ("name", "inverse-loss"),
    "one over the initial gradient norm": ("name", "inverse-norm"),
    "uncertainty weighting": ("name", "uncertainty"),
    "best learned weighting": ("family", "learned"),
    "Gramian at the features": ("family", "Gramian at the features"),
    "Gramian at the parameters": ("family", "Gramian at the parameters"),
}
"""The columns of the table for a practitioner, and the column and value of `EvidenceRows.table` that each consists of.

Of several methods, it shows the one with the best validation score in tuning, so that no test score chooses.
"""
VERDICTS = ("better", "worse", "tie", "not settled")
EQUAL_TO_CONSTANT = ("equal_to_constant", "equal_to_constant_low", "equal_to_constant_high")
"""The columns of the table of problems that compare equal weighting with the constant predictor."""


@dataclass(frozen=True)
class _Suite:
    """A suite of the evidence as written, with its rows and the parts that are kept of it."""

    table: str
    written: SuiteText
    rows: EvidenceRows
    parts: pd.DataFrame
    base: SuiteTables | None
    others: Mapping[str, pd.DataFrame]

    @property
    def controls(self) -> set[str]:
        """The labels of the problems that are controls."""
        return {label for label, name in planned(self.table).items() if tasks.get(name).control}

    @property
    def roles(self) -> Roles:
        """The roles of the rows."""
        return self.written.roles(TABLES[self.table])

    @property
    def planned_tests(self) -> int:
        """The number of methods times that of problems that are not controls, as the suite's file has them."""
        return len(self.rows.of_kind("method")) * (len(self.parts) - len(self.controls))

    @property
    def constants(self) -> dict[str, float]:
        """The constant predictors' primary test scores that are known, by problem.

        They are 1 by definition for the scores in `RELATIVE`. For a score that is the mean of the tasks' metrics, it is
        the mean of what the table of baselines has for the constant predictor. Others are not kept.
        """
        assert self.base is not None
        baselines = self.others.get("baselines", pd.DataFrame(columns=["problem", "constant", "equal"]))
        scores = self.base.scores
        final = scores[(scores["phase"] == "reported") & (scores["checkpoint"] == "last") & (scores["split"] == "test")]
        of_equal = primary_rows(final[final["balancer"] == self.rows.equal], self.base.problems)
        found = {}
        for problem, primary in zip(self.base.problems["problem"], self.base.problems["primary"], strict=True):
            of_tasks = baselines.loc[baselines["problem"] == problem, ["constant", "equal"]].astype(float)
            constant, equal = of_tasks.mean(skipna=False)
            score = of_equal.loc[of_equal["problem"] == problem, "value"].astype(float).mean()
            if primary in RELATIVE:
                found[str(problem)] = 1.0
            elif np.isfinite(constant) and np.isclose(equal, score, rtol=1e-6):
                found[str(problem)] = float(constant)
        return found


def make(kept: Path, reserved: bool = True) -> dict[str, pd.DataFrame]:
    """Return the tables by name, from the parts in the folder ``kept``.

    Args:
        kept: The folder.
        reserved: Whether the reserved problems that are kept are read; if not, they count as missing.

    Raises:
        FileNotFoundError: There is no part of table A.
    """
    short, published, untouched = (_read(table, kept, reserved or table != "reserved") for table in TABLES)
    if short.base is None:
        raise FileNotFoundError(f"{kept} has no part of table A; python -m bench.evidence run makes them")
    rows = short.rows
    checked = gates(short.base, rows.equal_by_factor, [label for label in rows.same_length if label != rows.equal])
    passed = passed_gates(checked) if short.controls <= set(checked["problem"]) else None
    both = [each for each in (short, untouched) if each.base is not None]
    base = _joined(both)
    tables = {name.name: getattr(base, name.name) for name in fields(SuiteTables)}
    del tables["curves"], tables["constants"]  # which are not kept
    tables |= derived_tables(base, short.roles)
    del tables["target"]  # time-to-target is not for suites with several lengths of training: rule 18
    if "delta_m" in tables:  # it is summarised over problems, and the reserved ones stand apart
        tables["delta_m"] = delta_m(short.base.scores, short.base.metrics)
    if baselines := [each.others["baselines"] for each in both if "baselines" in each.others]:
        tables["baselines"] = pd.concat(baselines, ignore_index=True)
    of_each = [_of_suite(each, passed) for each in both]
    tables |= {name: pd.concat([made[name] for made in of_each], ignore_index=True) for name in of_each[0]}
    tables["comparisons"] = pd.concat(_comparisons(short, published, untouched), ignore_index=True)
    if published.base is not None:
        common = set(published.base.problems["problem"]) & set(short.base.problems["problem"])
        ours, theirs = (_only(each, common) for each in (short.base, published.base))
        both_rows = published.rows.same_length
        tables["step_length"] = step_length(ours, theirs, rows.equal, both_rows)
        tables["free"] = free_comparisons(ours, theirs, rows.equal, both_rows)
    tables["gates"], tables["rows"] = checked, rows.table
    tables["parts"] = pd.concat([each.parts for each in (short, published, untouched)], ignore_index=True)
    tables["practice"] = _practice(tables["pays"], base, rows)
    tables["counts"] = _counts(tables, short, passed)
    return tables


def make_so_far(kept: Path) -> dict[str, pd.DataFrame]:
    """Return the tables by name, without the reserved problems while a part of A or B is missing; see `make`."""
    return make(kept, reserved=not missing(kept))


def _read(table: str, kept: Path, counts: bool) -> _Suite:
    """Read what is kept of a table; nothing if it does not count."""
    written = suite_text.read(suite_file.find(TABLES[table]))
    there = {label: counts and is_kept(table, label, kept) for label in planned(table)}
    parts = pd.DataFrame([(table, label, is_there) for label, is_there in there.items()], columns=PARTS)
    rows = evidence_rows(TABLES[table], written)
    if not any(there.values()):
        return _Suite(table, written, rows, parts, None, {})
    base, others = kept_tables.joined(kept / part_name(table, label) for label in there if there[label])
    return _Suite(table, written, rows, parts, base, others)


def _joined(suites: Sequence[_Suite]) -> SuiteTables:
    """Join the tables of suites.

    The table of problems gets these columns:

    - ``reserved`` marks those of the reserved suite, and ``only_static`` those on which only the comparison with static
      weights counts;
    - ``constant`` is the constant predictor's score, and ``equal_to_constant`` with its interval the comparison of
      equal weighting with it, on ``constant_scale``; ``equal_is_worse`` is true if the verdict is "worse". They are
      not-a-number and false if that score is not known;
    - ``chord`` is the factor by which interpolation can make q too large, see `chord_excess`.
    """
    marked = [replace(each.base, problems=_with_facts(each, each.base)) for each in suites if each.base is not None]
    names = [each.name for each in fields(SuiteTables)]
    return SuiteTables(
        **{name: pd.concat([getattr(each, name) for each in marked], ignore_index=True) for name in names}
    )


def _with_facts(suite: _Suite, base: SuiteTables) -> pd.DataFrame:
    """Return the table of problems of a suite with the columns that `_joined` states."""
    constants = suite.constants
    rows = []
    for problem in base.problems["problem"]:
        (scores,) = pooled_scores(problem, base)
        constant = constants.get(problem, np.nan)
        row = {"constant": constant, "constant_scale": scores.scale, "equal_is_worse": False, "chord": np.nan}
        if np.isfinite(constant) and suite.rows.equal in scores.values:
            found = scores.against_score(suite.rows.equal, constant)
            row |= {"equal_to_constant": found.mean, "equal_to_constant_low": found.low}
            row |= {"equal_to_constant_high": found.high, "equal_is_worse": found.verdict == "worse"}
        factors = sorted(suite.rows.equal_by_factor)
        lengths = [suite.rows.equal_by_factor[factor] for factor in factors]
        if set(lengths) <= set(scores.values):
            row["chord"] = chord_excess(scores.badness[lengths].dropna().mean().to_numpy(), factors)
        rows.append(row)
    names = ["constant", "constant_scale", *EQUAL_TO_CONSTANT, "equal_is_worse", "chord"]
    facts = pd.DataFrame(rows, index=base.problems.index).reindex(columns=names)
    marked = base.problems.assign(
        reserved=suite.table == "reserved", only_static=base.problems["problem"].isin(ONLY_STATIC)
    )
    return pd.concat([marked, facts], axis=1)


def _only(tables: SuiteTables, problems: Collection[str]) -> SuiteTables:
    """Return the tables without problems that are not among ``problems``."""
    names = [each.name for each in fields(SuiteTables)]
    return SuiteTables(**{name: (frame := getattr(tables, name))[frame["problem"].isin(problems)] for name in names})


def _of_suite(suite: _Suite, passed: Collection[str] | None) -> dict[str, pd.DataFrame]:
    """Return the tables of one suite's problems; the claims on it are corrected for its own number of planned tests."""
    base, rows, tests = suite.base, suite.rows, suite.planned_tests
    assert base is not None
    statics, methods = rows.of_kind("static"), rows.of_kind("method")
    roles = {label: suite.roles.by_label[label] for label in methods}
    claimable = [label for label in methods if passed is None or label in passed]
    steps = equivalent_steps(base, rows.equal_by_factor, rows.same_length)
    return {
        "equivalent_steps": steps,
        "doubling": doubling(base, rows.equal_by_factor),
        "claims": balancing_claims(
            base, rows.equal, statics, roles, passed, tests, ONLY_STATIC, constants=suite.constants
        ),
        "detectable": detectable_effects(base, rows.equal, statics, claimable, tests, ONLY_STATIC),
        "pays": paying_methods(steps, base),
        "training_scores": training_scores(base, rows.equal, list(rows.table["balancer"])),
    }


def _comparisons(*suites: _Suite) -> list[pd.DataFrame]:
    """Return the comparisons with equal weighting of each table."""
    return [
        pooled_comparisons(each.base, each.rows.equal, list(each.rows.table["balancer"])).assign(table=each.table)
        for each in suites
        if each.base is not None
    ]


def _practice(pays: pd.DataFrame, base: SuiteTables, rows: EvidenceRows) -> pd.DataFrame:
    """Return the rows of ``pays`` that the table for a practitioner shows, each with its ``column``."""
    chosen = base.selection[base.selection["chosen"].astype(bool)]
    means = chosen.set_index(["problem", "balancer"])["mean_validation_score"].astype(float)
    higher = base.problems.set_index("problem")["higher_is_better"].astype(bool)
    found = []
    for problem in base.problems.loc[~base.problems["control"].astype(bool), "problem"]:
        of_problem = pays[pays["problem"] == problem].set_index("balancer")
        for column, (by, value) in PRACTICE.items():
            labels = [
                label for label in rows.table.loc[rows.table[by] == value, "balancer"] if label in of_problem.index
            ]
            scores = {label: float(means.get((problem, label), np.nan)) for label in labels}
            finite = {label: score for label, score in scores.items() if np.isfinite(score)}
            if finite:
                best = (max if higher[problem] else min)(finite, key=lambda label: finite[label])
                found.append(
                    {"problem": problem, "column": column, "balancer": best, **of_problem.loc[best].drop("problem")}
                )
    return pd.DataFrame(found, columns=["problem", "column", *(each for each in pays.columns if each != "problem")])


def _counts(tables: Mapping[str, pd.DataFrame], suite: _Suite, passed: Collection[str] | None) -> pd.DataFrame:
    """Count over problems, separately for the evidence and the reserved problems; controls are not counted.

    Returns:
        One row per method, static row and random weights, confirmatory ones first: its ``role``; its ``gate``,
        "passes", "fails" or "not gated yet"; the number of ``problems``, those on which it is ``better``, ``worse``, a
        ``tie`` or ``not settled`` against equal weighting, ``claimed``, ``pays``, and those where training longer is
        better (``train_longer``).
    """
    roles = suite.roles.by_label
    labels = sorted(suite.rows.of_kind("static", "method", "control"), key=lambda each: roles[each] != "confirmatory")
    facts = tables["problems"]
    counted = []
    for reserved in (False, True):
        problems = facts.loc[~facts["control"].astype(bool) & (facts["reserved"].astype(bool) == reserved), "problem"]
        table = "reserved" if reserved else "A"
        compared, claims, pays = (tables[name] for name in ("comparisons", "claims", "pays"))
        compared = compared[(compared["table"] == table) & compared["problem"].isin(problems)]
        claims, pays = claims[claims["problem"].isin(problems)], pays[pays["problem"].isin(problems)]
        for label in labels:
            verdicts = compared.loc[compared["balancer"] == label, "verdict"]
            if verdicts.empty:
                continue
            of_label = pays.loc[pays["balancer"] == label, "verdict"]
            gate = "not gated yet" if passed is None else "passes" if label in passed else "fails"
            row = {"table": table, "balancer": label, "role": roles[label], "gate": gate, "problems": len(verdicts)}
            row |= {word.replace(" ", "_"): int((verdicts == word).sum()) for word in VERDICTS}
            row["claimed"] = int(claims.loc[claims["balancer"] == label, "claimed"].sum())
            row |= {"pays": int((of_label == "pays").sum()), "train_longer": int((of_label == "train longer").sum())}
            counted.append(row)
    columns = [
        "table",
        "balancer",
        "role",
        "gate",
        "problems",
        "better",
        "worse",
        "tie",
        "not_settled",
        "claimed",
        "pays",
        "train_longer",
    ]
    return pd.DataFrame(counted, columns=columns)
