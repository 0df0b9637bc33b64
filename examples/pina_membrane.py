"""Solve the equation of a loaded membrane with PINA, and let NTK weighting balance its two losses.

PINA has a loss for each condition of the problem. `BalancerWeighting` lets a balancer combine them. NTK weighting reads
the residuals, and the weighting's loss shows them. Training resumes from a checkpoint, which includes the balancer:

    python examples/pina_membrane.py
"""

import math
import tempfile
from pathlib import Path

import torch
from pina import Condition, LabelTensor, Trainer
from pina.domain import CartesianDomain
from pina.equation import Equation
from pina.equation.zoo import FixedValue
from pina.model import FeedForward
from pina.operator import laplacian
from pina.optim import TorchOptimizer
from pina.problem import SpatialProblem
from pina.solver import PhysicsInformedSingleModelSolver

from balancers import NTKWeighting
from balancers.integrations.pina import BalancerWeighting

TASKS = ["fixed", "load"]
QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


def deflection(xy: LabelTensor) -> torch.Tensor:
    """Return the solution, ``(n, 1)``, at the points ``xy``, ``(n, 2)``."""
    return (math.pi * xy.tensor).sin().prod(1, keepdim=True)


def equilibrium(xy: LabelTensor, u: LabelTensor) -> LabelTensor:
    """Return the residual of laplacian(u) = -load, ``(n, 1)``."""
    return laplacian(u, xy, components=["u"], d=["x", "y"]) + 2 * math.pi**2 * deflection(xy)


def make_solver() -> PhysicsInformedSingleModelSolver:
    """Return a solver of the membrane on the unit square, which is fixed at its edge."""
    square = CartesianDomain({"x": [0, 1], "y": [0, 1]})

    class Membrane(SpatialProblem):
        output_variables = ["u"]
        spatial_domain = square
        domains = {"inside": square, "edge": square.partial()}
        conditions = {
            "fixed": Condition(domain="edge", equation=FixedValue(0.0)),
            "load": Condition(domain="inside", equation=Equation(equilibrium)),
        }

    problem = Membrane()
    problem.discretise_domain(140)  # of each domain, at random
    model = FeedForward(2, 1, inner_size=24)  # with two hidden layers
    weighting = BalancerWeighting(NTKWeighting(None, wrt=model, tasks=TASKS, update_every=50, probes=8))
    adam = TorchOptimizer(torch.optim.Adam, lr=3e-3)
    return PhysicsInformedSingleModelSolver(problem, model, adam, weighting=weighting, loss=weighting.loss)


def main(steps: int = 600) -> list[dict[str, float]]:
    """Return the weights and the relative error of the solution, at half of the steps and at their end."""
    torch.manual_seed(0)
    points = LabelTensor(torch.rand(1000, 2), ["x", "y"])
    results, path = [], None
    with tempfile.TemporaryDirectory() as folder:
        for epochs in (steps // 2, steps):
            solver = make_solver()  # the second time as in another process
            trainer = Trainer(solver, max_epochs=epochs, **QUIET)
            trainer.train(ckpt_path=path)
            trainer.save_checkpoint(path := Path(folder, "membrane.ckpt"))
            error = (solver(points).tensor - deflection(points)).norm() / deflection(points).norm()
            results.append(dict(zip(TASKS, solver.balancer.weights.tolist(), strict=True)) | {"error": error.item()})
            print(f"after {epochs} steps:", ", ".join(f"{name} {value:.3g}" for name, value in results[-1].items()))
    return results


if __name__ == "__main__":
    main()
