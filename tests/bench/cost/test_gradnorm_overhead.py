"""Test ``python -m bench.cost``: the limits table, the figure of growth, and the cases that they are measured on."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from matplotlib.image import imread
from torch import nn
from typer.testing import CliRunner

from bench.cost import compiled as compiled_steps
from bench.cost import cost_terminal, gradnorm_overhead, step_comparison
from bench.cost.__main__ import main
from bench.cost.cases import layer_networks, networks, regression
from bench.cost.compiled import compiled
from bench.cost.floor import Floor
from bench.cost.subject import features, in_order, make
from bench.cost.timed_methods import EQUAL, FEATURES, LAYER
from bench.cost.training_step import TrainingStep, adam
from bench.style.console import new_console

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
COLUMNS = [
    *("problem", "heads", "batch", "tasks", "method"),
    *("ratio", "ratio_low", "ratio_high", "ratio_to_fastest", "compiled_ratio", "median_ms", "extra_ms"),
    *("flops", "operator_calls", "peak_bytes", "extra_flops", "extra_operator_calls", "extra_peak_bytes"),
    *("flops_bound", "peak_bytes_bound", "machine"),
]


def compiled_rows() -> pd.DataFrame:
    """Return a table that stands for what is measured under torch.compile."""
    about = {"problem": "regression T=2", "heads": "separate", "batch": 100, "tasks": 2, "method": "gradnorm layer"}
    return pd.DataFrame(
        [{**about, **dict.fromkeys(("ratio", "ratio_low", "ratio_high", "median_ms", "extra_ms"), 1.0)}]
    )


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder and the output of a quick run."""
    folder = tmp_path_factory.mktemp("cost")
    app = typer.Typer()
    app.command()(main)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_comparison, "WARM_UP", 2)
        patch.setattr(compiled_steps, "measure", lambda *_: [compiled_rows()])
        result = CliRunner().invoke(app, ["--quick", "--compile", "--out", str(folder)])
    assert result.exit_code == 0, result.output
    return folder, result.output


def test_the_limits_stand_beside_the_bounds(quick: tuple[Path, str]) -> None:
    folder, output = quick
    table = pd.read_csv(folder / "limits.csv")
    assert list(table.columns) == COLUMNS
    assert table["heads"].value_counts().to_dict() == {"separate": 7, "batched": 7}
    layer, of_features = (table[table["method"] == one.name] for one in (LAYER, FEATURES))
    assert (layer["extra_flops"] == layer["flops_bound"]).all()
    assert (of_features["extra_flops"] == 0).all()
    assert table["peak_bytes_bound"].notna().sum() == 4
    for words in ("regression T=2", "batch 100", "separate heads", "gradnorm every 10", "extra memory", "(bound)"):
        assert words in output


def test_the_fastest_is_of_both_kinds_of_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = np.array([[2.0, 4.0, 2.0], [1.0, 2.0, 1.0]])
    monkeypatch.setattr(gradnorm_overhead, "interleave", lambda trainings, rounds: seconds)
    monkeypatch.setattr(
        gradnorm_overhead, "rows", lambda case, *_: pd.DataFrame({"ratio": [1.0, 1.5], "ratio_high": 2.0})
    )
    table = gradnorm_overhead.rows_beside_fastest(list(regression(2, 10, CPU)), [], rounds=3)
    assert table["ratio_to_fastest"].tolist() == [2, 3, 1, 1.5]


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("of_layer", [True, False])
def test_the_floor_forms_what_gradnorm_measures(place: int, of_layer: bool) -> None:
    """Compare with the gradient of the layer's weight, or of the features, from a backward pass for each task."""
    case = list(regression(3, 20, CPU))[place]
    subject = make(case.make_step)
    floor = Floor(subject, 3, of_layer)
    floor(subject.losses()).backward()
    found = floor.norms[None] if None in floor.norms else torch.stack([floor.norms[i] for i in range(3)])
    assert subject.fork is not None
    subject.fork.reading.recording = False
    [z], losses = features(subject)
    of = subject.layer[0] if of_layer else z
    expected = [torch.autograd.grad(loss, of, retain_graph=True)[0].norm() for loss in in_order(losses)]
    torch.testing.assert_close(found, torch.stack(expected))


