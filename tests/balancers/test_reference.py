"""GradNorm against algorithm 1 by double backward, and a check that this comparison can fail."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from balancers import GradNorm, Read, Result, State

from ..slow_params import others_slow
from .nets import build
from .reference import STEPS, Case, balancer_run, compare, reference_run

pytestmark = pytest.mark.on_device

RULES = [(0.12, "sgd"), (0.12, "adam"), (1.5, "sgd"), (1.5, "adam")]
# Every alpha with every optimiser, for the linear layer; and every layer with every number of tasks.
CASES = [Case("linear", 2, *rule) for rule in RULES]
CASES += [Case("linear", 3, *RULES[1]), Case("linear", 7, *RULES[2])]
CASES += [
    Case(net, num_tasks, *RULES[(i + shift) % 4])
    for shift, net in enumerate(["convolution", "dropout", "attention"])
    for i, num_tasks in enumerate((2, 3, 7))
]
CASES += [Case("nested", 3), Case("twice", 3, 0.12, "sgd")]
# Such a high learning rate that some weights meet the lower bound, and leave it again.
HARD = Case("linear", 3, 1.5, "sgd", lr=2.0)
FEATURES = [
    Case(net, num_tasks, *rule, features=True)
    for (net, num_tasks), rule in zip(
        [
            ("linear", 2),
            ("linear", 7),
            ("convolution", 3),
            ("dropout", 3),
            ("attention", 2),
            ("nested", 3),
            ("twice", 2),
        ],
        2 * RULES,
        strict=False,
    )
]


LONG = 200


def label(case: Case) -> str:
    return f"{case.net}-{case.num_tasks}-{case.alpha}-{case.optimizer}-{case.lr}"


@pytest.fixture(params=[STEPS, pytest.param(LONG, marks=pytest.mark.slow)], ids=lambda steps: f"{steps} steps")
def steps(request: pytest.FixtureRequest) -> int:
    return request.param


def run(case: Case, method: type[GradNorm] = GradNorm, *, at_fork: bool = True) -> None:
    net = build(case.net, case.num_tasks)
    options = {"alpha": case.alpha, "optimizer": case.optimizer, "lr": case.lr}
    if case.features:
        balancer = method(net.fork, **options)
    elif at_fork:
        balancer = method(net.fork, wrt=net.layer, **options)
    else:
        balancer = method(None, wrt=net.layer.parameters(), tasks=case.num_tasks, **options)
    compare(balancer_run(case, balancer, net), reference_run(case))


@pytest.mark.parametrize("case", others_slow([*CASES, HARD], *CASES[::3], HARD), ids=label)
def test_layer(case: Case, steps: int):
    run(replace(case, steps=steps))


@pytest.mark.parametrize("case", others_slow(CASES[::2], *CASES[::6]), ids=label)
def test_parameters(case: Case, steps: int):
    run(replace(case, steps=steps), at_fork=False)


@pytest.mark.parametrize("case", FEATURES, ids=label)
def test_features(case: Case, steps: int):
    run(replace(case, steps=steps))


def test_cases_are_not_trivial(steps: int):
    weights = reference_run(replace(CASES[0], steps=steps)).weights
    assert (weights - 1).abs().max() > 0.1
    low = reference_run(replace(HARD, steps=steps)).weights.min(dim=1).values < 1.1e-4
    assert (low[1:] ^ low[:-1]).sum() > 2


class FlippedExponent(GradNorm):
    def update(self, read: Read, state: State) -> Result:
        self.__dict__["alpha"] = -abs(self.alpha)  # past the check of options
        return super().update(read, state)


class ForgetfulOptimizer(GradNorm):
    """Resets its optimiser at every step."""

    def update(self, read: Read, state: State) -> Result:
        for key in ("optimizer_steps", "moments_1", "moments_2"):
            state[key].zero_()
        return super().update(read, state)


class PollutedGradients(GradNorm):
    """Differentiates its objective by ``backward``, as public code does, which adds to the network's gradients."""

    def forward(self, losses):
        weighted = [w * loss for w, loss in zip(self.next_weights, losses, strict=True)]
        gradients = [torch.autograd.grad(loss, self.measured_parameters(), create_graph=True) for loss in weighted]
        norms = torch.stack([torch.cat([g.flatten() for g in each]).norm() for each in gradients])
        (norms - norms.mean().detach()).abs().sum().backward(retain_graph=True)
        return super().forward(losses)


class LateWeights(GradNorm):
    """Weighs with the weights before the last update."""

    def weigh(self, state: State) -> Tensor:
        late = getattr(self, "late", state["next_weights"]).clone()
        self.late = state["next_weights"].clone()
        return late


class LateSecretly(GradNorm):
    """Does the same, but shows the right weights."""

    def forward(self, losses):
        late = getattr(self, "late", self.next_weights).clone()
        self.late = self.next_weights.clone()
        return super().forward([loss * w for loss, w in zip(losses, late / self.next_weights, strict=True)])


@pytest.mark.parametrize(
    "fault",
    [FlippedExponent, ForgetfulOptimizer, PollutedGradients, LateWeights, LateSecretly],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("at_fork", [True, False])
def test_comparison_catches(fault: type[GradNorm], at_fork: bool):
    case = Case("linear", 3, 1.5, "adam", steps=20)
    run(case, at_fork=at_fork)
    with pytest.raises(AssertionError, match="not close"):
        run(case, fault, at_fork=at_fork)
