"""With a GradScaler, measurements are unscaled, and the steps that it skips leave no trace."""

import copy

import pytest
import torch
from torch.amp import GradScaler

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


def run_scaled(net: Net, balancer: LossBalancer, windows: list[list[Part]]) -> Trajectory:
    optimizer = sgd(net)
    scaler = GradScaler("cpu", init_scale=2.0**15, growth_interval=3)  # grows while we look
    steps = []
    for window in windows:
        optimizer.zero_grad()
        for part in window:
            torch.manual_seed(part.seed)
            scaler.scale(balancer(net.losses(part.batch)) / len(window)).backward()
        scaler.unscale_(optimizer)
        steps.append((balancer.weights, flat_gradients(net)))
        scaler.step(optimizer)
        scaler.update()
    return Trajectory.of(steps)


@pytest.mark.parametrize("layer", others_slow(["linear", "attention", "batchnorm", "dropout"], "linear"))
@pytest.mark.parametrize("wrt", WRT)
@pytest.mark.parametrize("parts", [1, 4])
def test_gradnorm_under_a_scaler(layer: str, wrt: str, parts: int) -> None:
    windows = in_parts(make_batches(8 * parts), parts)
    net = Net(layer)
    found = run_scaled(net, GradNorm(**net.wrt(wrt), accumulate=parts), windows)
    assert_same(found, run_reference(Net(layer), GradNormReference(), windows, wrt))


def test_uncertainty_under_a_scaler() -> None:
    windows = in_parts(make_batches(8), 1)
    found = run_scaled(Net(), UncertaintyWeighting(len(SCALES)), windows)
    assert_same(found, run_reference(Net(), UncertaintyReference(), windows))


OVERFLOWING = 2.0**44
FITTING = 2.0**8


def train_in_half(net: Net, balancer: LossBalancer, init_scale: float, steps: int) -> tuple[list[dict], int]:
    """Train on one batch; return the balancer's state after each step, and how many steps the scaler skipped."""
    # Two backoffs lead from `OVERFLOWING`, a scale at which gradients overflow, to `FITTING`, at which they don't.
    scaler = GradScaler("cpu", init_scale=init_scale, backoff_factor=2.0**-18, growth_interval=1000)
    optimizer = sgd(net)
    batch = make_batches(1, dtype=torch.float32)[0]
    states, skipped = [], 0
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            losses = net.losses(batch)
        scaler.scale(balancer(losses)).backward()
        scaler.step(optimizer)
        scale = scaler.get_scale()
        scaler.update()
        skipped += scaler.get_scale() < scale
        states.append(state_of(balancer))
    return states, skipped


@pytest.mark.parametrize("wrt", WRT)
@pytest.mark.parametrize("options", [{"optimizer": "adam"}, {"optimizer": "sgd"}, {"freeze_after": 3}], ids=str)
def test_overflowing_first_steps_leave_no_trace(wrt: str, options: dict) -> None:
    """Afterwards the state equals, to the bit, that of a run without the steps that the scaler skipped."""
    runs = []
    for init_scale in (OVERFLOWING, FITTING):
        net = Net(dtype=torch.float32)
        balancer = GradNorm(**net.wrt(wrt), **options)
        begin = state_of(balancer)
        runs.append((train_in_half(net, balancer, init_scale, 8), begin))
    ((states, skipped), begin), ((undisturbed, none_skipped), _) = runs
    assert (skipped, none_skipped) == (2, 0)
    assert_bit_equal(states[:skipped], [begin] * skipped)
    assert_bit_equal(states[skipped:], undisturbed[: 8 - skipped])
    assert not torch.equal(states[-1]["next_weights"], begin["next_weights"])


def test_an_overflow_amid_training_leaves_the_state_and_does_not_last() -> None:
    net = Net(dtype=torch.float32)
    balancer = GradNorm(**net.wrt("layer"))
    batches = make_batches(6, dtype=torch.float32)
    changed = []
    for batch, scale in zip(batches, (8, 8, 2.0**40, 2.0**30, 8, 8), strict=True):
        before = state_of(balancer)
        with torch.autocast("cpu", torch.float16):
            losses = net.losses(batch)
        (scale * balancer(losses)).backward()
        changed.append(not torch.equal(before["next_weights"], balancer.next_weights))
        if not changed[-1]:
            assert_bit_equal(state_of(balancer), before)
    assert changed == [True, True, False, False, True, True]


@pytest.mark.parametrize("wrt", WRT)
def test_a_model_in_float16(wrt: str) -> None:
    """With parameters and losses of float16, and a scale, norms equal those in float64 up to float16's rounding."""
    net = Net().half()
    exact = copy.deepcopy(net).double()
    balancer = GradNorm(**net.wrt(wrt), lr=1e-6)
    for x, y in make_batches(3, dtype=torch.float16):
        before = state_of(balancer)
        (2.0**30 * balancer(net.losses((x, y)))).backward()
        assert_bit_equal(state_of(balancer), before)
        (8.0 * balancer(net.losses((x, y)))).backward()
        expected = gradient_norms(exact, (x.double(), y.double()), wrt).float()
        torch.testing.assert_close(balancer.statistics["gradient_norms"], expected, rtol=5e-3, atol=0)
        assert not torch.equal(balancer.next_weights, before["next_weights"])
    assert balancer.next_weights.dtype == torch.float32


@pytest.mark.parametrize("wrt", WRT)
def test_a_scale_whose_square_exceeds_float32(wrt: str) -> None:
    """A scaler's scale grows without bound if nothing overflows, as in bfloat16 or float32."""
    norms = []
    for scale in (1.0, 2.0**50):
        net = Net(dtype=torch.float32)
        balancer = GradNorm(**net.wrt(wrt))
        (scale * balancer(net.losses(make_batches(1, dtype=torch.float32)[0]))).backward()
        norms.append(balancer.statistics["gradient_norms"])
    torch.testing.assert_close(norms[1], norms[0])
