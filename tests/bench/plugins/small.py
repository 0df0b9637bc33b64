"""Define a problem that trains in milliseconds, as a user would write it, and record the split of each evaluation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from balancers import Fork
from tasks import Metric, Problem, Recipe, Shared, evaluating, register

EVALUATED: list[str] = []
"""The split of every evaluation in this process."""


class Split(NamedTuple):
    x: Tensor
    targets: tuple[Tensor, ...]


class Net(nn.Module):
    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 8)
        self.fork = Fork(num_tasks)
        self.heads = nn.ModuleList(nn.Linear(8, 3) for _ in range(num_tasks))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [head(z) for head, z in zip(self.heads, self.fork(torch.tanh(self.trunk(x))), strict=True)]


class Constant(nn.Module):
    def __init__(self, values: Sequence[Tensor]) -> None:
        super().__init__()
        self.values = values

    def forward(self, x: Tensor) -> list[Tensor]:
        return [value.expand(len(x), -1) for value in self.values]


@register
class Small(Problem[dict[str, Split]]):
    name = "small"
    summary = "Linear maps of different scales."
    tasks = ("a", "b")
    metrics = (
        Metric("error", "sum of relative losses", "", higher_is_better=False),
        Metric("loss of a", "mean squared error", "m", higher_is_better=False, task="a"),
        Metric("loss of b", "mean squared error", "m", higher_is_better=False, task="b"),
    )
    primary = "error"
    baselines = frozenset({"constant", "single-task"})
    static_weights = {"inverse": (1.8, 0.2)}

    def __init__(
        self, scales: Sequence[float] = (1.0, 3.0), optimizer: str = "adam", steps: int = 12, constant: bool = True
    ) -> None:
        if min(scales) <= 0:
            raise ValueError(f"scales holds {min(scales)}; expected positive numbers")
        self.scales = scales
        self.has_constant = constant
        self.recipe = Recipe(optimizer=optimizer, lr=0.01, schedule="cosine", batch_size=16, steps=steps)
        self.full = replace(self.recipe, steps=5 * steps)

    def data(self, generator: Generator, device: torch.device | str) -> dict[str, Split]:
        maps = [scale * torch.randn(4, 3, generator=generator) for scale in self.scales]
        inputs = {split: torch.randn(64, 4, generator=generator) for split in ("train", "validation", "test")}
        return {split: Split(x.to(device), tuple((x @ m).to(device) for m in maps)) for split, x in inputs.items()}

    def batches(self, data: dict[str, Split], generator: Generator, batch_size: int) -> Iterator[Split]:
        x, targets = data["train"]
        while True:
            chosen = torch.randint(len(x), (batch_size,), generator=generator).to(x.device)
            yield Split(x[chosen], tuple(target[chosen] for target in targets))

    def model(self) -> nn.Module:
        return Net(len(self.tasks))

    def shared(self, model: nn.Module) -> Shared:
        assert isinstance(model, Net)
        return Shared(model.fork, model.trunk, tuple(model.trunk.parameters()))

    def losses(self, model: nn.Module, batch: Split) -> list[Tensor]:
        return [nn.functional.mse_loss(y, target) for y, target in zip(model(batch.x), batch.targets, strict=True)]

    def evaluate(
        self, model: nn.Module, data: dict[str, Split], split: str, start: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        EVALUATED.append(split)
        with evaluating(model):
            losses = [float(loss) for loss in self.losses(model, data[split])]
        metrics = {f"loss of {task}": loss for task, loss in zip(self.tasks, losses, strict=True)}
        relative = [loss / (start or metrics)[f"loss of {task}"] for task, loss in zip(self.tasks, losses, strict=True)]
        return {"error": sum(relative), **metrics}

    def sizes(self, data: dict[str, Split]) -> Mapping[str, int]:
        return {split: len(samples.x) for split, samples in data.items()}

    def draw(self, figure, data: dict[str, Split], model: nn.Module | None = None) -> str:
        axes = figure.subplots()
        axes.plot(data["test"].targets[0][:, 0])
        if model is None:
            return "The targets of a."
        with evaluating(model):
            axes.plot(model(data["test"].x)[0][:, 0])
        return "The targets of a, and what the model makes of them."

    def constant(self, data: dict[str, Split]) -> nn.Module | None:
        return Constant([target.mean(0) for target in data["train"].targets]) if self.has_constant else None
