"""The documentation's tables of the evidence say what the tables say."""

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from bench.evidence import __main__ as command
from bench.evidence import markdown_tables
from bench.evidence.evidence_tables import PRACTICE

COMPARED = ["problem", "balancer", "scale", "relative", "verdict", "table"]
PAYS = ["problem", "column", "balancer", "q", "beyond", "q_low", "q_low_beyond", "q_high", "q_high_beyond"]
COSTS = ["q_per_cost", "low", "high", "verdict"]
LOSS, LEARNED = "one over the initial loss", "best learned weighting"


@pytest.fixture
def tables() -> dict[str, pd.DataFrame]:
    compared = [
        ("rain", "famo", "ratio", 0.5, "better", "A"),
        ("rain", "famo", "ratio", 2.0, "worse", "B"),
        ("rain", "static", "ratio", 1.25, "worse", "A"),
        ("wind", "famo", "difference", -0.25, "tie", "A"),
        ("control", "famo", "ratio", 1.0, "tie", "A"),
        ("rain", "random", "ratio", 1.5, "worse", "A"),
        ("snow", "static", "ratio", 0.25, "better", "reserved"),
    ]
    pays = [
        ("rain", LOSS, LOSS, 1.5, "", 1.25, "", 2.0, "", 1.5, 1.25, 2.0, "pays"),
        ("rain", LEARNED, "famo", 4.0, "above", 4.0, "above", 4.0, "above", np.nan, np.nan, np.nan, ""),
        ("wind", LEARNED, "famo", 0.75, "", 0.625, "", 0.875, "", 0.5, 0.25, 0.75, "train longer"),
        ("snow", LOSS, LOSS, 1.5, "", 1.25, "", 2.0, "", 1.5, 1.25, 2.0, "pays"),
    ]
    return {
        "comparisons": pd.DataFrame(compared, columns=COMPARED),
        "problems": pd.DataFrame(
            {
                "problem": ["rain", "wind", "control", "snow"],
                "control": [False, False, True, False],
                "reserved": [False, False, False, True],
            }
        ),
        "rows": pd.DataFrame(
            {"balancer": ["equal", "famo", "static", "random"], "kind": ["equal", "method", "static", "control"]}
        ),
        "gates": pd.DataFrame({"problem": ["control"] * 2, "balancer": ["static", "famo"], "passes": [True, False]}),
        "practice": pd.DataFrame(pays, columns=[*PAYS, *COSTS]),
    }


def test_scores_are_marked_by_their_verdicts_and_rows_by_their_gates(tables: dict[str, pd.DataFrame]) -> None:
    assert markdown_tables.score_table(tables).splitlines() == [
        *("|  | rain | wind |", "|---|---|---|"),
        *("| static | *1.25×* |  |", "| famo † | **0.500×** | −0.250 |"),
    ]
    assert markdown_tables.score_table(tables, "B").splitlines()[2:] == ["| famo † | *2.00×* |"]


def test_a_change_of_memory_is_told_of_the_ratio_and_of_the_score(tables: dict[str, pd.DataFrame]) -> None:
    columns = ["problem", "balancer", "scale", "change", "step_length", "own_change", "own_changes"]
    changes = [
        ("rain", "famo", "ratio", 1.25, True, 1.0, False),
        ("wind", "famo", "difference", -0.25, False, 0.5, True),
        ("rain", "static", "ratio", 0.5, False, 2.0, True),
        ("control", "static", "ratio", 0.5, True, 2.0, True),
        ("rain", "random", "ratio", 0.5, True, 2.0, True),
    ]
    passing = tables["gates"].assign(passes=True)
    given = tables | {"step_length": pd.DataFrame(changes, columns=columns), "gates": passing}
    header, rows = ["|  | rain | wind |", "|---|---|---|"], ["| static | 0.500× (**2.00×**) |  |"]
    assert markdown_tables.memory_table(given).splitlines() == [
        *(*header, *rows, "| famo | **1.25×** (1.00×) | −0.250 (**+0.500**) |")
    ]
    assert markdown_tables.memory_table(given | {"gates": tables["gates"]}).splitlines() == [*header, *rows]


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_practice_shows_the_quotient_where_steps_were_timed(tables: dict[str, pd.DataFrame]) -> None:
    header, rule, rain, wind = cells(markdown_tables.practice_table(tables))
    assert header == ["", *PRACTICE]
    assert set(rule) == {"---"}
    of_rain, of_wind = dict(zip(header, rain, strict=True)), dict(zip(header, wind, strict=True))
    assert of_rain[LOSS] == "**1.50 [1.25,\N{NO-BREAK SPACE}2.00]**"
    assert of_rain[LEARNED] == "*q* >4.00 (famo †)"
    assert of_wind[LEARNED] == "*0.50 [0.25,\N{NO-BREAK SPACE}0.75]* (famo †)"
    assert of_wind[LOSS] == ""
    assert [rain[0], wind[0]] == ["rain", "wind"]


def test_reserved_problems_have_tables_of_their_own(tables: dict[str, pd.DataFrame]) -> None:
    _, _, snow = cells(markdown_tables.WRITERS["reserved-practice"](tables))
    assert snow[0] == "snow"
    assert markdown_tables.WRITERS["reserved-scores"](tables).splitlines() == [
        "|  | snow |",
        "|---|---|",
        "| static | **0.250×** |",
    ]


def test_a_reserved_problem_is_called_so_among_the_regrets() -> None:
    regrets = pd.DataFrame(
        {
            "problem": ["rain", "snow"],
            "reserved": [False, True],
            "there": True,
            "advised": "equal",
            "regret": 0.0,
            "opponent": "famo",
            "opponent_regret": 0.0,
            "lower": "neither",
        }
    )
    rows = markdown_tables.regret_table(regrets).splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["rain", "snow (reserved)"]


def test_without_a_part_there_is_nothing_to_show(tmp_path) -> None:
    done = CliRunner().invoke(command.app, ["markdown", "scores", "--kept", str(tmp_path)])
    assert done.exit_code == 2
    assert "has no part of table A" in done.stderr


def test_a_method_that_was_not_run_on_a_control_is_marked(tables: dict[str, pd.DataFrame]) -> None:
    passing = pd.DataFrame(
        {"problem": ["one", "other", "one"], "balancer": ["famo", "famo", "static"], "passes": [True, True, True]}
    )
    lines = markdown_tables.score_table(tables | {"gates": passing}).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["static †", "famo"]
