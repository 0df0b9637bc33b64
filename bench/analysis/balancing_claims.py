r"""Decide for which methods and problems it is claimed that balancing helps.

*Balancing helps m on p* is claimed if the method m is better on the problem p than equal weighting and better than the
best static weights. Beating equal weighting alone shows only that the tasks' scales matter, which a constant sets
right. Beating static weights alone shows nothing if they hurt. Both are paired t-tests over the seeds of both sets, and
the larger of the two p-values counts: it is a valid p-value for "not better than both" (an intersection–union test).
Holm's rule corrects it for all methods and problems that are tested.

The best static row is chosen on the same test scores. Its mean is then too good on average, by the luck of the choice,
and a method is compared with that. This makes claims rarer, never more frequent: a method that is no better than the
truly best static weights is compared with a row that scores at least as well as these did.

A claim also needs the same sign on each of the two sets of seeds, and a method that passes its gate
(:mod:`bench.analysis.gates`).
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .hypothesis_tests import LEVEL, detectable_difference, holm, paired_p_value
from .pooled_scores import SETS, PooledScores, pooled_scores
from .suite_tables import SuiteTables

AGAINST_EQUAL = ("relative", "relative_low", "relative_high", "relative_p")
AGAINST_STATIC = ("static_relative", "static_low", "static_high", "static_p")
COLUMNS = [
    *("problem", "balancer", "seeds", "scale", *AGAINST_EQUAL, "static", *AGAINST_STATIC),
    *("p", "holm_p", "same_sign", "gate", "claimed", "why_not"),
]
DETECTABLE = ["problem", "seeds", "tests", "scale", "deviation", "detectable"]


@dataclass(frozen=True)
class _Tested:
    """A method's comparisons on a problem: with the baselines ``equal`` (None if it does not count) and ``static``."""

    problem: str
    balancer: str
    scores: PooledScores
    equal: str | None
    static: str

    @property
    def gains(self) -> list[pd.Series]:
        """By how much the method is better than each baseline that counts, by phase and seed."""
        return [self.scores.gains(self.balancer, other) for other in (self.equal, self.static) if other is not None]


def best_static(scores: PooledScores, statics: Sequence[str]) -> str:
    """Return the static row with the best mean on the scale of comparisons, over the seeds that all of them have.

    Of equally good rows it is the first. Rows that were not run on the problem do not count.

    Raises:
        ValueError: None was run.
    """
    present = [label for label in statics if label in scores.values]
    if not present:
        raise ValueError(f"none of the static rows {', '.join(statics)} has test scores on this problem")
    return str(scores.badness[present].dropna().mean().idxmin())


