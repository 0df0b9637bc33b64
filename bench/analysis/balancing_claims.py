r"""Decide for which methods and problems it is claimed that balancing helps.

*Balancing helps m on p* is claimed if the method m is better on the problem p than equal weighting and better than all
static weights that were run on it. Beating equal weighting alone shows only that the tasks' scales matter, which a
constant sets right. Beating static weights alone shows nothing if they hurt. Each comparison is a paired t-test over
the seeds of both sets, and the largest of the p-values counts. They are two-sided. Where the method's mean is better in
every comparison, the largest is a valid p-value for "not better than all of them" (an intersection–union test), however
much the variances differ. Elsewhere the test has p = 1, so that a method that is worse helps no other one through
Holm's steps. Holm's rule corrects for the number of tests that were planned, methods times problems, so that a claim
does not depend on how many of them have been run.

A claim also needs

- the verdict "better" against equal weighting and against the best static row, so that no tie is claimed;
- a p-value of at most 0.05 in each of the two sets of seeds alone, uncorrected, in every comparison;
- a method that passes its gate (:mod:`bench.analysis.gates`).

The best static row is shown for its size. It decides on nothing but ties: it is chosen on the same test scores, and a
test against the chosen row alone would reject too often where the rows differ in their variance.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .hypothesis_tests import LEVEL, detectable_difference, holm, paired_p_value
from .intervals import Comparison
from .pooled_scores import SETS, PooledScores, pooled_scores
from .roles import Role
from .suite_tables import SuiteTables

AGAINST_EQUAL = ("relative", "relative_low", "relative_high", "relative_p")
AGAINST_STATIC = ("static_relative", "static_low", "static_high", "static_p")
AGAINST_CONSTANT = ("constant_relative", "constant_low", "constant_high", "constant_verdict")
P_OF_SETS = {phase: f"{phase}_p" for phase in SETS}
"""The columns of the p-values in each set of seeds alone."""
UNKNOWN = "unknown"
"""The verdict against a constant predictor whose score is not known."""
COLUMNS = [
    *("problem", "balancer", "role", "seeds", "scale", *AGAINST_EQUAL, "static", *AGAINST_STATIC, *AGAINST_CONSTANT),
    *("tests", "p", "holm_p", *P_OF_SETS.values(), "gate", "claimed", "why_not"),
]
DETECTABLE = ["problem", "seeds", "tests", "scale", "deviation", "detectable"]


@dataclass(frozen=True)
class _Tested:
    """A method's comparisons on a problem.

    Attributes:
        problem: The problem.
        balancer: The method.
        scores: The scores on the problem.
        equal: Equal weighting; None if it does not count.
        statics: The static rows that were run.
        static: The best of them.
    """

    problem: str
    balancer: str
    scores: PooledScores
    equal: str | None
    statics: tuple[str, ...]
    static: str

    @cached_property
    def gains(self) -> dict[str, pd.Series]:
        """By how much the method is better than each baseline that counts, by phase and seed."""
        baselines = (*((self.equal,) if self.equal is not None else ()), *self.statics)
        return {other: self.scores.gains(self.balancer, other) for other in baselines}

    @property
    def p(self) -> float:
        """The largest p-value over all seeds; 1 if a mean is not better."""
        if not all(gains.mean() > 0 for gains in self.gains.values()):
            return 1.0
        return float(np.max([paired_p_value(gains) for gains in self.gains.values()]))

    @cached_property
    def p_of_sets(self) -> dict[str, float]:
        """The largest p-value over each set of seeds; not-a-number if a comparison has fewer than two of its seeds."""
        return {
            phase: float(np.max([paired_p_value(_of_set(gains, phase)) for gains in self.gains.values()]))
            for phase in SETS
        }

    def better_in(self, phase: str) -> bool:
        """Check whether the method is better in every comparison on one set of seeds, each at the level 0.05."""
        return self.p_of_sets[phase] <= LEVEL and all(_of_set(gains, phase).mean() > 0 for gains in self.gains.values())

    @cached_property
    def shown(self) -> dict[str, Comparison]:
        """The comparisons with equal weighting, if that counts, and with the best static row."""
        others = [other for other in (self.equal, self.static) if other is not None]
        return {other: self.scores.against(self.balancer, other) for other in others}


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
    methods: Mapping[str, Role],
    gate_passed: Collection[str] | None,
    tests: int,
    only_static: Collection[str] = (),
    constants: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Test every method on every problem that is not a control, over both sets of seeds.

    Args:
        tables: ``problems`` and ``scores`` are read: those of short memory.
        equal: The label of equal weighting.
        statics: The labels of the static rows.
        methods: The roles of the methods to test, by their labels.
        gate_passed: The methods that pass their gate, see `bench.analysis.passed_gates`. None if a control has not been
            run yet; nothing is claimed then.
        tests: The number of tests that are planned. Those that are not in ``tables`` count as tests with p = 1.
        only_static: The problems on which a comparison with equal weighting says nothing. There, the comparisons with
            static weights decide alone.
        constants: The scores of the constant predictors that are known, by problem.

    Returns:
        A frame of ``COLUMNS``, in the order of ``problems`` and ``methods``; a method that was not run on a problem has
        no row there.

        - ``relative`` and ``static_relative`` compare the method with equal weighting and with the best static row,
          which ``static`` names. Each has a 95 % t-interval, not corrected for the number of tests, and a two-sided
          p-value.
        - ``constant_relative`` compares it with the constant predictor, in the same way; ``constant_verdict`` is
          `UNKNOWN` if the predictor's score is. No claim depends on it.
        - ``p`` is the largest p-value, over equal weighting where it counts and over all static rows, or 1 if the
          method's mean is not better than that of each. ``holm_p`` is the same, corrected for ``tests``. ``reported_p``
          and ``repeated_p`` are the largest in each set of seeds alone.
        - ``gate``: the method passes its gate.
        - ``claimed``: ``why_not`` is empty.
        - ``why_not``: the first of these that keeps it from being claimed: "not gated yet", "gate", "not better than
          equal", "not better than static" (the mean is not better than that of every static row), "a tie" (with equal
          weighting or the best static row), "not settled" (``holm_p``), "not repeated" (a set of seeds has no runs),
          "not in both sets" (a set of seeds alone does not show it).

    Raises:
        ValueError: A method is also a baseline, a problem lacks equal weighting or all static rows, or there are more
            tests than were planned.
    """
    tested = list(_tested(tables, equal, statics, methods, only_static))
    if len(tested) > tests:
        raise ValueError(f"{len(tested)} tests were run, but {tests} were planned")
    p_values = [each.p for each in tested]
    corrected = holm([*p_values, *[np.nan] * (tests - len(tested))])[: len(tested)]
    rows = []
    for each, p, holm_p in zip(tested, p_values, corrected, strict=True):
        row = _comparisons(each, equal) | _against_constant(each, (constants or {}).get(each.problem))
        why_not = _why_not(each, holm_p, gate_passed)
        row |= {"role": methods[each.balancer], "tests": tests, "p": p, "holm_p": holm_p}
        row |= {column: each.p_of_sets[phase] for phase, column in P_OF_SETS.items()}
        gate = gate_passed is not None and each.balancer in gate_passed
        rows.append(row | {"gate": gate, "claimed": not why_not, "why_not": why_not})
    return pd.DataFrame(rows, columns=COLUMNS)


