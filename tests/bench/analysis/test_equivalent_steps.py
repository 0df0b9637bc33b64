"""Check equivalent steps against hand numbers and brute force, and how often their interval covers the true value."""

from dataclasses import astuple

import numpy as np
import pytest
from scipy import stats

from bench.analysis import EquivalentSteps, chord_excess, compare, doubling, equivalent_steps, match_steps

from .pooled_tables import LENGTHS, correlated, pooled_tables

FACTORS = tuple(LENGTHS)
LOGS = np.log(FACTORS)
FINE = np.unique(np.concatenate([np.linspace(LOGS[0], LOGS[-1], 6001), LOGS]))


def curve_through(nodes, deviation, seeds, random):
    """Return ``(own noise, curve)``: a curve with these mean scores at the lengths, and noise of 1 + k runs a seed."""
    noise = correlated(random, deviation, 1 + len(FACTORS), seeds)
    return noise[0], (np.asarray(nodes)[:, None] + noise[1:]).T


def brute_force(own, curve):
    """Return what `match_steps` says, by testing every point of a fine grid with scipy."""
    gaps = np.stack([one - np.interp(FINE, LOGS, scores) for one, scores in zip(own, curve, strict=True)])
    tests = stats.ttest_1samp(gaps, 0)
    mean, accepted = gaps.mean(axis=0), tests.pvalue > 0.05
    better, worse = ~accepted & (mean > 0), ~accepted & (mean < 0)
    q, beyond = FACTORS[-1], "above"
    if (mean >= 0).any():
        q = float(np.exp(FINE[(mean >= 0).argmax()]))
        beyond = "below" if mean[0] >= 0 else ""
    lengths = np.exp(FINE[accepted])
    if not accepted.any():
        flag, end = ("below", FACTORS[0]) if better.all() else ("above", FACTORS[-1])
        return EquivalentSteps(q, beyond, end, flag, end, flag)
    low = (lengths[0], "") if worse[0] else (FACTORS[0], "below")
    high = (FACTORS[-1], "above") if accepted[-1] or not better.any() else (lengths[-1], "")
    return EquivalentSteps(q, beyond, *low, *high)


