"""`Problem` checks what every problem must define and provides what all share, here for a user's problem."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import Generator, Tensor, nn

from tasks import Metric, Problem, Recipe, Shared, evaluating


class Sines(Problem[Tensor]):
    """Two tasks that share one parameter and no features."""

    name = "sines"
    summary = "A toy."
    tasks: tuple[str, ...] = ("slow", "fast")
    metrics: tuple[Metric, ...] = (
        Metric("sum", "the sum of the errors", "", False),
        Metric("e", "", "m", False, "fast"),
    )
    primary: str = "sum"
    recipe = Recipe("sgd", lr=0.1, schedule="cosine", batch_size=4, steps=10)

    def data(self, generator: Generator, device: torch.device | str) -> Tensor:
        return torch.rand(16, generator=generator).to(device)

    def batches(self, data: Tensor, generator: Generator, batch_size: int) -> Iterator[Tensor]:
        while True:
            yield data[torch.randint(len(data), (batch_size,), generator=generator)]

    def model(self) -> nn.Module:
        return nn.Linear(1, 1)

    def shared(self, model: nn.Module) -> Shared:
        return Shared(None, None, tuple(model.parameters()))

    def losses(self, model: nn.Module, batch: Tensor) -> Sequence[Tensor]:
        return [(model(batch[:, None]) - torch.sin(k * batch[:, None])).square().mean() for k in (1, 5)]

    def evaluate(
        self, model: nn.Module, data: Tensor, split: str, start: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        with evaluating(model):
            slow, fast = self.losses(model, data)
        return {"sum": (slow + fast).item(), "e": fast.item()}


def test_a_problem_that_states_all_is_accepted():
    Sines().check()
    assert Sines().constant(torch.zeros(3)) is None
    assert Sines().static_weights == {}


@pytest.mark.parametrize(
    ("fact", "value", "message"),
    [
        ("tasks", (), r"Sines\.tasks is \[\]; expected at least one"),
        ("tasks", ("slow", "slow"), "all with different names"),
        ("metrics", (Metric("sum", "", "", True),) * 2, r"Sines\.metrics is \['sum', 'sum'\]"),
        ("metrics", (Metric("sum", "", "", True, "medium"),), r"metric 'sum' has task 'medium'; expected one of \["),
        ("primary", "mean", r"Sines\.primary is 'mean'; expected the name of one of its metrics: \['sum', 'e'\]"),
        ("likelihoods", {"one": "softmax"}, r"likelihoods names \['one'\]; expected all tasks: \["),
        ("static_weights", {"one": (1.0,)}, r"static_weights\['one'\] has 1 weights that sum to 1.0; expected 2"),
        ("static_weights", {"tiny": (0.1, 0.1)}, r"static_weights\['tiny'\] has 2 weights that sum to 0.2; expected 2"),
    ],
)
def test_facts_that_contradict_each_other_are_refused(fact, value, message):
    problem = Sines()
    setattr(problem, fact, value)
    with pytest.raises(ValueError, match=message):
        problem.check()


def test_a_fact_that_is_not_stated_is_named(monkeypatch):
    monkeypatch.delattr(Sines, "recipe")
    with pytest.raises(TypeError, match="Sines states no 'recipe'"):
        Sines().check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "lion"}, "optimizer is 'lion'; expected one of adam, sgd"),
        ({"schedule": "step"}, "schedule is 'step'; expected one of constant, cosine"),
        ({"lr": 0.0}, "lr is 0.0; expected a positive"),
        ({"lr": float("inf")}, "lr is inf"),
        ({"lr": "1e-3"}, "lr is '1e-3'; expected a positive"),
        ({"lr": True}, "lr is True"),
        ({"batch_size": 0}, "batch_size is 0; expected a whole number, 1 or more"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"steps": -1}, "steps is -1"),
        ({"steps": True}, "steps is True"),
        ({"betas": 0.9}, "betas is 0.9; expected two numbers"),
        ({"betas": (0.9, 1)}, "betas is"),
        ({"weight_decay": "no"}, "weight_decay is 'no'; expected a finite number"),
    ],
)
def test_a_recipe_out_of_range_is_refused(change, message):
    good = {"optimizer": "adam", "lr": 0.1, "schedule": "constant", "batch_size": 2, "steps": 3}
    recipe = Recipe(**good)
    with pytest.raises(FrozenInstanceError):
        recipe.lr = 1.0
    with pytest.raises(ValueError, match=message):
        Recipe(**{**good, **change})


def test_evaluating_puts_every_modules_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3), nn.Sequential(nn.Linear(3, 3)))
    model[1].eval()  # statistics are frozen, as in fine-tuning
    modes = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == modes == [True, True, False, True, True]
    assert torch.is_grad_enabled()


def test_evaluating_puts_modes_back_after_an_error():
    model = nn.Dropout()
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert model.training
    assert torch.is_grad_enabled()
