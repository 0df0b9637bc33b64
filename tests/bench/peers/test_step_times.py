"""Test the table of whole steps: packages combine gradients as we do, cells are kept, and failures cost one row."""

import json
import math
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import balancers
from balancers.engine.method.declared_method import Wrt
from bench.cost.subject import MakeStep, make
from bench.peers import by_hand, libmtl_steps, solver_packages, step_table, step_times
from bench.peers.contender import Contender, EqualStep, OurStep, PeerContender
from bench.peers.step_summary import over_torchjd, summarise
from bench.peers.step_table import COLUMNS, LEFT_OUT, METHODS, PLACES, Cell, Package, cells, measure, measure_all
from bench.peers.step_terminal import show
from bench.peers.trunk_networks import NETWORKS, Trunk, with_heads

from ...slow_params import others_slow

needs_torchjd = pytest.mark.skipif(find_spec("torchjd") is None, reason="torchjd")
needs_libmtl = pytest.mark.skipif(find_spec("LibMTL") is None, reason="LibMTL")


def tiny() -> Trunk:
    layers = [nn.Linear(6, 10), nn.Linear(10, 12)]
    module = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh())
    return Trunk(module, layers[1], 12, (6,), 5)


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "tiny", with_heads(tiny))


CELLS = list(cells(["tiny"], [2, 4], PLACES, METHODS))


# The gradients, which have to be the same.


