"""The keys that a suite's file may have, and the kinds of values that they take."""

from typing import get_args

from balancers.engine.method.declared_method import Wrt
from bench.run.spec import Device
from tasks.problem import Schedule

from .toml_table import ValueKind

TOP = (
    *("description", "device", "evaluations", "baselines", "plugins", "reserved", "runs_per_gpu"),
    *("seeds", "learning_rates", "search", "recipe", "cost", "limits", "problems", "balancers"),
)
SCHEDULED = ("schedule", "betas")
PROBLEM = ("name", "label", "recipe", "steps", "batch_size", *SCHEDULED, "options")
GRID = ("grid", "growths", "finer")
BALANCER = ("name", "label", "wrt", "options", "needs_fork", "times_steps", "weight_decay", "rates_around")


def _whole(value: object, least: int) -> bool:
    """Check whether ``value`` is a whole number, ``least`` or more."""
    return type(value) is int and value >= least  # isinstance would let true and false pass


def _distinct(value: object, least: int) -> bool:
    """Check whether ``value`` is a list of ``least`` or more different values."""
    return isinstance(value, list) and len(value) >= least and len({*map(repr, value)}) == len(value)


TEXT = ValueKind("a text", lambda value: isinstance(value, str))
TEXTS = ValueKind(
    "a list of texts", lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value)
)
YES_OR_NO = ValueKind("true or false", lambda value: isinstance(value, bool))
RECIPE = ValueKind('"default" or "full"', lambda value: value in ("default", "full"))
TRIALS = ValueKind("a whole number, 4 or more", lambda value: _whole(value, 4))
COUNT = ValueKind("a whole number, 1 or more", lambda value: _whole(value, 1))
ROUNDS = ValueKind("a whole number, 0 or more", lambda value: _whole(value, 0))
DEVICE = ValueKind('"cpu", "cuda" or "auto"', lambda value: value in ("cpu", "cuda", "auto"))
DEVICES = ValueKind(
    'a list of "cpu", "cuda" or both',
    lambda value: _distinct(value, 1) and all(one in get_args(Device) for one in value),
)
WRT = ValueKind('"features", "layer" or "parameters"', lambda value: value in get_args(Wrt))
SEEDS = ValueKind(
    "a list of different whole numbers, 0 or more and below 2**63",  # what a column of the tables can hold
    lambda value: _distinct(value, 1) and all(_whole(one, 0) and one < 2**63 for one in value),
)
RATES = ValueKind(
    "a list of different positive numbers, two or more",
    lambda value: (
        _distinct(value, 2)
        and all(type(one) in (int, float) and 0 < one < float("inf") for one in value)
        and _distinct([float(one) for one in value], 2)  # 1 and 1.0 are one rate
    ),
)
POSITIVE = ValueKind(
    "a positive number", lambda value: type(value) in (int, float) and 0 < float(str(value)) < float("inf")
)
SCHEDULE = ValueKind('"constant" or "cosine"', lambda value: value in get_args(Schedule))
BETAS = ValueKind(
    "a list of two numbers of at least 0 and below 1",
    lambda value: (
        isinstance(value, list) and len(value) == 2 and all(type(b) in (int, float) and 0 <= b < 1 for b in value)
    ),
)
DECAY = ValueKind(
    "a number, 0 or more", lambda value: type(value) in (int, float) and 0 <= float(str(value)) < float("inf")
)
FACTOR = ValueKind("a number above 1", lambda value: POSITIVE.accepts(value) and float(str(value)) > 1)
LIMITS = ValueKind(
    "two positive numbers, the smaller first", lambda value: RATES.accepts(value) and [*value] == sorted(value)[:2]
)
