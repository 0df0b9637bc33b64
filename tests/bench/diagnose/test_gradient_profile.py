"""Test the profile of a training's beginning against a plain loop, and that it reads training data alone."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tasks
from bench.diagnose import gradient_profile
from bench.diagnose.gradient_profile import GradientProfile, ProfileError, measure, profile_steps
from bench.run import plugins
from bench.run.seeds import generator, stream_seed
from bench.run.spec import Method, RunSpec
from bench.run.training import Training
from tasks import Problem, Shared


@pytest.fixture(autouse=True)
def _small() -> None:
    """Register the small problem. At import, it would be among the problems that other tests find when collected."""
    plugins.load([Path(__file__).parents[1] / "plugins" / "small.py"])


def small() -> Any:
    """Return the class of the small problem."""
    return tasks.get("small")


@pytest.fixture
def variant(request: pytest.FixtureRequest) -> Callable[..., str]:
    """Return a function that registers a variant of the small problem with other attributes, and returns its name."""

    def register(**attributes: Any) -> str:
        name = f"{request.node.name}-problem"
        tasks.register(type(name, (small(),), {"name": name, "__module__": __name__, **attributes}))
        return name

    return register


def gradients(problem: Problem[Any], steps: int, seed: int) -> np.ndarray:
    """Return the tasks' gradients at each step of a plain training, ``(S, T, P)``, each from a pass of its own."""
    recipe = problem.recipe
    data = problem.data(generator(seed, "data"), "cpu")
    torch.manual_seed(stream_seed(seed, "initial values"))
    model: Any = problem.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=recipe.steps)
    batches = problem.batches(data, generator(seed, "batches"), recipe.batch_size)
    found = []
    for _ in range(steps):
        batch = next(batches)
        of_step = []
        for task in range(len(problem.tasks)):
            alone: Any = copy.deepcopy(model)
            problem.losses(alone, batch)[task].backward()
            of_step.append(torch.cat([p.grad.flatten() for p in alone.trunk.parameters()]).double().numpy())
        found.append(of_step)
        optimizer.zero_grad()
        sum(problem.losses(model, batch)).backward()
        optimizer.step()
        schedule.step()
    return np.array(found)


def test_the_profile_is_that_of_gradients_computed_one_by_one() -> None:
    found = measure("small", {"steps": 500, "scales": [1.0, 5.0]}, seed=3)
    g = gradients(small()(steps=500, scales=(1.0, 5.0)), 25, seed=3)
    norms = np.linalg.norm(g, axis=2)
    assert found.steps == 25
    assert found.norm_curve == pytest.approx(norms, rel=1e-3)
    assert found.norms == pytest.approx(norms.mean(0), rel=1e-3)
    assert found.first_norms == pytest.approx(norms[:20].mean(0), rel=1e-3)
    units = g / norms[:, :, None]
    assert found.cosines == pytest.approx(np.einsum("sip,sjp->sij", units, units).mean(0), abs=1e-3)
    # The variance over steps, with Bessel's correction, summed over the parameters.
    assert found.noise == pytest.approx(g.var(0, ddof=1).sum(1) / (norms**2).mean(0), abs=1e-3)
    assert found.first_losses == pytest.approx(found.loss_curve[:20].mean(0))
    assert found.losses == pytest.approx(found.loss_curve.mean(0))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_noise_is_estimated_without_the_bias_of_few_steps(share: float) -> None:
    """Gradients have a common part and independent noise in known shares; a mean over many profiles tells the bias."""
    torch.manual_seed(0)
    size, steps = 50, 5
    estimates = []
    for _ in range(200):
        record = gradient_profile._Record(["a"], size)
        p = nn.Parameter(torch.zeros(size))
        for _ in range(steps):
            direction = math.sqrt((1 - share) / size) * torch.ones(size)
            noise = math.sqrt(share / size) * torch.randn(size)
            record.note([(p * (direction + noise)).sum()], [p])
        estimates.append(float(record.noise()[0]))
    assert np.mean(estimates) == pytest.approx(share, abs=0.02)


def test_the_profile_is_the_beginning_of_the_real_run() -> None:
    recipe = replace(small()(steps=100).recipe, betas=(0.9, 0.95))
    spec = RunSpec("small", {"steps": 100}, recipe, Method("equal", None, {}), 4, "tuning", "cpu", 1)
    training = Training(spec)
    training.run()
    found = measure("small", {"steps": 100}, seed=4, recipe=recipe)
    assert np.array_equal(found.loss_curve, training.result.losses[:20])
    assert not np.array_equal(found.loss_curve, measure("small", {"steps": 100}, seed=4).loss_curve)


def same(one: GradientProfile, other: GradientProfile) -> bool:
    arrays = ("loss_curve", "norm_curve", "cosines", "noise")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)


def test_a_profile_is_a_pure_function_of_the_problem_and_the_seed() -> None:
    torch.manual_seed(1)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    first = measure("small")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    torch.manual_seed(2)
    assert same(first, measure("small", seed=1))
    assert not same(first, measure("small", seed=2))


