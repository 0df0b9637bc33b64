r"""Judge advice by its regret: how far the advised candidate falls short of the best one, on other seeds.

Let :math:`\ell_A(c, p)` be the mean log score of candidate c on problem p over the seeds of set A, and
:math:`c^*_A(p)` the candidate with the lowest. The best is chosen on one set of seeds and judged on the other, so that
no candidate looks good by luck alone:

.. math:: r_{A \to B}(c, p) = \min\{\ell_B(c, p) - \ell_B(c^*_A(p), p), \log 4\}

The regret is the mean of this and of the same with both sets swapped. It is negative where the candidate beats what was
best on the other seeds.

The opponent of a fold always advises one candidate: the one whose mean regret
:math:`\min\{\ell_A(c, p) - \ell_A(c^*_A(p), p), \log 4\}` over all *other* folds is lowest, on the same set A that the
best is chosen on. Variants of a problem lie in one fold; a fold's regret is the mean over its problems. The opponent
therefore has seen no score of the problem that it advises on, just like the rule.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

CAP = math.log(4)
"""The largest regret that counts."""
SETS = ("reported", "repeated")
"""The phases of the two sets of seeds."""
NEEDED = 6
"""The number of folds, of seven, in which advice must have the lower regret."""
CELL = ["problem", "candidate", "phase"]
COLUMNS = ["problem", "fold", "advised", "regret", "opponent", "opponent_regret", "lower"]
ALWAYS = ["candidate", "regret", "worst", "worst_regret"]


@dataclass(frozen=True)
class AdviceVerdict:
    """In how many folds advice has a lower regret than its opponent, and in how many it needs to."""

    lower: int
    folds: int
    needed: int

    @property
    def succeeds(self) -> bool:
        """Whether it does in as many folds as are needed."""
        return self.lower >= self.needed


def regrets(scores: pd.DataFrame, advised: Mapping[str, str], folds: Mapping[str, str]) -> pd.DataFrame:
    """Return the regrets of the advice and of its opponent.

    Args:
        scores: One row per problem, candidate, phase (one of `SETS`) and seed, with its ``value`` and whether
            ``higher_is_better``. Failed runs already count as the protocol says.
        advised: The candidate that is advised on each problem.
        folds: The fold of each problem.

    Returns:
        A frame of ``COLUMNS``, one row per problem in the order of ``advised``. ``opponent`` is what the opponent
        advises; if that differs between the two sets of seeds, both, with the choice of the reported seeds first.
        ``lower`` is "advice", "opponent", or empty if both regrets are equal.

    Raises:
        ValueError: A score is not positive and finite, or higher is better; a candidate lacks seeds that another one
            has; a problem has no fold, an advised candidate no score; or there are fewer than two folds.
    """
    _check(scores, advised, folds)
    reported, repeated = _mean_logs(scores)
    rows = []
    directions = [(reported, repeated), (repeated, reported)]
    judged = [_beyond(of_judged, of_chosen.idxmin(axis=1)) for of_chosen, of_judged in directions]
    seen = [_beyond(of_chosen, of_chosen.idxmin(axis=1)) for of_chosen, _ in directions]
    for problem, candidate in advised.items():
        opponents = [_opponent(each, folds, folds[problem]) for each in seen]
        regret = _mean(each.at[problem, candidate] for each in judged)
        opponent_regret = _mean(each.at[problem, name] for each, name in zip(judged, opponents, strict=True))
        told = " / ".join(dict.fromkeys(opponents))
        lower = _lower(regret, opponent_regret)
        rows.append((problem, folds[problem], candidate, regret, told, opponent_regret, lower))
    return pd.DataFrame(rows, columns=COLUMNS)


def always(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the regret of each candidate if it were advised on all problems, the lowest first.

    The first is what the opponent advises on a problem that is none of these.

    Args:
        scores: As for `regrets`.

    Returns:
        A frame of `ALWAYS`: the mean regret over the problems, and the problem where it is largest, with that regret.
    """
    reported, repeated = _mean_logs(scores)
    both = (_beyond(repeated, reported.idxmin(axis=1)) + _beyond(reported, repeated.idxmin(axis=1))) / 2
    found = pd.DataFrame({"regret": both.mean(), "worst": both.idxmax(), "worst_regret": both.max()})
    return found.rename_axis("candidate").reset_index().sort_values("regret", kind="stable", ignore_index=True)[ALWAYS]


