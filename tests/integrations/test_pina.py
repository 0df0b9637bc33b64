"""PINA trains on the balancer's loss: each of its steps is that of a plain loop with the same balancer."""

import importlib
import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from balancers import (
    FAMO,
    CoBa,
    ConFIG,
    EqualWeighting,
    Fork,
    GradNorm,
    InverseDirichlet,
    LossBalancer,
    MoCo,
    MomentumConFIG,
    NTKWeighting,
    PCGrad,
    ReLoBRaLo,
    UncertaintyWeighting,
)

pina = pytest.importorskip("pina")
domain, equation, zoo, operator, optim, problem, solver = (
    importlib.import_module(f"pina.{name}")
    for name in ("domain", "equation", "equation.zoo", "operator", "optim", "problem", "solver")
)
integration = importlib.import_module("balancers.integrations.pina")
BalancerWeighting = integration.BalancerWeighting
PINN = solver.PhysicsInformedSingleModelSolver
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),  # of few batches, and of few workers
    pytest.mark.filterwarnings("ignore::UserWarning:pina"),
]

TASKS = ["boundary", "equation"]
STEPS = 6
MAKERS: dict[str, Callable[[nn.Module], LossBalancer]] = {
    "uncertainty": lambda net: UncertaintyWeighting(TASKS),
    "relobralo": lambda net: ReLoBRaLo(TASKS, seed=3),
    "gradnorm": lambda net: GradNorm(None, wrt=net, tasks=TASKS),
    "gradnorm every 2": lambda net: GradNorm(None, wrt=net, tasks=TASKS, update_every=2),
    "inverse-dirichlet": lambda net: InverseDirichlet(None, wrt=net, tasks=TASKS),
    "config": lambda net: ConFIG(None, wrt=net, tasks=TASKS),
    "m-config": lambda net: MomentumConFIG(None, wrt=net, tasks=TASKS),
    "pcgrad": lambda net: PCGrad(None, wrt=net, tasks=TASKS),
    "ntk": lambda net: NTKWeighting(None, wrt=net, tasks=TASKS, alpha=0.5, update_every=2),
}


def source(xy: Tensor) -> Tensor:
    """Return the right-hand side of the Poisson equation, ``(n, 1)``, at points ``(n, 2)``."""
    return -2 * math.pi**2 * torch.sin(math.pi * xy[:, :1]) * torch.sin(math.pi * xy[:, 1:])


def residual(points: Any, u: Any) -> Any:
    return operator.laplacian(u, points, components=["u"], d=["x", "y"]) - source(points.tensor)


def make_points(number: int = 12) -> dict[str, Tensor]:
    """Return points of each condition, ``(n, 2)``."""
    inside = torch.rand(number, 2, generator=torch.Generator().manual_seed(1))
    edge = inside.clone()
    edge[::2, 0], edge[1::2, 1] = 0.0, 1.0
    return {"boundary": edge, "equation": inside}


def make_problem() -> Any:
    """Return the Poisson equation on the unit square with u = 0 on its boundary."""
    equations = {"boundary": zoo.FixedValue(0.0), "equation": equation.Equation(residual)}

    class Poisson(problem.SpatialProblem):  # type: ignore[name-defined, misc]
        output_variables = ["u"]
        spatial_domain = domain.CartesianDomain({"x": [0, 1], "y": [0, 1]})
        conditions = {
            task: pina.Condition(input=pina.LabelTensor(points, ["x", "y"]), equation=equations[task])
            for task, points in make_points().items()
        }

    return Poisson()


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))


def make_solver(net: nn.Module, weighting: Any, kind: Any = PINN, **options: Any) -> Any:
    options = {"optimizer": optim.TorchOptimizer(torch.optim.Adam, lr=0.01)} | options
    return kind(make_problem(), net, weighting=weighting, **options)


def train(made: Any, epochs: int = STEPS, **options: Any) -> Any:
    checkpoint = options.pop("ckpt_path", None)
    trainer = pina.Trainer(
        made,
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        shuffle=False,
        **options,
    )
    trainer.train(ckpt_path=checkpoint)
    return trainer


def residuals_of(net: nn.Module) -> dict[str, Tensor]:
    """Return the same residuals without PINA's derivatives."""
    points = make_points()
    xy = points["equation"].requires_grad_()
    u = net(xy)
    (first,) = torch.autograd.grad(u.sum(), xy, create_graph=True)
    second = [torch.autograd.grad(first[:, i].sum(), xy, create_graph=True)[0][:, i] for i in range(2)]
    return {"boundary": net(points["boundary"]), "equation": sum(second)[:, None] - source(xy)}


