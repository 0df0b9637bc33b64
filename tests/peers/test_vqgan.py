"""VQGAN's adaptive weight beside taming-transformers' ``VQLPIPSWithDiscriminator.calculate_adaptive_weight``.

Call it unbound, ``weight(stub, reconstruction, adversarial, last_layer=W)``, where ``stub`` has the attribute
``discriminator_weight``, d: the class itself needs networks. With the gradients of W, the decoder's last weight,

    weight = min(|g_rec| / (|g_adv| + 1e-4), 1e4) d

- It is detached and of this step alone, and it leaves the graph in place. The reconstruction loss keeps the weight 1.
- The forward pass multiplies it by ``disc_factor`` from step ``disc_start`` on, and by 0 before:
  ``adopt_weight(disc_factor, step, threshold=disc_start)``. The ratio is computed before too.
- Both losses must depend on W.
"""

from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from balancers import AdaptiveAdversarialWeight

from ..balancers.planted import Planted, flat
from .cases import Case, cases


def adaptive_weight(taming: ModuleType, case: Case, discriminator_weight: float = 1.0) -> Tensor:
    """Return the peer's weight where the first task reconstructs, the second is adversarial, and the trunk is W."""
    planted = Planted(2)
    reconstruction, adversarial = planted.losses(case.gradients, case.losses)
    stub = SimpleNamespace(discriminator_weight=discriminator_weight)
    calculate = taming.VQLPIPSWithDiscriminator.calculate_adaptive_weight
    return calculate(stub, reconstruction, adversarial, last_layer=planted.shared[0])


def test_taming_weighs_by_the_ratio_of_the_norms(taming: ModuleType) -> None:
    for case in cases(10, most_tasks=2):
        reconstruction, adversarial = (flat([gradient]).norm() for gradient in case.gradients[0])
        expected = 0.8 * reconstruction / (adversarial + 1e-4)
        torch.testing.assert_close(adaptive_weight(taming, case, 0.8), expected)


@pytest.mark.parametrize("norm", [1e-12, 0.0])
def test_taming_bounds_the_ratio_before_it_multiplies(taming: ModuleType, norm: float) -> None:
    [case] = cases(1, most_tasks=2)
    for gradient in case.gradients:
        gradient[0] *= 1e6
        gradient[1] *= norm
    torch.testing.assert_close(adaptive_weight(taming, case, 0.8).item(), 8000.0)


def test_taming_switches_the_adversarial_loss_on(taming: ModuleType) -> None:
    assert [taming.adopt_weight(0.9, step, threshold=5) for step in (0, 4, 5, 6)] == [0, 0, 0.9, 0.9]


def test_adaptive_adversarial_weight_agrees_with_taming(taming: ModuleType) -> None:
    for case in cases(most_tasks=2):
        planted = Planted(2)
        balancer = AdaptiveAdversarialWeight(None, wrt=[planted.shared[0]], tasks=2, factor=0.8)
        planted.step(balancer, case.gradients, case.losses)
        torch.testing.assert_close(balancer.weights[1], adaptive_weight(taming, case, 0.8))
        assert balancer.weights[0] == 1


def test_adaptive_adversarial_weight_starts_when_tamings_does(taming: ModuleType) -> None:
    planted = Planted(2)
    balancer = AdaptiveAdversarialWeight(None, wrt=[planted.shared[0]], tasks=2, start=5)
    for step, case in enumerate(cases(10, most_tasks=2)):
        planted.step(balancer, case.gradients, case.losses)
        factor = taming.adopt_weight(1.0, step, threshold=5)
        torch.testing.assert_close(balancer.weights[1], factor * adaptive_weight(taming, case))