def _mean_logs(scores: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the mean log scores, problems by candidates, of each of `SETS`."""
    logs = scores.assign(log=np.log(scores["value"].astype(float))).groupby(CELL, sort=False)["log"].mean()
    reported, repeated = (logs.xs(phase, level="phase").unstack("candidate") for phase in SETS)
    return reported, repeated


def _beyond(logs: pd.DataFrame, best: pd.Series) -> pd.DataFrame:
    """Return how far each mean log score, problems by candidates, is beyond that of its problem's best; at most `CAP`.

    Args:
        logs: The scores of one set of seeds.
        best: The candidate that is best on each problem, by either set of seeds.
    """
    least = pd.Series([logs.at[problem, best[problem]] for problem in logs.index], logs.index)
    return logs.sub(least, axis=0).clip(upper=CAP)


def _opponent(seen: pd.DataFrame, folds: Mapping[str, str], fold: str) -> str:
    """Return the candidate with the lowest regret in the mean over all folds but ``fold``; the first if several do."""
    fold_of = pd.Series({problem: folds[str(problem)] for problem in seen.index})
    of_folds = seen[fold_of != fold].groupby(fold_of[fold_of != fold]).mean()
    return str(of_folds.mean().idxmin())


def _mean(values: Iterable[Any]) -> float:
    return float(np.mean(list(values)))


def verdict(table: pd.DataFrame, needed: int = NEEDED) -> AdviceVerdict:
    """Count the folds of a table of `regrets` in which the advice has the lower regret; a tie is not lower.

    Args:
        table: What `regrets` returns.
        needed: In how many folds the advice must be better to succeed.

    Raises:
        ValueError: There are fewer folds than are needed.
    """
    means = table.groupby("fold", sort=False)[["regret", "opponent_regret"]].mean()
    if len(means) < needed:
        raise ValueError(f"there are {len(means)} folds, but the advice must be better in {needed}")
    lower = sum(_lower(*pair) == "advice" for pair in means.itertuples(index=False))
    return AdviceVerdict(lower, len(means), needed)


def _lower(regret: float, opponent_regret: float) -> str:
    if math.isclose(regret, opponent_regret, rel_tol=1e-12, abs_tol=1e-12):
        return ""
    return "advice" if regret < opponent_regret else "opponent"


def _check(scores: pd.DataFrame, advised: Mapping[str, str], folds: Mapping[str, str]) -> None:
    """Raise the errors of `regrets`."""
    values = scores["value"].astype(float)
    for bad, why in (
        (scores["higher_is_better"].astype(bool), "has a score where higher is better"),
        (~(np.isfinite(values) & (values > 0)), "has a score that is not positive and finite"),
    ):
        if bad.any():
            raise ValueError(f"{scores.loc[bad, 'problem'].iloc[0]} {why}; a regret is a ratio of errors")
    if unknown := sorted(set(scores["phase"]) - set(SETS)):
        raise ValueError(f"phase is {unknown[0]!r}; expected {SETS[0]!r} or {SETS[1]!r}")
    if scores.duplicated([*CELL, "seed"]).any():
        raise ValueError("scores has two rows for one problem, candidate, phase and seed")
    if (problems := set(scores["problem"])) != set(advised):
        raise ValueError(f"scores and advised must have the same problems; only one has {problems ^ set(advised)}")
    if unplaced := [problem for problem in advised if problem not in folds]:
        raise ValueError(f"{unplaced[0]} is in no fold")
    if len({folds[problem] for problem in advised}) < 2:
        raise ValueError("there are fewer than two folds, so the opponent has no other problem to learn from")
    everyone = set(scores["candidate"])
    for problem, rows in scores.groupby("problem"):
        if advised[str(problem)] not in everyone:
            raise ValueError(f"{advised[str(problem)]!r}, advised on {problem}, is none of {sorted(everyone)}")
        seeds = rows.groupby(["candidate", "phase"])["seed"].agg(frozenset).unstack("phase").reindex(columns=list(SETS))
        if set(seeds.index) != everyone or seeds.isna().any(axis=None) or (seeds.nunique() > 1).any():
            raise ValueError(f"on {problem}, not every candidate has a score for each seed of both sets")