def balancing_claims(
    tables: SuiteTables,
    equal: str,
    statics: Sequence[str],
    methods: Sequence[str],
    gate_passed: Collection[str],
    only_static: Collection[str] = (),
) -> pd.DataFrame:
    """Test every method on every problem that is not a control, over both sets of seeds.

    Args:
        tables: ``problems`` and ``scores`` are read: those of short memory.
        equal: The label of equal weighting.
        statics: The labels of the static rows.
        methods: The labels of the methods to test.
        gate_passed: The methods that pass their gate, see `bench.analysis.passed_gates`.
        only_static: The problems on which a comparison with equal weighting says nothing, because it is worse than
            predicting a constant. There, the comparison with static weights decides alone.

    Returns:
        A frame of ``COLUMNS``, in the order of ``problems`` and ``methods``; a method that was not run on a problem has
        no row there and is not counted as a test.

        - ``relative`` and ``static_relative`` compare the method with equal weighting and with the best static row,
          which ``static`` names. Each has a 95 % t-interval, not corrected for the number of tests, and a two-sided
          p-value.
        - ``p`` is the larger p-value, ``holm_p`` the same corrected for all rows of the table.
        - ``same_sign``: both effects are improvements on each of the two sets of seeds.
        - ``gate``: the method passes its gate.
        - ``claimed``: better in both comparisons, ``holm_p`` at most 0.05, same sign, and gate passed.
        - ``why_not``: the first of these that keeps it from being claimed: "gate", "not better than equal", "not better
          than static", "not settled" (the p-value), "not repeated" (a set of seeds has no runs), "sign differs". Empty
          if it is claimed.

    Raises:
        ValueError: A method is also a baseline, or a problem lacks equal weighting or all static rows.
    """
    tested = list(_tested(tables, equal, statics, methods, only_static))
    p_values = [float(np.max([paired_p_value(gains) for gains in each.gains])) for each in tested]
    rows = [
        _row(each, equal, p, adjusted, each.balancer in gate_passed)
        for each, p, adjusted in zip(tested, p_values, holm(p_values), strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def detectable_effects(
    tables: SuiteTables,
    equal: str,
    statics: Sequence[str],
    methods: Sequence[str],
    only_static: Collection[str] = (),
) -> pd.DataFrame:
    """Return the smallest effect on each problem that the seeds detect with 80 % power at Holm's first step.

    The standard deviation of a paired difference is pooled over the methods: the root of the mean of their variances.
    This is done for the differences to equal weighting and for those to the best static row, and the larger of the two
    counts. The effect follows from it by `detectable_difference`. It is that of one comparison: a claim needs two and
    therefore a little more.

    Returns:
        A frame of ``DETECTABLE``. ``tests`` is the number of methods × problems that `balancing_claims` tests with the
        same arguments. ``deviation`` is on the scale of comparisons (of logarithms for "ratio"). ``detectable`` is an
        improvement, stated as comparisons are: a factor below 1 for "ratio", else a signed difference.
    """
    tested = list(_tested(tables, equal, statics, methods, only_static))
    rows = []
    for problem in dict.fromkeys(each.problem for each in tested):
        of_problem = [each for each in tested if each.problem == problem]
        scores = of_problem[0].scores
        # One entry per baseline: the variances of all methods' differences to it.
        baselines = zip(*([gains.var(ddof=1) for gains in each.gains] for each in of_problem), strict=True)
        deviation = max(float(np.sqrt(np.mean(variances))) for variances in baselines)
        seeds = min(len(gains) for each in of_problem for gains in each.gains)
        smallest = detectable_difference(deviation, seeds, len(tested))
        row = {"problem": problem, "seeds": seeds, "tests": len(tested), "scale": scores.scale}
        rows.append({**row, "deviation": deviation, "detectable": scores.on_scale(-smallest)})
    return pd.DataFrame(rows, columns=DETECTABLE)


def _tested(
    tables: SuiteTables, equal: str, statics: Sequence[str], methods: Sequence[str], only_static: Collection[str]
) -> Iterator[_Tested]:
    """Yield what is tested: all methods on all problems that are not controls."""
    if both := [label for label in methods if label == equal or label in statics]:
        raise ValueError(f"{', '.join(both)} is a baseline, and cannot be a method that is compared with it")
    for problem in tables.problems.loc[~tables.problems["control"].astype(bool), "problem"]:
        (scores,) = pooled_scores(problem, tables)
        present = [label for label in methods if label in scores.values]
        if not present:
            continue
        try:
            static = best_static(scores, statics)
        except ValueError as error:
            raise ValueError(f"{problem}: {error}") from error
        if equal not in scores.values and problem not in only_static:
            raise ValueError(f"{problem}: {equal} has no test scores to compare with")
        for balancer in present:
            yield _Tested(problem, balancer, scores, None if problem in only_static else equal, static)


def _row(tested: _Tested, equal: str, p: float, holm_p: float, gate: bool) -> dict[str, object]:
    """Return the row of a test."""
    scores, balancer = tested.scores, tested.balancer
    row: dict[str, object] = {"problem": tested.problem, "balancer": balancer, "static": tested.static}
    for columns, other in ((AGAINST_EQUAL, equal), (AGAINST_STATIC, tested.static)):
        if other in scores.values:
            found, alone = scores.against(balancer, other), paired_p_value(scores.gains(balancer, other))
            row |= zip(columns, (found.mean, found.low, found.high, alone), strict=True)
    means = [gains.groupby("phase").mean() for gains in tested.gains]
    repeated = all(set(SETS) <= set(mean.index) for mean in means)
    same_sign = repeated and all((mean > 0).all() for mean in means)
    reasons = {
        "gate": not gate,
        "not better than equal": tested.equal is not None and not tested.gains[0].mean() > 0,
        "not better than static": not tested.gains[-1].mean() > 0,
        "not settled": not holm_p <= LEVEL,
        "not repeated": not repeated,
        "sign differs": not same_sign,
    }
    why_not = next((reason for reason, holds in reasons.items() if holds), "")
    row |= {"seeds": min(map(len, tested.gains)), "scale": scores.scale, "p": p, "holm_p": holm_p}
    return row | {"same_sign": same_sign, "gate": gate, "claimed": not why_not, "why_not": why_not}
