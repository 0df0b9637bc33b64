"""Test the table of every method's cost, and the table that compares our solvers with TorchJD's."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

import balancers
from balancers import GradientBalancer
from bench.cost import method_costs


@pytest.mark.slow
def test_each_method_is_timed_where_it_is_cheapest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method_costs, "BATCH", 8)
    monkeypatch.setattr(balancers, "names", lambda: ["equal", "famo", "gradvac", "moco", "nash-mtl", "static"])
    (table,) = method_costs.measure(torch.device("cpu"), [2], rounds=3)
    places = dict(zip(table["method"], table["wrt"], strict=True))
    assert places == {
        "equal": "",
        "equal, again": "",
        "famo": "",
        "gradvac": "layer",
        "moco": "parameters",
        "nash-mtl": "features",
        "static": "",
    }
    extra = table.set_index("method")["extra_flops"]
    assert extra["static"] == extra["equal, again"] == 0
    assert extra["famo"] > 0  # its second forward pass
    assert (table["tasks"] == 2).all()
    assert (table["ratio"] > 0).all()


@pytest.mark.slow
def test_the_command_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method_costs, "BATCH", 8)
    monkeypatch.setattr(method_costs, "QUICK", 2)
    monkeypatch.setattr(balancers, "names", lambda: ["equal", "imtl-g"])
    app = method_costs.typer.Typer()
    app.command()(method_costs.main)
    done = CliRunner().invoke(app, ["--quick", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "imtl-g (features)" in done.output
    assert list(pd.read_csv(tmp_path / "methods.csv")["method"]) == ["equal", "equal, again", "imtl-g"]
    assert (tmp_path / "environment-methods.json").is_file()


def test_a_missing_device_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    app = method_costs.typer.Typer()
    app.command()(method_costs.main)
    done = CliRunner().invoke(app, ["--device", "cuda", "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "PyTorch finds no CUDA device" in done.output


@pytest.mark.parametrize("name", balancers.names())
def test_every_method_has_a_place(name: str) -> None:
    cls = balancers.get(name)
    place = method_costs.place(name)
    assert (place is not None) == issubclass(cls, GradientBalancer)
    if issubclass(cls, GradientBalancer):
        assert place not in cls.undefined_for


@pytest.mark.slow
def test_solvers_are_measured_beside_torchjds(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torchjd", "cvxpy", "clarabel", "ecos", "quadprog"):
        pytest.importorskip(package)
    from bench.peers import solver_times

    monkeypatch.setattr(solver_times, "ROUNDS", 2)
    monkeypatch.setattr(solver_times, "GRAMIANS", 6)
    table = solver_times.measure(2).set_index("method")
    assert list(table.index) == ["nash-mtl", "cagrad", "mgda", "upgrad", "dual-proj"]
    assert (table[["ours_ms", "torchjd_ms", "ratio", "ratio_low"]] > 0).all(axis=None)
    assert table["ours"]["nash-mtl"] < 1e-9
    assert table["ours"]["mgda"] <= table["torchjd"]["mgda"] * (1 + 1e-9)
    assert "nash-mtl" in str(list(solver_times.show(table.reset_index()).columns[1].cells))


def test_the_interval_is_over_sets_of_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds on one set are no draws of their own: with five sets there is no interval, however many the rounds."""
    from bench.peers import solver_times

    weigh = torch.ones(2, dtype=torch.float64)
    pair = solver_times.Pair(lambda _: weigh, lambda _: weigh, "", lambda gains, weights: gains.sum())
    monkeypatch.setattr(solver_times, "pairs", lambda num_tasks: {"mean": pair})

    def interleave(calls: Sequence[Callable[[], object]], rounds: int) -> NDArray[np.float64]:
        sets = solver_times.GRAMIANS  # the k-th takes k times as long as ours, in each round
        return np.array([[1.0] * rounds, [1.0 + k % sets for k in range(rounds)]])

    monkeypatch.setattr(solver_times, "interleave", interleave)
    monkeypatch.setattr(solver_times, "GRAMIANS", 5)
    [few] = solver_times.measure(2).to_dict("records")
    monkeypatch.setattr(solver_times, "GRAMIANS", 20)
    [many] = solver_times.measure(2).to_dict("records")
    assert (few["ratio"], few["torchjd_ms"]) == (3, 3000)
    assert np.isnan(few["ratio_low"])
    assert (many["ratio_low"], many["ratio"], many["ratio_high"]) == (6, 10.5, 15)


def test_each_call_of_a_solver_has_other_gradients_than_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in training: a solver that begins with its last solution would have nothing to do on the same ones."""
    from bench.peers import solver_times

    seen: list[int] = []

    def weigh(gradients: torch.Tensor) -> torch.Tensor:
        seen.append(id(gradients))
        return torch.ones(2, dtype=torch.float64)

    pair = solver_times.Pair(
        lambda _: torch.ones(2, dtype=torch.float64), weigh, "", lambda gains, weights: gains.sum()
    )
    monkeypatch.setattr(solver_times, "pairs", lambda num_tasks: {"mean": pair})
    monkeypatch.setattr(solver_times, "GRAMIANS", 3)
    solver_times.measure(2)
    assert len(seen) == 3 * (1 + solver_times.ROUNDS)
    assert all(one != two for one, two in itertools.pairwise(seen))
