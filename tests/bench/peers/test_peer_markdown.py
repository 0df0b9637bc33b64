"""The tables beside other packages that the documentation shows follow from the files that are measured."""

from math import nan
from pathlib import Path

import pandas as pd
import pytest

from bench.peers import peer_markdown


def rows_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Whole steps of two networks and places; TorchJD's was not measured in one cell."""
    steps = [
        {"network": network, "num_tasks": 2, "place": place, "method": "pcgrad", "contender": contender}
        | {"ratio": ratio, "ratio_low": ratio - 0.1, "ratio_high": ratio + 0.1, "peak_bytes": peak, "missing": missing}
        for network, place, contender, ratio, peak, missing in [
            ("toy", "parameters", "ours", 2.0, 50, ""),
            ("toy", "parameters", "TorchJD", 1.0, 100, ""),
            ("toy", "parameters", "LibMTL", 12.0, 100, ""),
            ("toy", "parameters", "by hand", 1.5, 100, ""),
            ("mlp", "parameters", "ours", 1.0, 200, ""),
            ("mlp", "parameters", "TorchJD", 8.0, 100, ""),
            ("mlp", "features", "ours", 1.0, 30, ""),
            ("mlp", "features", "TorchJD", 1.1, 100, ""),
            ("toy", "features", "ours", 1.0, 30, ""),
            ("toy", "features", "TorchJD", nan, nan, "it is not installed"),
        ]
    ]
    pd.DataFrame(steps).to_csv(tmp_path / "steps.csv", index=False)
    return tmp_path


def test_whole_steps_at_all_shared_parameters(kept: Path):
    found = {row[0]: row[1] for row in rows_of(peer_markdown.steps(kept))}
    assert found["`pcgrad`, toy problem"] == "2.0 / 1.0 / 12"
    assert found["`pcgrad`, MLP of 4 × 512"] == "1.0 / 8.0"
    assert found["`upgrad`, toy problem"] == ""


def test_how_often_which_is_the_faster(kept: Path):
    assert rows_of(peer_markdown.counts(kept)) == [
        ["features", "1", "0", "0", "0", "0.91", "0.30"],
        ["last shared layer", "0", "0", "0", "0", "–", "–"],
        ["all shared parameters", "2", "1", "1", "1", "0.50", "1.00"],
    ]


def test_where_ours_are_slower(kept: Path):
    assert rows_of(peer_markdown.slower(kept)) == [
        ["toy problem, 2 tasks", "all shared parameters", "1 of 1", "1", "100 %", "100 %, `pcgrad`"]
    ]


def test_pcgrad_beside_a_few_lines(kept: Path):
    found = {row[0]: row[1] for row in rows_of(peer_markdown.beside_hand(kept))}
    assert found == dict.fromkeys(peer_markdown.NETWORK_NAMES.values(), "") | {"toy problem": "2.0 / 1.5"}


def test_the_solvers_are_in_the_order_of_the_gain(tmp_path: Path):
    records = [
        {"num_tasks": T, "method": method, "ratio": ratio * T / 2}
        for T in (2, 10)
        for method, ratio in {"mgda": 2.66, "nash-mtl": 148.2}.items()
    ]
    pd.DataFrame(records).to_csv(tmp_path / "solvers.csv", index=False)
    assert rows_of(peer_markdown.solvers(tmp_path)) == [["`nash-mtl`", "148", "741"], ["`mgda`", "2.7", "13"]]


def test_the_implementations_of_gradnorm(tmp_path: Path):
    records = [
        {"num_tasks": T, "contender": name, "version": "1.1.5" if name == "LibMTL" else ""}
        | {"ratio": 1.46 * T / 2, "gradient_deviation": 0.034 if name == "LibMTL" else 1e-9}
        for T in (2, 10)
        for name in peer_markdown.GRADNORMS
    ]
    pd.DataFrame(records).to_csv(tmp_path / "peers.csv", index=False)
    found = rows_of(peer_markdown.gradnorm(tmp_path))
    assert found[0] == ["ours", "1.5 / 7.3", "0"]
    assert found[-1] == ["`LibMTL` 1.1.5 (patched to run; all shared parameters)", "1.5 / 7.3", "3 % / 3 %"]
