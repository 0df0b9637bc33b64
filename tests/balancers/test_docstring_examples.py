"""The examples in the library's docstrings run: each is a few lines, in a place that has what they name."""

import itertools
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import balancers
from balancers import Draws, EqualWeighting, Fork, LossBalancer, NashMTL, Read, Result
from balancers.engine import method_registry
from balancers.engine.method import declared

from ..docstring_examples import TOML_BLOCKS, examples, public_classes
from ..integrations.deepxde_backend import import_deepxde

EXAMPLES = examples(balancers)
TOML = examples(balancers, TOML_BLOCKS)
INTEGRATIONS = (
    "integrations.deepxde.BalanceLosses",
    "integrations.lightning.LogWeights",
    "integrations.pina.BalancerWeighting",
    "integrations.pina.ResidualLoss",
)
METHODS = {
    place: cls
    for place, cls in public_classes(balancers).items()
    if issubclass(cls, LossBalancer) and "name" in vars(cls)
}
TASKS = ("class", "box")

Names = dict[str, Any]
Place = tuple[Names, Callable[[Names], object]]


class Model(nn.Module):
    """A trunk, a fork and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))
        self.fork = Fork(2)
        self.heads = nn.ModuleList([nn.Linear(8, 1), nn.Linear(8, 1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        return [head(z) for head, z in zip(self.heads, self.fork(self.trunk(x)), strict=True)]


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 4), torch.randn(6, 2)


def losses_of(model: nn.Module, batch: tuple[Tensor, Tensor], tasks: Sequence[str] = TASKS) -> dict[str, Tensor]:
    """Return the losses of all tasks, each larger than the one before; tasks beyond the second share the two heads."""
    x, y = batch
    errors = [(output - target).square().mean() for output, target in zip(model(x), y.split(1, dim=1), strict=True)]
    return {task: (i + 1) * error for i, (task, error) in enumerate(zip(tasks, itertools.cycle(errors), strict=False))}


class Later(dict[str, Any]):
    """Names of an example; ``losses`` are computed when the example reads them, after it has made its balancer."""

    def __missing__(self, name: str) -> Any:
        if name != "losses" or "net" not in self:
            raise KeyError(name)
        self["losses"] = losses_of(self["net"], batch(), tasks_of(self))
        return self["losses"]


def tasks_of(names: Names) -> Sequence[str]:
    """Return the names of the tasks of the balancer that an example has made, or those of two tasks."""
    return getattr(names.get("balancer"), "tasks", None) or TASKS


# The place of each example: what it finds, and a check of what it leaves.


def _method(place: str) -> Place:
    """Train the trunk of a small network through the balancer that the example made, and take two more steps."""
    net = Model()
    names: Names = Later(net=net, batch=batch(), loader=[batch() for _ in range(3)])
    names["losses_of"] = lambda net, batch: losses_of(net, batch, tasks_of(names))
    names["validation"] = (batch() for _ in itertools.count())
    names["optimizer"] = torch.optim.SGD(net.parameters(), lr=0.1)

    def holds(left: Names) -> bool:
        balancer = left["balancer"]
        assert f"{METHODS[place].__name__}(" in EXAMPLES[place]
        assert HOLDS.get(place, lambda left: True)(left)
        for _ in range(2):
            net.zero_grad()
            balancer(losses_of(net, batch(), tasks_of(left))).backward()
        gradients = torch.cat([p.grad.flatten() for p in net.trunk.parameters() if p.grad is not None])
        assert balancer.weights.isfinite().all()
        return bool(gradients.isfinite().all() and gradients.any())

    return names, holds


HOLDS: dict[str, Callable[[Names], object]] = {
    "adaptive_adversarial.AdaptiveAdversarialWeight": lambda left: left["balancer"].weights.tolist() == [1, 0],
    "dual_proj.DualProj": lambda left: (left["balancer"].weights > 0.4999).all(),
    "dynamic_average.DynamicWeightAverage": lambda left: left["balancer"].period == 3,
    "equal.EqualWeighting": lambda left: left["balancer"].weights.tolist() == [1, 1],
    "geometric_loss.GeometricLossStrategy": lambda left: (
        left["loss"].square().isclose(left["losses"]["depth"] * left["losses"]["normals"])
    ),
    "go4align.GO4Align": lambda left: len(left["balancer"].weights.unique()) == 2,
    "gradnorm.GradNorm": lambda left: (left["balancer"].statistics["gradient_norms"] > 0).all(),
    "imtl_gradient.IMTLGradient": lambda left: left["balancer"].weights.sum().isclose(torch.tensor(1.0)),
    "lr_annealing.LearningRateAnnealing": lambda left: left["balancer"].weights[0] == 1,
    "scale_invariant.ScaleInvariant": lambda left: left["loss"].isclose(torch.tensor(2.0)),
    "self_adaptive.SelfAdaptiveWeighting": lambda left: not left["balancer"].training,
    "static.StaticWeighting": lambda left: left["balancer"].weights.allclose(torch.tensor([1.0, 0.2])),
    "tchebycheff.Tchebycheff": lambda left: (left["balancer"].weights == 0).sum() == 1,
    "unit_norm.UnitNorm": lambda left: left["balancer"].weights.sum() > 0,
}
"""What the comments in these examples say."""


def _quickstart() -> Place:
    names: Names = Later(net=Model())
    return names, lambda left: left["net"].trunk[-1].weight.grad.abs().sum() > 0 and left["balancer"].weights.sum() == 2


def _skip_steps_that_are_not_finite() -> Place:
    net, stepped = Model(), list[bool]()
    sum(losses_of(net, batch()).values()).backward()  # type: ignore[union-attr]
    names = {"net": net, "optimizer": SimpleNamespace(step=lambda: stepped.append(True))}
    return names, lambda left: stepped == [True]


def _inverse_loss() -> Place:
    def check(left: Names) -> bool:
        balancer = left["InverseLoss"](2)
        balancer([torch.tensor(2.0, requires_grad=True), torch.tensor(4.0, requires_grad=True)])
        return balancer.weights.tolist() == [0.5, 0.25]

    return {"Tensor": Tensor}, check


def _unit_gradients() -> Place:
    net = Model()

    def check(left: Names) -> bool:
        balancer = left["UnitGradients"](net.fork)
        balancer(losses_of(net, batch())).backward()
        return bool((balancer.weights > 0).all())

    return {"Tensor": Tensor}, check


def _fork() -> Place:
    names = {
        "trunk": nn.Linear(4, 8),
        "x": torch.randn(6, 4),
        "class_head": nn.Linear(8, 5),
        "box_head": nn.Linear(8, 4),
    }
    return names, lambda left: left["scores"].shape == (6, 5) and left["boxes"].shape == (6, 4)


def _fork_error() -> Place:
    net, said = Model(), list[str]()
    names: Names = {"net": net, "print": lambda error: said.append(str(error))}

    class Bypass(dict[str, Any]):
        """The loss of the second head, which gets the trunk's features past the fork."""

        def __missing__(self, name: str) -> Any:
            if name != "losses":
                raise KeyError(name)
            z = net.trunk(torch.randn(6, 4))
            return [net.heads[0](net.fork(z)[0]).sum(), net.heads[1](z).sum()]

    return Bypass(names), lambda left: "fork" in said[0]


