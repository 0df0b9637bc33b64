"""DeepXDE trains on the balancer's loss: each of its steps is that of a plain loop with the same balancer."""

import copy
import importlib
import math
import sys
from collections.abc import Callable, Iterator
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

from .deepxde_backend import import_deepxde

dde = import_deepxde()
integration = importlib.import_module("balancers.integrations.deepxde")
BalanceLosses = integration.BalanceLosses

TASKS = ["equation", "boundary"]
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
    "famo": lambda net: FAMO(TASKS),
}


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """Let DeepXDE compute in double precision, so that steps can be compared closely."""
    dde.config.set_default_float("float64")
    yield
    dde.config.set_default_float("float32")


def make_net(regularization: tuple[str, float] | None = None) -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module = dde.nn.FNN([1, 8, 8, 1], "tanh", "Glorot normal", regularization)
    return net


def make_data(conditions: int = 1) -> Any:
    """Return the Poisson equation u'' = -pi^2 sin(pi x) on the unit interval, with u = 0 at both of its ends."""

    def residual(x: Tensor, u: Tensor) -> Tensor:
        return dde.grad.hessian(u, x) + math.pi**2 * torch.sin(math.pi * x)

    interval = dde.geometry.Interval(0, 1)
    boundary = [dde.icbc.DirichletBC(interval, lambda x: 0, lambda _, on: on) for _ in range(conditions)]
    return dde.data.PDE(interval, residual, boundary, num_domain=12, num_boundary=2, train_distribution="uniform")


def make_model(net: nn.Module, **options: object) -> Any:
    model = dde.Model(make_data(), net)
    model.compile(**({"optimizer": "adam", "lr": 0.01} | options), verbose=0)
    return model


def train(model: Any, *callbacks: Any, iterations: int = STEPS, **options: object) -> Any:
    return model.train(iterations=iterations, callbacks=list(callbacks), verbose=0, **options)[1]


