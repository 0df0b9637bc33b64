"""Write a suite's method as the line of Python that makes it in a training loop."""

from collections.abc import Mapping
from typing import Any

import balancers
from bench.style.numbers import rate

PLACES = {
    "features": ("model.fork", ""),
    "layer": ("model.fork, wrt=layer", "layer is the last shared layer"),
    "parameters": ("model.fork, wrt=shared", "shared are all shared parameters, and without a fork, write None for it"),
}
"""What `balancers.create` is given for each place where gradients are measured, and what the names in it mean."""


def code_line(entry: Mapping[str, Any], lr: float) -> str:
    """Return a sentence with the line that makes a method, and its learning rate.

    Args:
        entry: the method's table ``[[balancers]]`` in a suite that ``lossbench try`` made.
        lr: the learning rate.
    """
    name = entry["name"]
    cls = balancers.get(name) if name in balancers.names() else None
    place, meaning = PLACES.get(str(entry.get("wrt") or getattr(cls, "default_wrt", "")), ("None", ""))
    options = dict(entry.get("options", {}))
    if isinstance(options.get("weights"), str):  # the problem's own
        options["weights"] = ...
        meaning = "the weights are the first static_weights of the problem"
    given = "".join(f", {name}={'...' if value is ... else repr(value)}" for name, value in options.items())
    line = f'create("{name}", {place}, tasks=tasks{given})'
    if cls is not None and cls.looks_again:
        meaning = "after each step, give balancer.after_step the losses of the same batch again"
    return f"In your loop: balancers.{line}, with lr={rate(lr)}{f'; {meaning}' if meaning else ''}."
