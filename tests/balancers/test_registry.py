"""Balancers by name: ours, a user's own by decorator, and others' by packaging entry points."""

import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor

from balancers import (
    EqualWeighting,
    Fork,
    GradientBalancer,
    GradNorm,
    LossBalancer,
    Read,
    Result,
    State,
    StaticWeighting,
    UncertaintyWeighting,
    create,
    get,
    names,
    register,
)
from balancers.engine import method_registry

from .nets import build, inputs, losses_of


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(method_registry, "_classes", dict(method_registry._classes))
    yield
    sys.modules.pop("theirs_of_a_test", None)


class GeometricMean(LossBalancer):
    """A method without state, whose weights follow from the losses alone."""

    name = "geometric-mean"
    summary = "The geometric mean of the losses."
    reads = "losses"

    def weigh(self, losses: Tensor) -> Tensor:
        return losses.log().mean(-1, keepdim=True).exp() / (self.num_tasks * losses)


class InverseNorm(GradientBalancer):
    """Weights that are proportional to 1 over the gradient norms of the step before, with the sum T."""

    name = "inverse-norm"
    summary = "Gives every task the same gradient norm, one step late."

    def __init__(self, fork, wrt=None, **options) -> None:
        super().__init__(fork, wrt, **options)
        self.declare("next_weights", 1.0)

    def weigh(self, state: State) -> Tensor:
        return state["next_weights"]

    def update(self, read: Read) -> Result:
        inverse = 1 / read.norms
        return Result(state={"next_weights": inverse * (self.num_tasks / inverse.sum())})


class LossShare(GradientBalancer):
    """Weights proportional to this step's losses; the last gradient norms are shown in ``statistics``."""

    name = "loss-share"
    summary = "Weights that differ from call to call."

    def weigh(self, losses: Tensor) -> Tensor:
        return self.num_tasks * losses / losses.sum()

    def update(self, read: Read) -> Result:
        return Result(statistics={"norms": read.norms})


OURS = {
    "equal": EqualWeighting,
    "static": StaticWeighting,
    "uncertainty": UncertaintyWeighting,
    "gradnorm": GradNorm,
}


def test_ours():
    assert set(names()) >= set(OURS)
    assert names() == sorted(names())
    assert all(get(name) is cls and cls.name == name and cls.summary for name, cls in OURS.items())


def test_create():
    fork = Fork(2)
    balancer = create("gradnorm", fork, alpha=0.12, tasks=["a", "b"])
    assert isinstance(balancer, GradNorm)
    assert balancer.alpha == 0.12
    assert create("static", [1.0, 2.0]).num_tasks == 2


def undefined_for(name: str) -> tuple[str, ...]:
    return tuple(getattr(get(name), "undefined_for", ()))


@pytest.mark.parametrize("name", [n for n in names() if not {"features", "layer"} <= {*undefined_for(n)}])
def test_one_line_creates_each_method_that_works_with_a_fork(name: str):
    fork, trunk = Fork(2), torch.nn.Linear(2, 2)
    wrt = trunk if "features" in undefined_for(name) else None
    options = {"weights": [1.0, 0.5]} if name == "static" else {}
    named = create(name, fork, wrt=wrt, tasks=["a", "b"], **options)
    assert (type(named), named.tasks, named.num_tasks) == (get(name), ("a", "b"), 2)
    counted = create(name, fork, wrt=wrt, **options)
    assert (counted.tasks, counted.num_tasks) == (None, 2)
    with pytest.raises(ValueError, match=r"tasks is \['a'\], but the fork was made for 2"):
        create(name, fork, wrt=wrt, tasks=["a"], **options)
    with pytest.raises(TypeError, match="has no option 'alhpa'"):
        create(name, fork, wrt=wrt, alhpa=1.0, **options)


@pytest.mark.parametrize("name", [n for n in names() if "parameters" not in undefined_for(n)])
def test_one_line_creates_each_method_that_works_without_a_fork(name: str):
    options = {"weights": [1.0, 0.5]} if name == "static" else {}
    for named in (
        create(name, None, wrt=torch.nn.Linear(2, 2), tasks=["a", "b"], **options),
        create(name, None, torch.nn.Linear(2, 2), tasks=["a", "b"], **options),
    ):
        assert (type(named), named.tasks) == (get(name), ("a", "b"))


