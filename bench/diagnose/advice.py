"""Turn the rule's choice into advice: the candidate as a method, how to write it, and weights to paste."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.run import code_hash
from bench.run.spec import Method
from bench.style.numbers import rounded

from . import rule
from .gradient_profile import GradientProfile
from .rule import Candidate

RULE = Path(rule.__file__)
"""The module whose hash the protocol holds."""
DIGITS = 4
"""Significant digits of the weights to paste."""


@dataclass(frozen=True)
class Advice:
    """A candidate that is advised, how to write it, and the reasons.

    Attributes:
        candidate: the candidate's name, see `bench.diagnose.rule`.
        method: it as a suite names it: with fixed weights, the method is ``static``.
        code: the line of Python that makes it.
        notes: sentences on what else the training loop needs.
        weights: the fixed weights by task; None for a method that chooses its own.
        reasons: why, as sentences with the numbers of the profile.
    """

    candidate: Candidate
    method: Method
    code: str
    notes: tuple[str, ...]
    weights: Mapping[str, float] | None
    reasons: tuple[str, ...]


def advice(profile: GradientProfile) -> Advice:
    """Return the advice for the training that ``profile`` is the beginning of."""
    choice = rule.advise(profile)
    return written(choice.candidate, profile, choice.reasons)


def written(candidate: Candidate, profile: GradientProfile, reasons: tuple[str, ...]) -> Advice:
    """Return a candidate as advice.

    Fixed weights are those of the first 20 steps at equal weights. `balancers.InverseInitialLoss` and
    `balancers.InverseGradientNorm` with ``first_steps=20`` weigh already in these steps, and therefore end with
    slightly other weights.
    """
    names = json.dumps(list(profile.tasks), ensure_ascii=False)
    weights: dict[str, float] | None = None
    notes: tuple[str, ...] = ()
    match candidate:
        case "equal":
            method, code = Method("equal", None, {}), f"balancers.EqualWeighting({names})"
        case "inverse-loss" | "inverse-norm":
            made = inverse_losses(profile) if candidate == "inverse-loss" else inverse_norms(profile)
            values = [rounded(float(each), DIGITS) for each in made]
            weights = dict(zip(profile.tasks, values, strict=True))
            method = Method("static", None, {"weights": values})
            code = f"balancers.StaticWeighting({values}, tasks={names})"
        case "uncertainty":
            method, code = Method("uncertainty", None, {}), f"balancers.UncertaintyWeighting({names})"
            notes = ('Give likelihoods={TASK: "softmax"} for each task whose loss is a cross-entropy.',)
        case "famo":
            method, code = Method("famo", None, {}), f"balancers.FAMO({names})"
            notes = (
                "After optimizer.step(), compute the losses of the same batch again under torch.no_grad(), and give "
                "them to balancer.after_step.",
            )
        case "nash-mtl" if profile.fork:
            method, code = Method("nash-mtl", "features", {}), f"balancers.NashMTL(model.fork, tasks={names})"
        case "nash-mtl":
            method = Method("nash-mtl", "parameters", {})
            code = f"balancers.NashMTL(None, wrt=shared, tasks={names})"
            notes = ("shared is the list of the parameters that the tasks share.",)
    return Advice(candidate, method, code, notes, weights, reasons)


def inverse_losses(profile: GradientProfile) -> NDArray[np.float64]:
    """Return weights that are one over the first losses, ``(T,)``.

    The weights sum to T. A task whose first loss is not positive has weight 1. See `balancers.InverseInitialLoss`.
    """
    losses = profile.first_losses
    positive = losses > 0
    inverse = np.divide(1.0, losses, out=np.zeros_like(losses), where=positive)
    return np.where(positive, positive.sum() * inverse / (inverse.sum() or 1.0), 1.0)


def inverse_norms(profile: GradientProfile) -> NDArray[np.float64]:
    """Return weights that make all first gradients as long as their mean, ``(T,)``.

    A task without a gradient has weight 1, and is not in the mean. See `balancers.InverseGradientNorm`.
    """
    norms = profile.first_norms
    positive = norms > 0
    mean = norms.sum() / max(int(positive.sum()), 1)
    weights: NDArray[np.float64] = np.divide(mean, norms, out=np.ones_like(norms), where=positive)
    return weights


def rule_hash() -> str:
    """Return 32 hexadecimal digits of a SHA-256 of the rule's code, without comments and docstrings."""
    return code_hash.source_hash(RULE.read_text(encoding="utf-8"), code_hash.OURS)
