"""Lightning's automatic optimisation calls backward; the balancer is a submodule of the LightningModule."""

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
    Trajectory,
    UncertaintyReference,
    assert_bit_equal,
    assert_same,
    flat_gradients,
    in_parts,
    make_batches,
    run_reference,
    sgd,
    state_of,
)

L = pytest.importorskip("lightning")
pytestmark = pytest.mark.filterwarnings("ignore")


class Module(L.LightningModule):
    """A module as a user writes it, with a record of each step."""

    def __init__(self, net: Net, balancer: LossBalancer) -> None:
        super().__init__()
        self.net = net
        self.balancer = balancer
        self.steps: list[tuple[torch.Tensor, torch.Tensor]] = []

    def training_step(self, batch: tuple, index: int) -> torch.Tensor:
        torch.manual_seed(index)
        return self.balancer(self.net.losses(batch))

    def validation_step(self, batch: tuple, index: int) -> None:
        before = state_of(self.balancer)
        self.balancer(self.net.losses(batch))
        # Equal, although the first float64 losses widen it.
        torch.testing.assert_close(state_of(self.balancer), before, rtol=0, atol=0, check_dtype=False)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.balancer.close_window()
        self.steps.append((self.balancer.weights, flat_gradients(self.net)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self)


def make(layer: str = "linear", wrt: str = "layer", accumulate: int = 1, dtype: torch.dtype = torch.float64) -> Module:
    net = Net(layer, dtype)
    return Module(net, GradNorm(**net.wrt(wrt), accumulate=accumulate))


def fit(
    module: Module, batches: list, accumulate: int = 1, checkpoint: Path | None = None, **options: object
) -> object:
    settings = {"max_epochs": 1, "accelerator": "cpu", "precision": "64-true"} | options
    trainer = L.Trainer(
        accumulate_grad_batches=accumulate,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        **settings,
    )
    # Batches as they are: no collation, no shuffling.
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    trainer.fit(module, loader, loader, ckpt_path=checkpoint)
    return trainer


@pytest.mark.parametrize("layer", others_slow(["linear", "attention", "batchnorm", "dropout"], "linear"))
@pytest.mark.parametrize("accumulate", [1, 4])
def test_gradnorm(layer: str, accumulate: int) -> None:
    batches = make_batches(8 * accumulate)
    module = make(layer, accumulate=accumulate)
    fit(module, batches, accumulate, limit_val_batches=0)  # validation would draw random numbers for dropout
    expected = run_reference(Net(layer), GradNormReference(), in_parts(batches, accumulate))
    assert_same(Trajectory.of(module.steps), expected)


@pytest.mark.parametrize("wrt", WRT)
def test_with_validation_and_a_short_last_window(wrt: str) -> None:
    windows = in_parts(make_batches(14), 4)
    module = make(wrt=wrt, accumulate=4)
    fit(module, [part.batch for window in windows for part in window], 4)
    expected = run_reference(Net(), GradNormReference(), windows, wrt)
    expected.gradients[-1] *= len(windows[-1]) / 4  # Lightning divides by 4 here, too
    assert_same(Trajectory.of(module.steps), expected)


def test_uncertainty() -> None:
    batches = make_batches(6)
    module = Module(Net(), UncertaintyWeighting(len(SCALES)))
    fit(module, batches)
    assert_same(Trajectory.of(module.steps), run_reference(Net(), UncertaintyReference(), in_parts(batches, 1)))


def test_the_optimizer_trains_the_network_and_nothing_of_the_balancer() -> None:
    module = make()
    trainer = fit(module, make_batches(2))
    trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(p) for p in module.net.parameters()}
    assert not trained & {id(buffer) for buffer in module.balancer.buffers()}


@pytest.mark.parametrize("precision", ["64-true", "32-true", "bf16-mixed"])
def test_a_checkpoint_resumes_exactly(precision: str, tmp_path: Path) -> None:
    dtype = torch.float64 if precision == "64-true" else torch.float32
    batches = make_batches(4, dtype=dtype)
    whole = make(dtype=dtype)
    fit(whole, batches, max_epochs=2, precision=precision)

    first = make(dtype=dtype)
    fit(first, batches, precision=precision).save_checkpoint(tmp_path / "first.ckpt")
    saved = torch.load(tmp_path / "first.ckpt", weights_only=True)["state_dict"]
    assert {f"balancer.{key}" for key in state_of(first.balancer)} <= set(saved)

    second = make(dtype=dtype)
    fit(second, batches, max_epochs=2, precision=precision, checkpoint=tmp_path / "first.ckpt")
    assert len(second.steps) == 4
    assert_bit_equal(second.steps, whole.steps[4:])
    assert_bit_equal(state_of(second.balancer), state_of(whole.balancer))
