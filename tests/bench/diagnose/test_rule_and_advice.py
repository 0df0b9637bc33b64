"""Test each branch of the rule on made-up profiles, and that advice can be pasted."""

import re
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

import balancers
from balancers import Fork
from bench.diagnose import rule
from bench.diagnose.advice import RULE, advice, rule_hash, written
from bench.diagnose.gradient_profile import GradientProfile
from bench.diagnose.rule import APART, CANDIDATES, CONFLICT, EVEN, advise, loss_spread, norm_spread, strongest_conflict
from bench.run import code_hash
from bench.run.spec import PROTOCOL

BETWEEN = (EVEN + APART) / 2


def profile(
    losses: tuple[float, ...] = (1.0, 1.0, 1.0),
    norms: tuple[float, ...] = (1.0, 1.0, 1.0),
    cosine: float = 0.0,
    fork: bool = True,
    steps: int = 30,
) -> GradientProfile:
    """Return a profile in which nothing changes from step to step; ``cosine`` is that of the first and last task."""
    num_tasks = len(losses)
    cosines = np.eye(num_tasks)
    cosines[0, -1] = cosines[-1, 0] = cosine if num_tasks > 1 else 1
    return GradientProfile(
        problem="made-up",
        tasks=tuple("abc"[:num_tasks]),
        seed=1,
        total_steps=600,
        loss_curve=np.tile(np.array(losses), (steps, 1)),
        norm_curve=np.tile(np.array(norms), (steps, 1)),
        cosines=cosines,
        noise=np.full(num_tasks, 0.5),
        fork=fork,
        parameters=20,
        shared_parameters=10,
        batch_size=8,
        seconds_per_step=0.01,
    )


@pytest.mark.parametrize(
    ("given", "candidate"),
    [
        (profile((1.0,), (1.0,)), "equal"),
        (profile(), "equal"),
        (profile(norms=(1, 1, 0.99 * EVEN)), "equal"),
        (profile(norms=(1, 1, 0.99 * EVEN), fork=False), "equal"),
        (profile(cosine=CONFLICT), "nash-mtl"),
        (profile(cosine=CONFLICT, norms=(1, 1, APART), fork=False), "nash-mtl"),
        (profile(cosine=CONFLICT + 0.01), "equal"),
        (profile(norms=(1, 1, EVEN), fork=False), "inverse-norm"),
        (profile(norms=(1, 1, EVEN), losses=(1, -1, 1)), "inverse-norm"),
        (profile(norms=(1, 1, BETWEEN)), "uncertainty"),
        (profile(norms=(APART, 1, 1), losses=(30, 1, 1)), "inverse-loss"),
    ],
)
def test_each_branch_of_the_rule(given: GradientProfile, candidate: str) -> None:
    choice = advise(given)
    assert choice.candidate == candidate
    assert choice.reasons
    assert all(re.fullmatch(r"[A-Z].*\.", reason) for reason in choice.reasons)


def test_reasons_have_the_numbers_and_the_tasks() -> None:
    (reason,) = advise(profile(cosine=-0.75)).reasons
    assert "a and c" in reason
    assert "-0.75" in reason
    assert "a) is 2 times the shortest (b)" in advise(profile(norms=(4, 2, 3), fork=False)).reasons[0]


def test_the_rule_has_six_candidates_and_at_most_three_thresholds() -> None:
    assert len(CANDIDATES) == 6
    assert len([name for name, value in vars(rule).items() if isinstance(value, int | float)]) <= 3


def test_facts_leave_out_tasks_without_a_gradient() -> None:
    found = profile(losses=(2, 1, 8), norms=(0, 2, 6))
    assert norm_spread(found) == (3, "c", "b")
    assert loss_spread(found) == (8, "c", "b")
    assert norm_spread(profile(norms=(0, 0, 1))).ratio == 1
    nothing = replace(found, cosines=np.full((3, 3), np.nan))
    assert strongest_conflict(nothing) is None
    some = nothing.cosines.copy()
    some[0, 1] = some[1, 0] = 0.2
    assert strongest_conflict(replace(found, cosines=some)) == (0.2, "a", "b")