class TestByHand:
    SEEDS = np.array([-0.01, 0.0, 0.01])
    LINE = 1 - LOGS  # falls by one for a factor of e

    def found(self, own, curve=LINE, spread=0.0):
        """Two curves that are parallel to each other for every seed, and a method with noise of its own."""
        return match_steps(own + self.SEEDS, np.stack([curve + spread * each for each in self.SEEDS]), FACTORS)

    def test_a_line_is_inverted_with_the_interval_of_the_score(self):
        # The gap's standard error is 0.01 / sqrt(3), t is 4.3027, and the curve's slope is one.
        half = 4.30265273 * 0.01 / np.sqrt(3)
        found = self.found(1 - np.log(1.5))
        assert (found.q, found.low, found.high) == pytest.approx((1.5, 1.5 * np.exp(-half), 1.5 * np.exp(half)))
        assert (found.beyond, found.low_beyond, found.high_beyond) == ("", "", "")

    def test_noise_that_a_seeds_runs_share_cancels(self):
        found = self.found(1 - np.log(1.5), spread=1.0)
        assert (found.low, found.high) == pytest.approx((1.5, 1.5))

    @pytest.mark.parametrize("part", [0.25, 0.7, 1.0, 1.9, 3.5])
    def test_interpolation_is_linear_in_the_logarithm_of_the_steps(self, part):
        bent = np.array([3.0, 2.0, 1.5, 1.4])
        own = float(np.interp(np.log(part), LOGS, bent))
        found = self.found(own, curve=bent)
        assert (found.q, found.beyond) == ((pytest.approx(part), "") if part > 0.5 else (0.5, "below"))

    def test_far_outside_both_ends_lie_beyond_the_same_length(self):
        assert astuple(self.found(3.0)) == (0.5, "below", 0.5, "below", 0.5, "below")
        assert astuple(self.found(-3.0)) == (4.0, "above", 4.0, "above", 4.0, "above")

    def test_near_an_end_only_that_end_is_flagged(self):
        below, above = self.found(1 - np.log(0.505)), self.found(1 - np.log(3.97))
        assert (below.beyond, below.low, below.low_beyond, below.high_beyond) == ("", 0.5, "below", "")
        assert (above.beyond, above.high, above.high_beyond, above.low_beyond) == ("", 4.0, "above", "")

    def test_equal_weighting_under_a_second_name_is_settled_at_one(self):
        own, curve = curve_through(self.LINE, 0.1, 20, np.random.default_rng(0))
        found = match_steps(curve[:, 1], curve, FACTORS)
        assert astuple(found) == pytest.approx((1, "", 1, "", 1, ""), abs=1e-6)
        assert found.q == 1.0
        assert own.shape == (20,)

    def test_a_curve_that_gets_worse_again_counts_until_its_first_crossing(self):
        valley = np.array([2.0, 1.0, 0.0, 2.0])
        found = self.found(0.5, curve=valley)
        assert found.q == pytest.approx(np.sqrt(2))
        # The second crossing, on the way back up, is accepted too; the hull has both.
        assert found.low == pytest.approx(np.sqrt(2), rel=0.03)
        assert found.high == pytest.approx(2 ** (1 + 0.25), rel=0.03)
        assert (found.low_beyond, found.high_beyond) == ("", "")

    def test_a_curve_that_never_gets_there_is_above_though_it_gets_worse_again(self):
        found = self.found(-0.005, curve=np.array([2.0, 1.0, 0.0, 2.0]))
        assert (found.q, found.beyond, found.high, found.high_beyond) == (4.0, "above", 4.0, "above")
        assert found.low == pytest.approx(2.0, rel=0.05)

    def test_a_flat_curve_says_nothing(self):
        found = self.found(1.0, curve=np.ones(4))
        assert (found.low_beyond, found.high_beyond) == ("below", "above")

    def test_one_seed_has_no_interval(self):
        found = match_steps(np.array([1 - np.log(3)]), self.LINE[None], FACTORS)
        assert found.q == pytest.approx(3)
        assert np.isnan([found.low, found.high]).all()

    def test_refuses_what_does_not_fit(self):
        with pytest.raises(ValueError, match="3 scores and 4 lengths don't fit a curve of shape"):
            match_steps(np.ones(3), np.ones((2, 4)), FACTORS)
        with pytest.raises(ValueError, match="positive and rising"):
            match_steps(np.ones(3), np.ones((3, 4)), FACTORS[::-1])


@pytest.mark.parametrize("seed", range(60))
def test_agrees_with_a_grid_of_tests(seed):
    """Curves of all shapes, monotone or not, with noise from small to overwhelming."""
    random = np.random.default_rng(seed)
    nodes = random.normal(size=4) if seed % 2 else -np.sort(random.normal(size=4))
    deviation = float(random.choice([0.03, 0.1, 0.5, 1.5]))
    noise, curve = curve_through(nodes, deviation, int(random.choice([3, 10, 20])), random)
    own = random.uniform(nodes.min() - 0.3, nodes.max() + 0.3) + noise
    found, expected = match_steps(own, curve, FACTORS), brute_force(own, curve)
    assert (found.beyond, found.low_beyond, found.high_beyond) == (
        expected.beyond,
        expected.low_beyond,
        expected.high_beyond,
    )
    numbers = [(each.q, each.low, each.high) for each in (found, expected)]
    assert numbers[0] == pytest.approx(numbers[1], rel=2e-3)
    order = {"below": -1, "": 0, "above": 1}
    assert (order[found.low_beyond], found.low) <= (order[found.beyond], found.q * (1 + 1e-9))
    assert (order[found.beyond], found.q * (1 - 1e-9)) <= (order[found.high_beyond], found.high)