@needs_torchjd
@pytest.mark.parametrize(
    "cell",
    others_slow(CELLS, *(cell for cell in CELLS if cell.num_tasks == 2)),
    ids=lambda cell: f"{cell.method}-{cell.place}-{cell.num_tasks}",
)
def test_each_way_of_torchjd_gives_our_gradient(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its inexact methods are given finer tolerances."""
    from torchjd import aggregation
    from torchjd.linalg import QuadprogProjector

    from bench.peers.torchjd_steps import AGGREGATORS, ways

    projector = QuadprogProjector(norm_eps=1e-12, reg_eps=1e-7)
    finer = {
        "dual-proj": lambda _: aggregation.DualProj(projector=projector),
        "mgda": lambda _: aggregation.MGDA(epsilon=1e-6, max_iters=10_000),
        "upgrad": lambda _: aggregation.UPGrad(projector=projector),
    }
    if cell.method in finer:
        monkeypatch.setitem(AGGREGATORS, cell.method, finer[cell.method])
    make_step = NETWORKS["tiny"](cell.num_tasks)
    ours = OurStep(make_step, cell.method, cell.place).first_gradient()
    found = ways(cell.method, cell.place, make_step, cell.num_tasks)
    assert found
    for name, way in found.items():
        deviation = step_table.deviation_from(way().first_gradient(), ours, cell)
        if step_table.is_random(cell.method, cell.num_tasks):
            assert math.isnan(deviation), name
        else:
            assert deviation < 1e-3, name


@pytest.mark.parametrize("way", by_hand.COMBINE)
def test_pcgrad_by_hand_gives_our_gradient(way: str) -> None:
    make_step = NETWORKS["tiny"](2)
    ours, by_hand_ = OurStep(make_step, "pcgrad", "parameters"), by_hand.ways(make_step, 2)[way]()
    for _ in range(3):
        torch.testing.assert_close(by_hand_.first_gradient(), ours.first_gradient(), rtol=1e-4, atol=1e-6)
        for mine, own in zip(by_hand_.subject.model.parameters(), ours.subject.model.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, own.grad, rtol=1e-4, atol=1e-6)
    assert by_hand.ways(NETWORKS["tiny"](4), 4)[way]().first_gradient().isfinite().all()


@needs_torchjd
@pytest.mark.parametrize("place", PLACES)
def test_heads_get_what_the_docstring_says(place: Wrt) -> None:
    """Autogram and the ways at the layer multiply the heads' gradients by the weights; autojac and ours do not."""
    from bench.peers.torchjd_steps import ways

    def of_heads(contender: Contender) -> Tensor:
        contender.first_gradient()
        heads = contender.subject.model.get_submodule("heads")
        return torch.cat([each.grad.flatten() for each in heads.parameters() if each.grad is not None])

    make_step = NETWORKS["tiny"](2)
    ours = of_heads(OurStep(make_step, "mgda", place))
    for name, way in ways("mgda", place, make_step, 2).items():
        same = torch.allclose(of_heads(way()), ours, rtol=1e-4, atol=1e-6)
        assert same == (place != "layer" and name != "autogram"), name


@needs_torchjd
def test_excess_mtl_stays_the_same_over_steps() -> None:
    """Its first weights are equal whatever it measures, so that the first step alone shows little."""
    from bench.peers.torchjd_steps import ways

    make_step = NETWORKS["tiny"](4)
    ours = OurStep(make_step, "excess-mtl", "parameters")
    theirs = ways("excess-mtl", "parameters", make_step, 4)["mtl_backward, one by one"]()
    for _ in range(6):
        theirs.subject.model.load_state_dict(ours.subject.model.state_dict())
        torch.testing.assert_close(theirs.first_gradient(), ours.first_gradient(), rtol=1e-4, atol=1e-7)


@needs_torchjd
def test_the_methods_are_those_of_torchjd() -> None:
    from bench.peers.torchjd_steps import AGGREGATORS, ways

    assert tuple(AGGREGATORS) == METHODS
    for method, place in LEFT_OUT:
        assert ways(method, place, NETWORKS["tiny"](2), 2) == {}


@needs_libmtl
@pytest.mark.parametrize("method", libmtl_steps.WEIGHTINGS)
def test_libmtl_gives_our_gradient(method: str) -> None:
    make_step = NETWORKS["tiny"](2)
    ours = OurStep(make_step, method, "parameters").first_gradient()
    [way] = libmtl_steps.ways(method, make_step, 2).values()
    assert step_table.deviation_from(way().first_gradient(), ours, Cell("tiny", 2, "parameters", method)) < 1e-3


def test_a_direction_of_another_length_is_compared_as_a_direction() -> None:
    ours = torch.tensor([3.0, 4.0])
    nash, other = Cell("tiny", 4, "layer", "nash-mtl"), Cell("tiny", 4, "layer", "mgda")
    assert step_table.deviation_from(2 * ours, ours, nash) == pytest.approx(0)
    assert step_table.deviation_from(2 * ours, ours, other) == pytest.approx(1)
    assert step_table.deviation_from(ours.flip(0), ours, nash) == pytest.approx(math.sqrt(2) / 5)
    assert math.isnan(step_table.deviation_from(ours, ours, Cell("tiny", 4, "layer", "pcgrad")))


@pytest.mark.parametrize("method", ["upgrad", "pcgrad", "nash-mtl"])
def test_a_gradient_that_is_not_finite_differs(method: str) -> None:
    broken = torch.tensor([math.nan, 1.0])
    assert step_table.deviation_from(broken, torch.ones(2), Cell("tiny", 4, "layer", method)) == math.inf


@needs_torchjd
def test_torchjd_searches_no_graph_for_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would walk the graph once for the trunk, and once for each task."""
    from bench.peers import torchjd_steps

    given: list[dict[str, Any]] = []
    monkeypatch.setattr(torchjd_steps.autojac, "mtl_backward", lambda *_, **options: given.append(options))
    monkeypatch.setattr(torchjd_steps.autojac, "jac_to_grad", lambda *_, **__: None)
    for contender in (
        torchjd_steps.OfTrunk(NETWORKS["tiny"](3), 3, lambda: None, None, sum_gramians=False),
        torchjd_steps.OfFeatures(NETWORKS["tiny"](3), 3, lambda: None, None),
    ):
        losses = contender.subject.losses()
        leaf = contender.features._seen[1]
        leaf.grad = torch.zeros_like(leaf)
        contender.backward(losses)
        heads = contender.subject.model.get_submodule("heads").children()
        expected = list(contender.trunk.parameters()) if len(given) == 1 else [leaf]
        assert same(given[-1]["shared_params"], expected)
        for of_task, head in zip(given[-1]["tasks_params"], heads, strict=True):
            assert same(of_task, head.parameters())


def same(given: Iterable[Tensor], expected: Iterable[Tensor]) -> bool:
    """Return whether both hold the very same tensors."""
    return [id(each) for each in given] == [id(each) for each in expected]


# The networks and the cells.


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "tiny"])
@pytest.mark.slow
def test_a_network_has_t_losses_and_its_layer_is_in_its_trunk(name: str) -> None:
    subject = make(NETWORKS[name](3))
    losses = subject.losses()
    assert isinstance(losses, list)
    assert len(losses) == 3
    assert subject.fork is not None
    shared = set(subject.model.get_submodule("trunk").parameters())
    assert set(subject.layer) < shared
    gradients = torch.autograd.grad(losses[2], list(shared))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_cells_have_few_tasks_first_and_only_places_of_both_sides() -> None:
    assert [cell.num_tasks for cell in CELLS] == sorted(cell.num_tasks for cell in CELLS)
    assert len(set(CELLS)) == len(CELLS)
    assert Cell("tiny", 2, "layer", "config") not in CELLS
    for place in PLACES:
        of_place = {cell.method for cell in CELLS if cell.place == place}
        undefined = {name for name in METHODS if place in balancers.get(name).undefined_for}
        assert of_place == set(METHODS) - undefined - {name for name, at in LEFT_OUT if at == place}


# What is measured.


class Summing(PeerContender):
    """Minimises the sum of the losses."""

    name = "summing"

    def backward(self, losses: list[Tensor]) -> None:
        self.features.take()
        torch.stack(losses).sum().backward()


class Breaking(Summing):
    """Breaks at a given step."""

    def __init__(self, make_step: MakeStep, num_tasks: int, at: int) -> None:
        super().__init__(make_step, num_tasks)
        self._left = at

    def backward(self, losses: list[Tensor]) -> None:
        self._left -= 1
        if self._left == 0:
            raise ArithmeticError("no solution\nand more text")
        super().backward(losses)


def package(name: str, make_contender: Callable[[MakeStep, int], Contender], module: str = "rich") -> Package:
    return Package(
        name, module, lambda cell: True, lambda cell, step: {"way": lambda: make_contender(step, cell.num_tasks)}
    )


@pytest.fixture
def without_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_table, "_version", lambda package: "1.0")


CELL = Cell("tiny", 2, "layer", "upgrad")


@pytest.mark.slow
@pytest.mark.usefixtures("without_versions")
def test_a_row_has_what_was_measured() -> None:
    ours, theirs = measure(CELL, 0, [package("summing", Summing)])
    assert [ours["contender"], theirs["contender"]] == ["ours", "summing"]
    for row in (ours, theirs):
        assert row["rounds"] == step_table.FEWEST
        assert 0 < row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["missing"] == ""
        assert row["peak_bytes"] > 0
    assert ours["gradient_deviation"] == 0
    assert theirs["gradient_deviation"] > 0.1  # the mean of two tasks is half of the sum
    assert (theirs["version"], theirs["way"]) == ("1.0", "way")


class Headless(Summing):
    """Leaves the trunk without a gradient."""

    def backward(self, losses: list[Tensor]) -> None:
        self.features.take()
        torch.stack(losses).sum().backward(inputs=[self.trunk.get_parameter("0.weight")])


@pytest.mark.usefixtures("without_versions")
def test_a_missing_gradient_costs_its_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_table, "FEWEST", 1)
    ours, broken = measure(CELL, 0, [package("headless", Headless)])
    assert broken["missing"].startswith("RuntimeError: The size of tensor a")
    assert ours["ratio"] > 0


def test_pairs_take_turns_in_few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """With long blocks all steps of ours would be made before the first of a package's."""
    made: list[str] = []

    class Recorded(Summing):
        def __call__(self) -> None:
            made.append("theirs")

    class Ours(Summing):
        def __call__(self) -> None:
            made.append("ours")

    make_step = NETWORKS["tiny"](2)
    monkeypatch.setattr("bench.cost.step_clock.gc.collect", lambda: 0)  # slow among many tests
    monkeypatch.setattr(step_table, "WARM_UP", 1)
    monkeypatch.setattr(step_table, "FEWEST", 12)
    monkeypatch.setattr(step_table, "MOST", 12)
    contenders = {"ours": Ours(make_step, 2), "theirs": Recorded(make_step, 2)}
    step_table._figures(EqualStep(make_step, 2), contenders, 0)
    timed = made[2:26]  # after the warm-up
    assert timed == ["ours"] * 4 + ["theirs"] * 4 + ["ours"] * 4 + ["theirs"] * 4 + ["ours"] * 4 + ["theirs"] * 4


@pytest.mark.slow
@pytest.mark.usefixtures("without_versions")
@pytest.mark.parametrize("at", [1, 3, 8])
def test_a_package_that_fails_costs_its_own_row(at: int) -> None:
    """It fails in the first step, in the trial, or where its steps are timed."""
    breaking = package("breaking", lambda make_step, num_tasks: Breaking(make_step, num_tasks, at))
    ours, broken, summing = measure(CELL, 0, [breaking, package("summing", Summing)])
    assert broken["missing"] == "ArithmeticError: no solution"
    assert "ratio" not in broken
    assert ours["ratio"] > 0
    assert summing["ratio"] > 0


@pytest.mark.slow
def test_of_several_ways_the_fastest_is_timed(monkeypatch: pytest.MonkeyPatch, without_versions: None) -> None:
    seconds = iter([0.3, 0.1, 0.2])
    monkeypatch.setattr(step_table, "_least_seconds", lambda contender, limit: next(seconds))
    ways = {name: lambda: Summing(NETWORKS["tiny"](2), 2) for name in ("slow", "fast", "middling")}
    _, row = measure(CELL, 0, [Package("summing", "rich", lambda cell: True, lambda *_: ways)])
    assert row["way"] == "fast"


@pytest.mark.slow
def test_a_missing_package_leaves_cells_out_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent = package("absent", Summing, "no_such_package")
    table = measure_all([CELL], 0, tmp_path / "steps.csv", print, [absent])
    assert table["contender"].tolist() == ["ours", "absent"]
    assert table["missing"].tolist() == ["", "not installed; pip install '.[peers]'"]
    assert np.isfinite(table["ratio"]).tolist() == [True, False]
    show(table)
    printed = " ".join(capsys.readouterr().out.split())
    assert "absent was not measured in 1 cell (upgrad): not installed; pip install '.[peers]'" in printed


@pytest.mark.slow
def test_a_package_without_the_method_has_no_row() -> None:
    other = Package("other", "rich", lambda cell: False, lambda *_: {})
    assert [row["contender"] for row in measure(CELL, 0, [other])] == ["ours"]


# What is kept.


@pytest.mark.slow
@pytest.mark.usefixtures("without_versions")
def test_tables_are_read_as_they_were_written(tmp_path: Path) -> None:
    packages = [package("summing", Summing), package("absent", Summing, "no_such_package")]
    written = measure_all([CELL], 0, tmp_path / "steps.csv", print, packages)
    pd.testing.assert_frame_equal(measure_all([CELL], 0, tmp_path / "steps.csv", print, packages), written)


@pytest.mark.slow
def test_finished_cells_are_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, said, measured = tmp_path / "steps.csv", list[str](), list[Cell]()
    real = step_table.measure

    def watched(cell: Cell, seconds: float, packages: object) -> object:
        measured.append(cell)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return real(cell, seconds, [])

    monkeypatch.setattr(step_table, "measure", watched)
    chosen = list(cells(["tiny"], [2], ["features", "layer"], ["upgrad", "mgda"]))
    with pytest.raises(KeyboardInterrupt):
        measure_all(chosen, 0, path, said.append, [])
    kept = pd.read_csv(path)
    assert tuple(kept.columns) == COLUMNS
    assert kept["method"].tolist() == ["upgrad", "mgda"]
    table = measure_all(chosen, 0, path, said.append, [])
    assert measured == [*chosen[:3], *chosen[2:]]
    assert table["place"].tolist() == ["features", "features", "layer", "layer"]
    assert table["ratio"].tolist()[:2] == kept["ratio"].tolist()
    assert (table["missing"] == "").all()
    assert said[-1].startswith("4 of 4: tiny, 2 tasks, layer, mgda: ours ")
    monkeypatch.setattr(step_table, "key", lambda packages: "other code")
    again = measure_all(chosen[:1], 0, path, said.append, [])
    assert len(again) == 1
    assert any("4 rows of other code" in line for line in said)


@pytest.mark.slow
def test_the_key_depends_on_processor_and_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    summing = package("summing", Summing, "no_such_package")
    before = step_table.key([summing])
    assert step_table.key([summing]) == before
    assert step_table.key([]) != before
    monkeypatch.setattr(step_table, "_machine", lambda: "another processor")
    assert step_table.key([summing]) != before
    monkeypatch.undo()
    monkeypatch.setattr(solver_packages, "versions", lambda: {"cvxpy": "0"})
    assert step_table.key([summing]) != before


def test_the_environment_names_the_solvers(tmp_path: Path) -> None:
    solver_packages.write_environment(tmp_path / "environment.json")
    versions = json.loads((tmp_path / "environment.json").read_text())["versions"]
    assert {"torch", *solver_packages.PACKAGES} <= set(versions)


# The summary and the command.


def table_of(ratios: dict[tuple[str, str, str], float]) -> pd.DataFrame:
    """Return a table from ratios by place, method and contender; a ratio of nan is a row that was not measured."""
    rows = [
        {"network": "tiny", "num_tasks": 2, "place": place, "method": method, "contender": contender, "ratio": ratio}
        for (place, method, contender), ratio in ratios.items()
    ]
    table = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    table = table.assign(ratio_low=0.9 * table["ratio"], ratio_high=1.1 * table["ratio"])
    return table.assign(missing=np.where(table["ratio"].isna(), "it broke", ""), gradient_deviation=0.0)


RATIOS = {
    ("features", "mgda", "ours"): 1.2,
    ("features", "mgda", "TorchJD"): 1.0,
    ("parameters", "mgda", "ours"): 1.8,
    ("parameters", "mgda", "TorchJD"): 2.0,
    ("parameters", "upgrad", "ours"): 2.0,
    ("parameters", "upgrad", "TorchJD"): 5.0,
    ("parameters", "upgrad", "LibMTL"): 1.5,
    ("parameters", "cagrad", "ours"): 1.7,
    ("parameters", "cagrad", "TorchJD"): math.nan,
}


def test_the_summary_is_of_cells_that_both_sides_have() -> None:
    assert over_torchjd(table_of(RATIOS)).tolist() == pytest.approx([1.2, 0.9, 0.4])
    summary = summarise(table_of(RATIOS))
    assert summary.cells == 3
    assert summary.at_parameters == pytest.approx(0.6)


def test_a_cell_is_settled_only_where_intervals_do_not_overlap() -> None:
    """Intervals are 10 % to either side here: 1.2 and 1.0 overlap, 2.0 and 5.0 do not."""
    summary = summarise(table_of(RATIOS))
    assert (summary.cells, summary.faster, summary.slower) == (3, 1, 0)
    other = {(*cell, {"ours": "TorchJD", "TorchJD": "ours"}.get(who, who)): x for (*cell, who), x in RATIOS.items()}
    assert (summarise(table_of(other)).faster, summarise(table_of(other)).slower) == (0, 1)


def test_the_summary_of_nothing_is_nan() -> None:
    summary = summarise(table_of({("features", "mgda", "ours"): 1.2}))
    assert (summary.cells, summary.faster, summary.slower) == (0, 0, 0)
    assert math.isnan(summary.at_parameters)


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    table = table_of(RATIOS)
    table.loc[[1, 3], "gradient_deviation"] = 0.25
    table.loc[5, "gradient_deviation"] = math.inf
    show(table)
    printed = " ".join(capsys.readouterr().out.split())
    assert "tiny: features" in printed
    assert "mgda 1.20 1.00≠ 1.20" in printed
    assert "Gradients of TorchJD that differ, by up to: mgda 25.0%, upgrad (not finite)" in printed
    assert "upgrad 2.00 5.00≠ 1.50 0.40" in printed
    assert "cagrad 1.70 – – –" in printed
    assert "Our step is faster than TorchJD's in 1 of 3 cells, and slower in 0. In 2, their 95 % intervals" in printed
    assert "At all shared parameters it takes 0.60 of TorchJD's time (geometric mean)." in printed
    assert "TorchJD was not measured in 1 cell (cagrad): it broke" in printed


def run(*arguments: str) -> tuple[int, str]:
    app = step_times.typer.Typer()
    app.command()(step_times.main)
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, " ".join(done.output.split())


@pytest.mark.slow
def test_the_command_measures_what_is_chosen(tmp_path: Path) -> None:
    chosen = ("--networks", "tiny", "--tasks", "2,3", "--places", "layer,features", "--methods", "mgda,gradvac")
    code, output = run("--results", str(tmp_path), "--seconds", "0", *chosen)
    assert code == 0, output
    kept = pd.read_csv(tmp_path / "steps.csv")
    ours = kept[kept["contender"] == "ours"]
    assert list(zip(ours["num_tasks"], ours["place"], ours["method"], strict=True)) == [
        (T, *of) for T in (2, 3) for of in (("features", "mgda"), ("layer", "mgda"), ("layer", "gradvac"))
    ]
    assert (tmp_path / "environment-steps.json").is_file()
    assert "tiny: last shared layer" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--networks", "tiny,vgg"), "--networks has 'vgg'"),
        (("--places", "trunk"), "--places has 'trunk'"),
        (("--methods", "famo"), "--methods has 'famo'"),
        (("--tasks", "2,1"), "--tasks is '2,1'"),
        (("--places", "features", "--methods", "gradvac"), "no method that is chosen"),
    ],
)
def test_the_command_refuses_unknown_choices(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    code, output = run("--results", str(tmp_path), *arguments)
    assert code == 2
    assert message in output
    assert not list(tmp_path.iterdir())