def test_the_protocol_holds_the_hash_of_the_rule() -> None:
    found = re.search(r"^Rule: (.*)$", PROTOCOL.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        pytest.skip(f"{PROTOCOL.name} has no line 'Rule: {rule_hash()}' yet")
    assert found[1] == rule_hash()


def test_the_hash_changes_with_a_threshold_and_not_with_wording() -> None:
    source = RULE.read_text(encoding="utf-8")

    def hashed(text: str) -> str:
        return code_hash.source_hash(text, code_hash.OURS)

    assert hashed(source) == rule_hash()
    reworded = source.replace('"""The rule that', '"""A rule that').replace(
        "import numpy", "# A comment.\nimport numpy"
    )
    assert reworded != source
    assert hashed(reworded) == rule_hash()
    other = re.sub(r"^CONFLICT = .*$", "CONFLICT = -0.77", source, flags=re.MULTILINE)
    assert hashed(other) != rule_hash()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 4)
        self.fork = Fork(3)
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [head(z) for head, z in zip(self.heads, self.fork(self.trunk(x)), strict=True)]


@pytest.mark.parametrize("fork", [True, False])
@pytest.mark.parametrize("candidate", get_args(rule.Candidate))
def test_the_line_of_code_makes_the_method_that_a_suite_would_name(candidate: Any, fork: bool) -> None:
    given = written(candidate, profile(losses=(2, 1, 8), norms=(1, 2, 6), fork=fork), ("Because.",))
    model = Net()
    made = eval(given.code, {"balancers": balancers, "model": model, "shared": list(model.trunk.parameters())})
    assert type(made) is balancers.get(given.method.name)
    assert given.method.wrt == ({True: "features", False: "parameters"}[fork] if candidate == "nash-mtl" else None)
    assert (given.weights is not None) == candidate.startswith("inverse")
    made([(y**2).mean() for y in model(torch.ones(5, 4))]).backward()
    assert made.tasks == ("a", "b", "c")
    if given.weights is not None:
        assert made.weights.tolist() == pytest.approx(list(given.weights.values()))
        assert given.method.options == {"weights": list(given.weights.values())}


def changing(positive: bool = True) -> GradientProfile:
    """Return a profile whose losses and norms change; the last steps, which don't count, are far away."""
    random = np.random.default_rng(0)
    losses, norms = random.uniform(0.5, 20, (2, 30, 3))
    losses[20:] = norms[20:] = 1e3
    if not positive:
        losses[:, 1] *= -1
        norms[:, 1] = 0
    return replace(profile(), loss_curve=losses, norm_curve=norms)


@pytest.mark.parametrize("positive", [True, False])
def test_static_weights_are_those_that_the_methods_end_with(positive: bool) -> None:
    given = changing(positive)
    of_losses = balancers.InverseInitialLoss(3)
    p = nn.Parameter(torch.zeros(3))
    of_norms = balancers.InverseGradientNorm(None, wrt=[p], tasks=3, first_steps=20)
    for losses, norms in zip(given.loss_curve, given.norm_curve, strict=True):
        of_losses(torch.tensor(losses, dtype=torch.float32, requires_grad=True)).backward()
        of_norms(list(p * torch.tensor(norms, dtype=torch.float32))).backward()
    for candidate, made in (("inverse-loss", of_losses), ("inverse-norm", of_norms)):
        weights = written(candidate, given, ()).weights
        assert weights is not None
        assert list(weights.values()) == pytest.approx(made.weights.tolist(), rel=1e-3)


def test_advice_is_the_rules_choice_written_out() -> None:
    given = advice(profile(norms=(APART, 1, 1), losses=(30, 1, 1)))
    assert given.candidate == "inverse-loss"
    assert given.reasons == advise(profile(norms=(APART, 1, 1), losses=(30, 1, 1))).reasons
    assert given.code == 'balancers.StaticWeighting([0.04918, 1.475, 1.475], tasks=["a", "b", "c"])'
