"""Test claims 1 and 2 on the toy problem: GradNorm's score, and the order of its weights."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from bench.analysis import Estimate, compare, t_interval
from bench.run.spec import Method, Phase, RunSpec
from bench.run.training import RunResult
from tasks.regression import Regression

from . import claims_figures
from .claim import SETTINGS, Claim, Finding, Outcome, RateSetting
from .claim_verdicts import above, below, of_comparison
from .experiments import Bench, Lab, average_weights, bench, finals

STEPS = 1_000
EVALUATIONS = 20
POINTS = 100
"""Number of a run's steps that the figure of weights shows."""
PROBLEMS = tuple(bench(T, "regression", EVALUATIONS, STEPS, sigmas=T) for T in ("T=2", "T=10"))

EQUAL = Method("equal", None, {})
UNCERTAINTY = Method("uncertainty", None, {})
GRADNORM = Method("gradnorm", "layer", {"alpha": 0.12})
RANDOM = Method("random", None, {})
SECOND = "static weights of 1"
"""Label of static weights of 1: a control, as random weights are."""
STATIC, TWIN = "static 1/σ²", "gradnorm static"
"""Labels of static weights: from the scale of the task's labels, and from GradNorm's time average on the same seed."""

ByMethod = dict[str, list[RunResult]]


def fixed(weights: Sequence[float]) -> Method:
    """Return the method that keeps static ``weights``."""
    return Method("static", None, {"weights": list(weights)})


def runs(lab: Lab, on: Bench, setting: RateSetting) -> ByMethod:
    """Return the reported runs of all methods; those with GradNorm's time average come last."""
    problem = on.problem
    (inverse,) = problem.static_weights.values()
    methods = {"equal": EQUAL, "uncertainty": UNCERTAINTY, "gradnorm": GRADNORM, STATIC: fixed(inverse)}
    methods["random"] = RANDOM
    seeds, scale = lab.scale.seeds, lab.scale
    rates = dict.fromkeys((*methods, TWIN), on.recipe.lr)
    if setting == "tuned":
        makers = {label: lambda _, method=method: method for label, method in methods.items()}
        rates = lab.choose(f"learning rates, {on.label}", on, makers, scale.tuning_seeds, scale.grid)
        twins = _twins(lab, on, rates["gradnorm"], scale.tuning_seeds, "tuning")
        stage = f"learning rates of gradnorm static, {on.label}"
        rates |= lab.choose(stage, on, {TWIN: twins.__getitem__}, scale.tuning_seeds, scale.grid)
    cells: dict[str, list[RunSpec]] = {
        label: [on.run(method, seed, lr=rates[label]) for seed in seeds] for label, method in methods.items()
    }
    ones = fixed([1.0] * len(problem.tasks))
    cells[SECOND] = [on.run(ones, seed, lr=rates["equal"]) for seed in seeds]
    found = lab.by_cell(f"{setting}, {on.label}", cells)
    twins = _twins(lab, on, rates["gradnorm"], seeds, "reported")
    again = [on.run(twins[seed], seed, lr=rates[TWIN]) for seed in seeds]
    return {**found, TWIN: lab.results(f"gradnorm static, {on.label}", again)}


def _twins(lab: Lab, on: Bench, lr: float, seeds: Sequence[int], phase: Phase) -> dict[int, Method]:
    """Return, by seed, static weights that are the time average of GradNorm's weights."""
    specs = [on.run(GRADNORM, seed, phase, lr) for seed in seeds]
    results = lab.results(f"gradnorm's weights, {on.label}", specs)
    return {seed: fixed(average_weights(result)) for seed, result in zip(seeds, results, strict=True)}