class Sealed(dict[str, Any]):
    """Data of which only the training set can be read."""

    def __getitem__(self, split: str) -> Any:
        assert split == "train", f"{split} was read"
        return super().__getitem__(split)

    def get(self, split: str, default: Any = None) -> Any:
        return self[split]

    def values(self) -> Any:
        raise AssertionError("all splits were read")

    items = values


def test_only_training_data_are_read_and_nothing_is_evaluated(variant: Callable[..., str]) -> None:
    def sealed(self: Any, *arguments: Any) -> Sealed:
        return Sealed(small().data(self, *arguments))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was evaluated")

    attributes = dict.fromkeys(("evaluate", "seen", "split", "sizes", "constant"), refuse)
    found = measure(variant(data=sealed, **attributes))
    assert same(found, measure("small"))


@pytest.mark.parametrize(
    ("total", "steps"), [(1, 1), (12, 12), (20, 20), (300, 20), (419, 20), (420, 21), (2_200, 110), (9_000, 200)]
)
def test_five_percent_of_a_run_are_profiled_within_limits(total: int, steps: int) -> None:
    assert profile_steps(total) == steps


def test_facts_of_the_model_and_the_recipe_are_told(variant: Callable[..., str]) -> None:
    found = measure("small", {"steps": 30})
    trunk, heads = 4 * 8 + 8, 2 * (8 * 3 + 3)
    assert (found.shared_parameters, found.parameters) == (trunk, trunk + heads)
    assert (found.fork, found.batch_size, found.steps, found.total_steps) == (True, 16, 20, 30)
    assert found.seconds_per_step > 0

    def without_fork(self: Any, model: Any) -> Shared:
        return Shared(None, None, tuple(model.parameters()))

    apart = measure(variant(shared=without_fork), {"steps": 30})
    assert not apart.fork
    assert apart.shared_parameters == found.parameters
    assert np.array_equal(apart.loss_curve, found.loss_curve)
    assert (apart.norms > found.norms).all()


def test_a_task_that_does_not_reach_the_trunk_has_a_gradient_of_zero(variant: Callable[..., str]) -> None:
    def losses(self: Any, model: Any, batch: Any) -> list[Tensor]:
        return [small().losses(self, model, batch)[0], model.heads[1](torch.ones(8)).square().sum()]

    found = measure(variant(losses=losses))
    assert found.norms[0] > 0
    assert found.norms[1] == 0
    assert math.isnan(found.noise[1])
    assert np.isfinite(found.noise[0])
    assert found.cosines[0, 0] == pytest.approx(1)
    assert np.isnan(found.cosines[[0, 1, 1], [1, 0, 1]]).all()


def test_losses_may_be_one_tensor(variant: Callable[..., str]) -> None:
    def losses(self: Any, model: Any, batch: Any) -> Tensor:
        return torch.stack(list(small().losses(self, model, batch)))

    assert same(measure(variant(losses=losses)), measure("small"))


def not_finite(self: Any, model: Any, batch: Any) -> Sequence[Tensor]:
    a, b = small().losses(self, model, batch)
    return [a, b * math.inf]


def infinite_gradient(self: Any, model: Any, batch: Any) -> Sequence[Tensor]:
    a, b = small().losses(self, model, batch)
    return [(a - a.detach()).abs().sqrt(), b]


def wrong(self: Any, model: Any, batch: Any) -> Sequence[Tensor]:
    raise KeyError("depth")


def detached(self: Any, model: Any, batch: Any) -> Sequence[Tensor]:
    a, b = small().losses(self, model, batch)
    return [a, b.detach()]


def one_loss(self: Any, model: Any, batch: Any) -> Sequence[Tensor]:
    return small().losses(self, model, batch)[:1]


def few_batches(self: Any, *arguments: Any) -> Iterator[Any]:
    yield next(small().batches(self, *arguments))


def frozen(self: Any, model: Any) -> Shared:
    return Shared(model.fork, None, ())


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"losses": not_finite}, r"can't be profiled: the loss of b is inf at step 1$"),
        ({"losses": infinite_gradient}, r"can't be profiled: the gradient of a is (nan|inf) at step 1$"),
        ({"losses": wrong}, r"can't be profiled: KeyError: 'depth' \(test_gradient_profile.py, line \d+\)$"),
        ({"losses": detached}, r"the loss of task 'b' does not require grad"),
        ({"losses": one_loss}, r"can't be profiled: ValueError: .*2 tasks"),
        ({"batches": few_batches}, r"batches ended after 1 batches"),
        ({"shared": frozen}, r"its `shared` names no trainable parameter"),
    ],
)
def test_what_goes_wrong_is_told_in_a_sentence(
    variant: Callable[..., str], attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ProfileError, match=message):
        measure(variant(**attributes))


def test_a_problem_that_cannot_be_made_is_told_in_a_sentence() -> None:
    with pytest.raises(ProfileError, match="no problem is named 'smal'"):
        measure("smal")
    with pytest.raises(ProfileError, match="scales holds -1"):
        measure("small", {"scales": [-1, 1]})
    with pytest.raises(ProfileError, match="small has no option 'scale'"):
        measure("small", {"scale": 1})
