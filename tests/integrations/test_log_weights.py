"""The Lightning callback logs what each balancer of a module showed, as often as the trainer logs."""

import importlib
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from balancers import Fork, GradNorm, LossBalancer, PCGrad, UncertaintyWeighting

L = pytest.importorskip("lightning")
Logger = L.pytorch.loggers.Logger
LogWeights = pytest.importorskip("balancers.integrations.lightning").LogWeights
pytestmark = pytest.mark.filterwarnings("ignore")


class Records(Logger):
    """A logger that keeps what it gets."""

    name, version = "records", 0

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.entries.append((step, metrics))

    def log_hyperparams(self, *_: Any) -> None:
        """Lightning gives a logger the module's hyper-parameters."""


class Module(L.LightningModule):
    """Two tasks, weighed by GradNorm, with a record of the balancer's numbers after each step of the optimiser."""

    def __init__(self, accumulate: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.fork = nn.Linear(4, 8), Fork(2)
        self.heads = nn.ModuleList([nn.Linear(8, 1), nn.Linear(8, 1)])
        self.balancer: LossBalancer | None = GradNorm(
            self.fork, wrt=self.trunk, tasks=["a", "b"], accumulate=accumulate
        )
        self.shown: dict[int, dict[str, float]] = {}

    def losses(self, x: Tensor) -> list[Tensor]:
        a, b = (head(z) for head, z in zip(self.heads, self.fork(self.trunk(x).tanh()), strict=True))
        return [(a - 1).square().mean(), (b - x.sum(1, keepdim=True)).square().mean()]

    def training_step(self, x: Tensor, index: int) -> Tensor:
        losses = self.losses(x)
        return sum(losses) if self.balancer is None else self.balancer(losses)

    def on_train_batch_end(self, *_: Any) -> None:
        if self.balancer is not None:
            self.shown.setdefault(self.trainer.global_step, self.balancer.scalars())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        if self.balancer is not None:
            self.balancer.follow(optimizer)
        return optimizer


def fit(module: L.LightningModule, logger: Logger | bool, batches: int = 12, **options: object) -> None:
    settings = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=logger, callbacks=[LogWeights()], **settings, **options)
    trainer.fit(module, torch.utils.data.DataLoader(torch.randn(batches, 8, 4), batch_size=None))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("every", [1, 3])
def test_logs_at_every_nth_step_what_the_balancer_shows(accumulate: int, every: int) -> None:
    module, logger = Module(accumulate), Records()
    fit(module, logger, 12 * accumulate, accumulate_grad_batches=accumulate, log_every_n_steps=every)
    of_balancer = [(step, found) for step, found in logger.entries if "balancer/weight/a" in found]
    assert [step for step, _ in of_balancer] == list(range(every, 13, every))
    for step, found in of_balancer:
        assert found == {f"balancer/{name}": value for name, value in module.shown[step].items()}
    assert of_balancer[0][1].keys() >= {"balancer/loss/b", "balancer/gradient_norm/a"}


def test_logs_each_balancer_under_its_own_name_and_none_inside_another() -> None:
    class Two(Module):
        def __init__(self) -> None:
            super().__init__()
            self.fork = Fork(2)
            self.balancer = PCGrad(self.fork, weighting=UncertaintyWeighting(2))
            self.parts = nn.ModuleDict({"second": UncertaintyWeighting(["a", "b"])})

        def training_step(self, x: Tensor, index: int) -> Tensor:
            return self.balancer(self.losses(x)) + self.parts["second"]([1 + head.weight.norm() for head in self.heads])

    logger = Records()
    fit(Two(), logger, 1, log_every_n_steps=1)
    [(_, found)] = logger.entries
    weights = {name for name in found if "weight/" in name}
    assert weights == {
        "balancer/weight/0",
        "balancer/weight/1",
        "parts.second/weight/a",
        "parts.second/weight/b",
    }


def test_a_module_without_a_balancer_is_told_where_to_put_it() -> None:
    module = Module()
    module.balancer = None
    with pytest.raises(ValueError, match=r"no balancer in Module.*self\.balancer = GradNorm"):
        fit(module, Records())


def test_without_a_logger_it_trains_all_the_same() -> None:
    module = Module()
    fit(module, False, log_every_n_steps=1)
    assert module.balancer.updates.tolist() == [12, 12]


def test_without_lightning_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "balancers.integrations.lightning")
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    with pytest.raises(ImportError, match="needs the package lightning: pip install lightning"):
        importlib.import_module("balancers.integrations.lightning")
