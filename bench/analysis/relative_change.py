r"""Compute scores across problems: the relative change to single-task training, and its mean over problems and seeds.

The literature's :math:`\Delta_m` (Maninis, Radosavovic and Kokkinos, "Attentive Single-Tasking of Multiple Tasks", CVPR
2019, eq. 4) is the mean over tasks of the relative change of a task's metric, compared with the model trained on that
task alone, and signed so that positive is better. A task with several metrics counts once: its metrics are averaged
first, as in Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019, and later work.

Over problems it is summarised by the interquartile mean of all its values, which no single problem can dominate. The
bootstrap interval resamples seeds within each problem: Agarwal et al., "Deep Reinforcement Learning at the Edge of the
Statistical Precipice", NeurIPS 2021, section 4.3. Such an interval is for other seeds of *these* problems, and says
nothing about other problems.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from .intervals import CONFIDENCE, Estimate

NEAR_ZERO = 1e-9
"""A baseline smaller than this has no meaningful relative change."""
RESAMPLES = 4_000
"""Number of bootstrap samples."""


def delta_m(scores: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """Return the relative change of every reported run to single-task training with the same seed, in percent.

    Args:
        scores: The scores table; in rows of phase "baseline", ``balancer`` names the task that was trained alone.
        metrics: ``problem``, ``metric``, ``task``, ``higher_is_better``.

    Returns:
        ``problem``, ``balancer``, ``seed``, ``delta_m``. The change is averaged over a task's metrics, then over tasks,
        on the test split at the last checkpoint; positive is better. It is not-a-number if a value or a baseline is,
        or if a baseline is zero. A problem without single-task runs has no rows.
    """
    last = scores[(scores["checkpoint"] == "last") & (scores["split"] == "test") & scores["task"].notna()]
    alone = last[(last["phase"] == "baseline") & (last["balancer"] == last["task"])]
    beside = alone.set_index(["problem", "metric", "seed"])["value"].astype(float).rename("alone")
    ours = last[(last["phase"] == "reported") & last["problem"].isin(alone["problem"])]
    ours = ours.join(beside, on=["problem", "metric", "seed"])
    ours = ours.merge(
        metrics[["problem", "metric", "higher_is_better"]], on=["problem", "metric"], validate="many_to_one"
    )
    sign = np.where(ours["higher_is_better"].astype(bool), 100.0, -100.0)
    baseline = ours["alone"].where(ours["alone"].abs() > NEAR_ZERO)
    change = sign * (ours["value"].astype(float) - baseline) / baseline.abs()
    of_tasks = ours.assign(change=change).groupby(["problem", "balancer", "seed", "task"], sort=False)["change"]
    tasks = of_tasks.agg(lambda values: values.mean() if values.notna().all() else np.nan)
    of_runs = tasks.groupby(["problem", "balancer", "seed"], sort=False)
    runs = of_runs.agg(lambda values: values.mean() if values.notna().all() else np.nan)
    return runs.rename("delta_m").reset_index()


def mean_change(changes: pd.DataFrame, problems: pd.DataFrame, balancers: Sequence[str]) -> pd.DataFrame:
    """Return the interquartile mean of each method's relative change, over problems and seeds.

    Args:
        changes: The table that `delta_m` returns.
        problems: ``problem`` and ``control``; problems that are controls are left out.
        balancers: The labels in the suite's order.

    Returns:
        ``balancer``, ``delta_m``, ``low``, ``high``, ``problems``. The last is the list of the problems that count, the
        same for all methods: those on which some method has a value for every seed. The mean is not-a-number for a
        method that lacks one of the values.
    """
    others = set(problems.loc[~problems["control"].astype(bool), "problem"])
    finite = changes.groupby(["problem", "balancer"])["delta_m"].agg(lambda values: np.isfinite(values).all())
    usable = set(finite[finite.astype(bool)].index.get_level_values("problem")) & others
    kept = [problem for problem in problems["problem"] if problem in usable]
    rows = []
    for balancer in balancers:
        mine = changes[(changes["balancer"] == balancer) & changes["problem"].isin(kept)]
        values = mine.pivot(index="problem", columns="seed", values="delta_m").reindex(kept)
        if not mine.empty:
            found = interquartile_mean(values.to_numpy(dtype=float))
            row = {"balancer": balancer, "delta_m": found.mean, "low": found.low, "high": found.high}
            rows.append({**row, "problems": kept})
    return pd.DataFrame(rows, columns=["balancer", "delta_m", "low", "high", "problems"])


def interquartile_mean(values: NDArray[np.float64], seed: int = 0) -> Estimate:
    """Return the mean of the middle half of ``values``, ``(problems, seeds)``, with a 95 % interval for other seeds.

    The interval is Student's, with the standard error of a bootstrap that resamples seeds within each problem. Problems
    differ in their noise, and those in the middle count most. The degrees of freedom are therefore those of Welch and
    Satterthwaite for the problems' variances, computed after clipping the values to the ends of the middle half.

    With fewer than two seeds the bounds are not-a-number. If a value is not finite, mean and bounds are not-a-number.

    Args:
        values: ``(problems, seeds)``.
        seed: The seed of the bootstrap.

    Raises:
        ValueError: ``values`` is empty, or does not have two dimensions.
    """
    if values.ndim != 2 or not values.size:
        raise ValueError(f"values has shape {values.shape}; expected (problems, seeds), neither of them 0")
    if not np.isfinite(values).all():
        return Estimate(np.nan, np.nan, np.nan)
    mean = float(stats.trim_mean(values, 0.25, axis=None))
    problems, seeds = values.shape
    if seeds < 2:
        return Estimate(mean, np.nan, np.nan)
    drawn = np.random.default_rng(seed).integers(seeds, size=(RESAMPLES, problems, seeds))
    samples = np.take_along_axis(np.broadcast_to(values, (RESAMPLES, problems, seeds)), drawn, axis=2)
    means = stats.trim_mean(samples.reshape(RESAMPLES, -1), 0.25, axis=1)
    cut, ordered = values.size // 4, np.sort(values, axis=None)
    variances = values.clip(ordered[cut], ordered[-cut - 1]).var(axis=1, ddof=1)
    if not variances.any():
        return Estimate(mean, mean, mean)
    freedom = variances.sum() ** 2 / (variances**2).sum() * (seeds - 1)
    # Resampling n seeds underestimates their variance by (n - 1)/n.
    error = float(means.std()) * np.sqrt(seeds / (seeds - 1))
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)) * error
    return Estimate(mean, mean - half, mean + half)