def losses_of(residuals: dict[str, Tensor]) -> dict[str, Tensor]:
    return {task: each.square().mean() for task, each in residuals.items()}


def balanced(net: nn.Module, balancer: LossBalancer) -> Tensor:
    """Return the loss of a loop of one's own."""
    residuals = residuals_of(net)
    if isinstance(balancer, NTKWeighting) and balancer.needs_residuals:
        balancer.residuals(residuals)
    return balancer(losses_of(residuals))


def plain_loop(net: nn.Module, balancer: LossBalancer, steps: int = STEPS) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        balanced(net, balancer).backward()
        optimizer.step()


def assert_same(net: nn.Module, balancer: LossBalancer, reference: nn.Module, its: LossBalancer) -> None:
    for parameter, expected in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(balancer.weights, its.weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", MAKERS)
def test_a_step_is_that_of_a_plain_loop_with_the_same_balancer(method: str) -> None:
    net, reference = make_net(), make_net()
    balancer, its = MAKERS[method](net), MAKERS[method](reference)
    weighting = BalancerWeighting(balancer)

    train(make_solver(net, weighting, loss=weighting.loss))

    plain_loop(reference, its)
    assert_same(net, balancer, reference, its)
    assert method == "pcgrad" or not balancer.weights.allclose(balancer.weights.new_ones(()))


@pytest.mark.parametrize("method", ["uncertainty", "gradnorm", "inverse-dirichlet", "ntk"])
def test_with_lbfgs_the_weights_hold_for_one_step_of_the_optimiser(method: str) -> None:
    net, reference = make_net(), make_net()
    balancer, its = MAKERS[method](net), MAKERS[method](reference)
    weighting = BalancerWeighting(balancer)
    options = {"max_iter": 3, "line_search_fn": "strong_wolfe"}

    train(
        make_solver(net, weighting, loss=weighting.loss, optimizer=optim.TorchOptimizer(torch.optim.LBFGS, **options)),
        epochs=3,
    )

    optimizer = torch.optim.LBFGS(reference.parameters(), **options)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = balanced(reference, its)
        loss.backward()
        return loss

    for _ in range(3):
        with its.held():
            optimizer.step(closure)
    for parameter, expected in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-3, atol=1e-4)  # of a line search in single precision
    torch.testing.assert_close(balancer.weights, its.weights, rtol=1e-3, atol=1e-4)
    assert not balancer.weights.allclose(balancer.weights.new_ones(()))
    with balancer.held():
        pass  # no block was left open


def test_an_interrupted_step_of_lbfgs_leaves_no_block_open() -> None:
    net = make_net()
    balancer = UncertaintyWeighting(TASKS, lr=0.1)
    weighting = BalancerWeighting(balancer)
    solver = make_solver(net, weighting, optimizer=optim.TorchOptimizer(torch.optim.LBFGS, max_iter=3))
    calls = itertools.count()

    def interrupt(*_: object) -> None:
        if next(calls) == 1:  # amid the first step
            raise ValueError("interrupted")

    handle = balancer.register_forward_pre_hook(interrupt)
    with pytest.raises(ValueError, match="interrupted"):
        train(solver, epochs=1)
    handle.remove()
    train(make_solver(net, weighting), epochs=1)
    before = balancer.weights
    train(make_solver(net, weighting), epochs=2)
    assert not torch.equal(balancer.weights, before)
    with balancer.held():
        pass  # no block was left open


def test_pina_gets_the_weights_of_the_step_by_condition() -> None:
    net = make_net()
    balancer = MAKERS["gradnorm"](net)
    weighting = BalancerWeighting(balancer)

    train(make_solver(net, weighting))

    saved = weighting.last_saved_weights()
    assert set(saved) == set(TASKS)
    assert [saved[task].item() for task in TASKS] != pytest.approx([1.0, 1.0])
    assert sum(weight.item() for weight in saved.values()) == pytest.approx(2.0, rel=1e-5)


def test_a_balancer_made_for_a_number_of_tasks_takes_the_names_of_the_conditions() -> None:
    net = make_net()
    balancer = GradNorm(None, wrt=net, tasks=2)

    train(make_solver(net, BalancerWeighting(balancer)), epochs=1)

    assert balancer.tasks == tuple(TASKS)