class TestTables:
    def make(self, scores, **facts):
        return pooled_tables({"p": scores}, **facts)

    def test_losses_are_matched_on_logarithms_and_seeds_of_both_sets_count(self):
        random = np.random.default_rng(3)
        noise, curve = curve_through(1 - LOGS, 0.05, 20, random)
        own = 1 - np.log(1.7) + noise
        scores = {label: np.exp(column) for label, column in zip(LENGTHS.values(), curve.T, strict=True)}
        table = equivalent_steps(self.make({**scores, "m": np.exp(own)}), LENGTHS, ["m", "equal", "absent"])
        assert list(table["balancer"]) == ["m", "equal"]
        assert list(table["seeds"]) == [20, 20]
        expected = match_steps(own, curve, FACTORS)
        assert tuple(table.loc[0, ["q", "low", "high"]]) == pytest.approx((expected.q, expected.low, expected.high))
        assert tuple(table.loc[1, ["q", "beyond", "low", "low_beyond", "high", "high_beyond"]]) == (1, "", 1, "", 1, "")

    def test_a_score_where_more_is_better_is_matched_as_it_is(self):
        noise, curve = curve_through(LOGS, 0.05, 20, np.random.default_rng(4))
        own = np.log(1.7) + noise
        scores = dict(zip(LENGTHS.values(), curve.T, strict=True))
        table = equivalent_steps(self.make({**scores, "m": own}, higher=["p"]), LENGTHS, ["m"])
        expected = match_steps(-own, -curve, FACTORS)
        assert tuple(table.loc[0, ["q", "low", "high"]]) == pytest.approx((expected.q, expected.low, expected.high))

    def test_a_problem_without_the_longer_runs_has_no_rows(self):
        tables = self.make({"equal": [1.0, 1.1], "m": [0.9, 1.0]})
        assert equivalent_steps(tables, LENGTHS, ["m"]).empty
        assert doubling(tables, LENGTHS).empty

    @pytest.mark.parametrize(("factor", "converged"), [(0.97, True), (0.9, False), (1.2, True)])
    def test_doubling_of_a_loss_is_the_paired_ratio(self, factor, converged):
        random = np.random.default_rng(5)
        once = np.exp(correlated(random, 0.1, 1, 20)[0])
        twice = once * factor * np.exp(random.normal(scale=1e-3, size=20))
        row = doubling(self.make({"equal": once, LENGTHS[2.0]: twice}), LENGTHS).iloc[0]
        expected = compare(twice, once, higher_is_better=False, scale="ratio")
        assert (row["doubling"], row["low"], row["high"]) == pytest.approx((expected.mean, expected.low, expected.high))
        assert (row["scale"], row["seeds"], row["converged"]) == ("ratio", 20, converged)

    @pytest.mark.parametrize(("gain", "converged"), [(0.03, True), (0.06, False), (-0.2, True)])
    def test_doubling_of_an_accuracy_is_in_its_own_unit(self, gain, converged):
        once = np.linspace(0.7, 0.9, 20)
        row = doubling(self.make({"equal": once, LENGTHS[2.0]: once + gain}, higher=["p"]), LENGTHS).iloc[0]
        assert row["doubling"] == pytest.approx(gain)
        assert (row["scale"], row["converged"]) == ("difference", converged)


def power_law(log_factor):
    """Return the logarithm of a loss that falls to a floor; each doubling of the steps buys 15 % to 18 %."""
    return np.log(0.35 + 0.65 * np.exp(-0.42 * log_factor))


def valley(log_factor):
    """Return a score that is best at 1.8 times the steps and gets worse after that."""
    return 0.6 * (log_factor - np.log(1.8)) ** 2


def covered(found, truth):
    """Return whether the interval has the true equivalent steps, which lie beyond the ends below 0.5 and above 4."""
    if truth < 0.5:
        return found.low_beyond == "below"
    if truth > 4:
        return found.high_beyond == "above"
    above_low = found.low_beyond == "below" or (found.low_beyond == "" and found.low <= truth)
    return above_low and (found.high_beyond == "above" or (found.high_beyond == "" and truth <= found.high))