def residuals_of(net: nn.Module, data: Any) -> dict[str, Tensor]:
    """Return the same residuals without DeepXDE's derivatives."""
    x = torch.tensor(data.train_x, requires_grad=True)
    u = net(x)
    (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    on_boundary = data.num_bcs[0]
    equation = (second + math.pi**2 * torch.sin(math.pi * x))[on_boundary:]
    return {"equation": equation, "boundary": u[:on_boundary]}


def losses_of(residuals: dict[str, Tensor]) -> dict[str, Tensor]:
    return {task: residual.square().mean() for task, residual in residuals.items()}


def plain_loop(net: nn.Module, balancer: LossBalancer, steps: int = STEPS, l1: float = 0.0) -> None:
    """Train as a loop of one's own does, with the same data and optimiser."""
    data = make_data()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(steps):
        residuals = residuals_of(net, data)
        if isinstance(balancer, NTKWeighting) and balancer.needs_residuals:
            balancer.residuals(residuals)
        optimizer.zero_grad()
        loss = balancer(losses_of(residuals))
        if l1 > 0:
            loss = loss + l1 * sum(parameter.abs().sum() for parameter in net.parameters())
        loss.backward()
        optimizer.step()
        if balancer.looks_again:
            balancer.after_step({task: loss.detach() for task, loss in losses_of(residuals_of(net, data)).items()})


def assert_same(net: nn.Module, balancer: LossBalancer, reference: nn.Module, its: LossBalancer) -> None:
    for parameter, expected in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(balancer.weights, its.weights, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", MAKERS)
def test_a_step_is_that_of_a_plain_loop_with_the_same_balancer(method: str) -> None:
    net, reference = make_net(), make_net()
    balancer, its = MAKERS[method](net), MAKERS[method](reference)

    train(make_model(net), BalanceLosses(balancer))

    plain_loop(reference, its)
    assert_same(net, balancer, reference, its)
    assert method == "pcgrad" or not balancer.weights.allclose(balancer.weights.new_ones(()))


def test_an_l1_penalty_is_added_to_the_balanced_losses() -> None:
    net, reference = make_net(("l1", 1e-2)), make_net()
    balancer, its = MAKERS["gradnorm"](net), MAKERS["gradnorm"](reference)

    train(make_model(net), BalanceLosses(balancer))

    plain_loop(reference, its, l1=1e-2)
    assert_same(net, balancer, reference, its)


def test_famo_looks_again_at_the_tasks_without_the_l1_penalty() -> None:
    net, reference = make_net(("l1", 1e-2)), make_net()
    balancer, its = FAMO(TASKS), FAMO(TASKS)

    train(make_model(net), BalanceLosses(balancer))

    plain_loop(reference, its, l1=1e-2)
    assert_same(net, balancer, reference, its)


@pytest.mark.parametrize("method", ["uncertainty", "gradnorm", "inverse-dirichlet", "ntk"])
def test_with_lbfgs_the_weights_hold_for_one_call_of_the_optimiser(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"iter_per_step": 3, "maxiter": 9}.items():
        monkeypatch.setitem(dde.optimizers.config.LBFGS_options, name, value)
    net, reference = make_net(), make_net()
    balancer, its = MAKERS[method](net), MAKERS[method](reference)
    callback = BalanceLosses(balancer, period=3)

    train(make_model(net, optimizer="L-BFGS", lr=None), callback)

    data = make_data()
    optimizer = torch.optim.LBFGS(
        reference.parameters(),
        max_iter=3,
        max_eval=dde.optimizers.config.LBFGS_options["fun_per_step"],
        tolerance_grad=1e-8,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        residuals = residuals_of(reference, data)
        if isinstance(its, NTKWeighting) and its.needs_residuals:
            its.residuals(residuals)
        loss = its(losses_of(residuals))
        optimizer.zero_grad()
        loss.backward()
        return loss

    for _ in range(3):
        with its.held():
            optimizer.step(closure)
    for parameter, expected in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(balancer.weights, its.weights, rtol=1e-5, atol=1e-6)
    assert [step for step, _ in callback.history] == [3, 6, 9]
    assert not balancer.weights.allclose(balancer.weights.new_ones(()))


def test_deepxde_shows_the_losses_as_they_are() -> None:
    net = make_net()
    model = make_model(net)

    state = train(model, BalanceLosses(MAKERS["gradnorm"](net)))

    losses = losses_of(residuals_of(net, model.data))
    assert state.loss_train == pytest.approx([loss.item() for loss in losses.values()], rel=1e-6)
    assert model.losshistory.loss_train[-1] == pytest.approx(state.loss_train)


def test_weights_are_recorded_and_printed_each_period_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    net = make_net()
    balancer = MAKERS["gradnorm"](net)
    callback = BalanceLosses(balancer, period=2)

    train(make_model(net), callback, iterations=5)

    assert [step for step, _ in callback.history] == [2, 4, 5]
    assert all(set(weights) == set(TASKS) for _, weights in callback.history)
    assert list(callback.history[-1][1].values()) == pytest.approx(balancer.weights.tolist())
    assert callback.history[0][1] != callback.history[1][1]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Weights at step")]
    assert [line.split(":")[0].split()[-1] for line in lines] == ["2", "4", "5"]
    assert all(f"{task} " in line for line in lines for task in TASKS)


def test_tasks_without_names_are_numbered() -> None:
    net = make_net()
    callback = BalanceLosses(GradNorm(None, wrt=net, tasks=2))

    train(make_model(net), callback, iterations=2)

    assert set(callback.history[-1][1]) == {"0", "1"}


@pytest.mark.parametrize("method", ["gradnorm", "inverse-dirichlet", "relobralo"])
def test_training_resumes_with_a_balancer_that_is_a_part_of_the_network(method: str, tmp_path: Path) -> None:
    whole, first, second = make_net(), make_net(), make_net()
    balancers = []
    for net in (whole, first, second):
        net.balancer = MAKERS[method](net)
        balancers.append(net.balancer)
    train(make_model(whole), BalanceLosses(balancers[0]), iterations=6)

    model = make_model(first)
    train(model, BalanceLosses(balancers[1]), iterations=3)
    path = model.save(str(tmp_path / "model"))
    train(make_model(second), BalanceLosses(balancers[2]), iterations=3, model_restore_path=path)

    assert_same(second, balancers[2], whole, balancers[0])


def test_the_model_gets_its_own_step_back() -> None:
    net, reference = make_net(), make_net()
    model, plain = make_model(net), make_model(reference)
    step = model.train_step

    train(model, BalanceLosses(MAKERS["gradnorm"](net)))

    assert model.train_step is step
    assert "losses_train" not in vars(model.data)
    reference.load_state_dict(net.state_dict())
    plain.opt.load_state_dict(copy.deepcopy(model.opt.state_dict()))
    for each in (model, plain):
        train(each, iterations=3)
    assert_same(net, EqualWeighting(2), reference, EqualWeighting(2))


class Interrupt(dde.callbacks.Callback):  # type: ignore[name-defined, misc]
    """Ends the training by an error after two steps."""

    def on_epoch_end(self) -> None:
        if self.model.train_state.step == 2:
            raise KeyboardInterrupt


def test_after_an_interrupt_training_goes_on_with_the_balancer_and_without_it() -> None:
    net, reference = make_net(), make_net()
    balancer, its = MAKERS["gradnorm"](net), MAKERS["gradnorm"](reference)
    callback = BalanceLosses(balancer)
    model = make_model(net)

    with pytest.raises(KeyboardInterrupt):
        train(model, callback, Interrupt())
    train(model, callback, iterations=2)

    plain_loop(reference, its, steps=4)
    assert_same(net, balancer, reference, its)

    model.train_state.step = 0
    with pytest.raises(KeyboardInterrupt):
        train(model, callback, Interrupt())
    before = balancer.weights
    train(model, iterations=2)
    assert torch.equal(balancer.weights, before)


# What is refused.


@pytest.mark.parametrize(
    ("balancer", "message"),
    [
        (lambda net: PCGrad(Fork(2)), "made with a fork.*fork=None and the network as wrt"),
        (lambda net: CoBa(TASKS), "learns from a second batch, and DeepXDE computes the losses of one batch"),
        (lambda net: net, "balancer is of type FNN; expected a balancer"),
    ],
)
def test_balancers_that_do_not_fit_are_refused(balancer: Callable[[nn.Module], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        BalanceLosses(balancer(make_net()))


def test_a_period_of_no_step_is_refused() -> None:
    with pytest.raises(ValueError, match="period is 0; expected a number of steps, at least 1"):
        BalanceLosses(EqualWeighting(2), period=0)


def test_another_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integration, "backend_name", "jax")
    with pytest.raises(RuntimeError, match=r"its backend jax.*DDE_BACKEND=pytorch"):
        BalanceLosses(EqualWeighting(2))


@pytest.mark.parametrize("regularization", [None, ("l1", 1e-3), ("l2", 1e-3)])
def test_a_balancer_for_another_number_of_losses_is_refused(regularization: tuple[str, float] | None) -> None:
    model = make_model(make_net(regularization))
    with pytest.raises(ValueError, match=r"the model has 2 losses.*made for 3 tasks \(a, b, c\)"):
        train(model, BalanceLosses(EqualWeighting(["a", "b", "c"])))


def test_loss_weights_are_refused() -> None:
    model = make_model(make_net(), loss_weights=[1, 10])
    with pytest.raises(ValueError, match="compiled with loss_weights, but the balancer chooses them"):
        train(model, BalanceLosses(EqualWeighting(TASKS)))


def test_nncg_is_refused() -> None:
    model = make_model(make_net(), optimizer="NNCG", lr=None)
    with pytest.raises(TypeError, match=r"NNCG differentiates.*train with \"adam\" or \"L-BFGS\""):
        train(model, BalanceLosses(EqualWeighting(TASKS)))


def test_lbfgs_is_refused_to_methods_without_weights() -> None:
    net = make_net()
    model = make_model(net, optimizer="L-BFGS", lr=None)
    with pytest.raises(TypeError, match="MoCo can't hold its weights"):
        train(model, BalanceLosses(MoCo(None, wrt=net, tasks=TASKS)))


def test_without_deepxde_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepxde.backend", None)
    monkeypatch.delitem(sys.modules, "balancers.integrations.deepxde")
    with pytest.raises(ImportError, match="pip install deepxde"):
        importlib.import_module("balancers.integrations.deepxde")
