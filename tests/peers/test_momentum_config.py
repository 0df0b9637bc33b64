"""ConFIG with momentum beside ``conflictfree.PseudoMomentumOperator(num_vectors=T).calculate_gradient(i, gradient)``.

``i`` is the task whose gradient, a vector ``(n,)``, this step has; a list of several and their gradients, stacked or
in a list, may stand in their place. The call returns the step's direction, to be used with plain SGD:

    m_i <- beta_1 m_i + (1 - beta_1) g_i, corrected by 1 - beta_1^(steps of task i);    d = ConFIG(m_1 ... m_T)
    f <- d (1 - beta_1^t);    p = (f - beta_1 f before) / (1 - beta_1);    v <- beta_2 v + (1 - beta_2) p^2
    direction = d / (sqrt(v / (1 - beta_2^t)) + 1e-8), entry by entry

- It returns zeros until every task has had a gradient, and t counts from the step in which the last one had its first:
  that step is t = 1. Its direction is the sign of d. With T=1 every step is Adam's.
- For T=2, `ConFIGOperator` has a closed form, which is nan for parallel, opposite or zero gradients. The general form
  is ``gradient_operator=conflictfree.ConFIGOperator(allow_simplified_model=False)``: opposite gradients give zeros.
- The general form makes a vector of ones of the default type: for gradients in float64, set that type, as the fixture
  ``double_by_default`` does. It solves by least squares (LAPACK's gelsy on the CPU), so it has full accuracy unless
  gradients are nearly dependent. Gradients of zero are left out of the direction, and so count as a row of zeros.
- It has no weights, only the direction. ``SeparateMomentumOperator`` can't be constructed.
"""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from balancers import MomentumConFIG

from ..balancers.planted import Planted, flat
from .cases import Case, steps

pytestmark = pytest.mark.usefixtures("double_by_default")


def operator(conflictfree: ModuleType, num_tasks: int):
    """Return the peer with its general form of ConFIG, for any number of tasks."""
    general = conflictfree.ConFIGOperator(allow_simplified_model=False)
    return conflictfree.PseudoMomentumOperator(num_vectors=num_tasks, gradient_operator=general)


def config(rows: Tensor) -> Tensor:
    """Return ConFIG's direction for gradients as rows, ``(T, n)``, by its formula."""
    units = rows / rows.norm(dim=1, keepdim=True)
    direction = torch.linalg.pinv(units) @ torch.ones(len(rows))
    direction /= direction.norm()
    return (rows @ direction).sum() * direction


def test_conflictfree_makes_adams_steps_for_one_task(conflictfree: ModuleType) -> None:
    peer = operator(conflictfree, 1)
    parameter = torch.zeros(10, requires_grad=True)
    adam = torch.optim.Adam([parameter], lr=1.0)
    for case in steps(1, 20):
        before = parameter.detach().clone()
        parameter.grad = flat([gradient[0] for gradient in case.gradients])
        adam.step()
        torch.testing.assert_close(peer.calculate_gradient(0, parameter.grad), before - parameter.detach())


@pytest.mark.parametrize("num_tasks", [2, 3])
def test_conflictfree_begins_with_signs_once_every_task_was_seen(conflictfree: ModuleType, num_tasks: int) -> None:
    peer = operator(conflictfree, num_tasks)
    [case] = steps(num_tasks, 1)
    for i in range(num_tasks - 1):
        assert not peer.calculate_gradient(i, case.rows[i]).any()
    first = peer.calculate_gradient(num_tasks - 1, case.rows[-1])
    torch.testing.assert_close(first, config(case.rows).sign(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("num_tasks", [2, 3])
def test_conflictfree_follows_the_algorithm(conflictfree: ModuleType, num_tasks: int) -> None:
    peer = operator(conflictfree, num_tasks)
    m, counts = torch.zeros(num_tasks, 10), torch.zeros(num_tasks)
    before, v = torch.zeros(10), torch.zeros(10)
    for step, case in enumerate(steps(num_tasks, 20)):
        i, t = step % num_tasks, step - num_tasks + 2
        direction = peer.calculate_gradient(i, case.rows[i])
        m[i] = 0.9 * m[i] + 0.1 * case.rows[i]
        counts[i] += 1
        if t >= 1:
            d = config(m / (1 - 0.9**counts)[:, None])
            pseudo = (d * (1 - 0.9**t) - 0.9 * before) / 0.1
            before, v = d * (1 - 0.9**t), 0.999 * v + 0.001 * pseudo**2
            torch.testing.assert_close(direction, d / ((v / (1 - 0.999**t)).sqrt() + 1e-8))


def test_conflictfrees_closed_form_for_two_tasks_agrees(conflictfree: ModuleType) -> None:
    closed, general = conflictfree.PseudoMomentumOperator(num_vectors=2), operator(conflictfree, 2)
    for step, case in enumerate(steps(2, 20)):
        one, other = (peer.calculate_gradient(step % 2, case.rows[step % 2]) for peer in (closed, general))
        torch.testing.assert_close(one, other)


def test_conflictfree_takes_gradients_of_several_tasks_at_once(conflictfree: ModuleType) -> None:
    peer = operator(conflictfree, 3)
    [case] = steps(3, 1)
    first = peer.calculate_gradient([0, 1, 2], list(case.rows))
    torch.testing.assert_close(first, config(case.rows).sign(), rtol=0, atol=1e-4)


class OurSteps:
    """Our direction, divided as Adam divides: `MomentumConFIG` leaves that to the optimiser."""

    def __init__(self, num_tasks: int, **options: bool) -> None:
        self.planted = Planted(num_tasks)
        self.balancer = MomentumConFIG(None, wrt=self.planted.shared, tasks=num_tasks, **options)
        self.before, self.squares, self.t = torch.zeros(10), torch.zeros(10), 0

    def step(self, case: Case) -> Tensor:
        d = self.planted.step(self.balancer, case.gradients, case.losses)
        if self.balancer.counts.min() == 0:
            return d
        self.t += 1
        sum_now = d * (1 - 0.9**self.t)
        pseudo, self.before = (sum_now - 0.9 * self.before) / 0.1, sum_now
        self.squares = 0.999 * self.squares + 0.001 * pseudo**2
        return d / ((self.squares / (1 - 0.999**self.t)).sqrt() + 1e-8)


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 5])
def test_our_turns_are_conflictfrees(conflictfree: ModuleType, num_tasks: int) -> None:
    peer, ours = operator(conflictfree, num_tasks), OurSteps(num_tasks)
    for step, case in enumerate(steps(num_tasks)):
        expected = peer.calculate_gradient(step % num_tasks, case.rows[step % num_tasks])
        torch.testing.assert_close(ours.step(case), expected, rtol=1e-5, atol=1e-6)


def test_our_steps_of_all_tasks_are_conflictfrees(conflictfree: ModuleType) -> None:
    peer, ours = operator(conflictfree, 3), OurSteps(3, takes_turns=False)
    for case in steps(3):
        expected = peer.calculate_gradient([0, 1, 2], list(case.rows))
        torch.testing.assert_close(ours.step(case), expected, rtol=1e-5, atol=1e-6)
