"""Test the advice of ``lossbench diagnose`` on the evidence: each candidate's gain, and the regret of the advice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

import tasks
from bench.analysis import SuiteTables, pooled_scores
from bench.diagnose import gradient_profile, regret, rule, rule_verdict
from bench.suite.suite_entries import ProblemEntry

from . import evidence_parts
from .evidence_rows import EvidenceRows

RANGES = ["candidate", "q_low", "q_high", "cost_low", "cost_high"]
FACTS = ["problem", "advised", "norm_ratio", "cosine"]
REGRETS = ["problem", "reserved", "there", *FACTS[1:], *regret.COLUMNS[3:], "verdict"]


@dataclass(frozen=True)
class AdviceJudgement:
    """The regrets of the advice and of each candidate, and a sentence on what they amount to.

    Attributes:
        regrets: A frame of `REGRETS`, with a row for each problem that the advice is judged on. ``there`` is false, and
            all numbers are missing, where there are no scores yet. ``verdict`` is that of
            `bench.diagnose.rule_verdict`, the same in all rows.
        always: What `bench.diagnose.regret.always` returns for the problems that are there.
        sentence: That of `bench.diagnose.rule_verdict`.
    """

    regrets: pd.DataFrame
    always: pd.DataFrame
    sentence: str


def candidate_ranges(pays: pd.DataFrame, problems: pd.DataFrame, rows: EvidenceRows) -> pd.DataFrame:
    """Return the range of *q* and of a step's cost over problems, for each candidate.

    Args:
        pays: What `bench.analysis.paying_methods` returns.
        problems: The table of problems. Controls are left out.
        rows: The rows of the evidence.

    Returns:
        A frame of ``RANGES``. A candidate without a measured cost on one of its problems has no row.
    """
    wanted = problems.loc[~problems["control"].astype(bool), "problem"]
    ranges = []
    for candidate in rule.CANDIDATES:
        of_rows = pays[pays["problem"].isin(wanted) & pays["balancer"].isin(rows.candidates[candidate])]
        places = of_rows["balancer"].map(rows.candidates[candidate].index)
        each = of_rows.assign(place=places).sort_values("place", kind="stable").drop_duplicates("problem")
        if len(each) and each["cost"].notna().all():
            ranges.append((candidate, each["q"].min(), each["q"].max(), each["cost"].min(), each["cost"].max()))
    return pd.DataFrame(ranges, columns=RANGES)


def advised(problems: Sequence[ProblemEntry]) -> pd.DataFrame:
    """Profile each problem with its suite's recipe, and return what the rule advises: a frame of ``FACTS``.

    Raises:
        ProfileError: A problem can't be profiled.
    """
    found = []
    for entry in problems:
        profile = gradient_profile.measure(entry.name, entry.options, recipe=entry.recipe)
        conflict = rule.strongest_conflict(profile)
        cosine = float("nan") if conflict is None else conflict.cosine
        found.append((entry.label, rule.advise(profile).candidate, rule.norm_spread(profile).ratio, cosine))
    return pd.DataFrame(found, columns=FACTS)


def planned_problems() -> dict[str, bool]:
    """Return the problems that the advice is judged on by their labels, and whether each is reserved.

    These are all problems of the suites' files that are not controls, whether or not they were run.
    """
    return {
        label: table == "reserved"
        for table in ("A", "reserved")
        for label, name in evidence_parts.planned(table).items()
        if not tasks.get(name).control
    }


def judge(tables: SuiteTables, facts: pd.DataFrame, rows: EvidenceRows, planned: Mapping[str, bool]) -> AdviceJudgement:
    """Compute the regrets of the advice and of its opponent.

    Args:
        tables: ``problems`` and ``scores`` are read.
        facts: What `advised` returns. The opponent learns from these problems alone; that of a reserved problem also
            from the other reserved ones.
        rows: The rows of the evidence.
        planned: What `planned_problems` returns. While a problem of these is not among the ``facts``, the verdict is
            not decided.

    Raises:
        ValueError: A problem is not planned; or see `bench.diagnose.regret.regrets`.
    """
    if unknown := sorted(set(facts["problem"]) - set(planned)):
        raise ValueError(f"the advice is not judged on {unknown[0]}")
    reserved = {problem for problem, is_reserved in planned.items() if is_reserved}
    scores = pd.concat([_scores(problem, tables, rows) for problem in facts["problem"]], ignore_index=True)
    ours = facts[~facts["problem"].isin(reserved)]
    parts = [_regrets(scores, ours)]
    if len(ours) < len(facts):
        everything = _regrets(scores, facts)
        parts.append(everything[everything["problem"].isin(reserved)])
    found = pd.concat(parts, ignore_index=True).drop(columns=["fold", "advised"]).merge(facts, on="problem")
    table = pd.DataFrame({"problem": list(planned), "reserved": list(planned.values())})
    table["there"] = table["problem"].isin(found["problem"])
    table = table.merge(found, on="problem", how="left")
    table["verdict"] = rule_verdict.verdict(table)
    return AdviceJudgement(table[REGRETS], regret.always(scores), rule_verdict.sentence(table))


def _regrets(scores: pd.DataFrame, facts: pd.DataFrame) -> pd.DataFrame:
    advice: Mapping[str, str] = dict(zip(facts["problem"], facts["advised"], strict=True))
    of_these = scores[scores["problem"].isin(list(advice))]
    return regret.regrets(of_these, advice, {problem: problem for problem in advice})


def _scores(problem: str, tables: SuiteTables, rows: EvidenceRows) -> pd.DataFrame:
    """Return the scores of all candidates on a problem, as `regret.regrets` reads them."""
    (pooled,) = pooled_scores(problem, tables)
    named = {}
    for candidate in rule.CANDIDATES:
        row = next((label for label in rows.candidates[candidate] if label in pooled.values), None)
        if row is not None:
            named[candidate] = pooled.values[row]
    wide = pd.DataFrame(named).rename_axis(columns="candidate").reset_index()
    long = wide.melt(["phase", "seed"], var_name="candidate", value_name="value").dropna(subset="value")
    return long.assign(problem=problem, higher_is_better=pooled.higher_is_better)
