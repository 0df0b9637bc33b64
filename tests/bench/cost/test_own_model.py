"""Test ``lossbench cost`` on a user's own file."""

import gc
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread
from torch import Tensor, nn
from typer.testing import CliRunner

from balancers import Fork, ForkError, GradNorm
from bench.cli import app
from bench.cost import cost_figures, cost_terminal, fork_advice, own_model
from bench.cost.gradient_agreement import Gradients, follow, gramian
from bench.cost.subject import Subject, SubjectError
from bench.style import figure_style

MINE = """
import torch
from torch import nn
from torch.nn.functional import mse_loss

from balancers import Fork
from neighbour import WIDTH


class Net(nn.Module):
    def __init__(self, fork):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(3, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.fork = fork
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(2))

    def forward(self, x):
        z = self.trunk(x)
        aliases = (z, z) if self.fork is None else self.fork(z)
        return [head(alias) for head, alias in zip(self.heads, aliases)]


def make_step(fork=2, swap=False, wrt=True):
    net, x, y = Net(fork and Fork(fork)), torch.randn(16, 3), torch.randn(2, 16, 1)

    def losses():
        near, far = (mse_loss(out, target) for out, target in zip(net(x), y))
        return {"near": far, "far": near} if swap else {"near": near, "far": far}

    return (net, losses, net.trunk[-1]) if wrt else (net, losses)


def without_fork():
    return make_step(fork=None, wrt=False)


def one_head(called=2, wrt=False):
    trunk, head = nn.Linear(3, WIDTH), nn.Sequential(nn.ReLU(), nn.Linear(WIDTH, 1))
    net, x, y = nn.ModuleDict({"trunk": trunk, "head": head}), torch.randn(16, 3), torch.randn(16, 1)

    def losses():
        z = trunk(x)
        outs = [head(z)] * 2 if called == 1 else [head(z), head(z)]
        return {"square": mse_loss(outs[0], y), "absolute": (outs[1] - y).abs().mean()}

    return (net, losses, net.parameters()) if wrt else (net, losses)


def one_head_called_once():
    return one_head(called=1)


def one_head_with_wrt():
    return one_head(wrt=True)


def unscaled():
    net, losses, wrt = make_step()
    return net, lambda: {task: loss * {"near": 1, "far": 5000}[task] for task, loss in losses().items()}, wrt


def swapped():
    return make_step(swap=True)


def forks():
    net, *rest = make_step()
    net.other = Fork(2)
    return net, *rest


def too_many():
    return make_step(fork=3)


def raising():
    return {}["weights"]


def nothing():
    pass


def vectors():
    net, losses, wrt = make_step()
    return net, lambda: [loss.expand(4) for loss in losses().values()], wrt


def short():
    net, losses, wrt = make_step()
    batches = iter(range(3))
    return net, lambda: losses() if next(batches) < 9 else None, wrt
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a user's file and a neighbour that it imports, and shorten the benchmark to less than a minute."""
    (tmp_path / "neighbour.py").write_text("WIDTH = 8\n")
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(own_model, "ROUNDS", (10, 10))
    monkeypatch.setattr(own_model, "MOST_WARM_UP", 2)
    monkeypatch.setattr(own_model, "STEPS", 6)
    return path


def cost(target: str, *options: str) -> tuple[int, str]:
    """Return exit code and output of the command."""
    result = CliRunner().invoke(app, ["cost", target, *options])
    return result.exit_code, result.output


def ink(path: Path) -> float:
    """Return the proportion of a picture that is not white."""
    return float((imread(path)[..., :3].min(axis=-1) < 0.9).mean())