def _update_by_gramian() -> Place:
    read = Read(torch.ones(2), torch.ones(2), gramian=torch.tensor([[4.0, 1.0], [1.0, 0.25]]))
    return {}, lambda left: left["update"](None, read).weights.tolist() == [0.5, 2]


def _update_of_state() -> Place:
    read, state = Read(torch.tensor([2.0, 4.0]), torch.ones(2)), {"averages": torch.tensor([1.0, 4.0])}

    def check(left: Names) -> bool:
        result: Result = left["update"](None, read, state)
        return result.state["averages"].allclose(torch.tensor([1.1, 4.0]))

    return {}, check


def _update_by_draws() -> Place:
    def check(left: Names) -> bool:
        read = Read(torch.ones(3), torch.ones(3))
        first, again = (left["update"](None, read, Draws(1, 0, torch.ones(3))).state["next_weights"] for _ in range(2))
        return first.equal(again) and first.sum().isclose(torch.tensor(1.0)).item()

    return {}, check


def _range() -> Place:
    return {}, lambda left: left["temperature"].tune == balancers.Range(0.1, 100.0, True)


def _option() -> Place:
    return _declares("alpha", "preferences", "reference")


def _state() -> Place:
    return {"Tensor": Tensor} | _declares()[0], _declares("averages", "next_weights", "steps")[1]