def test_what_is_compiled_has_its_own_environment(quick: tuple[Path, str]) -> None:
    """A later run without ``--compile`` writes environment.json anew, and keeps compiled.csv."""
    folder, _ = quick
    assert list(pd.read_csv(folder / "compiled.csv")["method"]) == ["gradnorm layer"]
    assert (folder / "environment-compiled.json").is_file()
    assert (folder / "environment.json").is_file()


def test_growth_is_drawn(quick: tuple[Path, str]) -> None:
    folder, _ = quick
    table = pd.read_csv(folder / "growth.csv")
    assert set(zip(table["tasks"], table["batch"], strict=True)) == {(2, 100), (5, 100), (10, 10), (10, 30)}
    large, of_layer = table["batch"] == 100, table["method"] == LAYER.name
    assert (table[large].groupby(["tasks", "batch", "heads"])["extra_flops"].nunique() == 1).all()
    assert (table["extra_flops"] == table["flops_bound"])[of_layer].all()  # of small batches without gradients
    assert (imread(folder / "growth.png")[..., :3].min(axis=-1) < 0.9).mean() > 0.03  # ink on white


@pytest.mark.parametrize("place", [0, 1])
def test_the_networks_are_of_realistic_size(place: int) -> None:
    case = list(networks(CPU))[place]
    subject = make(case.make_step)
    [z], losses = features(subject)
    assert len(losses) == case.num_tasks
    assert all(loss > 0 for loss in in_order(losses))
    assert z.shape[0] == case.batch
    trunk = subject.model.trunk
    assert isinstance(trunk, nn.Module)
    size = sum(parameter.numel() for parameter in trunk.parameters())
    # Torchvision's ResNet-18 has 11,689,512 parameters, 513,000 of them in its last layer.
    # A transformer block of width d has 12 d^2 + 13 d.
    assert size == (11_689_512 - 513_000 if case.problem == "ResNet-18" else 12 * (12 * 192**2 + 13 * 192) + 2 * 192)
    training = TrainingStep(subject, LAYER.balancer(subject, case.num_tasks), adam(subject.model))
    training()  # raises unless the layer is upstream of the fork
    assert (training.balancer.statistics["gradient_norms"] > 0).all()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_layers_cost_what_the_cheaper_way_does(place: int) -> None:
    case = list(layer_networks(CPU))[place]
    table = gradnorm_overhead.rows(case, (EQUAL, LAYER), rounds=1).set_index("method")
    of_layer = table.loc[LAYER.name]
    assert of_layer["extra_flops"] == pytest.approx(of_layer["flops_bound"], rel=0.01)
    [layer, *_] = make(case.make_step).layer
    products = 2 * case.num_tasks * layer.numel() * (case.batch * (16 if layer.ndim == 4 else 1))
    assert of_layer["flops_bound"] < products


@pytest.mark.parametrize("heads", [0, 1])
def test_what_is_compiled_is_the_same_model(heads: int) -> None:
    case = list(regression(3, 10, CPU))[heads]
    plain, parts = make(case.make_step), make(compiled(case.make_step))
    assert parts.layer[0].shape == (100, 100)
    with torch.compiler.set_stance("force_eager"):
        for ours, theirs in zip(in_order(parts.losses()), in_order(plain.losses()), strict=True):
            torch.testing.assert_close(ours, theirs)
        training = TrainingStep(parts, LAYER.balancer(parts, 3), adam(parts.model))
        training()
    assert (training.balancer.statistics["gradient_norms"] > 0).all()


def test_a_case_is_named_once() -> None:
    about = {"problem": "small", "batch": 7, "heads": "separate"}
    times = {"ratio": 1.25, "ratio_low": 1.2, "ratio_high": 1.3, "median_ms": 2.0, "extra_ms": -0.25}
    table = pd.DataFrame([{**about, "method": method, **times} for method in ("one", "two", "three", "four")])
    out = new_console()
    with out.capture() as printed:
        out.print(cost_terminal.times(table))
    lines = [" ".join(line.split()) for line in printed.get().splitlines()]
    numbers = "1.250 [1.200, 1.300] 2.00 −0.25"
    for start in ("small one", "batch 7 two", "separate heads three", "four"):
        assert f"{start} {numbers}" in lines
