"""Test claim 4: whether GradNorm's average weights are close to the best static weights."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.run.spec import Method
from bench.run.training import RunResult

from . import claims_figures
from .claim import SETTINGS, Claim, Finding, Outcome, RateSetting
from .claim_toy import EQUAL, TWIN, fixed
from .claim_verdicts import above, below, rank_correlation, share
from .experiments import Lab, average_weights, bench, finals

ON = bench("scenes", "scenes", evaluations=1)
SEED, DRAW = 1, 0
"""Seed of all runs, which have the same data and initial values as in the paper, and seed of the random weights."""
GRADNORM = Method("gradnorm", "layer", {"alpha": 1.5})
FEW = 0.1
"""Weights are near the best if fewer than this proportion of random weights score better."""


def draws(count: int, num_tasks: int) -> NDArray[np.float64]:
    """Return weights ``(count, num_tasks)``, uniform in the cube and then scaled to sum to the number of tasks."""
    drawn = np.random.default_rng(DRAW).uniform(size=(count, num_tasks))
    weights: NDArray[np.float64] = np.round(num_tasks * drawn / drawn.sum(axis=1, keepdims=True), 6)
    return weights


def static(lab: Lab) -> Outcome:
    """Run the experiment of claim 4."""
    findings, parts = [], []
    equal = [1.0] * len(ON.problem.tasks)
    drawn = {f"draw {place}": row.tolist() for place, row in enumerate(draws(lab.scale.draws, len(equal)), 1)}
    for setting in SETTINGS:
        rates = [ON.recipe.lr] if setting == "one learning rate" else lab.scale.draws_grid
        others = {label: fixed(weights) for label, weights in drawn.items()}
        found = _at_best(lab, setting, {"gradnorm": GRADNORM, "equal": EQUAL, **others}, rates)
        average = average_weights(found["gradnorm"])
        found |= _at_best(lab, f"{setting}, gradnorm static", {TWIN: fixed(average)}, rates)
        scores = finals(ON, {label: [result] for label, result in found.items()}, "test")
        placed = {TWIN: average, "equal": equal, **drawn, "gradnorm": average}
        table = pd.DataFrame(
            {
                "weights": label,
                "random": label in drawn,
                "distance": float(np.linalg.norm(np.subtract(weights, average))),
                "score": scores[label][0],
            }
            for label, weights in placed.items()
        )
        findings += _findings(setting, table)
        parts.append(table.assign(setting=setting))
    table = pd.concat(parts, ignore_index=True)
    caption = (
        f"{len(drawn)} networks with random static weights on scenes: test score against the Euclidean distance from "
        "their weights to GradNorm's average weights. Line: score of GradNorm itself (α = 1.5)."
    )
    return Outcome(findings, lambda: claims_figures.distances(table), caption, table)


def _at_best(lab: Lab, stage: str, methods: Mapping[str, Method], rates: Sequence[float]) -> dict[str, RunResult]:
    """Return one run of each method, at the one of ``rates`` at which its validation score is best."""
    cells = {(label, lr): [ON.run(method, SEED, lr=lr)] for label, method in methods.items() for lr in rates}
    results = lab.by_cell(stage, cells)
    scores = finals(ON, results, "validation")
    best = {label: min(rates, key=lambda lr: scores[label, lr][0]) for label in methods}
    return {label: results[label, lr][0] for label, lr in best.items()}


def _findings(setting: RateSetting, table: pd.DataFrame) -> list[Finding]:
    random, named = table[table["random"]], table.set_index("weights")["score"]
    correlation = rank_correlation(random["distance"].tolist(), random["score"].tolist())
    text = "rank correlation of test score and distance to GradNorm's average weights"
    findings = [Finding(setting, text, correlation, "", above(correlation, 0))]
    for label in (TWIN, "gradnorm", "equal"):
        part = share(int((random["score"] < named[label]).sum()), len(random))
        verdict = below(part, FEW) if label == TWIN else None
        findings.append(
            Finding(setting, f"proportion of random weights that score better than {label}", part, "%", verdict)
        )
    return findings


STATIC = Claim(
    4,
    "GradNorm's average weights are nearly the best static ones",
    "Static weights set to the time average of GradNorm's weights score nearly as well as the best random weights, and "
    "the larger the distance to them, the worse a network scores.",
    "section 5.3 and figure 4",
    "The claim holds if the score worsens with distance (the correlation's interval is above zero), and if fewer than "
    f"{FEW:.0%} of random weights score better than the time average, called gradnorm static (by an exact binomial "
    "interval). Tuned means: each network has its best learning rate on validation, of two (with --full, of five). "
    "Intervals cover other random weights on this one seed.",
    static,
)