def _declares(*names: str) -> Place:
    """Make a method with the declarations that an example leaves, whose attributes have their initial values."""
    initial = {
        "alpha": 1.5,
        "preferences": [1.0, 1.0],
        "reference": 0,
        "averages": torch.zeros(2),
        "next_weights": torch.full((2,), 0.5),
        "steps": torch.tensor(0.0),
    }

    def check(left: Names) -> bool:
        body = {name: left[name] for name in names} | {"weigh": lambda self, losses: losses, "name": "declares"}
        made = type("Declares", (LossBalancer,), body)(2)
        return all(torch.equal(torch.as_tensor(getattr(made, name)), torch.as_tensor(initial[name])) for name in names)

    return {}, check


def _second_batch() -> Place:
    model, asked = Model(), list[int]()
    validation = (batch() for i in itertools.count() if asked.append(i) is None)  # type: ignore[func-returns-value]
    names = {"balancer": balancers.CoBa(TASKS), "model": model, "validation": validation, "losses_of": losses_of}

    def check(left: Names) -> bool:
        left["balancer"](losses_of(model, batch())).backward()
        return len(asked) > 0

    return names, check


def _held() -> Place:
    net, seen = Model(), batch()
    balancer = NashMTL(net.fork, tasks=TASKS)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = balancer(losses_of(net, seen))
        loss.backward()
        return loss

    names = {"balancer": balancer, "optimizer": optimizer, "closure": closure}
    return names, lambda left: not balancer.weights.allclose(torch.ones(2))


def _captured_step() -> Place:
    net = Model()
    names = {
        "net": net,
        "balancer": EqualWeighting(2),
        "optimizer": torch.optim.SGD(net.parameters(), lr=0.1),
        "criterion": nn.functional.mse_loss,
        "loader": [(torch.randn(6, 4), [torch.randn(6, 1), torch.randn(6, 1)]) for _ in range(3)],
    }
    return names, lambda left: left["loss"].isfinite()


def _declared() -> Place:
    return (
        {"Tensor": Tensor},
        lambda left: (
            left["alpha"] == declared.Option(1.5, at_least=0, tune=balancers.Range(0.0, 3.0))
            and left["next_weights"] == declared.Declared(1.0)
        ),
    )


def _forward() -> Place:
    model, (x, _) = Model(), batch()
    return {}, lambda left: all(a.equal(b) for a, b in zip(left["forward"](model, x), model(x), strict=True))


def _attach() -> Place:
    trunk = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))
    model = nn.ModuleDict({"trunk": trunk, "cls_head": nn.Linear(8, 1), "box_head": nn.Linear(8, 1)})

    def check(left: Names) -> bool:
        z = model["trunk"](torch.randn(6, 4))
        left["balancer"]([model["cls_head"](z).square().mean(), model["box_head"](z).square().mean()]).backward()
        return tuple(left["balancer"].statistics["gradient_norms"].shape) == (2,)

    return {"model": model}, check


