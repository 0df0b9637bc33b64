"""Test claim 3: whether uncertainty weighting's weights keep growing, and whether long training deteriorates."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.analysis import Estimate, compare, t_interval
from bench.run.training import RunResult

from . import claims_figures
from .claim import SETTINGS, Claim, Finding, Outcome, RateSetting
from .claim_toy import STEPS, UNCERTAINTY
from .claim_verdicts import above, of_comparison
from .experiments import Bench, Lab, bench

LONGER = 3
"""Number of steps, as a multiple of claim 1's."""
EVALUATIONS = 60
WINDOW = 3
"""Number of evaluations in a window, over which scores are averaged."""
PROBLEMS = tuple(bench(T, "regression", EVALUATIONS, LONGER * STEPS, sigmas=T) for T in ("T=2", "T=10"))


def growth(lab: Lab) -> Outcome:
    """Run the experiment of claim 3."""
    findings, curves = [], []
    for setting in SETTINGS:
        for on in PROBLEMS:
            results, best = _runs(lab, on, setting)
            findings += [_grows(setting, on, results), _deteriorates(setting, on, results, best)]
            of_setting = claims_figures.curves({"uncertainty": results}, on.problem.primary)
            curves.append(of_setting.assign(setting=setting, problem=on.label))
    table = pd.concat(curves, ignore_index=True)
    caption = (
        f"Uncertainty weighting for {LONGER} times as many steps: the sum of its weights, and the task-normalised "
        f"loss on the validation split. Line: geometric mean over {len(lab.scale.few_seeds)} seeds; band: lowest to "
        "highest."
    )
    return Outcome(findings, lambda: claims_figures.growth(table), caption, table)


def _runs(lab: Lab, on: Bench, setting: RateSetting) -> tuple[list[RunResult], int]:
    """Return the reported runs, and the start of the window in which the tuning seeds' score is lowest."""
    seeds = lab.scale.tuning_seeds[:1]
    lr = on.recipe.lr
    if setting == "tuned":
        stage = f"learning rates, {on.label}"
        rates = lab.choose(stage, on, {"uncertainty": lambda _: UNCERTAINTY}, seeds, lab.scale.grid)
        lr = rates["uncertainty"]
    others = lab.results(f"best step, {on.label}", [on.run(UNCERTAINTY, seed, "tuning", lr) for seed in seeds])
    reported = [on.run(UNCERTAINTY, seed, lr=lr) for seed in lab.scale.few_seeds]
    results = lab.results(f"{setting}, {on.label}", reported)
    return results, best_window(np.array([_scores(on, result) for result in others]))


def best_window(scores: NDArray[np.float64]) -> int:
    """Return the start of the window of `WINDOW` evaluations with the lowest ``scores``, ``(runs, evaluations)``."""
    means = np.lib.stride_tricks.sliding_window_view(np.log(scores).mean(axis=0), WINDOW).mean(axis=1)
    return int(means.argmin())


def _grows(setting: RateSetting, on: Bench, results: Sequence[RunResult]) -> Finding:
    sums = [_sums(result) for result in results if len(result.weights)]  # without runs that failed at the first step
    halves = [each[[len(each) // 2 - 1, -1]] for each in sums]
    logs = t_interval([np.log(end / middle) for middle, end in halves])
    ratio = Estimate(*(float(np.exp(value)) for value in (logs.mean, logs.low, logs.high)))
    return Finding(
        setting, f"{on.label}: sum of the weights at the last step over that at half-way", ratio, "×", above(ratio, 1)
    )


def _deteriorates(setting: RateSetting, on: Bench, results: Sequence[RunResult], best: int) -> Finding:
    scores = [np.log(_scores(on, result)) for result in results]
    last, then = (
        [np.exp(one[begin : begin + WINDOW].mean()) for one in scores] for begin in (on.evaluations - WINDOW, best)
    )
    text = f"{on.label}: validation loss at the end over that where another seed's is lowest"
    ratio = compare(last, then, higher_is_better=False, scale="ratio")
    return Finding.of(setting, text, ratio, of_comparison(compare(then, last, higher_is_better=False, scale="ratio")))


def _scores(on: Bench, result: RunResult) -> NDArray[np.float64]:
    """Return the primary validation score of each evaluation after step 0; a failed run is filled up with its worst."""
    scores = [evaluation.metrics[on.problem.primary] for evaluation in result.curves]
    return np.array([*scores[1:], *[np.nanmax(scores)] * (on.evaluations + 1 - len(scores))])


def _sums(result: RunResult) -> NDArray[np.float64]:
    sums: NDArray[np.float64] = result.weights.sum(axis=1)
    return sums


GROWTH = Claim(
    3,
    "uncertainty weighting's weights grow, and training deteriorates",
    "The weights of uncertainty weighting grow without bound; training is fast at first and then deteriorates.",
    "section 4",
    f"Training takes {LONGER} times as many steps as in claim 1. The claim has two parts: the sum of the weights still "
    "grows in the second half; and the validation loss is larger at the end than at the step where it is lowest on "
    "another seed. The claim holds if both parts are shown on both problems. One refuted part refutes it.",
    growth,
)