def test_static_weights_are_created_with_a_fork():
    assert create("static", Fork(2), weights=[1.0, 0.5]).weights.tolist() == [1.0, 0.5]
    with pytest.raises(ValueError, match=r"weights has shape .* 2 tasks"):
        create("static", Fork(2), weights=[1.0])
    with pytest.raises(TypeError, match="weights"):
        create("static", Fork(2))


@pytest.mark.parametrize("name", names())
def test_each_method_is_shown_in_one_line(name: str):
    wrt = torch.nn.Linear(2, 2) if "features" in undefined_for(name) else None
    fork = None if {"features", "layer"} <= {*undefined_for(name)} else Fork(2)
    options = {"weights": [1.0, 0.5]} if name == "static" else {}
    balancer = create(name, fork, wrt=wrt, tasks=["a", "b"], **options)
    place = "parameters" if fork is None else "features" if wrt is None else "layer"
    where = f", wrt={place!r}" if isinstance(balancer, GradientBalancer) else ""
    assert repr(balancer) == f"{get(name).__name__}(tasks=['a', 'b']{where})"


def test_options_that_differ_from_their_defaults_are_shown():
    gradnorm = create("gradnorm", Fork(2), alpha=0.12, accumulate=1, initial_losses=[1.0, 2.0])
    assert repr(gradnorm) == "GradNorm(tasks=2, alpha=0.12, initial_losses=[1.0, 2.0], wrt='features')"
    gradnorm.eval()({"near": torch.ones(()), "far": torch.ones(())})  # which names the tasks
    gradnorm.alpha = 1.5
    assert repr(gradnorm) == "GradNorm(tasks=['near', 'far'], initial_losses=[1.0, 2.0], wrt='features')"
    many = create("uncertainty", [f"task_{i}" for i in range(9)], likelihoods="softmax", compile=True)
    assert repr(many) == "UncertaintyWeighting(tasks=9, likelihoods='softmax', compile=True)"
    both = create("pcgrad", Fork(2), weighting=create("uncertainty", 2, lr=0.1))
    assert repr(both) == "PCGrad(tasks=2, weighting=UncertaintyWeighting(tasks=2, lr=0.1), wrt='features')"


def test_unknown_name():
    with pytest.raises(ValueError, match=r"'gradnrom' \(did you mean 'gradnorm'\?\).*equal.*static.*uncertainty"):
        get("gradnrom")
    with pytest.raises(ValueError, match="no balancer is named 'x'"):
        create("x", 2)


def test_decorator():
    assert register(GeometricMean) is GeometricMean
    assert "geometric-mean" in names()
    assert isinstance(create("geometric-mean", 3), GeometricMean)
    register(GeometricMean)  # a module that is imported again changes nothing
    assert names().count("geometric-mean") == 1


def test_a_name_is_given_once():
    class Other(LossBalancer):
        name = "gradnorm"
        summary = "Not ours."

    with pytest.raises(ValueError, match=r"'gradnorm' is taken by balancers\.gradnorm\.GradNorm"):
        register(Other)
    assert get("gradnorm") is GradNorm


def test_a_subclass_needs_its_own_name():
    class Mine(GradNorm):
        pass

    with pytest.raises(TypeError, match="Mine must state a class attribute 'name'"):
        register(Mine)


@pytest.mark.parametrize("missing", ["name", "summary"])
def test_a_method_must_state_name_and_summary(missing: str):
    attributes = {"name": "mine", "summary": "Mine."}
    del attributes[missing]
    with pytest.raises(TypeError, match=f"Mine must state a class attribute '{missing}'"):
        register(type("Mine", (LossBalancer,), attributes))
    assert "mine" not in names()


@pytest.mark.parametrize("thing", [3, torch.nn.Linear, EqualWeighting(2)])
def test_only_balancers_are_registered(thing):
    with pytest.raises(TypeError, match="register expects a subclass of LossBalancer"):
        register(thing)


def distribution(path: Path, entry: str, code: str = "") -> None:
    """Write a distribution with an entry point, which ``importlib.metadata`` takes for an installed one."""
    info = path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[lossbench.balancers]\n{entry}\n")
    (path / "theirs_of_a_test.py").write_text(textwrap.dedent(code))


THEIRS = """
    from balancers import EqualWeighting

    class Theirs(EqualWeighting):
        name = "theirs"
        summary = "Another name for equal weighting."
    """