def _linear_heads() -> Place:
    trunk = nn.Linear(4, 64)
    names = {"trunk": trunk, "x": torch.randn(6, 4), "targets": torch.randn(6, 10, 1)}
    return names, lambda left: left["outputs"].shape == (6, 10, 1) and trunk.weight.grad.abs().sum() > 0


def _create() -> Place:
    return {"net": Model()}, lambda left: left["balancer"].name == "gradnorm" == left["name"]


def _register() -> Place:
    return {}, lambda left: balancers.get("my-method") is left["MyMethod"]


def _residuals() -> Place:
    net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.rand(6, 1, requires_grad=True)
    (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    balancer = balancers.NTKWeighting(None, wrt=net, tasks=["equation", "boundary"])
    names = {"balancer": balancer, "r": slope - net(x), "u": net(torch.zeros(2, 1)), "g": torch.ones(2, 1)}
    return names, lambda left: not balancer.weights.allclose(torch.ones(2))


def _ntk() -> Place:
    net = nn.Linear(3, 1)
    names = {"net": net, "residuals": {"equation": net(torch.randn(5, 3)), "boundary": net(torch.randn(2, 3)) - 1}}
    return names, lambda left: not left["balancer"].weights.allclose(torch.ones(2)) and net.weight.grad.any()


def _encodec() -> Place:
    fork, model = Fork(2), nn.Linear(4, 4)
    names = {
        "fork": fork,
        "model": model,
        "x": torch.randn(6, 4),
        "l1": nn.functional.l1_loss,
        "adversarial": lambda judged: judged.square().mean(),
        "commitment": model.weight.square().mean(),
    }
    return names, lambda left: model.weight.grad is not None and model.weight.grad.isfinite().all()


def _famo() -> Place:
    net = Model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    names: Names = {"net": net, "batch": batch(), "losses_of": losses_of, "optimizer": optimizer}
    return names, lambda left: not torch.equal(left["balancer"].log_shares, torch.zeros(2))


def _deepxde() -> Place:
    dde = import_deepxde()
    from balancers.integrations.deepxde import BalanceLosses

    class Short(dde.Model):  # type: ignore[name-defined, misc]
        def train(self, iterations: int, **options: Any) -> Any:
            return super().train(iterations=min(iterations, 3), verbose=0, **options)

    def slope(x: Tensor, u: Tensor) -> Any:
        return dde.grad.jacobian(u, x) - u

    line = dde.geometry.Interval(0, 1)
    start = dde.icbc.DirichletBC(line, lambda x: 1.0, lambda x, on_boundary: on_boundary and x[0] < 0.5)
    net = dde.nn.FNN([1, 8, 1], "tanh", "Glorot normal")
    model = Short(dde.data.PDE(line, slope, start, num_domain=8, num_boundary=2), net)
    names = {"net": net, "model": model, "BalanceLosses": BalanceLosses}
    return names, lambda left: left["balancer"].state_dict()["task_steps"].min() == 3


def _log_weights() -> Place:
    L = pytest.importorskip("lightning")
    from balancers.integrations.lightning import LogWeights

    from ..integrations.test_log_weights import Module, Records

    records, silent = Records(), ("enable_checkpointing", "enable_progress_bar", "enable_model_summary")

    def short(max_epochs: int, **options: object) -> Any:
        return L.Trainer(
            max_epochs=min(max_epochs, 1), accelerator="cpu", logger=records, **options, **dict.fromkeys(silent, False)
        )

    loader = torch.utils.data.DataLoader(torch.randn(50, 8, 4), batch_size=None)
    names = {"Trainer": short, "LogWeights": LogWeights, "module": Module(), "loader": loader}
    return names, lambda left: [step for step, _ in records.entries] == [50]


def _pina() -> Place:
    names = _line(pytest.importorskip("pina"))
    return names, lambda left: left["balancer"].state_dict()["task_steps"].min() == 3


def _residual_loss() -> Place:
    names = _line(pytest.importorskip("pina"))
    return names, lambda left: not left["weighting"].balancer.weights.allclose(torch.ones(2))


def _line(pina: Any) -> Names:
    """Return what PINA needs to train a network on two conditions, for three epochs at most."""
    from pina.domain import CartesianDomain
    from pina.equation.zoo import FixedValue
    from pina.problem import SpatialProblem
    from pina.solver import PhysicsInformedSingleModelSolver

    from balancers.integrations.pina import BalancerWeighting

    def fixed(value: float) -> Any:
        return pina.Condition(input=pina.LabelTensor(torch.rand(8, 1), ["x"]), equation=FixedValue(value))

    class Line(SpatialProblem):  # type: ignore[misc]
        output_variables = ["u"]
        spatial_domain = CartesianDomain({"x": [0, 1]})
        conditions = {"boundary": fixed(0.0), "equation": fixed(1.0)}

    def short(solver: Any, max_epochs: int) -> Any:
        silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        return pina.Trainer(solver, max_epochs=min(max_epochs, 3), accelerator="cpu", **silent)

    return {
        "problem": Line(),
        "model": nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)),
        "PhysicsInformedSingleModelSolver": PhysicsInformedSingleModelSolver,
        "BalancerWeighting": BalancerWeighting,
        "Trainer": short,
    }