def coverage(curve_of, level, truth, deviation, seeds, repeats=2000):
    random = np.random.default_rng(seeds)
    hits = 0
    for _ in range(repeats):
        noise, curve = curve_through(curve_of(LOGS), deviation, seeds, random)
        hits += covered(match_steps(level + noise, curve, FACTORS), truth)
    return hits / repeats


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [10, 20])
@pytest.mark.parametrize("deviation", [0.03, 0.1, 0.2])
@pytest.mark.parametrize("truth", [0.49, 0.75, 1.0, 1.41, 2.0, 3.0, 4.1])
def test_covers_the_true_equivalent_steps_of_a_smooth_curve(truth, deviation, seeds):
    """A true q between two lengths also tests that a chord is close enough to the curve."""
    found = coverage(power_law, power_law(np.log(truth)), truth, deviation, seeds)
    assert found >= 0.93
    if 0.5 < truth < 4:  # beyond the ends, only one side can miss
        assert found <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [10, 20])
@pytest.mark.parametrize("deviation", [0.03, 0.2])
@pytest.mark.parametrize("level", [-0.1, 0.1, 0.5])
def test_covers_the_first_crossing_of_a_curve_that_is_not_monotone(level, deviation, seeds):
    """The lengths' own scores define the truth here, so that the coverage is that of the interval alone."""
    nodes = valley(LOGS)
    crossed = (FINE[np.interp(FINE, LOGS, nodes) <= level], [np.log(5)])
    truth = float(np.exp(np.concatenate(crossed)[0]))
    assert coverage(valley, level, truth, deviation, seeds) >= 0.935


class TestChord:
    @pytest.mark.slow
    @pytest.mark.parametrize(("offset", "size", "power"), [(-2.0, 0.3, 0.5), (-3.0, 1.0, 1.5), (0.0, 0.1, 3.0)])
    def test_the_excess_is_the_largest_error_on_a_power_law(self, offset, size, power):
        """Interpolate a method's q on the chords of a power law, at 2000 true values of q."""
        truths = np.exp(np.linspace(LOGS[0], LOGS[-1], 2002)[1:-1])
        nodes = offset + size * np.asarray(FACTORS) ** -power
        curve = np.tile(nodes, (2, 1))
        found = [match_steps(np.full(2, offset + size * truth**-power), curve, FACTORS).q for truth in truths]
        assert chord_excess(nodes, FACTORS) == pytest.approx(np.max(found / truths), rel=1e-4)

    def test_it_is_three_to_seven_percent_on_the_control_apart(self):
        """Mean logarithms of the scores of equal weighting on ``apart`` over its own, at the four lengths."""
        curve = [0.1886, 0.0, -0.1242, -0.18]
        assert chord_excess(curve, FACTORS) == pytest.approx(1.071, abs=0.001)
        assert chord_excess(curve[:3], FACTORS[:3]) == pytest.approx(1.037, abs=0.001)

    def test_a_curve_that_does_not_flatten_has_none(self):
        assert np.isnan(chord_excess([3.0, 2.0, 1.0, 0.0], FACTORS))
        assert np.isnan(chord_excess([0.0, 1.0, 0.5, 0.0], FACTORS))

    def test_lengths_that_do_not_rise_by_one_factor_are_refused(self):
        with pytest.raises(ValueError, match="expected them to rise by one factor"):
            chord_excess([3.0, 2.0, 1.5], [1, 2, 3])


def test_the_chord_of_a_flattening_curve_moves_the_estimate_little():
    """Without noise, the interpolated q is at least the true one between two lengths, and within two percent of it."""
    truths = np.exp(np.linspace(LOGS[0] + 1e-6, LOGS[-1] - 1e-6, 200))
    curve = np.tile(power_law(LOGS), (2, 1))
    found = np.array([match_steps(np.full(2, power_law(np.log(truth))), curve, FACTORS).q for truth in truths])
    assert np.max(found / truths) < 1.02
    assert np.min(found / truths) >= 1 - 1e-9
