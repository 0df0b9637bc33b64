"""Check the roles of methods, and the controls, each of which must fail on tables that are made to fail it."""

import tomllib
from itertools import product
from pathlib import Path
from re import findall, search

import pandas as pd
import pytest

from bench.analysis import CORE_METHODS, SuiteTables, assign_roles, controls, repeated_verdicts

BENCH = Path(__file__).parents[3] / "bench"
CORE = tomllib.loads((BENCH / "suites" / "core.toml").read_text(encoding="utf-8"))["balancers"]
ROLES = assign_roles("core", CORE)
SECOND = "equal, under a second name"


def test_the_protocol_names_exactly_these_methods() -> None:
    protocol = (BENCH / "PROTOCOL.md").read_text(encoding="utf-8")
    rule = search(r"21\. Confirmatory claims.*?(?=\n22\.)", protocol, 16)
    assert rule is not None
    assert tuple(name for name in findall(r"`([\w-]+)`", rule[0]) if not name.startswith("core")) == CORE_METHODS


def test_the_roles_of_the_core_suite() -> None:
    assert (ROLES.equal, ROLES.static, ROLES.second, ROLES.random) == ("equal", "static", SECOND, "random")
    confirmatory = [label for label, role in ROLES.by_label.items() if role == "confirmatory"]
    assert tuple(confirmatory) == CORE_METHODS
    assert [label for label, role in ROLES.by_label.items() if role == "control"] == ["random", SECOND]


def test_another_suite_is_exploratory() -> None:
    assert set(assign_roles("mine", CORE).by_label.values()) == {"exploratory", "yardstick", "control"}


def test_equal_weighting_that_trains_otherwise_is_a_yardstick_beside_equal_weighting() -> None:
    roles = assign_roles(
        "mine",
        [
            {"name": "equal", "label": "longer", "times_steps": 4},
            {"name": "equal"},
            {"name": "famo", "weight_decay": 0.01},
        ],
    )
    assert roles.by_label == {"longer": "yardstick", "equal": "exploratory", "famo": "exploratory"}
    assert [roles.is_compared(label) for label in ("longer", "equal", "famo", "none")] == [False, True, True, False]
    alone = assign_roles("mine", [{"name": "equal", "times_steps": 4}])
    assert alone.by_label == {"equal": "exploratory"}


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "gradnorm", "options": {"alpha": 0.5}},
        {"name": "gradnorm", "wrt": "parameters"},
        {"name": "mgda"},
        {"name": "static", "options": {"weights": [1.0, 2.0]}},
    ],
)
def test_what_was_not_named_beforehand_is_exploratory(entry: dict[str, object]) -> None:
    assert set(assign_roles("core", [entry]).by_label.values()) == {"exploratory"}


def test_weights_of_one_are_equal_weighting_under_a_second_name() -> None:
    ones = {"name": "static", "options": {"weights": [1.0, 1.0]}}
    roles = assign_roles("mine", [ones, {"name": "static", "label": "fixed", "options": {"weights": [1.0, 3.0]}}])
    assert (roles.second, roles.static, roles.equal, roles.random) == ("static", "fixed", None, None)


def test_a_row_that_trains_otherwise_is_compared_with_only_if_there_is_no_other() -> None:
    fixed = {"name": "static", "options": {"weights": "problem:first"}}
    yardsticks = [
        {"name": "equal", "label": "longer", "times_steps": 2, "rates_around": "equal"},
        {"name": "equal", "label": "decay", "weight_decay": 0.01},
        {**fixed, "label": "shorter", "times_steps": 0.5},
    ]
    roles = assign_roles("core", [*yardsticks, {"name": "equal", "times_steps": 1.0}, fixed])
    assert (roles.equal, roles.static) == ("equal", "static")
    assert [label for label, role in roles.by_label.items() if role == "confirmatory"] == ["equal", "static"]
    assert list(roles.by_label) == ["longer", "decay", "shorter", "equal", "static"]
    alone = assign_roles("core", yardsticks[1:])
    assert (alone.equal, alone.static) == ("decay", "shorter")
    assert set(alone.by_label.values()) == {"exploratory"}


PROBLEMS = pd.DataFrame(
    {"problem": ["p", "same"], "primary": "loss", "higher_is_better": False, "control": [False, True]}
)
TASKS = ("one", "two")
METRICS = pd.DataFrame(
    [{"problem": "same", "metric": f"loss of {task}", "task": task} for task in TASKS]
    + [{"problem": problem, "metric": "loss", "task": None} for problem in ("p", "same")]
)
NOISE = {1: 1.0, 2: 1.03, 3: 0.98, 4: 1.01}