def test_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    distribution(tmp_path, "theirs = theirs_of_a_test:Theirs", THEIRS)
    assert "theirs" not in names()
    monkeypatch.syspath_prepend(tmp_path)
    assert {"theirs", "gradnorm"} <= set(names())
    balancer = create("theirs", 2)
    assert type(balancer).__module__ == "theirs_of_a_test"
    losses = [torch.tensor(1.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)]
    assert balancer(losses) == 3
    assert get("theirs") is type(balancer)


def test_entry_point_is_not_imported_to_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    distribution(tmp_path, "broken = theirs_of_a_test:Theirs", "raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "broken" in names()
    assert get("gradnorm") is GradNorm
    with pytest.raises(RuntimeError, match="imported"):
        get("broken")


def test_entry_point_cannot_replace_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    distribution(tmp_path, "gradnorm = theirs_of_a_test:Theirs", THEIRS)
    monkeypatch.syspath_prepend(tmp_path)
    assert get("gradnorm") is GradNorm


def test_entry_point_has_to_be_a_balancer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    distribution(tmp_path, "theirs = theirs_of_a_test:Theirs", "Theirs = dict")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TypeError, match=r"theirs.*LossBalancer"):
        get("theirs")


def test_own_loss_balancer():
    """The gradient is that of the geometric mean itself."""
    net = build("linear", 3)
    balancer = GeometricMean(["a", "b", "c"])
    for x in inputs("linear", 3):
        net.zero_grad()
        losses = losses_of(net(x), x)
        parameters = list(net.parameters())
        expected = torch.autograd.grad(torch.stack(losses).prod() ** (1 / 3), parameters, retain_graph=True)
        balancer(dict(zip("abc", losses, strict=True))).backward()
        torch.testing.assert_close([p.grad for p in parameters], list(expected), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("wrt", ["layer", "features", "parameters"])
def test_own_gradient_balancer(wrt: str):
    net = build("linear", 3)
    if wrt == "parameters":
        balancer = InverseNorm(None, wrt=net.layer, tasks=3)
    else:
        balancer = InverseNorm(net.fork, wrt=net.layer if wrt == "layer" else None)
    for x in inputs("linear", 3):
        z = net.trunk(x)
        losses = losses_of(net.outputs([(z, z, z)]), x)
        of = [z] if wrt == "features" else list(net.layer.parameters())
        gradients = [torch.autograd.grad(loss, of, retain_graph=True) for loss in losses]
        norms = torch.stack([torch.cat([g.flatten() for g in each]).norm() for each in gradients])
        balancer(losses_of(net(x), x)).backward()
        torch.testing.assert_close(balancer.next_weights, 3 / norms / (1 / norms).sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("wrt", ["layer", "features"])
def test_norms_are_unweighted_after_a_later_call(wrt: str):
    """Norms are divided by the weights of the pass itself, not by those of a later call of the balancer."""
    net = build("linear", 2)
    balancer = LossShare(net.fork, wrt=net.layer if wrt == "layer" else None)
    x, other = inputs("linear", 2)
    balancer(losses_of(net(x), x)).backward()
    expected = balancer.statistics["norms"]
    loss = balancer(losses_of(net(x), x))
    with torch.no_grad():
        balancer(losses_of(net(other), other))  # a look at validation data, say
    loss.backward()
    torch.testing.assert_close(balancer.statistics["norms"], expected, rtol=1e-12, atol=0)


def test_norms_of_a_window_whose_weights_differ():
    """Norms are those of the mean gradient, after each pass's own weights were divided out."""
    net = build("linear", 2)
    balancer = LossShare(net.fork, wrt=net.layer, accumulate=2)
    sums = torch.zeros(2, sum(p.numel() for p in net.layer.parameters()), dtype=torch.float64)
    for x in inputs("linear", 2):
        z = net.trunk(x)
        for i, loss in enumerate(losses_of(net.outputs([(z, z)]), x)):
            gradients = torch.autograd.grad(loss, list(net.layer.parameters()), retain_graph=True)
            sums[i] += torch.cat([g.flatten() for g in gradients])
        balancer(losses_of(net(x), x)).backward()
    torch.testing.assert_close(balancer.statistics["norms"], (sums / 2).norm(dim=1), rtol=1e-12, atol=0)