def detectable_effects(
    tables: SuiteTables,
    equal: str,
    statics: Sequence[str],
    methods: Collection[str],
    tests: int,
    only_static: Collection[str] = (),
) -> pd.DataFrame:
    """Return the smallest effect on each problem that the seeds detect with 80 % power at Holm's first step.

    The standard deviation of a paired difference is the median over the methods, for the differences to equal weighting
    and for those to the best static row; the larger of the two counts. The effect follows from it by
    `detectable_difference`. It is that of one comparison: a claim needs several and therefore a larger effect.

    Args:
        tables: ``problems`` and ``scores`` are read.
        equal: The label of equal weighting.
        statics: The labels of the static rows.
        methods: The labels of the methods whose deviations are read: those of which something can be claimed.
        tests: The number of tests that are planned.
        only_static: The problems on which the comparison with static weights decides alone.

    Returns:
        A frame of ``DETECTABLE``. ``deviation`` is on the scale of comparisons (of logarithms for "ratio").
        ``detectable`` is an improvement, stated as comparisons are: a factor below 1 for "ratio", else a signed
        difference.
    """
    tested = list(_tested(tables, equal, statics, methods, only_static))
    rows = []
    for problem in dict.fromkeys(each.problem for each in tested):
        of_problem = [each for each in tested if each.problem == problem]
        scores = of_problem[0].scores
        shown = [other for other in (of_problem[0].equal, of_problem[0].static) if other is not None]
        gains = {other: [each.gains[other] for each in of_problem] for other in shown}
        deviation = max(float(np.median([gain.std(ddof=1) for gain in of_other])) for of_other in gains.values())
        seeds = min(len(gain) for of_other in gains.values() for gain in of_other)
        row = {"problem": problem, "seeds": seeds, "tests": tests, "scale": scores.scale, "deviation": deviation}
        rows.append(row | {"detectable": scores.on_scale(-detectable_difference(deviation, seeds, tests))})
    return pd.DataFrame(rows, columns=DETECTABLE)