def test_the_loss_that_lightning_logs_is_the_weighted_sum_and_conditions_have_theirs() -> None:
    net = make_net()
    losses = losses_of(residuals_of(net))

    trainer = train(make_solver(net, BalancerWeighting(EqualWeighting(TASKS))), epochs=1)

    logged = {name: value.item() for name, value in trainer.logged_metrics.items()}
    for task in TASKS:
        assert logged[f"{task}_loss"] == pytest.approx(losses[task].item(), rel=1e-5)
    assert logged["train_loss"] == pytest.approx(sum(loss.item() for loss in losses.values()), rel=1e-5)


def test_validation_teaches_nothing() -> None:
    nets = [make_net(), make_net()]
    balancers = [MAKERS["uncertainty"](net) for net in nets]

    train(make_solver(nets[0], BalancerWeighting(balancers[0])), train_size=0.5, val_size=0.5)
    train(make_solver(nets[1], BalancerWeighting(balancers[1])), train_size=0.5, test_size=0.5)

    assert_same(nets[0], balancers[0], nets[1], balancers[1])


@pytest.mark.parametrize("method", ["gradnorm", "inverse-dirichlet", "relobralo"])
def test_training_resumes_from_a_checkpoint_of_lightning(method: str, tmp_path: Path) -> None:
    whole, first, second = make_net(), make_net(), make_net()
    balancers = [MAKERS[method](net) for net in (whole, first, second)]
    train(make_solver(whole, BalancerWeighting(balancers[0])), epochs=6)

    trainer = train(make_solver(first, BalancerWeighting(balancers[1])), epochs=3)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    train(make_solver(second, BalancerWeighting(balancers[2])), epochs=6, ckpt_path=tmp_path / "half.ckpt")

    assert_same(second, balancers[2], whole, balancers[0])
    assert not balancers[1].weights.allclose(balancers[2].weights)


# What is refused.


@pytest.mark.parametrize(
    ("balancer", "message"),
    [
        (lambda net: PCGrad(Fork(2)), "made with a fork.*fork=None and the network as wrt"),
        (lambda net: CoBa(TASKS), "learns from a second batch, and PINA computes the losses of one batch"),
        (lambda net: FAMO(TASKS), "FAMO looks at the losses again after each step, and PINA computes them once"),
        (lambda net: net, "balancer is of type Sequential; expected a balancer"),
    ],
)
def test_balancers_that_do_not_fit_are_refused(balancer: Callable[[nn.Module], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        BalancerWeighting(balancer(make_net()))


def test_a_balancer_for_other_tasks_is_refused() -> None:
    net = make_net()
    made = make_solver(net, BalancerWeighting(EqualWeighting(["boundary", "initial"])))
    with pytest.raises(ValueError, match=r"unknown task 'equation'.*made for 2 tasks \(boundary, initial\)"):
        train(made, epochs=1)


def test_residuals_need_a_loss_that_shows_them() -> None:
    net = make_net()
    made = make_solver(net, BalancerWeighting(MAKERS["ntk"](net)))
    with pytest.raises(ValueError, match=r"NTKWeighting reads residuals.*weighting=weighting, loss=weighting\.loss"):
        train(made, epochs=1)


def test_residuals_need_a_solver_that_adds_no_penalty() -> None:
    net = make_net()
    weighting = BalancerWeighting(MAKERS["ntk"](net))
    kind = solver.GradientPhysicsInformedSingleModelSolver
    with pytest.raises(ValueError, match=r"computed 4 residuals for the losses of \(boundary, equation\)"):
        train(make_solver(net, weighting, kind, loss=weighting.loss), epochs=1)


def test_solvers_with_several_optimisers_are_refused() -> None:
    net = make_net()
    made = solver.SelfAdaptivePhysicsInformedSolver(
        make_problem(), net, weighting=BalancerWeighting(MAKERS["gradnorm"](net))
    )
    with pytest.raises(TypeError, match="makes the steps of several optimisers itself"):
        train(made, epochs=1)


def test_lbfgs_is_refused_to_methods_without_weights() -> None:
    net = make_net()
    weighting = BalancerWeighting(MoCo(None, wrt=net, tasks=TASKS))
    made = make_solver(net, weighting, optimizer=optim.TorchOptimizer(torch.optim.LBFGS))
    with pytest.raises(TypeError, match="MoCo can't hold its weights"):
        train(made, epochs=1)


def test_without_pina_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pina.solver", None)
    monkeypatch.delitem(sys.modules, "balancers.integrations.pina")
    with pytest.raises(ImportError, match="pip install"):
        importlib.import_module("balancers.integrations.pina")
