"""The line that makes a recommended method is Python that makes it."""

import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

import balancers
from balancers import Fork, LossBalancer
from bench.report.code_line import PLACES, REPLACING, code_line

NAMES = {"model": SimpleNamespace(fork=Fork(2)), "layer": nn.Linear(2, 2), "shared": nn.Linear(2, 2)}


def made(sentence: str) -> LossBalancer:
    line = re.search(r"In your loop: (balancers\..*\)), with lr=", sentence)
    assert line is not None
    return eval(line[1], {"balancers": balancers, "tasks": ["a", "b"], **NAMES})


@pytest.mark.parametrize(
    ("entry", "wrt"),
    [
        ({"name": "nash-mtl", "wrt": "parameters"}, "parameters"),
        ({"name": "nash-mtl", "wrt": "features"}, "features"),
        ({"name": "gradnorm", "wrt": "layer", "options": {"alpha": 0.5}}, "layer"),
        ({"name": "moco", "wrt": "parameters"}, "parameters"),
        ({"name": "uncertainty", "options": {"likelihoods": ["softmax", "gaussian"]}}, None),
        ({"name": "static", "options": {"weights": [1.5, 0.5]}}, None),
    ],
)
def test_the_line_makes_the_method(entry: Mapping[str, Any], wrt: str | None) -> None:
    sentence = code_line(entry, 0.03)
    balancer = made(sentence)
    assert balancer.name == entry["name"]
    assert list(balancer.tasks) == ["a", "b"]
    assert all(repr(value) in sentence for value in entry.get("options", {}).values())
    place = REPLACING if entry["name"] == "moco" else PLACES[wrt] if wrt else ("None, tasks=",)
    assert f'"{entry["name"]}", {place[0]}' in sentence


def test_a_method_that_looks_again_needs_a_second_call() -> None:
    assert "balancer.after_step" in code_line({"name": "famo"}, 0.1)


def test_what_the_names_stand_for_is_said() -> None:
    assert code_line({"name": "gradnorm", "wrt": "layer"}, 3e-5).endswith(
        ", with lr=3e-5; layer is the last shared layer."
    )
    own = code_line({"name": "static", "options": {"weights": "problem:first"}}, 0.1)
    assert 'create("static", None, weights=weights, tasks=tasks), with lr=0.1; weights are the first' in own


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "mine"},
        {"name": "gradnorm"},
        {"name": "static", "options": {"weights": "search"}},
        {"name": "mgda", "wrt": "parameters", "options": {"weighting": "famo"}},
        {"name": "auto-lambda", "wrt": "parameters"},
        {"name": "ntk", "wrt": "parameters"},
    ],
)
def test_where_a_line_does_not_say_enough_there_is_none(entry: Mapping[str, Any]) -> None:
    assert code_line(entry, 0.1) == ""
