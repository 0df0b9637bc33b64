"""Decide what may be claimed of each method of a suite, and which method the others are compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

CORE = ("core", "core-published", "core-reserved")
"""Names of the suites that confirmatory claims are made on."""
CORE_METHODS = ("equal", "static", "uncertainty", "dwa", "famo", "gradnorm", "pcgrad", "nash-mtl")
"""The methods that confirmatory claims are about. The protocol named them before the suite was run."""
FIRST, ONES = "problem:first", "problem:ones"
"""Weights of static weighting in a suite's file: the problem's first fixed weights, and a weight of one per task."""

Role = Literal["confirmatory", "exploratory", "yardstick", "control"]
"""The claims that a method's results support: claims fixed beforehand, exploratory ones, or none: equal weighting that
trains otherwise is a yardstick, and a control checks the benchmark itself."""


@dataclass(frozen=True)
class Roles:
    """The roles of a suite's methods, which are named by their labels.

    Attributes:
        equal: The method with equal weights; None if the suite has none.
        static: The static weights that are not all one, which every method is compared with; None if there are none.
        second: Equal weighting under a second name, that is static weights of one each; None if there is none.
        random: The method with random weights; None if there is none.
        by_label: The role of every method, in the suite's order.
    """

    equal: str | None
    static: str | None
    second: str | None
    random: str | None
    by_label: Mapping[str, Role]

    def is_compared(self, label: str) -> bool:
        """Whether a method's results support claims, so that it can be recommended and counts as a method."""
        return self.by_label.get(label) in ("confirmatory", "exploratory")


def assign_roles(suite: str, entries: Sequence[Mapping[str, Any]]) -> Roles:
    """Return the roles of the methods of a suite.

    Of several rows of a kind, such as equal weighting, the first is meant that trains as the suite says; if there is
    none, the first. Rows with other steps, weight decay or rates around another's may stand before it.

    A method is a "control" if it is ``second`` or ``random``, and a "yardstick" if it is equal weighting with other
    steps, weight decay or rates than the suite's, beside ``equal``. It is "confirmatory" if the suite is one of `CORE`
    and the method is one of `CORE_METHODS` with default options; for static weights, the default is the first that a
    problem states. Any other method is "exploratory".

    Args:
        suite: The suite's name.
        entries: The tables ``[[balancers]]`` of the suite's file, as written there.
    """
    labels: dict[str, str] = {}
    for entry in sorted(entries, key=_trains_otherwise):
        labels.setdefault(_kind(entry), label_of(entry))
    roles: dict[str, Role] = {}
    for entry in entries:
        kind, label = _kind(entry), label_of(entry)
        if kind in ("second", "random"):
            roles[label] = "control"
        elif kind == "equal" and label != labels[kind] and _trains_otherwise(entry):
            roles[label] = "yardstick"
        else:
            is_meant = labels[kind] == label and kind in CORE_METHODS and _has_defaults(entry)
            roles[label] = "confirmatory" if suite in CORE and is_meant else "exploratory"
    return Roles(labels.get("equal"), labels.get("static"), labels.get("second"), labels.get("random"), roles)


def label_of(entry: Mapping[str, Any]) -> str:
    """Return the label of a problem or a balancer, as an entry of a suite's file states it; by default its name."""
    return str(entry.get("label", entry["name"]))


def _trains_otherwise(entry: Mapping[str, Any]) -> bool:
    """Check whether an entry of a balancer has steps, weight decay or learning rates of its own: see docs/suites.md."""
    return entry.get("times_steps", 1) != 1 or bool(entry.get("weight_decay")) or bool(entry.get("rates_around"))


def _kind(entry: Mapping[str, Any]) -> str:
    return "second" if entry["name"] == "static" and _are_all_one(entry) else str(entry["name"])


def _are_all_one(entry: Mapping[str, Any]) -> bool:
    """Check whether an entry of static weighting has a weight of one for every task."""
    weights = entry.get("options", {}).get("weights")
    return weights == ONES or (isinstance(weights, list) and bool(weights) and all(weight == 1 for weight in weights))


def _has_defaults(entry: Mapping[str, Any]) -> bool:
    options = entry.get("options", {})
    if _trains_otherwise(entry):
        return False
    return "wrt" not in entry and options == ({"weights": FIRST} if entry["name"] == "static" else {})