PLACES: Mapping[str, Callable[[], Place]] = {place: partial(_method, place) for place in METHODS} | {
    "__init__": _quickstart,
    "encodec.EnCodecBalancer": _encodec,
    "engine.classes.base.LossBalancer": _skip_steps_that_are_not_finite,
    "engine.classes.base.LossBalancer, 2": _inverse_loss,
    "engine.classes.base.held": _held,
    "engine.classes.base.second_batch": _second_batch,
    "engine.captured_step.CapturedStep": _captured_step,
    "engine.method.declared": _declared,
    "engine.method.declared.Declared": _state,
    "engine.method.declared.Option": _option,
    "engine.method.declared.Range": _range,
    "engine.forks.fork": _forward,
    "engine.forks.fork.Fork": _fork,
    "engine.forks.fork.attach": _attach,
    "engine.fork_error.ForkError": _fork_error,
    "engine.classes.gradients.GradientBalancer": _unit_gradients,
    "engine.forks.linear_heads.LinearHeads": _linear_heads,
    "engine.method_registry": _register,
    "engine.method_registry.create": _create,
    "engine.method.readings.Read": _update_by_gramian,
    "engine.method.readings.Result": _update_of_state,
    "engine.classes.residuals.ResidualBalancer": _residuals,
    "engine.method.rng.Draws": _update_by_draws,
    "famo.FAMO": _famo,
    "integrations.deepxde.BalanceLosses": _deepxde,
    "integrations.lightning.LogWeights": _log_weights,
    "integrations.pina.BalancerWeighting": _pina,
    "integrations.pina.ResidualLoss": _residual_loss,
    "neural_tangent.NTKWeighting": _ntk,
}


@pytest.mark.parametrize("place", [*public_classes(balancers), *INTEGRATIONS])
def test_every_public_class_has_an_example(place: str) -> None:
    assert place in EXAMPLES


def test_every_example_of_the_docstrings_has_a_place_to_run() -> None:
    assert sorted(EXAMPLES) == sorted(PLACES)


@pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::UserWarning:pina")
@pytest.mark.parametrize("place", PLACES)
def test_an_example_of_a_docstring_runs(place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(method_registry, "_classes", dict(method_registry._classes))
    torch.manual_seed(0)
    names, holds = PLACES[place]()
    public = {name: getattr(balancers, name) for name in balancers.__all__}

    exec(EXAMPLES[place], {**public, "torch": torch, **names}, names)

    assert holds(names)


@pytest.mark.parametrize("place", TOML)
def test_an_example_of_toml_can_be_read(place: str) -> None:
    assert tomllib.loads(TOML[place])
