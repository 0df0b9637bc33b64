"""What may be claimed of a method: fixed beforehand, explored afterwards, or a control of the benchmark itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

CORE = "core"
"""The suite that confirmatory claims are made on."""
CORE_METHODS = ("equal", "static", "uncertainty", "dwa", "famo", "gradnorm", "pcgrad", "nash-mtl")
"""The methods that confirmatory claims are about, named in the protocol before the suite was run."""
FIRST, ONES = "problem:first", "problem:ones"

Role = Literal["confirmatory", "exploratory", "control"]


@dataclass(frozen=True)
class Cast:
    """The parts that a suite's methods play, by their labels; None where there is no such method.

    ``second`` is equal weighting under a second name: static weights of one each. ``static`` is the first of the other
    static weights, which every method is compared with. ``roles`` says of every method what may be claimed of it.
    """

    equal: str | None
    static: str | None
    second: str | None
    random: str | None
    roles: Mapping[str, Role]


def cast(suite: str, entries: Sequence[Mapping[str, Any]]) -> Cast:
    """The parts of the methods of the suite named ``suite``, whose ``entries`` are as its file has them.

    A method's role is "control" where it is ``second`` or ``random``; "confirmatory" on the suite `CORE` where it is
    one of `CORE_METHODS` at its defaults, static weights being the first that a problem states; else "exploratory".
    """
    labels: dict[str, str] = {}
    roles: dict[str, Role] = {}
    for entry in entries:
        name, label = str(entry["name"]), str(entry.get("label", entry["name"]))
        part = "second" if name == "static" and _of_one_each(entry) else name
        first = labels.setdefault(part, label) == label
        if part in ("second", "random"):
            roles[label] = "control"
        else:
            named = suite == CORE and first and part in CORE_METHODS and _at_defaults(entry)
            roles[label] = "confirmatory" if named else "exploratory"
    return Cast(labels.get("equal"), labels.get("static"), labels.get("second"), labels.get("random"), roles)


def _weights(entry: Mapping[str, Any]) -> object:
    return entry.get("options", {}).get("weights")


def _of_one_each(entry: Mapping[str, Any]) -> bool:
    weights = _weights(entry)
    return weights == ONES or (isinstance(weights, list) and bool(weights) and all(one == 1 for one in weights))


def _at_defaults(entry: Mapping[str, Any]) -> bool:
    options = entry.get("options", {})
    return "wrt" not in entry and options == ({"weights": FIRST} if entry["name"] == "static" else {})
