"""EPO beside libmoon's ``libmoon.EPO_LP(m=T, n=1, r=r).get_alpha(losses, G=gramian, C=True)``, on NumPy arrays.

``n`` is not used. The call returns the weights, which sum to 1, as the vertex that GLPK found of a linear program.
With rl = r losses, s = rl / sum rl, mu = sum s log(T s), a = r (log max(T s, 1e-3) - mu) and c = gramian a:

- If mu > ``eps`` (1e-4), it balances: maximise alpha c over the simplex with (gramian alpha)_j >= b_j, where b_j is
  -inf where c_j > 0 and c_j elsewhere, but 0 at the largest rl, whatever c says. If no c_j > 0, all b_j are 0.
- Otherwise it descends: maximise the sum of gramian alpha with gramian alpha >= 0 and alpha c >= min(0, max c); with
  ``relax=True`` without the last condition.
- After a call, ``last_move`` says which ("bal" or "dom"), ``gamma`` has the optimum and ``mu_rl`` the mu. ``eps`` is an
  argument of the class, and r may be given to the call.
- The losses must not be negative. Shares s below the rounding error are left out of mu, and T s below 1e-3 counts as
  1e-3 in a.
- Where a program has no solution, the weights are None; libmoon's own caller then takes r / sum r, as EPO does here.
- The programs are made for each ``EPO_LP``, which takes most of the time: make one for each T, not for each case.
"""

from functools import cache
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from balancers.epo import EPO

from ..balancers.planted import Planted
from .cases import COUNT, cases

pytestmark = pytest.mark.filterwarnings("ignore:You are solving a parameterized problem that is not DPP")


def test_libmoon_balances_towards_the_largest_loss(libmoon: ModuleType) -> None:
    """With orthogonal gradients, all weight goes to the task whose loss is too large."""
    peer = libmoon.EPO_LP(m=2, n=1, r=np.ones(2))
    weights = peer.get_alpha(np.array([4.0, 1.0]), G=np.eye(2), C=True)
    assert peer.last_move == "bal"
    assert peer.mu_rl == pytest.approx(0.8 * np.log(1.6) + 0.2 * np.log(0.4))
    assert peer.gamma == pytest.approx(np.log(1.6) - peer.mu_rl)
    assert weights == pytest.approx([1, 0])


def test_libmoon_descends_where_the_losses_are_balanced(libmoon: ModuleType) -> None:
    """With orthogonal gradients, all weight goes to the longer one."""
    peer = libmoon.EPO_LP(m=2, n=1, r=np.array([1.0, 2.0]))
    weights = peer.get_alpha(np.array([2.0, 1.0]), G=np.diag([1.0, 4.0]), C=True)
    assert peer.last_move == "dom"
    assert peer.gamma == pytest.approx(4)
    assert weights == pytest.approx([0, 1])


def test_libmoon_lets_no_loss_rise_where_balance_can_not_be_reached(libmoon: ModuleType) -> None:
    """With nearly aligned gradients, no task gains balance; the larger loss's gradient costs the least."""
    gramian = np.array([[1.0, 0.9], [0.9, 1.0]])
    peer = libmoon.EPO_LP(m=2, n=1, r=np.ones(2))
    weights = peer.get_alpha(np.array([1.0, 3.0]), G=gramian, C=True)
    assert peer.last_move == "bal"
    assert (peer.Ca.value < 0).all()
    assert weights == pytest.approx([0, 1])


def optimum(losses: np.ndarray, gramian: np.ndarray, r: np.ndarray) -> tuple[str, float]:
    """Return the peer's kind of move and the optimum of its linear program, by SciPy; nan if there is no solution."""
    T = len(losses)
    shares = r * losses / (r * losses).sum()
    mu = (shares * np.log(T * shares)).sum()
    c = gramian @ (r * (np.log(np.maximum(T * shares, 1e-3)) - mu))
    if mu > 1e-4:
        bounds = np.where(c > 0, -np.inf, c) if (c > 0).any() else np.zeros(T)
        if (c > 0).any():
            bounds[(r * losses).argmax()] = 0
        move, objective, rows = "bal", c, gramian
    else:
        bounds, rows = np.append(np.zeros(T), min(0, c.max())), np.vstack([gramian, c])
        move, objective = "dom", gramian.sum(0)
    kept = bounds > -np.inf
    solved = linprog(-objective, -rows[kept], -bounds[kept], np.ones((1, T)), [1])
    return move, -solved.fun if solved.success else np.nan


@pytest.mark.parametrize("balanced", [False, True])
def test_libmoon_reaches_the_optimum(libmoon: ModuleType, balanced: bool) -> None:
    moves = set()
    for case in cases(30):
        losses, gramian = case.losses.numpy(), case.gramian.numpy()
        r = 1 / losses if balanced else np.linspace(1, 2, len(losses))
        peer = libmoon.EPO_LP(m=len(losses), n=1, r=r)
        weights = peer.get_alpha(losses, G=gramian, C=True)
        move, expected = optimum(losses, gramian, r)
        assert peer.last_move == move
        assert (weights is None) == np.isnan(expected)
        if weights is not None:
            assert peer.gamma == pytest.approx(expected, rel=1e-6, abs=1e-9 * gramian.max())
        moves.add(move)
    assert moves == {"dom" if balanced else "bal"}


@pytest.mark.parametrize("near", [False, True])
def test_epo_agrees_with_libmoon(libmoon: ModuleType, near: bool) -> None:
    """Far from the given proportions, steps balance. Near them, some balance, most descend, and some can't."""
    peer = cache(lambda num_tasks: libmoon.EPO_LP(m=num_tasks, n=1, r=np.ones(num_tasks)))
    generator = torch.Generator().manual_seed(1)
    moves = {"bal": 0, "dom": 0, "neither": 0}
    for case in cases(seed=2):
        T = case.num_tasks
        noise = torch.randn(T, dtype=torch.float64, generator=generator)
        r = (0.014 * noise).exp() / case.losses if near else (0.5 * noise).exp()
        theirs = peer(T)
        expected = theirs.get_alpha(case.losses.numpy(), G=case.gramian.numpy(), r=r.numpy(), C=True)
        planted = Planted(T)
        ours = EPO(None, wrt=planted.shared, tasks=T, preferences=r.tolist())
        planted.step(ours, case.gradients, case.losses)

        if expected is None:
            expected = r / r.sum()
        assert T * (r * case.losses).min() / (r @ case.losses) > 1e-3  # below, libmoon changes the logarithm
        assert ours.statistics["non_uniformity"].item() == pytest.approx(theirs.mu_rl, abs=1e-12)
        torch.testing.assert_close(ours.weights, torch.as_tensor(expected), rtol=0, atol=2e-6)
        moves["neither" if theirs.alpha.value is None else theirs.last_move] += 1
    assert sum(moves.values()) == COUNT
    assert moves["bal"] > (0.1 if near else 0.9) * COUNT
    assert not near or (moves["dom"] > 0.5 * COUNT and moves["neither"] > 0)