@pytest.mark.slow
def test_methods_are_compared_and_gradients_told_of(mine: Path, tmp_path: Path) -> None:
    code, output = cost(f"{mine}:make_step", "--out", str(tmp_path / "out"))
    assert code == 0, output
    costs = pd.read_csv(tmp_path / "out/cost.csv").set_index("method")
    methods = ["equal", "equal, again", "uncertainty", "gradnorm features", "gradnorm layer", "gradnorm every 10"]
    assert costs.index.tolist() == methods
    assert costs.loc["gradnorm layer", "extra_flops"] == 2 * (2 * 16 * 8 * 8)
    assert (costs["ratio"] > 0).all()
    gradients = pd.read_csv(tmp_path / "out/gradients.csv")
    assert gradients["task"].tolist() == ["near", "far"] * 6
    assert (gradients["gradient_norm"] > 0).all()
    cosines = pd.read_csv(tmp_path / "out/cosines.csv")
    assert cosines["cosine"].between(-1, 1).all()
    for words in (*methods, "near", "with respect to the features at the fork", "over 6 steps", "10 steps of each"):
        assert words in output
    assert str(tmp_path / "out/cost.png") in output
    assert ink(tmp_path / "out/cost.png") > 0.03


def test_the_model_of_the_gradients_is_let_go_before_methods_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class EnoughError(Exception):
        pass

    models: list[weakref.ref[nn.Module]] = []
    monkeypatch.setattr(own_model, "STEPS", 2)

    def make_step() -> tuple[nn.Module, Callable[[], list[Tensor]]]:
        net, x = nn.Sequential(nn.Linear(3, 4), Fork(2)), torch.randn(5, 3)
        models.append(weakref.ref(net))
        return net, lambda: [z.square().mean() for z in net(x)]

    def say(stage: str) -> None:
        if stage.startswith("timing"):
            gc.collect()
            assert models[0]() is None
            raise EnoughError

    with pytest.raises(EnoughError):
        own_model.measure(make_step, torch.device("cpu"), say)


@pytest.mark.slow
def test_losses_on_unlike_scales_are_told_of(mine: Path, tmp_path: Path) -> None:
    code, output = cost(f"{mine}:unscaled", "--out", str(tmp_path))
    assert code == 0, output
    assert "The first loss of far (" in output
    assert "Scale the losses first" in " ".join(output.split())
    assert "Scale" not in cost(f"{mine}:make_step", "--out", str(tmp_path))[1]


@pytest.mark.slow
def test_without_a_fork_it_says_how_to_add_one(mine: Path, tmp_path: Path) -> None:
    code, output = cost(f"{mine}:without_fork", "--out", str(tmp_path))
    assert code == 0, output
    costs = pd.read_csv(tmp_path / "cost.csv")
    assert costs["method"].tolist() == ["equal", "equal, again", "uncertainty"]
    assert "self.fork = balancers.Fork(num_tasks=T)" in " ".join(output.split())
    assert "return the last shared layer as a third entry" in " ".join(output.split())
    assert "with respect to all shared parameters" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "why", "to_add"),
    [
        ("one_head", "such as one head for several tasks or a forward pass for each, so a fork would be refused", True),
        ("one_head_called_once", "All losses come out of one head, and a fork before it would be refused", True),
        ("one_head_with_wrt", "such as one head for several tasks", False),
    ],
)
def test_where_losses_share_a_head_it_advises_no_fork(
    mine: Path, tmp_path: Path, function: str, why: str, to_add: bool
) -> None:
    code, output = cost(f"{mine}:{function}", "--out", str(tmp_path))
    output = " ".join(output.split())
    assert code == 0, output
    assert why in output
    assert "What fits is fork=None, with the shared parameters as wrt: GradNorm(None, wrt=[...], tasks=2)" in output
    assert "trunk.weight, trunk.bias, head.1.weight, head.1.bias" in output
    assert "To add a fork" not in output
    assert "last shared layer as a third entry" not in output
    assert ("To time it, return them as a third entry" in output) == to_add
    measured = pd.read_csv(tmp_path / "cost.csv")["method"].tolist()
    assert measured == ["equal", "equal, again", "uncertainty"] + ["gradnorm, no fork"] * (not to_add)


def separate_heads(z: Sequence[Tensor], heads: nn.ModuleList) -> list[Tensor]:
    return [head(alias).square().mean() for head, alias in zip(heads, z, strict=True)]


def two_tasks_of_one_head(z: Sequence[Tensor], heads: nn.ModuleList) -> list[Tensor]:
    return [heads[0](z[0]).mean(), heads[1](z[1]).mean(), heads[1](z[2]).square().mean()]