def _tested(
    tables: SuiteTables, equal: str, statics: Sequence[str], methods: Collection[str], only_static: Collection[str]
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
        there = tuple(label for label in statics if label in scores.values)
        for balancer in present:
            yield _Tested(problem, balancer, scores, None if problem in only_static else equal, there, static)


def _of_set(gains: pd.Series, phase: str) -> NDArray[np.float64]:
    """Return the gains on one set of seeds."""
    return gains.to_numpy(dtype=float)[gains.index.get_level_values("phase") == phase]


def _comparisons(tested: _Tested, equal: str) -> dict[str, object]:
    """Return the columns of a test that compare the method with equal weighting and with the best static row."""
    scores, balancer = tested.scores, tested.balancer
    seeds = min(map(len, tested.gains.values()))
    row: dict[str, object] = {"problem": tested.problem, "balancer": balancer, "seeds": seeds, "scale": scores.scale}
    for columns, other in ((AGAINST_EQUAL, equal), (AGAINST_STATIC, tested.static)):
        if other in scores.values:
            found = tested.shown.get(other) or scores.against(balancer, other)
            gains = tested.gains[other] if other in tested.gains else scores.gains(balancer, other)
            row |= zip(columns, (found.mean, found.low, found.high, paired_p_value(gains)), strict=True)
    return row | {"static": tested.static}


def _against_constant(tested: _Tested, constant: float | None) -> dict[str, object]:
    """Return the columns of a test that compare the method with a constant predictor of this score."""
    if constant is None:
        return dict(zip(AGAINST_CONSTANT, (np.nan, np.nan, np.nan, UNKNOWN), strict=True))
    found = tested.scores.against_score(tested.balancer, constant)
    values = (found.mean, found.low, found.high, found.verdict or UNKNOWN)
    return dict(zip(AGAINST_CONSTANT, values, strict=True))


def _why_not(tested: _Tested, holm_p: float, gate_passed: Collection[str] | None) -> str:
    """Return the first reason that keeps a method from being claimed; empty if there is none."""
    worse = [other for other, gains in tested.gains.items() if not gains.mean() > 0]
    repeated = all(set(SETS) <= set(gains.index.get_level_values("phase")) for gains in tested.gains.values())
    reasons = {
        "not gated yet": gate_passed is None,
        "gate": gate_passed is not None and tested.balancer not in gate_passed,
        "not better than equal": tested.equal in worse,
        "not better than static": bool(set(worse) & set(tested.statics)),
        "a tie": any(found.verdict == "tie" for found in tested.shown.values()),
        "not settled": not holm_p <= LEVEL,
        "not repeated": not repeated,
        "not in both sets": not all(tested.better_in(phase) for phase in SETS),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
