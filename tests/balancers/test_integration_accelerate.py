"""Accelerate's `accelerator.backward` calls backward, with and without gradient accumulation."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from balancers import GradNorm, LossBalancer, UncertaintyWeighting

from ..slow_params import others_slow
from .integration import (
    SCALES,
    WRT,
    GradNormReference,
    Net,
    Part,
    Trajectory,
    UncertaintyReference,
    assert_bit_equal,
    assert_same,
    flat_gradients,
    gradient_norms,
    in_parts,
    make_batches,
    run_reference,
    sgd,
    state_of,
)

accelerate = pytest.importorskip("accelerate")


@pytest.fixture(autouse=True)
def _own_state() -> Iterator[None]:
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def run_accelerated(net: Net, balancer: LossBalancer, windows: list[list[Part]], **options: object) -> Trajectory:
    accumulate = len(windows[0])
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate, **options)
    parts = [part for window in windows for part in window]
    loader = torch.utils.data.DataLoader([part.batch for part in parts], batch_size=None)
    net, optimizer, loader = accelerator.prepare(net, sgd(net), loader)
    steps = []
    for part, batch in zip(parts, loader, strict=True):
        with accelerator.accumulate(net):
            torch.manual_seed(part.seed)
            accelerator.backward(balancer(net.losses(batch)))
            if accelerator.sync_gradients:
                balancer.close_window()
                steps.append((balancer.weights, flat_gradients(net)))
            optimizer.step()
            optimizer.zero_grad()
    return Trajectory.of(steps)


@pytest.mark.parametrize("layer", others_slow(["linear", "attention", "batchnorm", "dropout"], "linear"))
@pytest.mark.parametrize("wrt", WRT)
@pytest.mark.parametrize("parts", [1, 4])
def test_gradnorm(layer: str, wrt: str, parts: int) -> None:
    windows = in_parts(make_batches(8 * parts), parts)
    net = Net(layer)
    found = run_accelerated(net, GradNorm(**net.wrt(wrt), accumulate=parts), windows)
    assert_same(found, run_reference(Net(layer), GradNormReference(), windows, wrt))


def test_a_short_last_window() -> None:
    windows = in_parts(make_batches(14), 4)
    net = Net()
    found = run_accelerated(net, GradNorm(**net.wrt("layer"), accumulate=4), windows)
    expected = run_reference(Net(), GradNormReference(), windows)
    expected.gradients[-1] *= len(windows[-1]) / 4  # Accelerate divides by 4 here, too
    assert_same(found, expected)


def test_uncertainty() -> None:
    windows = in_parts(make_batches(6), 1)
    found = run_accelerated(Net(), UncertaintyWeighting(len(SCALES)), windows)
    assert_same(found, run_reference(Net(), UncertaintyReference(), windows))


@pytest.mark.parametrize("wrt", WRT)
def test_bfloat16_autocast(wrt: str) -> None:
    """The norms equal those in float64, up to bfloat16's rounding."""
    net = Net(dtype=torch.float32)
    exact = copy.deepcopy(net).double()
    balancer = GradNorm(**net.wrt(wrt))
    windows = in_parts(make_batches(1, dtype=torch.float32), 1)
    run_accelerated(net, balancer, windows, mixed_precision="bf16")
    x, y = windows[0][0].batch
    expected = gradient_norms(exact, (x.double(), y.double()), wrt).float()
    torch.testing.assert_close(balancer.statistics["gradient_norms"], expected, rtol=3e-2, atol=0)


def test_save_state_and_load_state(tmp_path: Path) -> None:
    """A balancer can be given to `register_for_checkpointing`."""
    accelerator = accelerate.Accelerator(cpu=True)
    net = Net()
    balancer = GradNorm(**net.wrt("layer"))
    run_accelerated(net, balancer, in_parts(make_batches(3), 1))
    accelerator.register_for_checkpointing(balancer)
    accelerator.save_state(tmp_path / "state")
    saved = state_of(balancer)
    run_accelerated(net, balancer, in_parts(make_batches(3), 1))
    accelerator.load_state(tmp_path / "state")
    assert_bit_equal(state_of(balancer), saved)
