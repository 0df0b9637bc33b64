"""Test the peers: their weights are as described, a wrong gradient is noticed, and the table has all results."""

import copy
import itertools
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.optim import Adam
from typer.testing import CliRunner

import tasks
from bench.peers import __main__ as command
from bench.peers.double_backward import DoubleBackward
from bench.peers.equal_peer import Equal
from bench.peers.gradient_check import CLEAN, compare, gradient_deviation
from bench.peers.gradnorm_pytorch import GradNormPytorch
from bench.peers.libmtl import LibMTL
from bench.peers.our_gradnorm import Ours
from bench.peers.peer import GradNormSetting, Peer, Where
from bench.peers.peer_table import COLUMNS, Setup, measure
from bench.peers.peer_terminal import show
from bench.peers.stacked import StackedDoubleBackward

from ...slow_params import others_slow

OptimizerName = Literal["adam", "sgd"]
STEPS = 12
needs_gradnorm_pytorch = pytest.mark.skipif(find_spec("gradnorm_pytorch") is None, reason="gradnorm-pytorch")
# importorskip would fail: LibMTL is installed, but can't be imported without the patches in libmtl.py.
needs_libmtl = pytest.mark.skipif(find_spec("LibMTL") is None, reason="LibMTL")


@pytest.fixture(scope="module")
def setup() -> Setup:
    """Return a setup of three tasks, so similar that norms cross their targets and the targets decide the weights."""
    problem = tasks.create("regression", sigmas=[1, 1.2, 1.4], heads="separate", train_samples=600)
    data = problem.data(torch.Generator().manual_seed(0), "cpu")
    batches = problem.batches(data, torch.Generator().manual_seed(1), batch_size=100)
    return Setup(problem, list(itertools.islice(batches, STEPS)))


class InDouble(Setup):
    """A setup whose models are in float64."""

    def make(self, cls: Callable[..., Peer], *setting: object) -> Peer:
        return super().make(lambda problem, model, *rest: cls(problem, model.double(), *rest), *setting)


@pytest.fixture(scope="module")
def in_double(setup: Setup) -> Setup:
    return InDouble(setup.problem, [type(batch)(*(part.double() for part in batch)) for batch in setup.batches])


def norms_and_losses(peer: Peer, batch: object) -> tuple[Tensor, Tensor]:
    """Return gradient norms of the unweighted losses, by one gradient for each loss, and the losses, ``(T,)`` each."""
    model = copy.deepcopy(peer.model)
    wrt = peer.setting.parameters(peer.problem, model)
    losses = list(peer.problem.losses(model, batch))
    gradients = [torch.autograd.grad(loss, wrt, retain_graph=True) for loss in losses]
    norms = [torch.cat([part.flatten() for part in of]).norm() for of in gradients]
    return torch.stack(norms), torch.stack(losses).detach()


def targets(weights: Tensor, norms: Tensor, losses: Tensor, initial: Tensor, exponent: float) -> Tensor:
    rates = losses / initial
    return (weights * norms).mean() * (rates / rates.mean()) ** exponent


# The weights, against an independent computation.


@pytest.mark.parametrize("cls", [DoubleBackward, StackedDoubleBackward])
@pytest.mark.parametrize("optimizer", others_slow(["adam", "sgd"], "adam"))
@pytest.mark.parametrize("wrt", ["last shared layer", "its weight alone", "all shared parameters"])
def test_double_backward_gives_our_weights(
    in_double: Setup, cls: type[Peer], optimizer: OptimizerName, wrt: Where
) -> None:
    setting = GradNormSetting(wrt, alpha=0.7, lr=0.1, optimizer=optimizer)
    peer, ours = in_double.make(cls, setting), in_double.make(Ours, setting)
    deviation = compare(peer, ours, in_double.batches)
    assert deviation.weights < 1e-9
    assert deviation.gradient < 1e-10
    assert (peer.weights - 1).abs().max() > 1e-3


def test_double_backward_stops_at_our_lowest_weight(in_double: Setup) -> None:
    setting = GradNormSetting(alpha=1.5, lr=300, optimizer="sgd")
    peer, ours = in_double.make(DoubleBackward, setting), in_double.make(Ours, setting)
    lowest = 1.0
    for batch in in_double.batches:
        assert compare(peer, ours, [batch]).weights < 1e-9
        lowest = min(lowest, float(peer.weights.min()))
    assert 0 < lowest < 1e-3


