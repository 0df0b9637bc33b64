"""The answer recommends no verdict that the repeated seeds reverse, and says what they do not confirm."""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
import pytest

from bench.report.answer import answer, caveat
from bench.report.results_folder import Results, load

from .made_up_results import build

FIRST, STATIC, SECOND = "GradNorm", "static 1/sigma²", "uncertainty"
FACTORS = {"equal": 1.0, STATIC: 0.8, FIRST: 0.5, SECOND: 0.7}


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Return results on one set of seeds, in which all methods are better than equal weighting, GradNorm most."""
    facts = {"equal": "equal", STATIC: "static", FIRST: "gradnorm", SECOND: "uncertainty"}
    rows = {label: (name, FACTORS[label], 1.2 if label == FIRST else 1.1, 1) for label, name in facts.items()}
    folder = tmp_path_factory.mktemp("results") / "mine"
    return load(build(folder, num_tasks=(2,), balancers=rows, timed=False, failing=None, noise=0.01))


def repeated(results: Results, again: Mapping[str, str], static: Mapping[str, str] | None = None) -> Results:
    """Return the results with verdicts of other seeds, against equal weighting and against static weighting."""
    board = results.board.set_index("balancer")
    rows = []
    for against, column, verdicts in (("equal", "verdict", again), ("static", "static_verdict", static or {})):
        for balancer, second in verdicts.items():
            first = board.loc[balancer, column]
            flipped = {first, second} == {"better", "worse"}
            row = {"problem": board["problem"].iloc[0], "balancer": balancer, "against": against, "verdict": first}
            rows.append(
                {**row, "again_verdict": second, "flipped": flipped, "changed": first != second and not flipped}
            )
    return replace(results, tables=results.tables | {"repeated": pd.DataFrame(rows)})


CONFIRMED = {FIRST: "better", STATIC: "better", SECOND: "better"}


def test_without_other_seeds_the_best_is_recommended_and_to_be_confirmed(once: Results) -> None:
    (text,) = answer(once)
    assert f"try {FIRST}" in text
    assert "confirm it on new seeds" in caveat(once)


def test_a_best_method_that_other_seeds_confirm_needs_no_caveat(once: Results) -> None:
    results = repeated(once, CONFIRMED)
    (text,) = answer(results)
    assert f"try {FIRST}" in text
    assert "Reversed" not in text
    assert caveat(results) == ""


@pytest.mark.parametrize("verdict", ["tie", "not settled"])
def test_a_best_method_that_they_do_not_confirm_keeps_the_caveat(once: Results, verdict: str) -> None:
    results = repeated(once, CONFIRMED | {FIRST: verdict})
    assert f"try {FIRST}" in answer(results)[0]
    told = caveat(results)
    assert told.startswith(
        "4 methods were compared on 1 problem. Even if none were better, one would be named in up to 7.5 %"
    )
    assert told.endswith(f"the repeated seeds do not confirm that {FIRST} on regression, 2 tasks is better.")


def test_a_verdict_that_they_reverse_is_named_and_not_recommended(once: Results) -> None:
    results = repeated(once, CONFIRMED | {FIRST: "worse"})
    (text,) = answer(results)
    assert f"try {SECOND}" in text
    assert f"Reversed by the repeated seeds, and therefore not counted: {FIRST} (better at first, then worse)." in text
    assert caveat(results) == ""


def test_where_all_are_reversed_nothing_is_recommended(once: Results) -> None:
    results = repeated(once, dict.fromkeys(CONFIRMED, "worse"))
    (text,) = answer(results)
    assert "stay with equal. No method is better beyond noise (3 reversed on other seeds)." in text
    for label in CONFIRMED:
        assert f"{label} (better at first, then worse)" in text
    assert caveat(results) == ""


def test_a_reversed_comparison_with_static_weights_is_told_with_both_verdicts(once: Results) -> None:
    results = repeated(once, CONFIRMED, {FIRST: "worse"})
    roles = replace(results.roles, static=STATIC)
    (text,) = answer(replace(results, roles=roles))
    assert f"Compared with {STATIC}, it is better on the first seeds and worse on the repeated ones." in text
