"""A balancer's state goes through the formats and loops that others use: files, averages, empty weights, many names."""

import copy
import gc
import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from balancers import Fork, GradientBalancer, LinearHeads, LossBalancer, UncertaintyWeighting, get, names

from ..slow_params import others_slow
from .integration import assert_bit_equal
from .needs import supply

TASKS = ("depth", "normals", "labels")
PLACES: Mapping[str, str] = {"gradnorm": "layer", "gradvac": "layer"}
"""Where some methods measure; the others measure all shared parameters, or the features if they must."""
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "m-config": {"takes_turns": False},
    "coba": {"window": 4, "warm_up": 1},
    "dwa": {"period": 2},
    "famo": {"min_losses": [0.0, 0.01, 0.02]},
    "ntk": {"update_every": 1},
    "softadapt": {"period": 2},
    "uncertainty": {"likelihoods": ["gaussian", "softmax", "softmax"]},
}
SOME = ("gradnorm", "moco", "gradvac", "relobralo", "dwa", "uncertainty", "static", "random")
"""Methods whose state differs in kind: an optimiser's, of a parameter's size, per pair, drawn, counted, given."""


class Model(nn.Module):
    """A small network that owns its balancer, so that one saved state holds both."""

    def __init__(self, name: str, tasks: Sequence[str] | None = None, seed: int = 0, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trunk = nn.Linear(4, 5)
        self.fork = Fork(len(TASKS))
        self.heads = nn.ModuleList(nn.Linear(5, 2) for _ in TASKS)
        method: Callable[..., LossBalancer] = get(name)
        options = {"tasks": tasks or len(TASKS)} | dict(OPTIONS.get(name, {})) | options
        if not issubclass(get(name), GradientBalancer):
            self.balancer = method(*([[0.3, 0.6, 2.1]] if name == "static" else []), **options)
        elif PLACES.get(name) == "layer":
            self.balancer = method(self.fork, self.trunk, **options)
        elif "parameters" in get(name).undefined_for:
            self.balancer = method(self.fork, **options)
        else:
            self.balancer = method(None, self.trunk, **options)

    def losses(self, seed: int) -> list[Tensor]:
        kind = self.trunk.weight.dtype
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(kind)
        z = self.trunk(x)
        aliases = self.fork(z) if getattr(self.balancer, "fork", None) is not None else [z] * len(TASKS)
        outputs = [head(alias) for head, alias in zip(self.heads, aliases, strict=True)]
        return [(i + 1) * (output - i).square().mean() for i, output in enumerate(outputs)]

    def run(self, seeds: Sequence[int], named: bool = False) -> list[Tensor]:
        """Train a step for each seed; return each step's weights."""
        shown = []
        supply(self.balancer, lambda: self.losses(seeds[0] + 100))
        for seed in seeds:
            losses = self.losses(seed)
            self.zero_grad()
            self.balancer(dict(zip(TASKS, losses, strict=True)) if named else losses).backward()
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter -= 0.01 * parameter.grad
            if self.balancer.looks_again:
                again = [loss.detach() for loss in self.losses(seed)]
                self.balancer.after_step(dict(zip(TASKS, again, strict=True)) if named else again)
            shown.append(self.balancer.weights)
        return shown


def goes_on_alike(model: Model, other: Model) -> None:
    """Check that a loaded model trains on as the one that was saved, to the bit."""
    assert_bit_equal(other.state_dict(), model.state_dict())
    assert_bit_equal(other.run(range(10, 14)), model.run(range(10, 14)))
    assert_bit_equal(other.state_dict(), model.state_dict())


every = pytest.mark.parametrize("name", names())
some = pytest.mark.parametrize("name", SOME)


# Files


def through_safetensors(model: Model, other: Model, folder: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(model.state_dict(), folder / "state.safetensors")
    other.load_state_dict(safetensors.load_file(folder / "state.safetensors"))


def through_safetensors_model(model: Model, other: Model, folder: Path) -> None:
    """Use the functions for whole models, which look for shared tensors."""
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_model(model, str(folder / "model.safetensors"))
    assert safetensors.load_model(other, folder / "model.safetensors") == (set(), [])


def through_accelerate(model: Model, other: Model, folder: Path, **options: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    try:
        accelerate.Accelerator(cpu=True).save_model(model, folder, **options)
    finally:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerate.state.GradientState._reset_state()
    accelerate.load_checkpoint_in_model(other, str(folder), strict=True)


def through_accelerate_in_shards(model: Model, other: Model, folder: Path) -> None:
    through_accelerate(model, other, folder, max_shard_size=300)
    assert len(list(folder.glob("*.safetensors"))) > 1


def through_accelerate_pickled(model: Model, other: Model, folder: Path) -> None:
    through_accelerate(model, other, folder, safe_serialization=False)


def as_a_trainer_saves(model: Model, other: Model, folder: Path) -> None:
    """Do what HF Trainer does with a model that is not a PreTrainedModel, when it saves and when it resumes."""
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    found = other.load_state_dict(safetensors.load_file(folder / "model.safetensors", device="cpu"), strict=False)
    assert found == ([], [])


def through_torch(model: Model, other: Model, folder: Path) -> None:
    torch.save(model.state_dict(), folder / "state.pt")
    other.load_state_dict(torch.load(folder / "state.pt", weights_only=True, mmap=True))


def through_torch_assigned(model: Model, other: Model, folder: Path) -> None:
    torch.save(model.state_dict(), folder / "state.pt")
    other.load_state_dict(torch.load(folder / "state.pt", weights_only=True, mmap=True), assign=True)


def through_a_distributed_checkpoint(model: Model, other: Model, folder: Path) -> None:
    """PyTorch's own checkpoint, in one process: it loads into the tensors of a state that exists already."""
    checkpoint = pytest.importorskip("torch.distributed.checkpoint")
    checkpoint.save({"model": model.state_dict()}, checkpoint_id=folder, no_dist=True)
    state = {"model": other.state_dict()}
    checkpoint.load(state, checkpoint_id=folder, no_dist=True)
    other.load_state_dict(state["model"])


def through_model_state(model: Model, other: Model, folder: Path) -> None:
    """Use the functions that unwrap DDP and FSDP models."""
    states = pytest.importorskip("torch.distributed.checkpoint.state_dict")
    states.set_model_state_dict(other, copy.deepcopy(states.get_model_state_dict(model)))


def through_numpy(model: Model, other: Model, folder: Path) -> None:
    numpy = pytest.importorskip("numpy")
    numpy.savez(folder / "state.npz", **{key: value.numpy() for key, value in model.state_dict().items()})
    with numpy.load(folder / "state.npz") as file:
        other.load_state_dict({key: torch.from_numpy(file[key]) for key in file})


FORMATS = (
    through_safetensors,
    through_safetensors_model,
    through_accelerate,
    through_accelerate_in_shards,
    through_accelerate_pickled,
    as_a_trainer_saves,
    through_torch,
    through_torch_assigned,
    through_a_distributed_checkpoint,
    through_model_state,
    through_numpy,
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize("through", FORMATS, ids=lambda function: function.__name__)
@pytest.mark.parametrize(("name", "named"), [("gradnorm", False), *((name, True) for name in SOME)])
def test_a_model_goes_on_from_a_file(
    name: str, through: Callable[[Model, Model, Path], None], named: bool, tmp_path: Path
) -> None:
    model, other = Model(name), Model(name, seed=1)
    model.run(range(5), named)
    other.run(range(20, 23))
    through(model, other, tmp_path)
    assert other.balancer.tasks == (TASKS if named else None)
    goes_on_alike(model, other)


@every
def test_every_method_goes_on_from_safetensors(name: str, tmp_path: Path) -> None:
    model, other = Model(name), Model(name, seed=1)
    model.run(range(5), named=True)
    through_safetensors(model, other, tmp_path)
    goes_on_alike(model, other)


@every
def test_safetensors_of_a_model_in_float64(name: str, tmp_path: Path) -> None:
    model, other = Model(name).double(), Model(name, seed=1).double()
    model.run(range(5))
    through_safetensors(model, other, tmp_path)
    goes_on_alike(model, other)


# Averages over checkpoints


def average(ema: dict[str, Tensor], state: Mapping[str, Tensor], decay: float) -> None:
    """Move an exponential moving average towards a state, as most loops do: every entry, whatever it is."""
    for key, value in state.items():
        ema[key].mul_(decay).add_(value, alpha=1 - decay)


def started(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


@every
@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_an_average_loads_and_trains_on(name: str, decay: float) -> None:
    model = Model(name, TASKS)
    model.run(range(2))
    ema = started(model)
    for seed in range(2, 8):
        model.run([seed])
        average(ema, model.state_dict(), decay)
    other = Model(name, seed=1)
    other.load_state_dict(ema)
    assert other.balancer.tasks == TASKS
    for weights in other.run(range(20, 24)):
        assert weights.isfinite().all()
    assert all(value.isfinite().all() for value in other.state_dict().values())


@every
def test_an_average_of_equal_states_is_that_state(name: str) -> None:
    """Names, seed and counters come through the arithmetic exactly."""
    model = Model(name, TASKS, **({"seed": 123456789} if get(name).random else {}))
    model.run(range(3))
    ema = started(model)
    for _ in range(200):
        average(ema, model.state_dict(), 0.9)
    other = Model(name, TASKS, seed=1)
    other.load_state_dict(ema)
    assert other.balancer.tasks == TASKS
    assert (other.balancer.seed, other.balancer.drawn) == (model.balancer.seed, model.balancer.drawn)
    torch.testing.assert_close(other.balancer.state_dict(), model.balancer.state_dict(), rtol=1e-5, atol=1e-6)


NAMES = (
    ("a", "b", "c"),
    TASKS,
    ("x", "yy", "zzz"),
    ("segmentation", "depth", "surface normals"),
    ("\x01", "\x02", "\x03"),
    ("é", "ß", "ø"),
)


@pytest.mark.parametrize("given", NAMES, ids=lambda given: "-".join(map(ascii, given)))
@pytest.mark.parametrize("decay", others_slow([0.5, 0.7, 0.95], 0.5))
def test_an_average_that_began_before_the_names_never_makes_up_others(given: Sequence[str], decay: float) -> None:
    """At each point, what it loads knows the right names or none; a balancer with these names takes it."""
    model = UncertaintyWeighting(len(TASKS))
    ema = started(model)
    known = False
    for _ in range(round(14 / -torch.tensor(decay).log().item())):
        losses = [torch.ones((), requires_grad=True) * (i + 1) for i in range(len(TASKS))]
        model(dict(zip(given, losses, strict=True))).backward()
        average(ema, model.state_dict(), decay)
        other = UncertaintyWeighting(len(TASKS))
        other.load_state_dict(ema)
        assert other.tasks in (None, tuple(given))
        known = other.tasks is not None
        UncertaintyWeighting(list(given)).load_state_dict(ema)
    assert known, "the names are known at last"


@pytest.mark.parametrize("given", ["a", "b", "z", "ab", "depth"])
def test_an_average_of_a_single_tasks_name(given: str) -> None:
    model = UncertaintyWeighting(1)
    ema = started(model)
    for _ in range(12):
        model({given: torch.ones((), requires_grad=True)}).backward()
        average(ema, model.state_dict(), 0.8)
        other = UncertaintyWeighting(1)
        other.load_state_dict(ema)
        assert other.tasks in (None, (given,))


def test_the_mean_of_two_runs_with_other_names_has_none_of_a_third_kind() -> None:
    runs = [UncertaintyWeighting(list(given)) for given in (("ab", "cd"), ("ef", "gh"))]
    mean = {key: (value + runs[1].state_dict()[key]) / 2 for key, value in runs[0].state_dict().items()}
    other = UncertaintyWeighting(2)
    other.load_state_dict(mean)
    assert other.tasks is None or other.tasks in (("ab", "cd"), ("ef", "gh"))


@some
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_state_that_was_saved_in_half_precision(name: str, dtype: torch.dtype) -> None:
    """A halved checkpoint gives a balancer that trains on in single precision, with the right names or none."""
    model, other = Model(name), Model(name, seed=1)
    model.run(range(4), named=True)
    other.load_state_dict({key: value.to(dtype) for key, value in model.state_dict().items()})
    assert other.balancer.tasks in (None, TASKS)
    for weights in other.run(range(10, 13)):
        assert weights.dtype == torch.float32
        assert weights.isfinite().all()


@every
@pytest.mark.parametrize("kind", ["mean", "ema"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_averaged_model_with_buffers(name: str, kind: str, dtype: torch.dtype) -> None:
    model = Model(name).to(dtype)
    shown = []
    if dtype == torch.float64 and kind == "ema":  # which can't mix types, and the first float64 losses widen the state
        model.run([9], named=True)
    average_of = get_ema_multi_avg_fn(0.9) if kind == "ema" else None
    averaged = AveragedModel(model, use_buffers=True, multi_avg_fn=average_of)
    for seed in range(5):
        shown += model.run([seed], named=True)
        averaged.update_parameters(model)
    found = averaged.module.balancer
    assert all(buffer.isfinite().all() for buffer in found.buffers())
    if kind == "mean":
        mean = torch.stack(shown).mean(0)
        torch.testing.assert_close(found.last_weights, mean, rtol=1e-4, atol=1e-5, check_dtype=False)
    other = Model(name, seed=1).to(dtype)
    other.load_state_dict(averaged.module.state_dict())
    for weights in other.run(range(20, 23), named=True):
        assert weights.isfinite().all()
    reloaded = AveragedModel(Model(name).to(dtype), use_buffers=True)
    reloaded.load_state_dict(averaged.state_dict())
    assert_bit_equal(reloaded.state_dict(), averaged.state_dict())
    assert not {b.data_ptr() for b in found.buffers()} & {b.data_ptr() for b in model.balancer.buffers()}


# Without memory at first


def materialised(name: str, **options: Any) -> Model:
    """Make a model on ``meta`` and give it memory, whose content is arbitrary."""
    with torch.device("meta"):
        model = Model(name, **options)
    assert all(buffer.is_meta for buffer in model.buffers())
    model.to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.fill_(torch.nan)
    return model


@every
def test_made_on_meta_and_initialised(name: str) -> None:
    """As FSDP does it: `to_empty`, then `reset_parameters` of every module that has it."""
    model = materialised(name)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    other = Model(name)
    assert_bit_equal(model.balancer.state_dict(), other.balancer.state_dict())
    other.trunk.load_state_dict(model.trunk.state_dict())
    other.heads.load_state_dict(model.heads.state_dict())
    goes_on_alike(model, other)


@every
@pytest.mark.parametrize("assign", [False, True])
def test_made_on_meta_and_loaded(name: str, assign: bool) -> None:
    """A state that is assigned needs no memory made for it before."""
    original = Model(name)
    original.run(range(4), named=True)
    if assign:
        with torch.device("meta"):
            model = Model(name)
    else:
        model = materialised(name)
    model.load_state_dict(copy.deepcopy(original.state_dict()), assign=assign)
    assert not any(buffer.is_meta for buffer in model.buffers())
    assert model.balancer.tasks == TASKS
    goes_on_alike(original, model)


@every
def test_made_on_meta_with_options(name: str) -> None:
    """What a method was given when it was made is no tensor that `to_empty` loses."""
    options = {"seed": 7} if get(name).random else {}
    model = materialised(name, tasks=TASKS, **options)
    model.balancer.reset_parameters()
    other = Model(name, tasks=TASKS, **options)
    assert_bit_equal(model.balancer.state_dict(), other.balancer.state_dict())
    expected, found = (each.balancer.state() for each in (other, model))
    assert {*expected} == {*found}
    for key in expected:
        assert torch.equal(expected[key], found[key]), key


@every
def test_reset_parameters_makes_a_used_balancer_new(name: str) -> None:
    model, new = Model(name), Model(name)
    model.run(range(5))
    model.balancer.reset_parameters()
    assert_bit_equal(model.balancer.state_dict(), new.balancer.state_dict())
    new.trunk.load_state_dict(model.trunk.state_dict())
    new.heads.load_state_dict(model.heads.state_dict())
    goes_on_alike(model, new)


def test_linear_heads_made_on_meta_can_be_initialised() -> None:
    """Their parameters are theirs alone, so a module that materialises them must find `reset_parameters`."""
    with torch.device("meta"):
        heads = LinearHeads(3, 4, 2)
    heads.to_empty(device="cpu")
    for parameter in heads.parameters():
        nn.init.constant_(parameter, torch.nan)
    torch.manual_seed(5)
    heads.reset_parameters()
    torch.manual_seed(5)
    assert_bit_equal(heads.state_dict(), LinearHeads(3, 4, 2).state_dict())


# Who owns the memory


@every
@pytest.mark.parametrize("assign", [False, True])
def test_two_balancers_loaded_from_one_state_share_nothing(name: str, assign: bool) -> None:
    original = Model(name)
    original.run(range(4))
    state = copy.deepcopy(original.balancer.state_dict())
    kept = copy.deepcopy(state)
    models = [Model(name), Model(name)]
    for model in models:
        model.trunk.load_state_dict(original.trunk.state_dict())
        model.heads.load_state_dict(original.heads.state_dict())
        model.balancer.load_state_dict(state, assign=assign)
    addresses = [buffer.data_ptr() for model in models for buffer in model.balancer.buffers()]
    addresses += [value.data_ptr() for value in state.values()]
    assert len(set(addresses)) == len(addresses)
    first = models[0].run(range(10, 14))
    assert_bit_equal(state, kept)
    assert_bit_equal(models[1].balancer.state_dict(), kept)
    assert_bit_equal(models[1].run(range(10, 14)), first)


@every
def test_a_saved_state_shares_no_memory_within_itself(name: str) -> None:
    for named in (False, True):
        model = Model(name)
        model.run(range(3), named)
        state = model.state_dict()
        assert all(isinstance(value, Tensor) and value.is_contiguous() for value in state.values())
        storages = [value.untyped_storage().data_ptr() for value in state.values()]
        assert len(set(storages)) == len(storages)


@every
def test_assigned_state_is_written_at_its_own_address(name: str) -> None:
    """Steps write in place, also after a state was assigned: a CUDA graph replays addresses."""
    model = Model(name)
    model.balancer.load_state_dict(copy.deepcopy(model.balancer.state_dict()), assign=True)
    model.run([0])
    before = {key: buffer.data_ptr() for key, buffer in model.balancer.named_buffers()}
    model.run(range(1, 5))
    assert {key: buffer.data_ptr() for key, buffer in model.balancer.named_buffers()} == before


# Names

STRANGE = {
    "unicode": ("Tiefenschätzung", "法線", "🧭 étiquettes"),
    "decomposed": ("e\u0301", "\u00e9", "ffi"),
    "right to left": ("עומק", "نورمال", "x"),
    "spaces": (" depth", "depth ", "depth"),
    "dots": ("a.b", "a.b.c", "a/b"),
    "newline": ("a\nb", "c", "d"),
    "newline at the end": ("a\n", "\nb", "c"),
    "null": ("a\0b", "c", "d"),
    "control": ("\x01", "\t", "\r\n"),
    "empty": ("", "b", "c"),
    "quotes": ('"', "'", "\\"),
    "surrogate": ("\ud800", "b", "c"),
    "bytes": ("ÿ", "\x7f", "\x80"),
}


@pytest.mark.parametrize("given", STRANGE.values(), ids=STRANGE)
def test_strange_names_are_saved(given: tuple[str, ...]) -> None:
    """The own state always loads, and a balancer without names finds them in it."""
    model = Model("uncertainty", given)
    model.run(range(2))
    file = io.BytesIO()
    torch.save(model.balancer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    Model("uncertainty", given).balancer.load_state_dict(state)
    fresh = Model("uncertainty").balancer
    fresh.load_state_dict(state)
    assert fresh.tasks == given


LONG = ("depth of " + "x" * 100, "normals of " + "y" * 100, "labels of " + "z" * 100)


def test_names_longer_than_the_room() -> None:
    """The state has one size whatever the names, so that an average may begin before they are known."""
    model = Model("gradnorm", LONG)
    model.run(range(3))
    state = copy.deepcopy(model.balancer.state_dict())
    assert state["_extra_state"].shape == Model("gradnorm").balancer.state_dict()["_extra_state"].shape
    for tasks in (LONG, None):
        other = Model("gradnorm", tasks)
        other.load_state_dict(model.state_dict())
        assert other.balancer.tasks == tasks
        if tasks is None:  # else it would save the names' checksum no more
            other.balancer._reader.names = LONG
        goes_on_alike(copy.deepcopy(model), other)


def test_many_short_names_may_make_room_for_a_long_one() -> None:
    given = ("a", "b", "x" * 80)
    fresh = Model("uncertainty").balancer
    fresh.load_state_dict(Model("uncertainty", given).balancer.state_dict())
    assert fresh.tasks == given


def test_a_state_that_was_refused_leaves_no_names_behind() -> None:
    """Of another number of tasks, by a balancer that has no names yet; which then trains as a new one."""
    for other in (UncertaintyWeighting(["p", "q"]), UncertaintyWeighting(["p", "q", "r", "s"])):
        model = Model("uncertainty")
        with pytest.raises((RuntimeError, ValueError), match=r"size mismatch|made for 3 tasks"):
            model.balancer.load_state_dict(other.state_dict())
        assert model.balancer.tasks is None
        assert_bit_equal(model.balancer.state_dict(), Model("uncertainty").balancer.state_dict())
        model.run(range(2), named=True)
        assert model.balancer.tasks == TASKS


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_refused_state_of_another_type_leaves_the_type(dtype: torch.dtype) -> None:
    other = UncertaintyWeighting(["p", "q", "r"])
    other.fit(torch.ones(3, dtype=torch.float64))
    model = Model("uncertainty", TASKS).to(dtype)
    model.run([0])
    before = copy.deepcopy(model.balancer.state_dict())
    with pytest.raises(ValueError, match="the state to load is of"):
        model.balancer.load_state_dict(other.state_dict())
    assert_bit_equal(model.balancer.state_dict(), before)


# Memory


def live_tensors() -> tuple[int, int]:
    """Return the number of tensors that Python holds, and of their elements."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if isinstance(each, Tensor)]
    return len(tensors), sum(tensor.numel() for tensor in tensors)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uncertainty", "gradnorm", "dwa", "imtl-l", "cov", "relobralo", "imtl-g"])
def test_200_tasks_in_ever_new_subsets_take_no_more_memory(name: str) -> None:
    tasks = [f"task {i}" for i in range(200)]
    torch.manual_seed(0)
    trunk, heads = nn.Linear(4, 3), LinearHeads(200, 3, 1)
    method: Callable[..., LossBalancer] = get(name)
    balancer = method(*([heads.fork] if issubclass(get(name), GradientBalancer) else []), tasks=tasks)
    x = torch.randn(2, 4)
    draw = torch.Generator().manual_seed(1)

    def step() -> None:
        given = torch.rand(200, generator=draw).argsort() < 140  # as many each time, so that all sizes are the same
        losses = (heads(trunk(x)) - 1).square().mean((0, 2)).unbind()
        balancer({task: loss for task, loss, is_given in zip(tasks, losses, given, strict=True) if is_given}).backward()
        trunk.zero_grad()
        heads.zero_grad()

    for _ in range(5):
        step()
    (number, size), saved = live_tensors(), len(pickle.dumps(balancer))
    for _ in range(20):
        step()
    assert live_tensors()[0] == number
    assert live_tensors()[1] == size
    assert len(pickle.dumps(balancer)) <= saved + 200