@pytest.mark.parametrize("cls", [Ours, DoubleBackward, StackedDoubleBackward])
def test_weights_follow_the_slope_of_the_objective(in_double: Setup, cls: type[Peer]) -> None:
    """Compare with a step of SGD along the slope from finite differences."""
    lr, h = 0.3, 1e-6
    peer = in_double.make(cls, GradNormSetting(alpha=1.5, lr=lr, optimizer="sgd"))
    initial = norms_and_losses(peer, in_double.batches[0])[1]
    for batch in in_double.batches:
        before = peer.weights
        norms, losses = norms_and_losses(peer, batch)
        fixed = targets(before, norms, losses, initial, 1.5)

        def objective(weights: Tensor, norms: Tensor = norms, fixed: Tensor = fixed) -> Tensor:
            return (weights * norms - fixed).abs().sum()

        slope = torch.stack(
            [objective(before + e) - objective(before - e) for e in h * torch.eye(3, dtype=torch.float64)]
        ) / (2 * h)
        peer.step(batch)
        expected = before - lr * slope
        torch.testing.assert_close(peer.weights, 3 * expected / expected.sum(), rtol=1e-7, atol=0)
    assert (peer.weights - 1).abs().max() > 1e-2


@needs_gradnorm_pytorch
def test_gradnorm_pytorch_weighs_as_its_row_says(setup: Setup) -> None:
    """Its weights follow from the exponent -alpha, and not from the exponent alpha."""
    setting = GradNormSetting("its weight alone", alpha=1.5, lr=0.3, optimizer="sgd")
    peer = setup.make(GradNormPytorch, setting)
    expected = {-1.5: torch.ones(3), 1.5: torch.ones(3)}
    initial = norms_and_losses(peer, setup.batches[0])[1]
    for batch in setup.batches:
        norms, losses = norms_and_losses(peer, batch)
        for exponent, weights in expected.items():
            above = weights * norms - targets(weights, norms, losses, initial, exponent)
            stepped = weights - 0.3 * above.sign() * norms
            expected[exponent] = 3 * stepped / stepped.abs().sum()
        peer.step(batch)
    torch.testing.assert_close(peer.weights, expected[-1.5], rtol=1e-5, atol=0)
    assert (peer.weights - expected[1.5]).abs().max() > 1e-4


@needs_gradnorm_pytorch
def test_gradnorm_pytorch_without_alpha_has_our_weights_but_not_our_gradient(setup: Setup) -> None:
    setting = GradNormSetting("its weight alone", alpha=0, lr=0.1, optimizer="sgd")
    deviation = compare(setup.make(GradNormPytorch, setting), setup.make(Ours, setting), setup.batches)
    assert deviation.weights < 1e-3
    assert deviation.gradient > 10 * CLEAN


@needs_libmtl
def test_libmtl_weighs_as_its_row_says(setup: Setup) -> None:
    """Compare with Adam on the logits of a softmax, along the slope of the objective over all shared parameters."""
    lr = setup.problem.recipe.lr
    peer = setup.make(LibMTL, GradNormSetting("all shared parameters", alpha=1.5, lr=lr))
    logits = torch.ones(3, requires_grad=True)
    optimizer = Adam([logits], lr=lr)
    initial = norms_and_losses(peer, setup.batches[0])[1]
    for batch in setup.batches:
        norms, losses = norms_and_losses(peer, batch)
        weights = 3 * logits.softmax(0)
        above = weights * norms - targets(weights, norms, losses, initial, 1.5).detach()
        [logits.grad] = torch.autograd.grad(above.abs().sum(), logits)
        optimizer.step()
        peer.step(batch)
    torch.testing.assert_close(peer.weights, 3 * logits.detach().softmax(0), rtol=1e-5, atol=0)
    assert (peer.weights - 1).abs().max() > 1e-2


@needs_libmtl
def test_libmtl_trains_its_heads_on_unweighted_losses(setup: Setup) -> None:
    peer = setup.make(LibMTL)
    for batch in setup.batches:
        weights, model = peer.weights, copy.deepcopy(peer.model)
        losses = list(setup.problem.losses(model, batch))
        peer.step(batch)
    heads = model.heads
    for loss, head, trained in zip(losses, heads, peer.model.heads, strict=True):
        [unweighted] = torch.autograd.grad(loss, [head.weight], retain_graph=True)
        torch.testing.assert_close(trained.weight.grad, unweighted)
    trunk = list(model.trunk.parameters())
    weighted = torch.autograd.grad(sum(w * loss for w, loss in zip(weights, losses, strict=True)), trunk)
    for parameter, gradient in zip(peer.model.trunk.parameters(), weighted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-7)
    assert (weights - 1).abs().max() > 1e-3


# The gradient that the network is trained on.


class Polluting(DoubleBackward):
    """Makes the gradient of one parameter, the last head's bias, one per cent too large."""

    def backward(self, losses: list[Tensor]) -> None:
        super().backward(losses)
        gradient = list(self.model.parameters())[-1].grad
        assert gradient is not None
        gradient.mul_(1.01)


