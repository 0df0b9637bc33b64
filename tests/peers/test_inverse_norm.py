"""The inverse gradient norm beside PINA's ``SelfAdaptiveWeighting``.

Call it as ``peer = pina.SelfAdaptiveWeighting()``, ``peer._solver = SimpleNamespace(model=model)``,
``peer.update_weights({name: loss})``, which returns a dict of weights:

    w_i = (sum_j n_j) / n_i,    n_i: the norm of the gradient of all parameters of ``model`` that ask for one

- It is the formula with a sum: T times that with a mean. With one task the weight is 1.
- Nothing is averaged over steps, and nothing added: a gradient of zero has the weight inf, and if all are zero, nan.
- Parameters that a loss doesn't reach are left out. The graph is left in place, and the weights have no gradient.
- ``aggregate(losses)`` calls it in every batch of every ``update_every_n_epochs``-th epoch, which it reads from
  ``solver.trainer.current_epoch``, and returns the weighted sum. In other epochs it uses the last weights.
"""

from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor, nn

from balancers import InverseGradientNorm

from ..balancers.planted import Planted
from .cases import Case, cases


def weights_of(pina: ModuleType, case: Case) -> Tensor:
    """Return the peer's weights, ``(T,)``."""
    planted = Planted(case.num_tasks)
    peer = pina.SelfAdaptiveWeighting()
    peer._solver = SimpleNamespace(model=nn.ParameterList(planted.shared))
    losses = dict(enumerate(planted.losses(case.gradients, case.losses)))
    weights = peer.update_weights(losses)
    return torch.stack([weights[i] for i in range(case.num_tasks)])


def test_pina_weighs_by_the_sum_of_norms_over_the_norm(pina: ModuleType) -> None:
    for case in cases(10):
        norms = case.rows.norm(dim=1)
        torch.testing.assert_close(weights_of(pina, case), norms.sum() / norms)


def test_pina_gives_a_gradient_of_zero_an_infinite_weight(pina: ModuleType) -> None:
    [case] = cases(1)
    for gradient in case.gradients:
        gradient[0] = 0
    weights = weights_of(pina, case)
    assert weights[0].isinf()
    torch.testing.assert_close(weights[1].item(), 1.0)


def test_pina_updates_in_every_nth_epoch(pina: ModuleType) -> None:
    first, second = cases(2, most_tasks=2)
    planted = Planted(2)
    peer = pina.SelfAdaptiveWeighting(update_every_n_epochs=2)
    for epoch, case, weighed in ((0, first, first), (1, second, first), (2, second, second)):
        model, trainer = nn.ParameterList(planted.shared), SimpleNamespace(current_epoch=epoch)
        peer._solver = SimpleNamespace(model=model, trainer=trainer)
        combined = peer.aggregate(dict(enumerate(planted.losses(case.gradients, case.losses))))
        torch.testing.assert_close(combined, weights_of(pina, weighed) @ case.losses)


def test_inverse_gradient_norm_without_memory_is_pinas_divided_by_the_number_of_tasks(pina: ModuleType) -> None:
    for case in cases():
        planted = Planted(case.num_tasks)
        balancer = InverseGradientNorm(None, wrt=planted.shared, tasks=case.num_tasks, alpha=0.0)
        planted.step(balancer, case.gradients, case.losses)
        torch.testing.assert_close(case.num_tasks * balancer.weights, weights_of(pina, case))
