"""The examples in the library's docstrings run: each is a few lines, in a place that has what they name."""

import ast
import itertools
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import balancers
from balancers import CoBa, EnCodecBalancer, EqualWeighting, Fork, NashMTL, NTKWeighting, create
from balancers.engine import declared, method_registry

from ..integrations.deepxde_backend import import_deepxde

PACKAGE = Path(balancers.__file__).parent
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
TASKS = ["class", "box"]

Names = dict[str, Any]


def blocks(text: str, marker: str) -> Iterator[str]:
    """Yield the indented blocks that follow a line that ends with ``marker``."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.rstrip().endswith(marker) and ".. math" not in line:
            inside = " " * (len(line) - len(line.lstrip()) + 4)
            block = itertools.takewhile(partial(_belongs, inside), lines)
            yield textwrap.dedent("\n".join(block)).strip() + "\n"


def _belongs(inside: str, line: str) -> bool:
    return not line or line.startswith(inside)


def examples(marker: str) -> dict[str, str]:
    """Return the blocks of code in the library's docstrings, each by the name of what it explains."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
            where = module if isinstance(node, ast.Module) else f"{module}.{getattr(node, 'name', '')}"
            for i, block in enumerate(blocks(text or "", marker)):
                found[f"{where}, {i + 1}" if i else where] = block
    return found


EXAMPLES = examples("::")
TOML = examples(".. code-block:: toml")


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


def losses_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    x, y = batch
    return {
        task: (output - target).square().mean()
        for task, output, target in zip(TASKS, model(x), y.split(1, dim=1), strict=True)
    }


class Later(dict[str, Any]):
    """Names of an example; ``losses`` are computed when the example reads them, after it has made its balancer."""

    def __missing__(self, name: str) -> Any:
        if name == "losses" and "net" in self:
            return losses_of(self["net"], batch())
        raise KeyError(name)


# The place of each example: what it finds, and a check of what it leaves.


def _quickstart() -> tuple[Names, Callable[[Names], object]]:
    names: Names = Later(net=Model())
    return names, lambda left: left["net"].trunk[-1].weight.grad.abs().sum() > 0 and left["balancer"].weights.sum() == 2


def _skip_steps_that_are_not_finite() -> tuple[Names, Callable[[Names], object]]:
    net, stepped = Model(), list[bool]()
    sum(losses_of(net, batch()).values()).backward()  # type: ignore[union-attr]
    names = {"net": net, "optimizer": SimpleNamespace(step=lambda: stepped.append(True))}
    return names, lambda left: stepped == [True]


def _second_batch() -> tuple[Names, Callable[[Names], object]]:
    model, asked = Model(), list[int]()
    validation = (batch() for i in itertools.count() if asked.append(i) is None)  # type: ignore[func-returns-value]
    names = {"balancer": CoBa(TASKS), "model": model, "validation": validation, "losses_of": losses_of}

    def check(left: Names) -> bool:
        left["balancer"](losses_of(model, batch())).backward()
        return len(asked) > 0

    return names, check


def _held() -> tuple[Names, Callable[[Names], object]]:
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


def _captured_step() -> tuple[Names, Callable[[Names], object]]:
    net = Model()
    names = {
        "net": net,
        "balancer": EqualWeighting(2),
        "optimizer": torch.optim.SGD(net.parameters(), lr=0.1),
        "criterion": nn.functional.mse_loss,
        "loader": [(torch.randn(6, 4), [torch.randn(6, 1), torch.randn(6, 1)]) for _ in range(3)],
    }
    return names, lambda left: left["loss"].isfinite()


def _declared() -> tuple[Names, Callable[[Names], object]]:
    return (
        {"Tensor": Tensor},
        lambda left: (
            left["alpha"] == declared.Option(1.5, at_least=0, tune=balancers.Range(0.0, 3.0))
            and left["next_weights"] == declared.Declared(1.0)
        ),
    )


def _forward() -> tuple[Names, Callable[[Names], object]]:
    model, (x, _) = Model(), batch()
    return {}, lambda left: all(a.equal(b) for a, b in zip(left["forward"](model, x), model(x), strict=True))


def _attach() -> tuple[Names, Callable[[Names], object]]:
    trunk = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))
    model = nn.ModuleDict({"trunk": trunk, "cls_head": nn.Linear(8, 1), "box_head": nn.Linear(8, 1)})

    def check(left: Names) -> bool:
        z = model["trunk"](torch.randn(6, 4))
        left["balancer"]([model["cls_head"](z).square().mean(), model["box_head"](z).square().mean()]).backward()
        return tuple(left["balancer"].statistics["gradient_norms"].shape) == (2,)

    return {"model": model}, check