def a_task_without_a_head(z: Sequence[Tensor], heads: nn.ModuleList) -> list[Tensor]:
    return [heads[0](z[0]).mean(), heads[1](z[1]).mean(), z[2].abs().mean()]


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(
    ("compute", "fits"), [(separate_heads, True), (two_tasks_of_one_head, False), (a_task_without_a_head, True)]
)
def test_a_fork_is_advised_where_a_balancer_accepts_one(
    compute: Callable[[Sequence[Tensor], nn.ModuleList], list[Tensor]], fits: bool, stacked: bool
) -> None:
    trunk, heads = nn.Linear(3, 4), nn.ModuleList(nn.Linear(4, 1) for _ in range(3))
    model, x = nn.ModuleDict({"trunk": trunk, "heads": heads}), torch.randn(8, 3)
    losses = compute([trunk(x)] * 3, heads)
    found = fork_advice.advice(model, torch.stack(losses) if stacked else losses, wrt_is_given=False)
    assert (found is None) == fits
    if found is not None:
        assert "trunk.weight, trunk.bias" in found
        assert "heads" not in found  # no head is shared by all

    fork = Fork(3)
    balancer = GradNorm(fork)
    losses = compute(fork(trunk(x)), heads)
    with nullcontext() if fits else pytest.raises(ForkError, match="share a parameter"):
        balancer(losses)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("", "names no function; expected FILE.py:FUNCTION"),
        (":missing", "mine.py has no function missing"),
        (":raising", "raising raised KeyError: 'weights' (mine.py, line "),
        (":nothing", "nothing returned a NoneType; expected (model, losses)"),
        (":vectors", "the loss of task 0 has shape (4,); expected a scalar"),
        (":short", "losses() raised StopIteration (mine.py, line "),
        (":forks", "the model has 2 forks (fork, other)"),
        (":swapped", "gradnorm features: the loss of task 'near' depends on the features"),
        (":too_many", "gradnorm features: tasks is 2, but the fork was made for 3"),
    ],
)
def test_what_is_wrong_with_the_users_code_is_told(mine: Path, tmp_path: Path, function: str, message: str) -> None:
    code, output = cost(f"{mine}{function}", "--out", str(tmp_path / "out"))
    assert code == 2
    assert message in output
    assert "Traceback" not in output
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_or_does_not_run_is_told_of(mine: Path) -> None:
    code, output = cost(f"{mine.with_name('other.py')}:make_step")
    assert code == 2
    assert output.startswith(f"error: there is no file {mine.with_name('other.py')}")
    mine.write_text("import torch\n\nmodel = torch.nonsense\n")
    assert "error: mine.py raised AttributeError" in cost(f"{mine}:make_step")[1]
    assert "(mine.py, line 3)" in cost(f"{mine}:make_step")[1]
    mine.write_text("def make_step(:\n")
    assert "error: mine.py raised SyntaxError" in cost(f"{mine}:make_step")[1]


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_measured(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_model, "measure", lambda *_: pytest.fail("measured"))
    (tmp_path / "file").touch()
    code, output = cost(f"{mine}:make_step", "--out", str(tmp_path / "file" / "out"))
    assert code == 2
    assert output.startswith("error: ")
    assert "file" in output


def test_what_was_measured_is_told_even_if_it_cannot_be_kept(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up = own_model.Report(pd.DataFrame(), some_gradients(2), "a machine", ["A note."])

    def full(*_: object) -> Path:
        raise OSError("no space left")

    monkeypatch.setattr(own_model, "measure", lambda *_: made_up)
    monkeypatch.setattr(own_model, "write", full)
    monkeypatch.setattr(cost_terminal, "costs", lambda _: "A table.")
    code, output = cost(f"{mine}:make_step", "--out", str(tmp_path / "out"))
    assert code == 2
    assert output.index("A table.") < output.index("A note.") < output.index("error: no space left")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_told_of(mine: Path) -> None:
    assert cost(f"{mine}:make_step", "--device", "cuda") == (
        2,
        "error: --device is cuda, but PyTorch finds no CUDA device\n",
    )


class Products(nn.Module):
    """A model whose losses are products with given directions, so that their gradients are these directions."""

    def __init__(self, directions: Tensor, fork: Fork | None) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.ones(directions.shape[1]))
        self.own = nn.Parameter(torch.ones(len(directions)))
        self.directions = directions
        self.fork = fork

    def losses(self) -> list[Tensor]:
        z = 2 * self.shared
        aliases = (z,) * len(self.directions) if self.fork is None else self.fork(z)
        parts = zip(aliases, self.directions, self.own, strict=True)
        return [10 + alias @ direction + own for alias, direction, own in parts]


