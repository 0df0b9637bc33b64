"""A plugin for `bench.execute.scale`: a problem whose runs take a few milliseconds."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from balancers import Fork
from tasks import Metric, Problem, Recipe, Shared, Split, evaluating, register

Data = Mapping[str, Tensor]


class Net(nn.Module):
    """A shared weight, a fork and two heads of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.fork = nn.Linear(1, 1), Fork(num_tasks=2)
        self.heads = nn.ModuleList([nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the tasks' outputs, ``(N, 1)`` each."""
        return [head(z) for head, z in zip(self.heads, self.fork(self.trunk(x)), strict=True)]


@register
class Scale(Problem[Data]):
    """Two multiples of a number."""

    name = "scale"
    summary = "Two multiples of a number: no time in the run itself."
    tasks = ("one", "two")
    metrics = (Metric("error", "mean of the tasks' squared errors", unit="", higher_is_better=False),)
    primary = "error"
    recipe = Recipe(optimizer="sgd", lr=0.1, schedule="constant", batch_size=4, steps=3)

    def data(self, generator: torch.Generator, device: torch.device | str) -> Data:
        x = torch.randn(3, 8, 1, generator=generator).to(device)
        return {"train": x[0], "validation": x[1], "test": x[2]}

    def batches(self, data: Data, generator: torch.Generator, batch_size: int) -> Iterator[Tensor]:
        while True:
            yield data["train"][:batch_size]

    def model(self) -> nn.Module:
        return Net()

    def shared(self, model: nn.Module) -> Shared:
        assert isinstance(model, Net)
        return Shared(model.fork, model.trunk, tuple(model.trunk.parameters()))

    def losses(self, model: nn.Module, batch: Tensor) -> list[Tensor]:
        return [(y - k * batch).square().mean() for k, y in enumerate(model(batch), 1)]

    def evaluate(
        self, model: nn.Module, data: Data, split: Split, start: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        with evaluating(model):
            return {"error": sum(loss.item() for loss in self.losses(model, data[split])) / 2}