class Forgetting(Equal):
    """Leaves one parameter without a gradient."""

    def backward(self, losses: list[Tensor]) -> None:
        super().backward(losses)
        next(self.model.parameters()).grad = None


class Unweighted(DoubleBackward):
    """Trains the network on the plain sum of the losses, whatever the weights."""

    def backward(self, losses: list[Tensor]) -> None:
        super().backward(losses)
        self.optimizer.zero_grad()
        torch.stack(list(self.problem.losses(self.model, self.batch))).sum().backward()

    def step(self, batch: object) -> None:
        self.batch = batch
        super().step(batch)


@pytest.mark.parametrize("cls", [Equal, Ours, DoubleBackward, StackedDoubleBackward])
def test_a_clean_gradient_is_found_clean(setup: Setup, cls: type[Peer]) -> None:
    peer = setup.make(cls)
    assert max(gradient_deviation(peer, batch) for batch in setup.batches) < CLEAN / 10


@pytest.mark.parametrize(("cls", "deviation"), [(Polluting, 0.01), (Forgetting, 1.0)])
def test_a_gradient_of_something_else_is_found_out(setup: Setup, cls: type[Peer], deviation: float) -> None:
    peer = setup.make(cls)
    assert gradient_deviation(peer, setup.batches[0]) == pytest.approx(deviation, rel=1e-3)
    assert compare(setup.make(cls), setup.make(Ours), setup.batches).gradient > CLEAN


def test_gradients_are_held_against_the_weights_before_the_step(setup: Setup) -> None:
    """The weights are 1 in the first step, so that the plain sum is right there; in the second step it is wrong."""
    peer = setup.make(Unweighted)
    first, second = (gradient_deviation(peer, batch) for batch in setup.batches[:2])
    assert first < CLEAN < second


# The table.


class Missing(Equal):
    name = "missing"
    package = "no_such_package"


class Broken(Equal):
    name = "rich"
    package = "rich"
    differs = "It breaks."

    def __init__(self, *_: object) -> None:
        raise ImportError("no module named antimony")


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return measure([2], seconds=0, peers=[Equal, Ours, DoubleBackward, Missing, Broken])


@pytest.mark.slow
def test_the_table_has_a_row_for_each(table: pd.DataFrame) -> None:
    assert tuple(table.columns) == COLUMNS
    assert table["contender"].tolist() == [Equal.name, Ours.name, DoubleBackward.name, "missing", "rich"]
    assert (table["num_tasks"] == 2).all()
    measured = table[:3]
    assert (measured["missing"] == "").all()
    assert (measured["rounds"] == 20).all()
    assert (measured[["median_ms", "equal_ms"]] > 0).all(axis=None)
    assert measured["ratio"].between(measured["ratio_low"], measured["ratio_high"]).all()
    assert (measured["gradient_deviation"] < CLEAN).all()
    assert measured["times_ours"][1] == 1
    assert measured["times_ours"][2] == pytest.approx(measured["extra_ms"][2] / measured["extra_ms"][1])
    assert measured["weights_deviation"].tolist() == pytest.approx([1, 0, 0], abs=1e-3)


@pytest.mark.slow
def test_a_row_says_why_a_peer_was_not_measured(table: pd.DataFrame) -> None:
    missing, broken = (table.iloc[i] for i in (3, 4))
    assert missing["missing"] == "not installed; pip install '.[peers]'"
    assert broken["missing"] == "can't be imported: no module named antimony"
    figures = table.loc[3:, "rounds":"weights_deviation"].astype(float)
    assert np.isnan(figures).all(axis=None)


@pytest.mark.slow
def test_what_is_printed(table: pd.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    show(table)
    printed = " ".join(capsys.readouterr().out.split())
    assert "missing was not measured: not installed; pip install '.[peers]'" in printed
    assert "rich was not measured: can't be imported: no module named antimony" in printed
    assert all(name in printed for name in table["contender"])
    assert f"{table['ratio'][1]:.2f} [{table['ratio_low'][1]:.2f}, {table['ratio_high'][1]:.2f}]" in printed
    assert "It breaks." in printed


@pytest.mark.slow
def test_the_command_keeps_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: pd.DataFrame) -> None:
    monkeypatch.setattr(command, "measure", lambda num_tasks, seconds: table)
    app = command.typer.Typer()
    app.command()(command.main)
    result = CliRunner().invoke(app, ["--results", str(tmp_path / "mine")])
    assert result.exit_code == 0, result.output
    kept = pd.read_csv(tmp_path / "mine" / "peers.csv")
    assert tuple(kept.columns) == COLUMNS
    assert kept["ratio"].tolist() == pytest.approx(table["ratio"].tolist(), nan_ok=True)