DIRECTIONS = torch.tensor([[3.0, 4.0], [4.0, -3.0], [0.0, 0.0]])


@pytest.mark.parametrize(
    ("fork", "named", "wrt", "scale"),
    [
        (True, True, "the features at the fork", 1),
        (False, True, "the last shared layer", 2),
        (False, False, "all shared parameters", 2),
    ],
)
def test_norms_and_cosines_are_those_of_the_gradients(fork: bool, named: bool, wrt: str, scale: float) -> None:
    model = Products(torch.cat([DIRECTIONS, -DIRECTIONS[:1] / 5]), Fork(4) if fork else None)
    subject = Subject(model, model.losses, model.shared if named else None)
    if not (fork or named):  # it is one parameter, which every loss reaches
        model.own.requires_grad_(False)
    found = follow(subject, most_steps=3, seconds=60)
    assert found.wrt == wrt
    assert found.losses.shape == (3, 4)
    assert found.norms == pytest.approx(scale * np.array([[5, 5, 0, 1]] * 3))
    medians = found.median_cosines.to_numpy()
    assert medians[0, [0, 1, 3]] == pytest.approx([1, 0, -1])
    assert np.isnan(medians[2]).all()
    assert (found.losses[-1] < found.losses[0])[[0, 1]].all()


def test_tasks_that_share_nothing_have_no_gradients_to_compare() -> None:
    heads = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
    subject = Subject(heads, lambda: [head(torch.ones(1)).square().sum() for head in heads])
    with pytest.raises(SubjectError, match="the tasks share nothing"):
        follow(subject, most_steps=3, seconds=60)


def test_looking_stops_when_time_is_up_but_not_at_once() -> None:
    model = Products(DIRECTIONS, Fork(3))
    assert len(follow(Subject(model, model.losses), most_steps=50, seconds=0).losses) == 5


def test_the_gramian_is_of_all_variables_together() -> None:
    a, b = torch.ones(2, requires_grad=True), torch.ones(3, 1, requires_grad=True)
    losses = [3 * a.sum() + b.sum(), a[0] * 2.0]
    assert gramian(losses, [a, b]).tolist() == [[9 * 2 + 3, 6], [6, 4]]


def some_gradients(num_tasks: int) -> Gradients:
    rows = np.random.default_rng(num_tasks).normal(size=(6, num_tasks, 3))
    tasks = [f"task-{i}" for i in range(num_tasks)]
    return Gradients("the features at the fork", tasks, np.ones((6, num_tasks)), rows @ rows.swapaxes(1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("num_tasks", [2, 5, 30])
def test_any_number_of_tasks_is_drawn_and_told_of(tmp_path: Path, num_tasks: int) -> None:
    found = some_gradients(num_tasks)
    table = pd.DataFrame({"method": ["equal", "gradnorm layer"], "ratio": [1.0, 1.2], "median_ms": [2.0, 2.4]})
    table = table.assign(ratio_low=[1.0, np.nan], ratio_high=[1.0, np.nan])
    with figure_style.theme():
        figure_style.save(cost_figures.own(table, found, "a machine"), tmp_path, "cost")
    assert ink(tmp_path / "cost.png") > 0.03
    assert cost_terminal.gradients(found).row_count == min(num_tasks, 12)
    cosines = found.median_cosines.to_numpy()[np.triu_indices(num_tasks, k=1)]
    said = cost_terminal.agreement(found)
    assert f"{cosines.min():.2f}".replace("-", "−") in said
    assert "task-1" in said