def _linear_heads() -> tuple[Names, Callable[[Names], object]]:
    return {"trunk": nn.Linear(4, 64), "x": torch.randn(6, 4)}, lambda left: left["outputs"].shape == (6, 10, 1)


def _register() -> tuple[Names, Callable[[Names], object]]:
    return {}, lambda left: balancers.get("my-method") is left["MyMethod"]


def _residuals() -> tuple[Names, Callable[[Names], object]]:
    net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.rand(6, 1, requires_grad=True)
    (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    balancer = NTKWeighting(None, wrt=net, tasks=["equation", "boundary"])
    names = {"balancer": balancer, "r": slope - net(x), "u": net(torch.zeros(2, 1)), "g": torch.ones(2, 1)}
    return names, lambda left: not balancer.weights.allclose(torch.ones(2))


def _encodec() -> tuple[Names, Callable[[Names], object]]:
    fork, model = Fork(2), nn.Linear(4, 4)
    names = {
        "fork": fork,
        "model": model,
        "x": torch.randn(6, 4),
        "l1": nn.functional.l1_loss,
        "adversarial": lambda judged: judged.square().mean(),
        "balancer": EnCodecBalancer(fork, tasks=["l1", "adversarial"]),
        "commitment": model.weight.square().mean(),
    }
    return names, lambda left: model.weight.grad is not None and model.weight.grad.isfinite().all()


def _famo() -> tuple[Names, Callable[[Names], object]]:
    net = Model()
    optimizer, balancer = torch.optim.SGD(net.parameters(), lr=0.1), create("famo", TASKS)

    def step() -> None:
        sum(losses_of(net, names["batch"]).values()).backward()  # type: ignore[union-attr]
        optimizer.step()

    names: Names = {
        "balancer": balancer,
        "batch": batch(),
        "losses": lambda batch: losses_of(net, batch),
        "optimizer": SimpleNamespace(step=step),
    }
    return names, lambda left: not torch.equal(balancer.state_dict()["log_shares"], torch.zeros(2))


def _deepxde() -> tuple[Names, Callable[[Names], object]]:
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
    return names, lambda left: left["balancer"].state_dict()["updates"].min() == 3


def _pina() -> tuple[Names, Callable[[Names], object]]:
    pina = pytest.importorskip("pina")
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

    names = {
        "problem": Line(),
        "model": nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)),
        "PhysicsInformedSingleModelSolver": PhysicsInformedSingleModelSolver,
        "BalancerWeighting": BalancerWeighting,
        "Trainer": short,
    }
    return names, lambda left: left["balancer"].state_dict()["updates"].min() == 3


PLACES: dict[str, Callable[[], tuple[Names, Callable[[Names], object]]]] = {
    "__init__": _quickstart,
    "encodec.EnCodecBalancer": _encodec,
    "engine.base.LossBalancer": _skip_steps_that_are_not_finite,
    "engine.base.held": _held,
    "engine.base.second_batch": _second_batch,
    "engine.captured_step.CapturedStep": _captured_step,
    "engine.declared": _declared,
    "engine.fork": _forward,
    "engine.fork.attach": _attach,
    "engine.linear_heads.LinearHeads": _linear_heads,
    "engine.method_registry": _register,
    "engine.residuals.ResidualBalancer": _residuals,
    "famo.FAMO": _famo,
    "integrations.deepxde.BalanceLosses": _deepxde,
    "integrations.pina.BalancerWeighting": _pina,
}


def test_every_example_of_the_docstrings_has_a_place_to_run() -> None:
    assert sorted(EXAMPLES) == sorted(PLACES)


@pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::UserWarning:pina")
@pytest.mark.parametrize("example", PLACES)
def test_an_example_of_a_docstring_runs(example: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(method_registry, "_classes", dict(method_registry._classes))
    torch.manual_seed(0)
    names, holds = PLACES[example]()
    public = {name: getattr(balancers, name) for name in balancers.__all__}

    exec(EXAMPLES[example], {**public, "torch": torch, **names}, names)

    assert holds(names)


@pytest.mark.parametrize("example", TOML)
def test_an_example_of_toml_can_be_read(example: str) -> None:
    assert tomllib.loads(TOML[example])
