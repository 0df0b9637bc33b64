"""The rule that turns a profile into advice: a pure function, fixed before the evidence was run.

`bench.diagnose.advice.rule_hash` hashes this module, and the protocol holds the hash, so the facts that the rule reads
are computed here too.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from .gradient_profile import GradientProfile

Candidate = Literal["equal", "inverse-loss", "inverse-norm", "uncertainty", "famo", "nash-mtl"]
CANDIDATES: tuple[Candidate, ...] = get_args(Candidate)
"""What can be advised. Nash-MTL is at the features, or for a model without a fork at the shared parameters."""

CONFLICT = -0.3
"""Two tasks conflict if the mean cosine between their gradients is at most this."""
EVEN = 1.5
"""Gradients are of one size if the longest is less than this many times as long as the shortest."""
APART = 10.0
"""Gradients are of different orders of magnitude if the longest is at least this many times as long as the shortest."""


class Spread(NamedTuple):
    """How far apart positive numbers of the tasks are."""

    ratio: float
    """The largest over the smallest; 1 if there are fewer than two."""
    largest: str
    smallest: str


class Conflict(NamedTuple):
    """The two tasks whose gradients agree least."""

    cosine: float
    first: str
    second: str


@dataclass(frozen=True)
class Choice:
    """What the rule advises, with the reasons as sentences."""

    candidate: Candidate
    reasons: tuple[str, ...]


def advise(profile: GradientProfile) -> Choice:
    """Return the candidate for the training that ``profile`` is the beginning of."""
    if len(profile.tasks) == 1:
        return Choice("equal", ("There is one task, so there is nothing to balance.",))
    norms, losses, conflict = norm_spread(profile), loss_spread(profile), strongest_conflict(profile)
    lengths = f"The longest mean gradient ({norms.largest}) is {norms.ratio:.3g} times the shortest ({norms.smallest})"
    if conflict is not None and conflict.cosine <= CONFLICT:
        return Choice("nash-mtl", (f"{agreement(conflict)}; at {CONFLICT:g} or below, steps that all gain from pay.",))
    if norms.ratio < EVEN:
        even = f"{lengths}, less than {EVEN:g} times: the gradients are of one size."
        return Choice("equal", (even, "No two tasks conflict strongly."))
    if not profile.fork:
        network = "The model has no fork: the tasks share parameters and no features, as in a physics-informed network."
        return Choice("inverse-norm", (f"{lengths}, so the short ones are lost in the sum.", network))
    if not (profile.loss_curve > 0).all():
        signs = "Some losses are not positive, so methods that read them can't run."
        return Choice("inverse-norm", (f"{lengths}, so the short ones are lost in the sum.", signs))
    if norms.ratio >= APART:
        scales = (
            f"The largest first loss ({losses.largest}) is {losses.ratio:.3g} times the smallest ({losses.smallest})."
        )
        orders = f"{lengths}; from {APART:g} times on, the tasks are on different scales, which static weights repair."
        return Choice("inverse-loss", (orders, scales))
    return Choice(
        "uncertainty",
        (f"{lengths}: more than {EVEN:g} and less than {APART:g} times, which weights that adapt can even out.",),
    )


def norm_spread(profile: GradientProfile) -> Spread:
    """Return how far the mean norms of the tasks' gradients are apart."""
    return _spread(profile.norms, profile.tasks)


def loss_spread(profile: GradientProfile) -> Spread:
    """Return how far the tasks' first losses are apart."""
    return _spread(profile.first_losses, profile.tasks)


def strongest_conflict(profile: GradientProfile) -> Conflict | None:
    """Return the lowest mean cosine of two tasks; None if no two tasks ever had gradients other than zero."""
    first, second = np.triu_indices(len(profile.tasks), k=1)
    cosines = profile.cosines[first, second]
    if not np.isfinite(cosines).any():
        return None
    at = int(np.nanargmin(cosines))
    return Conflict(float(cosines[at]), profile.tasks[first[at]], profile.tasks[second[at]])


def agreement(conflict: Conflict) -> str:
    """Return the beginning of a sentence on the two tasks that agree least."""
    return (
        f"The gradients of {conflict.first} and {conflict.second} agree least, with a mean cosine of "
        f"{conflict.cosine:.2f}"
    )


def _spread(values: NDArray[np.float64], names: tuple[str, ...]) -> Spread:
    positive = [at for at, value in enumerate(values) if value > 0]
    if len(positive) < 2:
        return Spread(1.0, names[0], names[0])
    largest, smallest = max(positive, key=lambda at: values[at]), min(positive, key=lambda at: values[at])
    return Spread(float(values[largest] / values[smallest]), names[largest], names[smallest])
