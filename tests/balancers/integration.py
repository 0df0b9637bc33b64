"""Helpers of the integration tests: a small network with four kinds of last shared layer, and plain references.

The references use no forks, hooks or windows: they build the mean of all passes' losses as one graph and differentiate
it, twice for GradNorm. The tests import this module, and so do the worker scripts, which run in processes of their own.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import balancers
from balancers import Fork, LossBalancer, create

SCALES = (1.0, 1.1, 1.3)
"""Close enough for the targets to pull weights both ways; far apart, any exponent would give the same weights."""
TASKS = ("depth", "normals", "labels")
WRT = ("layer", "features", "parameters")
TOKENS, INPUTS, WIDTH = 4, 6, 8


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, x, x, need_weights=False)[0]  # the fused kernel


class ConvNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.transpose(1, 2))).transpose(1, 2)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "attention": Attention,
    "batchnorm": ConvNorm,
    "dropout": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.3)),
}
SAMPLEWISE = ("linear", "attention")
"""Layers for which passes over parts of a batch amount to one over the whole."""


class Net(nn.Module):
    """A trunk, one of `LAYERS` as the last shared layer, a fork, three heads."""

    def __init__(self, layer: str = "linear", dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trunk = nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.Tanh(), LAYERS[layer]())
        self.fork = Fork(len(SCALES))
        self.heads = nn.ModuleList(nn.Sequential(nn.Tanh(), nn.Linear(WIDTH, 2)) for _ in SCALES)
        self.to(dtype)

    def forward(self, x: Tensor) -> list[Tensor]:
        self.features = self.trunk(x)
        return [head(z) for head, z in zip(self.heads, self.fork(self.features), strict=True)]

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "features"}  # part of a graph: no copies

    def losses(self, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
        return losses_of(self(batch[0]), batch[1])

    def wrt(self, name: str) -> dict[str, object]:
        """Return the arguments of `GradNorm` that determine where gradients are measured."""
        return {
            "layer": {"fork": self.fork, "wrt": self.trunk[-1]},
            "features": {"fork": self.fork, "wrt": None},
            "parameters": {"fork": None, "wrt": self.trunk.parameters(), "tasks": len(SCALES)},
        }[name]

    def measured(self, name: str) -> list[Tensor]:
        """Return the tensors by which the reference differentiates after a forward pass."""
        if name == "features":
            return [self.features]
        return list(self.trunk[-1].parameters() if name == "layer" else self.trunk.parameters())


def losses_of(outputs: Sequence[Tensor], y: Tensor) -> list[Tensor]:
    return [nn.functional.mse_loss(out, scale * y) for out, scale in zip(outputs, SCALES, strict=True)]


def make_batches(number: int, size: int = 4, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    xs = torch.randn(number, size, TOKENS, INPUTS, generator=draw, dtype=torch.float64).to(dtype)
    ys = torch.randn(number, size, TOKENS, 2, generator=draw, dtype=torch.float64).to(dtype)
    return list(zip(xs, ys, strict=True))


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.05)


def flat_gradients(net: nn.Module) -> Tensor:
    """Return all gradients of ``net`` in one vector, with zeros for missing ones."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in net.parameters()])


def gradient_norms(net: Net, batch: tuple[Tensor, Tensor], wrt: str) -> Tensor:
    """Return the norms of the tasks' gradients in float64, ``(T,)``."""
    losses = net.losses(batch)
    gradients = [torch.autograd.grad(loss, net.measured(wrt), retain_graph=True) for loss in losses]
    return torch.stack([torch.cat([g.flatten().double() for g in of_task]).norm() for of_task in gradients])


class GradNormReference:
    """Algorithm 1 by double backward."""

    def __init__(self, alpha: float = 1.5, lr: float = 0.025, optimizer: str = "adam") -> None:
        self.weights = torch.ones(len(SCALES), dtype=torch.float64, requires_grad=True)
        kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
        self.optimizer = kinds[optimizer]([self.weights], lr=lr)
        self.alpha = alpha
        self.initial: Tensor | None = None

    def update(self, losses: Tensor, measured: list[Tensor]) -> None:
        norms = []
        for w, loss in zip(self.weights, losses, strict=True):
            gradients = torch.autograd.grad(w * loss, measured, create_graph=True)
            norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm())
        G = torch.stack(norms)
        self.initial = losses.detach() if self.initial is None else self.initial
        ratios = losses.detach() / self.initial
        target = G.detach().mean() * (ratios / ratios.mean()) ** self.alpha
        (self.weights.grad,) = torch.autograd.grad((G - target).abs().sum(), self.weights, retain_graph=True)
        self.optimizer.step()
        with torch.no_grad():
            raised = self.weights.clamp(min=1e-4)
            self.weights.copy_(raised * len(SCALES) / raised.sum())


class UncertaintyReference:
    """Uncertainty weighting with Gaussian likelihoods: autograd trains the log-variances."""

    def __init__(self) -> None:
        self.log_variances = torch.zeros(len(SCALES), dtype=torch.float64, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.log_variances], lr=0.025)

    @property
    def weights(self) -> Tensor:
        return 0.5 * torch.exp(-self.log_variances)

    def update(self, losses: Tensor, measured: list[Tensor]) -> None:
        likelihood = (self.weights * losses.detach() + 0.5 * self.log_variances).sum()
        (self.log_variances.grad,) = torch.autograd.grad(likelihood, self.log_variances)
        self.optimizer.step()


