"""DWA and SoftAdapt, against their formulas on the means of whole periods; DWA also against TorchJD.

Differences from TorchJD: a period ends by itself after a number of steps, where TorchJD's caller ends it; means of zero
give finite weights.
"""

import itertools
import math

import numpy as np
import pytest
import torch

from balancers.dynamic_average import DynamicWeightAverage
from balancers.soft_adapt import SoftAdapt


def sequence(num_tasks: int, steps: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.exp(generator.standard_normal(num_tasks) + 0.5 * generator.standard_normal((steps, num_tasks)))


def run(balancer, losses: np.ndarray) -> np.ndarray:
    weights = []
    for row in losses:
        balancer(torch.tensor(row, requires_grad=True)).backward()
        weights.append(balancer.weights.numpy())
    return np.stack(weights)


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def by_period(losses: np.ndarray, period: int, first: float, weigh) -> np.ndarray:
    """Return the weights of each step: ``first`` in two periods, then ``weigh`` of the last two means, older first."""
    means = [losses[t : t + period].mean(0) for t in range(0, len(losses), period)]
    weights = [np.full(losses.shape[1], first)] * 2 + [weigh(a, b) for a, b in itertools.pairwise(means)]
    return np.repeat(weights, period, axis=0)[: len(losses)]


@pytest.mark.parametrize("period", [1, 3])
def test_dwa_is_its_formula(period: int):
    for seed in range(30):
        losses, temperature = sequence(2 + seed % 4, 14, seed), [0.5, 2.0][seed % 2]
        num_tasks = losses.shape[1]
        found = run(DynamicWeightAverage(num_tasks, period=period, temperature=temperature), losses)
        expected = by_period(losses, period, 1.0, lambda a, b, k=num_tasks, t=temperature: k * softmax(b / a / t))
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.slow
def test_dwa_like_torchjd():
    scalarization = pytest.importorskip("torchjd.scalarization")
    for seed in range(200):
        losses, period = sequence(1 + seed % 5, 12, seed), 1 + seed % 3
        theirs, expected = scalarization.DWA(), []
        for step, row in enumerate(losses, start=1):
            leaf = torch.tensor(row, requires_grad=True)
            theirs(leaf).backward()
            expected.append(leaf.grad.numpy())
            if step % period == 0:
                theirs.step()
        found = run(DynamicWeightAverage(losses.shape[1], period=period), losses)
        np.testing.assert_allclose(found, np.stack(expected), rtol=1e-4)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("loss_weighted", [False, True])
@pytest.mark.parametrize("period", [1, 3])
def test_softadapt_is_its_formula(normalized: bool, loss_weighted: bool, period: int):
    for seed in range(20):
        losses, beta = sequence(2 + seed % 4, 14, seed), [0.1, 3.0, -1.0][seed % 3]

        def weigh(before: np.ndarray, last: np.ndarray, beta: float = beta) -> np.ndarray:
            s = last - before
            shares = np.exp(beta * (s / np.abs(s).sum() if normalized else s))
            shares = shares * last if loss_weighted else shares
            return shares / shares.sum()

        num_tasks = losses.shape[1]
        options = {"beta": beta, "normalized": normalized, "loss_weighted": loss_weighted}
        found = run(SoftAdapt(num_tasks, period=period, **options), losses)
        np.testing.assert_allclose(found, by_period(losses, period, 1 / num_tasks, weigh), rtol=1e-9)


def by_period_of_some(losses: list[dict[str, float]], period: int, total: float, weigh) -> np.ndarray:
    """Return the weights after each period, in which tasks may be missing, for three tasks a, b and c.

    ``weigh`` returns unnormalised weights for the two last means of the tasks that closed a period; they share what the
    others leave of ``total``.
    """
    means: dict[str, list[float]] = {task: [] for task in "abc"}
    weights, found = dict.fromkeys("abc", total / 3), []
    for start in range(0, len(losses), period):
        seen = {task: [row[task] for row in losses[start : start + period] if task in row] for task in "abc"}
        for task, values in seen.items():
            means[task] += [float(np.mean(values))] if values else []
        changed = [task for task in "abc" if seen[task] and len(means[task]) > 1]
        if changed:
            new = weigh(*(np.array([means[task][k] for task in changed]) for k in (-2, -1)))
            rest = total - sum(weights[task] for task in weights if task not in changed)
            weights |= dict(zip(changed, rest * new / new.sum(), strict=True))
        found.append(list(weights.values()))
    return np.array(found)


@pytest.mark.parametrize("period", [1, 3])
@pytest.mark.parametrize("method", ["dwa", "softadapt", "softadapt-normalized", "softadapt-weighted"])
def test_the_sum_stays_where_tasks_are_left_out(method: str, period: int):
    """The tasks that closed a period share what the others leave. Rates of other tasks do not count."""
    rows = sequence(3, 12 * period, 5)
    random = np.random.default_rng(2)
    present = [t for _ in range(12) for t in [random.random(3) < 0.6] * period]
    losses = [
        {task: row[i] for i, task in enumerate("abc") if given[i] or not given.any()}
        for row, given in zip(rows, present, strict=True)
    ]
    options = {"normalized": method == "softadapt-normalized", "loss_weighted": method == "softadapt-weighted"}

    def weigh(before: np.ndarray, last: np.ndarray) -> np.ndarray:
        if method == "dwa":
            return np.exp(last / before / 2.0)
        s = last - before
        shares = np.exp(2.0 * (s / max(np.abs(s).sum(), 1e-300) if options["normalized"] else s))
        return shares * last if options["loss_weighted"] else shares

    dwa = method == "dwa"
    make = DynamicWeightAverage if dwa else SoftAdapt
    balancer = make(list("abc"), period=period, **({} if dwa else {"beta": 2.0, **options}))
    found = []
    for step, row in enumerate(losses, start=1):
        balancer({task: torch.tensor(value, requires_grad=True) for task, value in row.items()}).backward()
        if step % period == 0:
            found.append(balancer.next_weights.numpy().copy())
    expected = by_period_of_some(losses, period, 3.0 if dwa else 1.0, weigh)
    assert len(np.unique(expected.round(6), axis=0)) > 4
    np.testing.assert_allclose(np.stack(found), expected, rtol=1e-9)
    np.testing.assert_allclose(np.stack(found).sum(1), 3.0 if dwa else 1.0)


@pytest.mark.filterwarnings("ignore:dwa is made for nonnegative losses:RuntimeWarning")
@pytest.mark.parametrize("earlier", [0.0, -1.0])
@pytest.mark.parametrize("later", [-3.0, 0.0, 5.0])
def test_dwa_counts_a_task_as_constant_whose_earlier_mean_is_zero_or_negative(earlier: float, later: float):
    weights = run(DynamicWeightAverage(2, period=1), np.array([[earlier, 1.0], [later, 2.0], [later, 2.0]]))
    np.testing.assert_allclose(weights[2], 2 * softmax(np.array([1.0, 2.0]) / 2.0), rtol=1e-9)


def test_scales_cancel_out():
    losses, scales = sequence(3, 9, 1), np.array([1e-3, 1.0, 1e3])
    dwa = run(DynamicWeightAverage(3, period=2), losses)
    np.testing.assert_allclose(run(DynamicWeightAverage(3, period=2), losses * scales), dwa, rtol=1e-9)
    normalized = run(SoftAdapt(3, period=2, normalized=True), losses)
    np.testing.assert_allclose(run(SoftAdapt(3, period=2, normalized=True), 7 * losses), normalized, rtol=1e-9)


METHODS = {
    "dwa": lambda tasks=2: DynamicWeightAverage(tasks, period=2),
    "softadapt": lambda tasks=2: SoftAdapt(tasks, period=2, beta=2.0),
    "softadapt-both": lambda tasks=2: SoftAdapt(tasks, period=2, normalized=True, loss_weighted=True),
}
methods = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)


@methods
def test_zero_losses_give_finite_weights(make):
    balancer = make()
    zeros, ones = np.zeros((4, 2)), np.ones((4, 2))
    assert np.isfinite(run(balancer, np.concatenate([zeros, ones, [[0.0, 1.0]] * 4, [[1.0, 1.0]] * 4]))).all()


@pytest.mark.parametrize("cls", [DynamicWeightAverage, SoftAdapt])
@pytest.mark.parametrize("period", [0, -1, 1.5])
def test_wrong_period(cls, period):
    with pytest.raises(ValueError, match="period is"):
        cls(2, period=period)


def test_wrong_options():
    for temperature in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="temperature is"):
            DynamicWeightAverage(2, temperature=temperature)
    for beta in (math.inf, math.nan):
        with pytest.raises(ValueError, match="beta is"):
            SoftAdapt(2, beta=beta)
