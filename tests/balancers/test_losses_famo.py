"""FAMO, against its algorithm written out and against TorchJD.

Differences from TorchJD: no 1e-8 in the logarithms; ``min_losses`` may be one number, or a dict by name; losses that
are not above their minimum keep the last weights, where TorchJD gives NaN.
"""

import numpy as np
import pytest
import torch

from balancers.famo import FAMO

from .planted import state

STEPS = 8


def sequence(num_tasks: int, seed: int, steps: int = STEPS) -> torch.Tensor:
    """Draw losses before and after each step, ``(steps, 2, T)``."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.exp(2 * torch.randn(num_tasks, dtype=torch.float64, generator=generator))
    return scales * torch.exp(0.5 * torch.randn(steps, 2, num_tasks, dtype=torch.float64, generator=generator))


def run(balancer: FAMO, losses: torch.Tensor) -> torch.Tensor:
    weights = []
    for before, after in losses:
        balancer(before.clone().requires_grad_()).backward()
        weights.append(balancer.weights)
        balancer.after_step(after)
    return torch.stack(weights)


@pytest.mark.parametrize("lowest", [0.0, [0.01, 0.0, 0.02]])
def test_is_its_algorithm(lowest):
    lr, gamma = 0.1, 0.01
    balancer = FAMO(3, min_losses=lowest, lr=lr, gamma=gamma)
    floor = np.broadcast_to(lowest, 3)
    xi, m, v = np.zeros(3), np.zeros(3), np.zeros(3)
    losses = sequence(3, seed=1, steps=30) + 0.02
    for t, (before, after) in enumerate(losses.numpy(), start=1):
        z = np.exp(xi) / np.exp(xi).sum()
        c = 1 / (z / (before - floor)).sum()
        loss = balancer(torch.tensor(before, requires_grad=True))
        loss.backward()
        torch.testing.assert_close(balancer.weights.numpy(), c * z / (before - floor), rtol=1e-10, atol=0)
        balancer.after_step(torch.tensor(after))
        delta = np.log(before - floor) - np.log(after - floor)
        jacobian = np.diag(z) - np.outer(z, z)
        gradient = jacobian.T @ delta + gamma * xi
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        xi = xi - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        torch.testing.assert_close(balancer.log_shares.numpy(), xi, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_like_torchjd():
    scalarization = pytest.importorskip("torchjd.scalarization")
    for seed in range(200):
        num_tasks = 2 + seed % 5
        theirs, ours = scalarization.FAMO(num_tasks, lr=0.05).double(), FAMO(num_tasks, lr=0.05)
        losses = sequence(num_tasks, seed) + 1e-2
        expected = []
        for before, after in losses:
            [weights] = torch.autograd.grad(theirs(leaf := before.clone().requires_grad_()), leaf)
            expected.append(weights)
            theirs.update(after)
        torch.testing.assert_close(run(ours, losses), torch.stack(expected), rtol=1e-4, atol=1e-6)


def test_a_losss_scale_cancels_out():
    losses, scales = sequence(3, seed=2), torch.tensor([1e-3, 1.0, 1e4], dtype=torch.float64)
    plain, scaled = FAMO(3), FAMO(3)
    of_plain, of_scaled = run(plain, losses), run(scaled, losses * scales)
    torch.testing.assert_close(scaled.log_shares, plain.log_shares)
    shares, scaled_shares = of_plain * losses[:, 0], of_scaled * (losses * scales)[:, 0]
    torch.testing.assert_close(
        scaled_shares / scaled_shares.sum(-1, keepdim=True), shares / shares.sum(-1, keepdim=True)
    )


def test_the_slower_task_gains_weight():
    balancer = FAMO(2)
    for _ in range(20):
        balancer(torch.ones(2, requires_grad=True)).backward()
        balancer.after_step(torch.tensor([0.5, 0.9]))
    assert balancer.log_shares[1] > 0 > balancer.log_shares[0]


def test_weights_sum_to_one():
    torch.testing.assert_close(run(FAMO(4), sequence(4, seed=3)).sum(-1), torch.ones(STEPS, dtype=torch.float64))


def test_refers_to_the_last_pass():
    once, twice = FAMO(2), FAMO(2, accumulate=2)
    (before, after), (other, _) = sequence(2, seed=4)[:2]
    for losses in (other, before):
        twice(losses.clone().requires_grad_()).backward()
    once(before.clone().requires_grad_()).backward()
    twice.eval()
    twice(other)  # an evaluation is no step
    twice.train()
    for balancer in (once, twice):
        balancer.after_step([after[0], after[1]])
    assert torch.equal(once.log_shares, twice.log_shares)


def test_the_tasks_given_learn_as_if_they_were_alone():
    balancer, pair = FAMO(["a", "b", "c"]), FAMO(2)
    run(balancer, sequence(3, seed=5, steps=3))
    of_both = {key: value[..., [0, 2]] if value.ndim else value for key, value in state(balancer).items()}
    pair.load_state_dict(of_both | {"_extra_state": pair.state_dict()["_extra_state"]})
    for before, after in sequence(2, seed=6, steps=3):
        balancer(dict(zip("ac", before.clone().requires_grad_(), strict=True))).backward()
        balancer.after_step(dict(zip("ac", after, strict=True)))
        pair(before.clone().requires_grad_()).backward()
        pair.after_step(after)
    torch.testing.assert_close(balancer.log_shares[[0, 2]], pair.log_shares)


def test_a_loss_below_its_minimum_keeps_the_weights():
    balancer = FAMO(2, min_losses=[0.5, 0.0])
    balancer(torch.tensor([1.0, 2.0], requires_grad=True)).backward()
    balancer.after_step(torch.tensor([1.0, 2.0]))
    before = balancer.weights
    balancer(torch.tensor([0.4, 2.0], requires_grad=True)).backward()
    assert torch.equal(balancer.weights, before)


def test_after_step_needs_a_pass():
    balancer = FAMO(2)
    with pytest.raises(RuntimeError, match="needs a pass before it"):
        balancer.after_step(torch.ones(2))
    balancer(torch.ones(2, requires_grad=True)).backward()
    balancer.after_step(torch.ones(2))
    with pytest.raises(RuntimeError, match="needs a pass before it"):
        balancer.after_step(torch.ones(2))


def test_after_step_needs_the_same_tasks():
    balancer = FAMO(["a", "b"])
    balancer({"a": torch.ones((), requires_grad=True)}).backward()
    with pytest.raises(ValueError, match="the same batch"):
        balancer.after_step({"b": torch.ones(())})
    balancer.after_step({"a": torch.ones(())})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr is 0.0"),
        ({"gamma": -1.0}, "gamma is -1.0"),
        ({"min_losses": -1.0}, "min_losses is"),
        ({"min_losses": [0.0]}, "min_losses has 1 entry"),
        ({"min_losses": {"a": 0.0, "c": 0.0}}, "min_losses names"),
    ],
)
def test_wrong_input(options, message):
    with pytest.raises(ValueError, match=message):
        FAMO(["a", "b"], **options)


def test_min_losses_by_name():
    assert FAMO(["a", "b"], min_losses={"b": 1.0, "a": 2.0}).state()["min_losses"].tolist() == [2.0, 1.0]