Reference = GradNormReference | UncertaintyReference


@dataclass
class Trajectory:
    """Weights ``(N, T)`` and the network's gradients ``(N, P)`` of N optimiser steps."""

    weights: Tensor
    gradients: Tensor

    @staticmethod
    def of(steps: Sequence[tuple[Tensor, Tensor]]) -> "Trajectory":
        weights, gradients = (torch.stack(column) for column in zip(*steps, strict=True))
        return Trajectory(weights, gradients)


@dataclass
class Part:
    """One pass: its batch, and the seed of its random numbers (dropout)."""

    batch: tuple[Tensor, Tensor]
    seed: int = 0


def in_parts(batches: Sequence[tuple[Tensor, Tensor]], parts: int) -> list[list[Part]]:
    """Return windows of ``parts`` passes, each with its own batch and seed."""
    every = [Part(batch, seed) for seed, batch in enumerate(batches)]
    return [every[i : i + parts] for i in range(0, len(every), parts)]


def joint(windows: Sequence[Sequence[Part]]) -> list[list[Part]]:
    """Return windows of the same samples, each as one pass."""
    return [[Part(tuple(torch.cat(column) for column in zip(*(p.batch for p in w), strict=True)))] for w in windows]


@sdpa_kernel(SDPBackend.MATH)  # the fused kernel can't be differentiated twice
def run_reference(
    net: Net, reference: Reference, windows: Sequence[Sequence[Part]], wrt: str = "layer", gradient_factor: float = 1.0
) -> Trajectory:
    """Train ``net`` on the mean over each window's passes."""
    optimizer = sgd(net)
    steps = []
    for window in windows:
        losses, measured = [], []
        for part in window:
            torch.manual_seed(part.seed)
            losses.append(torch.stack(net.losses(part.batch)))
            measured += net.measured(wrt) if wrt == "features" else []
        mean = torch.stack(losses).mean(0)
        weights = reference.weights.detach().clone()
        optimizer.zero_grad()
        (gradient_factor * weights @ mean).backward(retain_graph=True)
        reference.update(mean, measured or net.measured(wrt))
        steps.append((weights, flat_gradients(net)))
        optimizer.step()
    return Trajectory.of(steps)


def run_balancer(
    net: Net,
    balancer: LossBalancer,
    windows: Sequence[Sequence[Part]],
    backward: Callable[[Tensor], None] = lambda loss: loss.backward(),
) -> Trajectory:
    """Train ``net`` pass by pass, as a user accumulates gradients."""
    optimizer = sgd(net)
    steps = []
    for window in windows:
        optimizer.zero_grad()
        for part in window:
            torch.manual_seed(part.seed)
            backward(balancer(net.losses(part.batch)) / len(window))
        if len(window) < balancer.accumulate:
            balancer.close_window()
        steps.append((balancer.weights, flat_gradients(net)))
        optimizer.step()
    return Trajectory.of(steps)


def assert_same(found: Trajectory, expected: Trajectory) -> None:
    moved = (expected.weights[-1] - expected.weights[0]).abs().max()
    assert moved > 1e-3, "a trajectory that stands still shows nothing"
    torch.testing.assert_close(found.weights, expected.weights, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.gradients, expected.gradients, rtol=1e-12, atol=1e-12)


def state_of(balancer: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the state without ``last_weights``, which a step changes even if it is not valid."""
    return {key: value.clone() for key, value in balancer.state_dict().items() if key != "last_weights"}


def assert_bit_equal(found: object, expected: object) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@dataclass
class Training:
    """A network, its balancer and its optimiser, as a user resumes them."""

    net: Net
    balancer: LossBalancer
    optimizer: torch.optim.Optimizer

    @staticmethod
    def make(
        method: str, wrt: str = "layer", dtype: torch.dtype = torch.float64, seed: int = 0, **options: object
    ) -> "Training":
        net = Net(dtype=dtype, seed=seed)
        positional = {"gradnorm": net.wrt(wrt), "static": {"weights": [0.5, 1.0, 1.5]}}
        balancer = create(method, **positional.get(method, {"tasks": len(SCALES)}) | options)
        return Training(net, balancer, torch.optim.Adam(net.parameters(), lr=0.01))

    def run(self, batches: Sequence[tuple[Tensor, Tensor]], names: Sequence[str] | None = None) -> list[Tensor]:
        """Train one step on each batch and return its weights. With ``names``, give losses as a dict in that order."""
        weights = []
        for batch in batches:
            losses = self.net.losses(batch)
            named = dict(zip(TASKS, losses, strict=True))
            loss = self.balancer(losses if names is None else {name: named[name] for name in names})
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            weights.append(self.balancer.weights)
        return weights

    def state_dict(self) -> dict[str, dict]:
        return {key: part.state_dict() for key, part in vars(self).items()}

    def load_state_dict(self, state: dict[str, dict]) -> None:
        for key, part in vars(self).items():
            part.load_state_dict(state[key])


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a worker script of this folder in a process of its own."""
    root = str(Path(balancers.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(processes: Sequence[subprocess.Popen[str]], timeout: float) -> None:
    """Wait for all processes. If one hangs or fails, raise an error that shows what it printed."""
    try:
        for process in processes:
            output, _ = process.communicate(timeout=timeout)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
