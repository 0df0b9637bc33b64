"""Solve the heat equation with DeepXDE, and let a balancer weigh its three losses: equation, boundary and start.

The residual of u_t = 0.3 u_xx has far larger gradients than the two conditions. Learning-rate annealing lifts these to
its size. Adam trains first, and then L-BFGS, which goes on with the network and the balancer that Adam's run saved.
DeepXDE saves the balancer because it is a part of the network:

    python examples/deepxde_heat.py
"""

import math
import os
import tempfile
from typing import Any

import torch
from torch import Tensor

os.environ.setdefault("DDE_BACKEND", "pytorch")  # before DeepXDE is imported

import deepxde as dde
import numpy as np

from balancers import LearningRateAnnealing
from balancers.integrations.deepxde import BalanceLosses

TASKS = ["equation", "boundary", "start"]


def residual(xt: Tensor, u: Tensor) -> Tensor:
    """Return u_t - 0.3 u_xx, ``(n, 1)``, at the points ``xt``, ``(n, 2)``."""
    slope: Tensor = dde.grad.jacobian(u, xt, i=0, j=1)
    return slope - 0.3 * dde.grad.hessian(u, xt, i=0, j=0)


def solution(xt: np.ndarray) -> np.ndarray:
    """Return the solution that starts as sin(pi x), ``(n, 1)``."""
    return np.sin(math.pi * xt[:, :1]) * np.exp(-0.3 * math.pi**2 * xt[:, 1:])


def make_model() -> Any:
    """Return a model whose network has the balancer as its part ``balancer``."""
    rod = dde.geometry.GeometryXTime(dde.geometry.Interval(0, 1), dde.geometry.TimeDomain(0, 1))
    boundary = dde.icbc.DirichletBC(rod, lambda xt: 0, lambda _, on_boundary: on_boundary)
    start = dde.icbc.IC(rod, lambda xt: np.sin(math.pi * xt[:, :1]), lambda _, on_initial: on_initial)
    data = dde.data.TimePDE(rod, residual, [boundary, start], 100, 40, 40, solution=solution, num_test=1000)
    net = dde.nn.FNN([2, 24, 24, 1], "tanh", "Glorot normal")
    net.balancer = LearningRateAnnealing(None, wrt=net, tasks=TASKS, reference="equation", update_every=10)
    return dde.Model(data, net)


def main(steps: int = 600) -> list[tuple[int, dict[str, float], float]]:
    """Return the step, the weights and the relative error of the solution, after Adam and after L-BFGS."""
    torch.manual_seed(0)
    np.random.seed(0)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        model = make_model()
        model.compile("adam", lr=3e-3, metrics=["l2 relative error"])
        callback = BalanceLosses(model.net.balancer, period=steps // 3)
        _, state = model.train(iterations=steps, display_every=steps // 3, callbacks=[callback])
        results.append((*callback.history[-1], state.metrics_test[0]))
        path = model.save(os.path.join(folder, "heat"))

        model = make_model()  # as in another process
        model.compile("adam", lr=3e-3)
        model.restore(path)
        dde.optimizers.config.LBFGS_options.update(maxiter=steps // 3, iter_per_step=steps // 12)
        model.compile("L-BFGS", metrics=["l2 relative error"])
        callback = BalanceLosses(model.net.balancer, period=steps // 12)
        _, state = model.train(callbacks=[callback])
        results.append((*callback.history[-1], state.metrics_test[0]))
    return results


if __name__ == "__main__":
    main()