def scores(
    random: float = 1.1, second: float = 1.0, static: float = 1.0, phases: tuple[str, ...] = ("tuning", "reported")
) -> pd.DataFrame:
    """Return the scores of two problems, one a control; the numbers are factors of what equal weighting scores."""
    rows = []
    factors = {"equal": 1.0, "random": random, SECOND: second, "static": static}
    for problem, (balancer, factor), phase, seed in product(
        PROBLEMS["problem"], factors.items(), phases, NOISE if "reported" in phases else (1,)
    ):
        about = {"problem": problem, "balancer": balancer, "phase": phase, "lr": 0.1, "seed": seed}
        # Every method has noise of its own, except equal weighting under its two names.
        own = 1.0 if balancer in ("equal", SECOND) else NOISE[5 - seed]
        value = factor * own * (1 + seed)
        for split in ("validation", "test"):
            rows.append({**about, "checkpoint": "last", "split": split, "metric": "loss", "task": None, "value": value})
    for task, seed in product(TASKS, NOISE):
        for trained in TASKS:
            about = {"problem": "same", "balancer": trained, "phase": "baseline", "lr": 0.2, "seed": seed}
            value = (1 + seed) * (1.5 if task == "one" else 0.5) if trained == task else 99.0
            metric = {"checkpoint": "last", "split": "test", "metric": f"loss of {task}", "task": task}
            rows.append({**about, **metric, "value": value})
    return pd.DataFrame(rows)


def checked(table: pd.DataFrame) -> pd.DataFrame:
    """Return the controls of the suite with the scores ``table``."""
    return controls(SuiteTables(scores=table, problems=PROBLEMS, metrics=METRICS), ROLES)


def found(table: pd.DataFrame) -> dict[tuple[str, str], bool]:
    """Return whether each control holds, by control and problem."""
    result = checked(table)
    return dict(zip(zip(result["control"], result["problem"], strict=True), result["holds"], strict=True))


def test_controls_that_hold() -> None:
    assert found(scores()) == {
        ("random", "p"): True,
        ("second name", "p"): True,
        ("second name", "same"): True,
        ("same tasks", "same"): True,
    }


def test_random_weights_that_beat_equal_weighting_are_found() -> None:
    assert not found(scores(random=0.8))["random", "p"]


def test_random_weights_are_checked_over_both_sets_of_seeds() -> None:
    """Random weights are no better on the reported seeds, but clearly better on the repeated ones."""
    again = scores(random=0.7).query("phase == 'reported'")
    again = again.assign(phase="repeated", seed=again["seed"] + 100)
    table = pd.concat([scores(random=1.0), again], ignore_index=True)
    row = checked(table).query("control == 'random'").iloc[0]
    assert row["pairs"] == 4 + 4
    wide = table[(table["problem"] == "p") & (table["split"] == "test") & table["phase"].isin(["reported", "repeated"])]
    wide = wide.pivot(index=["phase", "seed"], columns="balancer", values="value")
    assert row["relative"] == pytest.approx((wide["random"] / wide["equal"]).prod() ** (1 / 8))
    assert row["relative"] < 0.9


def test_the_smallest_difference_under_a_second_name_is_found() -> None:
    table = scores()
    place = table[(table["balancer"] == SECOND) & (table["problem"] == "p") & (table["phase"] == "tuning")].index[0]
    table.loc[place, "value"] *= 1 + 1e-15
    held = found(table)
    assert not held["second name", "p"]
    assert held["second name", "same"]
    row = checked(table).query("control == 'second name' and problem == 'p'").iloc[0]
    assert (row["pairs"], row["different"]) == (2 * 4 * 2, 1)


def test_only_runs_of_the_same_rate_and_seed_are_compared_to_the_bit() -> None:
    table = scores()
    table.loc[table["balancer"] == SECOND, "lr"] = 0.3
    assert ("second name", "p") not in found(table)


def test_two_that_failed_alike_are_equal() -> None:
    table = scores()
    table.loc[table["balancer"].isin(["equal", SECOND]) & (table["problem"] == "p"), "value"] = float("nan")
    assert found(table)["second name", "p"]


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_static_weights_unlike_single_tasks_are_found(factor: float) -> None:
    assert not found(scores(static=factor))["same tasks", "same"]


def test_same_tasks_are_compared_with_each_tasks_own_run() -> None:
    row = checked(scores()).query("control == 'same tasks'").iloc[0]
    expected = pd.Series(NOISE).prod() ** (1 / 4)
    assert row["relative"] == pytest.approx(expected)
    assert (row["lr"], row["baseline_lr"], row["pairs"]) == (0.1, 0.2, 4)


def board(verdicts: list[str], static: str = "") -> pd.DataFrame:
    return pd.DataFrame(
        {
            **{"problem": "p", "balancer": list("abcd"), "scale": "ratio"},
            **{"relative": 0.9, "relative_low": 0.8, "relative_high": 1.0, "verdict": verdicts},
            **{"static_relative": 0.9, "static_low": 0.8, "static_high": 1.0, "static_verdict": static},
        }
    )


def test_verdicts_that_flip_and_that_change() -> None:
    first = board(["better", "better", "tie", ""], static="worse")
    table = repeated_verdicts(first, board(["worse", "not settled", "tie", "better"], static="worse"))
    equal = table[table["against"] == "equal"].set_index("balancer")
    assert equal["flipped"].to_dict() == {"a": True, "b": False, "c": False}
    assert equal["changed"].to_dict() == {"a": False, "b": True, "c": False}
    static = table[table["against"] == "static"]
    assert len(static) == 4
    assert not static[["flipped", "changed"]].any(axis=None)
