"""Write a suite's method as the line of Python that makes it in a training loop."""

from collections.abc import Mapping
from typing import Any

import balancers
from balancers import GradientBalancer
from bench.analysis.roles import FIRST
from bench.style.numbers import rate

PLACES = {
    "features": ("model.fork", ""),
    "layer": ("model.fork, wrt=layer", "layer is the last shared layer"),
    "parameters": ("None, wrt=shared", "shared are all shared parameters"),
}
"""The first arguments of `balancers.create` for each place where gradients are measured, and the names in them."""
REPLACING = ("model.fork, wrt=shared", "shared are all shared parameters")
"""The same at "parameters" for methods that replace gradients: they take the fork, if the model has one."""


def code_line(entry: Mapping[str, Any], lr: float) -> str:
    """Return a sentence with the line that makes a method, and its learning rate.

    It is empty if a line does not say enough: for a method that measures where the suite does not say, needs more calls
    than `after_step`, or has options that a suite alone understands.

    Args:
        entry: the method's table ``[[balancers]]`` in a suite that ``lossbench try`` made.
        lr: the learning rate.
    """
    name, options, wrt = entry["name"], dict(entry.get("options", {})), entry.get("wrt", "")
    cls = balancers.get(name) if name in balancers.names() else None
    if (
        cls is None
        or cls.needs_second_batch
        or cls.needs_optimizer
        or cls.reads == "residuals"
        or "weighting" in options
    ):
        return ""
    if bool(wrt) != issubclass(cls, GradientBalancer):
        return ""
    place, meaning = PLACES.get(wrt, ("None", ""))
    if wrt == "parameters" and cls.replaces_gradients:
        place, meaning = REPLACING
    if isinstance(options.get("weights"), str):
        if options.pop("weights") != FIRST:
            return ""
        place, meaning = f"{place}, weights=weights", "weights are the first static_weights of the problem"
    if cls.looks_again:
        meaning = "after each step, give balancer.after_step the losses of the same batch again"
    given = "".join(f", {option}={value!r}" for option, value in options.items())
    line = f'balancers.create("{name}", {place}, tasks=tasks{given})'
    return f"In your loop: {line}, with lr={rate(lr)}{f'; {meaning}' if meaning else ''}."
