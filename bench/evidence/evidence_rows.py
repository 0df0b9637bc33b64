"""Sort the rows of the evidence into methods, static weights, yardsticks and controls, as the suites' files state."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

import balancers
from balancers import GradientBalancer
from bench.analysis import Roles, label_of
from bench.run.suite_text import SuiteText

STATIC = ("static", "inverse-loss", "inverse-norm")
"""The methods whose weights stay as they are: the protocol's rule 28."""
ONLY_STATIC = ("helmholtz",)
"""Problems on which only the comparison with static weights counts: the protocol's rule 28."""
RELATIVE = ("relative error", "relative loss", "relative L2 error")
"""Primary scores that are relative to what predicting a constant gives, so that a constant predictor scores 1. For the
last of them, the constant is zero."""
KINDS = ("equal", "static", "method", "yardstick", "control")
COLUMNS = ["balancer", "kind", "family", "name", "times_steps"]


@dataclass(frozen=True)
class EvidenceRows:
    """The rows of a table of the evidence, by their labels.

    Attributes:
        equal: Equal weighting.
        equal_by_factor: Equal weighting by the length of its training, as a factor of the problem's steps.
        table: One row per label, in the suite's order. ``kind`` is one of `KINDS`; a yardstick is equal weighting with
            another number of steps or with weight decay. ``family`` says of a method what decides on its weights:
            "learned", "Gramian at the features" or "Gramian at the parameters"; it is empty for other kinds. ``name``
            is the registered name, and ``times_steps`` the length of training as a factor.
    """

    equal: str
    equal_by_factor: Mapping[float, str]
    table: pd.DataFrame

    def of_kind(self, *kinds: str) -> list[str]:
        """Return the labels of these kinds, in the suite's order."""
        return list(self.table.loc[self.table["kind"].isin(kinds), "balancer"])

    @property
    def same_length(self) -> list[str]:
        """The labels of all rows that train for the problem's own number of steps."""
        return list(self.table.loc[self.table["times_steps"] == 1, "balancer"])

    @property
    def candidates(self) -> dict[str, tuple[str, ...]]:
        """The rows of each candidate that can be advised; on each problem, the first that was run there counts.

        Nash-MTL is meant at the features, or at the parameters for a model without a fork.
        """
        rows = self.table[self.table["kind"].isin(["equal", "static", "method"]) & (self.table["times_steps"] == 1)]
        gramian_first = rows.sort_values(
            "family", key=lambda family: family != "Gramian at the features", kind="stable"
        )
        named = gramian_first.groupby("name", sort=False)["balancer"].agg(tuple)
        return {str(name): labels for name, labels in named.items()}


def evidence_rows(suite: str, written: SuiteText) -> EvidenceRows:
    """Return the rows of a suite.

    Args:
        suite: The suite's name.
        written: Its file.

    Raises:
        ValueError: The suite has no equal weighting.
    """
    entries, roles = written.values["balancers"], written.roles(suite)
    if roles.equal is None:
        raise ValueError(f"the suite {suite} has no equal weighting to compare with")
    rows = [
        (label_of(entry), *_sorted(entry, roles), entry["name"], float(entry.get("times_steps", 1)))
        for entry in entries
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    lengths = {1.0: roles.equal} | {
        float(entry["times_steps"]): label_of(entry)
        for entry in entries
        if entry["name"] == "equal" and "times_steps" in entry
    }
    return EvidenceRows(roles.equal, lengths, table)


def _sorted(entry: Mapping[str, Any], roles: Roles) -> tuple[str, str]:
    """Return the kind and the family of an entry."""
    label, name = label_of(entry), entry["name"]
    if label == roles.equal:
        return "equal", ""
    if roles.by_label[label] == "control":
        return "control", ""
    if name == "equal":
        return "yardstick", ""
    if name in STATIC:
        return "static", ""
    method = balancers.get(name)
    if not (issubclass(method, GradientBalancer) and method.reads == "gramian"):
        return "method", "learned"
    return "method", f"Gramian at the {entry.get('wrt', method.default_wrt)}"
