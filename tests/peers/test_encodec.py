"""EnCodec's balancer beside audiocraft's: ``audiocraft.Balancer(shares, ...).backward(losses, y)``, both dicts by name.

The call puts the combined gradient of y, the model's output, into ``y.grad`` (and behind y), and returns the weighted
sum of the losses. With shares s_i, the gradients g_i of y, and n_i the mean of their norms by sample,

    avg_i <- mean of all n_i so far, each step's counting beta times less with every later step
    gradient of y: sum_i R s_i / (sum_j s_j) / (1e-12 + avg_i) g_i

- Defaults: R = ``total_norm`` 1, beta = ``ema_decay`` 0.999, ``per_batch_item`` True. With ``per_batch_item=False``,
  n_i is the norm of the whole g_i. ``ema_decay=1``, and 0 too, is the plain mean.
- The average includes this step's norm, so that the first step's gradients have exactly the norms R s_i / sum s.
- sum_j s_j is over the losses seen so far. After a step, every later one must have the same losses: one that is missing
  raises KeyError, while a loss that comes later starts then.
- With ``monitor=True``, ``metrics`` has ``ratio_<name>``: avg_i / sum avg. With ``balance_grads=False``, the weights
  are the s_i themselves. The averages are Python floats. They are no part of any saved state.
- Every loss must depend on y, and a gradient of zero adds nothing. On several processes, the averages are averaged.
"""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from balancers import EnCodecBalancer, Fork, StaticWeighting

from .cases import COUNT, steps

SHARES = (1.0, 3.0, 0.5)
NAMES = ("a", "b", "c")
SHAPE = (2, 3, 2)  # two samples


def losses_of(output: Tensor, gradients: Tensor) -> dict[str, Tensor]:
    """Return losses whose gradients of ``output`` are the rows of ``gradients``, ``(T, *SHAPE)``."""
    return {name: (output * row).sum() for name, row in zip(NAMES, gradients, strict=True)}


@pytest.mark.parametrize("per_sample", [True, False])
def test_audiocraft_divides_by_average_norms(audiocraft: ModuleType, per_sample: bool) -> None:
    beta, total = 0.8, 2.5
    shares = dict(zip(NAMES, SHARES, strict=True))
    peer = audiocraft.Balancer(shares, total_norm=total, ema_decay=beta, per_batch_item=per_sample, monitor=True)
    history: list[Tensor] = []
    generator = torch.Generator().manual_seed(0)
    for case in steps(len(SHARES), 10):
        gradients = torch.randn(len(SHARES), *SHAPE, generator=generator, dtype=torch.float64)
        gradients *= case.losses.view(-1, 1, 1, 1)
        output = torch.randn(SHAPE, generator=generator, dtype=torch.float64, requires_grad=True)
        losses = losses_of(output, gradients)

        weighted = peer.backward(losses, output)

        history.append(gradients.flatten(2).norm(dim=2).mean(1) if per_sample else gradients.flatten(1).norm(dim=1))
        ages = beta ** torch.arange(len(history) - 1, -1, -1, dtype=torch.float64)
        averages = (ages[:, None] * torch.stack(history)).sum(0) / ages.sum()
        weights = total * torch.tensor(SHARES, dtype=torch.float64) / sum(SHARES) / averages
        assert output.grad is not None
        torch.testing.assert_close(output.grad, torch.einsum("t,t...->...", weights, gradients))
        torch.testing.assert_close(weighted, weights @ torch.stack(list(losses.values())).detach())
        ratios = [peer.metrics[f"ratio_{name}"] for name in NAMES]
        torch.testing.assert_close(torch.tensor(ratios, dtype=torch.float64), averages / averages.sum())


def test_audiocraft_normalises_the_first_step_exactly(audiocraft: ModuleType) -> None:
    shares = dict(zip(NAMES, SHARES, strict=True))
    gradients = torch.zeros(3, *SHAPE, dtype=torch.float64)
    for i in range(3):
        gradients[i].flatten(1)[:, i] = 10.0 ** (2 * i)  # orthogonal, so that each can be seen in the sum
    output = torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)
    audiocraft.Balancer(shares).backward(losses_of(output, gradients), output)
    assert output.grad is not None
    seen = output.grad.flatten(1)[:, :3]
    torch.testing.assert_close(seen, (torch.tensor(SHARES) / sum(SHARES)).double().expand(2, 3))


@pytest.mark.parametrize("per_sample", [True, False])
@pytest.mark.parametrize("beta", [0.999, 0.5, 1.0])
def test_encodec_balancer_agrees_with_audiocraft(audiocraft: ModuleType, beta: float, per_sample: bool) -> None:
    shares, total, fork = dict(zip(NAMES, SHARES, strict=True)), 2.5, Fork(len(SHARES))
    peer = audiocraft.Balancer(shares, total_norm=total, ema_decay=beta, per_batch_item=per_sample)
    ours = EnCodecBalancer(fork, tasks=NAMES, shares=shares, total_norm=total, beta=beta, per_batch_item=per_sample)
    generator = torch.Generator().manual_seed(1)
    for case in steps(len(SHARES), COUNT):
        gradients = torch.randn(len(SHARES), *SHAPE, generator=generator, dtype=torch.float64)
        gradients *= case.losses.view(-1, 1, 1, 1)
        one, other = (torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True) for _ in range(2))
        peer.backward(losses_of(one, gradients), one)
        each = zip(NAMES, fork(other * 1), gradients, strict=True)
        ours({name: (alias * row).sum() for name, alias, row in each}).backward()
        torch.testing.assert_close(other.grad, one.grad)


def test_audiocraft_without_balance_is_static_weighting(audiocraft: ModuleType) -> None:
    peer = audiocraft.Balancer(dict(zip(NAMES, SHARES, strict=True)), balance_grads=False)
    gradients = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    one, other = (torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True) for _ in range(2))
    peer.backward(losses_of(one, gradients), one)
    StaticWeighting(SHARES, tasks=NAMES)(losses_of(other, gradients)).backward()
    torch.testing.assert_close(other.grad, one.grad)