def score(lab: Lab) -> Outcome:
    """Run the experiment of claim 1."""
    findings, curves = [], []
    for setting in SETTINGS:
        for on in PROBLEMS:
            found = runs(lab, on, setting)
            scores = finals(on, found, "test")
            for ours, theirs, claimed in (
                ("gradnorm", "equal", True),
                ("gradnorm", "uncertainty", True),
                (STATIC, "equal", False),
                (TWIN, "equal", False),
                ("gradnorm", STATIC, False),
                ("random", "equal", False),
                (SECOND, "equal", False),
            ):
                comparison = compare(scores[ours], scores[theirs], higher_is_better=False, scale="ratio")
                text = f"{on.label}: score of {ours} over that of {theirs}"
                findings.append(Finding.of(setting, text, comparison, of_comparison(comparison) if claimed else None))
            curves.append(claims_figures.curves(found, on.problem.primary).assign(setting=setting, problem=on.label))
    table = pd.concat(curves, ignore_index=True)
    caption = (
        "The task-normalised loss on the validation split over training, as in the paper's figures of the toy problem. "
        f"Line: geometric mean over {len(lab.scale.seeds)} seeds; band: lowest to highest. Values above "
        f"{claims_figures.HIGHEST:g} times the initial loss are cut off."
    )
    return Outcome(findings, lambda: claims_figures.learning(table), caption, table)


def order(lab: Lab) -> Outcome:
    """Run the experiment of claim 2."""
    findings, traces = [], []
    for setting in SETTINGS:
        for on in PROBLEMS:
            results = runs(lab, on, setting)["gradnorm"]
            sigmas = Regression(sigmas=on.label).sigmas
            findings.append(_order(setting, on.label, sigmas, results))
            traces.append(_traces(sigmas, results).assign(setting=setting, problem=on.label))
    table = pd.concat(traces, ignore_index=True)
    caption = (
        "GradNorm's weights over training (α = 0.12); colour: the task's σ. Line: geometric mean over "
        f"{len(lab.scale.seeds)} seeds; band: lowest to highest. The weights sum to T, the number of tasks."
    )
    return Outcome(findings, lambda: claims_figures.weights(table), caption, table)


def _order(setting: RateSetting, problem: str, sigmas: Sequence[float], results: Sequence[RunResult]) -> Finding:
    averages = np.array([average_weights(result) for result in results])
    if len(sigmas) == 2:
        logs = t_interval(np.log(averages[:, 0] / averages[:, 1]))
        ratio = Estimate(*(float(np.exp(value)) for value in (logs.mean, logs.low, logs.high)))
        text = f"{problem}: mean weight, ratio of the task with σ = {sigmas[0]:g} to the one with σ = {sigmas[1]:g}"
        return Finding(setting, text, ratio, "×", above(ratio, 1))
    mean = t_interval([spearmanr(sigmas, average).statistic for average in averages])
    correlations = Estimate(mean.mean, max(-1, mean.low), min(1, mean.high))
    text = f"{problem}: rank correlation of σ and mean weight, averaged over seeds"
    return Finding(setting, text, correlations, "", below(correlations, 0))


def _traces(sigmas: Sequence[float], results: Sequence[RunResult]) -> pd.DataFrame:
    """Return ``seed``, ``step``, ``sigma`` and ``weight`` at `POINTS` steps of each run."""
    parts = []
    for place, result in enumerate(results):
        steps = np.unique(np.linspace(0, max(0, len(result.weights) - 1), POINTS).round().astype(int))
        for sigma, weight in zip(sigmas, result.weights[steps].T, strict=True):
            parts.append(pd.DataFrame({"seed": place, "step": steps + 1, "sigma": sigma, "weight": weight}))
    return pd.concat(parts, ignore_index=True)


_RULE = "The claim holds if this is shown in every case, by 95 % intervals over seeds. One refuted case refutes it."

SCORE = Claim(
    1,
    "lower loss than equal and uncertainty weighting",
    "On the toy problem with two and with ten tasks, GradNorm reaches a lower task-normalised test loss than equal "
    "weighting and than uncertainty weighting.",
    "section 4",
    f"The ratio of GradNorm's score to the other's, seed by seed, must be below one. {_RULE} For information, "
    "the table also has static weights 1/σ², which anyone could compute from the labels; gradnorm static, that is "
    "GradNorm's own average weights, held constant; and two controls: random weights, and static weights of 1, which "
    "must score the same as equal weighting.",
    score,
)
ORDER = Claim(
    2,
    "the smaller σ, the larger the weight",
    "GradNorm gives larger weights to tasks with smaller σ.",
    "section 4",
    f"The time-averaged weights must decrease as σ increases. {_RULE}",
    order,
)
