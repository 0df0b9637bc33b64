"""Test claim 5: which values of alpha improve on equal weighting, and which one is best."""

from dataclasses import asdict

import numpy as np
import pandas as pd

from bench.analysis import Estimate, compare
from bench.run.spec import Method

from . import claims_figures
from .claim import SETTINGS, Claim, Finding, Outcome, RateSetting
from .claim_toy import EQUAL
from .claim_toy import PROBLEMS as TOY
from .claim_verdicts import every, of_comparison, peak
from .experiments import Bench, Lab, bench, finals

ALPHAS = (0.12, 0.5, 1.0, 1.5, 2.0, 3.0)
NEAR = (1.0, 2.0)
"""Lowest and highest alpha that count as near 1.5."""
PROBLEMS = (TOY[1], bench("scenes", "scenes", evaluations=5))
METHODS = {"equal": EQUAL} | {f"α = {alpha:g}": Method("gradnorm", "layer", {"alpha": alpha}) for alpha in ALPHAS}


def alpha(lab: Lab) -> Outcome:
    """Run the experiment of claim 5."""
    findings, rows = [], []
    for setting in SETTINGS:
        for on in PROBLEMS:
            gains, found = _findings(lab, setting, on)
            findings += found
            rows.append(gains.assign(setting=setting, problem=on.label))
    table = pd.concat(rows, ignore_index=True)
    caption = (
        "Ratio of GradNorm's test score to that of equal weighting, by α: geometric mean over "
        f"{len(lab.scale.few_seeds)} paired seeds, with 95 % intervals. Below the line GradNorm is better."
    )
    return Outcome(findings, lambda: claims_figures.alphas(table), caption, table)


def _findings(lab: Lab, setting: RateSetting, on: Bench) -> tuple[pd.DataFrame, list[Finding]]:
    rates = dict.fromkeys(METHODS, on.recipe.lr)
    if setting == "tuned":
        makers = {label: lambda _, method=method: method for label, method in METHODS.items()}
        seeds = lab.scale.tuning_seeds[:1]
        rates = lab.choose(f"learning rates, {on.label}", on, makers, seeds, lab.scale.coarse_grid)
    cells = {
        label: [on.run(method, seed, lr=rates[label]) for seed in lab.scale.few_seeds]
        for label, method in METHODS.items()
    }
    scores = finals(on, lab.by_cell(f"{setting}, {on.label}", cells), "test")
    equal = scores.pop("equal")
    gains = {label: compare(one, equal, higher_is_better=False, scale="ratio") for label, one in scores.items()}
    verdicts = [of_comparison(gain) for gain in gains.values()]
    better = Estimate(verdicts.count("holds"), np.nan, np.nan)
    text = f"{on.label}: number of α at which GradNorm is better than equal"
    findings = [Finding(setting, text, better, f"of {len(ALPHAS)}", every(verdicts, exceptions=1))]
    best, verdict = peak(list(scores.values()), ALPHAS, NEAR)
    findings.append(
        Finding.of(setting, f"{on.label}: score at the best α in [1, 2] over that at the best other α", best, verdict)
    )
    findings += [
        Finding.of(setting, f"{on.label}: score at {label} over that of equal", gain) for label, gain in gains.items()
    ]
    rows = [{"alpha": value, **asdict(gain)} for value, gain in zip(ALPHAS, gains.values(), strict=True)]
    return pd.DataFrame(rows), findings


ALPHA = Claim(
    5,
    "almost any α beats equal weights; the best is near 1.5",
    "Nearly every α from 0 to 3 is better than equal weights, and the best α is near 1.5.",
    "section 5.4 and figure 7",
    "The claim holds if, on both problems, GradNorm's score is better than that of equal weighting at no fewer than "
    f"{len(ALPHAS) - 1} of {len(ALPHAS)} values of α, and if the best value from 1 to 2 is better than the best of the "
    "other values. Better is judged by 95 % intervals over seeds. A tie refutes the claim.",
    alpha,
)
