"""The tables of costs that the documentation shows follow from the files that are measured."""

from pathlib import Path

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from bench.cost import cost_markdown

GRADNORM = {"equal": 1.0, "gradnorm layer": 1.5, "gradnorm features": 1.3, "gradnorm every 10": 1.1}


def rows_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Write costs of the toy problem with two and ten tasks and both kinds of heads, of ResNet-18, and of methods."""
    toy = [
        {"problem": f"regression T={T}", "heads": heads, "batch": 100, "tasks": T, "method": method}
        | {"ratio": ratio + (heads == "separate"), "median_ms": 0.84 * T, "flops": 100 * ratio}
        for T in (2, 10)
        for heads in ("separate", "batched")
        for method, ratio in {**GRADNORM, "products alone": 1.2}.items()
    ]
    network = [
        {"problem": "ResNet-18", "heads": "separate", "batch": 2, "tasks": 3, "method": method}
        | {"ratio": ratio, "median_ms": 70.4, "flops": 1.0}
        for method, ratio in GRADNORM.items()
    ]
    pd.DataFrame(toy + network).to_csv(tmp_path / "limits.csv", index=False)
    ratios = {"equal": 1.0, "equal, again": 1.0, "static": 1.0, "uncertainty": 1.1, "go4align": 1.4, "famo": 1.5}
    ratios |= {"pcgrad": 1.3, "gradvac": 1.7, "moco": 2.4, "coba": 1.6, "modo": 3.8, "ntk": 3.0}
    methods = [{"tasks": T, "method": name, "ratio": ratio * T} for T in (2, 10) for name, ratio in ratios.items()]
    pd.DataFrame(methods).to_csv(tmp_path / "methods.csv", index=False)
    return tmp_path


def test_the_limits(kept: Path):
    assert rows_of(cost_markdown.limits(kept)) == [
        ["toy problem, 2 tasks, batch 100", "1.7", "1.50", "1.20", "1.30", "1.10"],
        ["toy problem, 10 tasks, batch 100", "8.4", "1.50", "1.20", "1.30", "1.10"],
        ["ResNet-18, dense heads, 3 tasks, batch 2", "70", "1.50", "", "1.30", "1.10"],
    ]


def test_the_floor(kept: Path):
    assert [row[1:] for row in rows_of(cost_markdown.floor(kept))] == [
        [each] * 2 for each in ["1.20", "1.50", "1.30", "1.50"]
    ]


def test_every_method_has_its_place_and_the_cheapest_comes_first(kept: Path):
    found = rows_of(cost_markdown.methods(kept))
    assert found[:3] == [
        ["`static`", "", "2.00", "10.00"],
        ["`uncertainty`", "", "2.20", "11.00"],
        ["`pcgrad`", "features", "2.60", "13.00"],
    ]
    assert {row[0]: row[1] for row in found[3:]} == {
        "`go4align`": "",
        "`famo`": "",
        "`coba`": "",
        "`gradvac`": "last shared layer",
        "`moco`": "all shared parameters",
        "`ntk`": "all shared parameters",
        "`modo`": "all shared parameters",
    }


def test_methods_of_one_kind_are_a_row(kept: Path):
    found = rows_of(cost_markdown.groups(kept))
    assert [row[1:] for row in found] == [
        ["2.20 – 2.80", "11.00 – 14.00"],
        ["3.00", "15.00"],
        ["1.50 / 1.30 / 1.10", "1.50 / 1.30 / 1.10"],
        ["2.60 – 3.40", "13.00 – 17.00"],
        ["4.80", "24.00"],
        ["3.20 – 7.60", "16.00 – 38.00"],
    ]
    assert found[0][0].startswith("2 methods that read only losses")


def test_the_command_says_what_is_not_there(kept: Path):
    app = typer.Typer()
    app.command()(cost_markdown.main)
    assert CliRunner().invoke(app, ["limits", "--kept", str(kept)]).stdout == cost_markdown.limits(kept) + "\n"
    (kept / "limits.csv").unlink()
    failed = CliRunner().invoke(app, ["limits", "--kept", str(kept)])
    assert failed.exit_code == 2
    assert "make bench-cost measures it" in " ".join(failed.output.replace("│", " ").split())
