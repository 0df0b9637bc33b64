"""State outlives its process and a model's change of type, and the state of other tasks is refused.

`test_contract` checks for all methods that a saved or copied balancer goes on to the bit.
"""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from balancers import EqualWeighting, GradNorm, StaticWeighting, UncertaintyWeighting

from .integration import (
    SCALES,
    TASKS,
    WRT,
    Net,
    Training,
    assert_bit_equal,
    finish,
    make_batches,
    sgd,
    start,
    state_of,
)
from .nets import build, inputs, losses_of

SAVED_AT, STEPS = 6, 14
CASES = {
    **{
        f"gradnorm-{optimizer}-{wrt}-{str(dtype)[6:]}": {
            "method": "gradnorm",
            "wrt": wrt,
            "optimizer": optimizer,
            "dtype": dtype,
        }
        for optimizer in ("adam", "sgd")
        for wrt in WRT
        for dtype in (torch.float64, torch.float32)
    },
    "gradnorm-freezes-later": {"method": "gradnorm", "freeze_after": SAVED_AT + 3},
    "gradnorm-frozen-already": {"method": "gradnorm", "freeze_after": SAVED_AT - 3},
    "gradnorm-freezes-there": {"method": "gradnorm", "freeze_after": SAVED_AT},
    "gradnorm-initial-losses": {"method": "gradnorm", "initial_losses": [1.0, 2.0, 3.0], "dtype": torch.float32},
    "gradnorm-accumulates": {"method": "gradnorm", "accumulate": 3},
    "gradnorm-names-adopted": {"method": "gradnorm"},
    "gradnorm-names-given": {"method": "gradnorm", "tasks": list(TASKS)},
    "uncertainty-adam": {"method": "uncertainty", "likelihoods": ["gaussian", "softmax", "softmax"]},
    "uncertainty-sgd": {"method": "uncertainty", "optimizer": "sgd", "dtype": torch.float32},
    "uncertainty-accumulates": {"method": "uncertainty", "accumulate": 2},
    "uncertainty-names-adopted": {"method": "uncertainty"},
    "static": {"method": "static"},
    "static-float32": {"method": "static", "dtype": torch.float32},
    "equal": {"method": "equal"},
    "equal-float32": {"method": "equal", "dtype": torch.float32},
}


def names_of(case: str) -> tuple[str, ...] | None:
    return TASKS if "names" in case else None


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict]]:
    """Run each case without interruption, and have another process resume it."""
    folder: Path = tmp_path_factory.mktemp("state")
    saved, whole = {}, {}
    for name, make in CASES.items():
        training = Training.make(**make)
        batches = make_batches(STEPS, dtype=make.get("dtype", torch.float64))
        names = names_of(name)
        training.run(batches[:SAVED_AT], names)
        saved[name] = {
            "make": make,
            "state": copy.deepcopy(training.state_dict()),
            "batches": batches[SAVED_AT:],
            "names": names and tuple(reversed(names)),  # a dict's order does not count
        }
        weights = training.run(batches[SAVED_AT:], names)
        whole[name] = {"weights": weights, "state": training.state_dict()}
    torch.save(saved, folder / "saved.pt")
    finish([start("worker_state.py", folder)], timeout=120)
    return {"whole": whole, "resumed": torch.load(folder / "resumed.pt", weights_only=True)}


@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("name", CASES)
def test_a_new_process_goes_on_bit_for_bit(name: str, runs: dict) -> None:
    whole, resumed = runs["whole"][name], runs["resumed"][name]
    assert_bit_equal(resumed["weights"], whole["weights"])
    assert_bit_equal(resumed["state"]["net"], whole["state"]["net"])
    assert_bit_equal(resumed["state"]["optimizer"]["state"], whole["state"]["optimizer"]["state"])
    assert_bit_equal(resumed["state"]["balancer"], whole["state"]["balancer"])
    moves = CASES[name]["method"] in ("gradnorm", "uncertainty") and name not in (
        "gradnorm-frozen-already",
        "gradnorm-freezes-there",
    )
    assert torch.equal(whole["weights"][0], whole["weights"][-1]) != moves


def advanced(method: str = "gradnorm", **options: object) -> Training:
    training = Training.make(method, **options)
    training.run(make_batches(4, dtype=options.get("dtype", torch.float64)))
    return training


def test_a_frozen_state_freezes_and_another_thaws() -> None:
    frozen, learning = (advanced(freeze_after=n).balancer.state_dict() for n in (3, 30))
    for state, updates, moves in ((frozen, 3, False), (learning, 3, False), (learning, 30, True)):
        training = Training.make("gradnorm", freeze_after=updates)
        training.balancer.load_state_dict(state)
        weights = training.run(make_batches(3))
        assert torch.equal(weights[0], weights[-1]) != moves
    thawed = advanced(freeze_after=3)
    thawed.balancer.load_state_dict(Training.make("gradnorm", freeze_after=3).balancer.state_dict())
    weights = thawed.run(make_batches(3))
    assert not torch.equal(weights[0], weights[-1])


PLACES = [{"update_every": 3}, {"freeze_after": 1}, {"accumulate": 2}]
"""Options under which the next step depends on how many there were."""


@pytest.mark.parametrize("options", PLACES, ids=str)
@pytest.mark.parametrize(("saved_at", "loaded_at"), [(2, 1), (1, 2), (0, 3)])
def test_a_balancer_that_was_used_goes_on_from_a_state(options: dict[str, int], saved_at: int, loaded_at: int) -> None:
    """It is at the place in its cycle at which the state was saved; a window that was begun begins anew."""
    saved, used, fresh = (Training.make("gradnorm", **options) for _ in range(3))
    saved.run(make_batches(saved_at))
    used.run(make_batches(loaded_at))
    for training in (used, fresh):
        training.load_state_dict(copy.deepcopy(saved.state_dict()))
    batches = make_batches(6)
    assert_bit_equal(used.run(batches), fresh.run(batches))
    assert_bit_equal(state_of(used.balancer), state_of(fresh.balancer))


@pytest.mark.parametrize("options", PLACES, ids=str)
@pytest.mark.parametrize("reset_at", [1, 2, 3])
def test_a_reset_balancer_begins_anew(options: dict[str, int], reset_at: int) -> None:
    used, fresh = (Training.make("gradnorm", **options) for _ in range(2))
    used.run(make_batches(reset_at))
    used.balancer.reset_parameters()
    fresh.net.load_state_dict(used.net.state_dict())
    fresh.optimizer.load_state_dict(copy.deepcopy(used.optimizer.state_dict()))
    batches = make_batches(6)
    assert_bit_equal(used.run(batches), fresh.run(batches))
    assert_bit_equal(state_of(used.balancer), state_of(fresh.balancer))


@pytest.mark.parametrize("method", ["gradnorm", "uncertainty", "static", "equal"])
@pytest.mark.parametrize("assign", [False, True])
def test_a_fresh_balancer_takes_the_precision_of_the_state(method: str, assign: bool) -> None:
    for dtype, other in ((torch.float64, torch.float32), (torch.float32, torch.float64)):
        state = copy.deepcopy(advanced(method, dtype=dtype).balancer.state_dict())
        for balancer in (Training.make(method).balancer, advanced(method, dtype=other).balancer):
            parent = nn.ModuleDict({"balancer": balancer})
            parent.load_state_dict({f"balancer.{key}": value for key, value in state.items()}, assign=assign)
            assert_bit_equal(state_of(balancer), {k: state[k] for k in state_of(balancer)})
            assert_bit_equal(balancer.weights, state["last_weights"])


def test_static_weights_are_state() -> None:
    balancer = StaticWeighting([1.0, 1.0])
    balancer.load_state_dict(StaticWeighting([0.25, 4.0]).state_dict())
    assert balancer.weights.tolist() == [0.25, 4.0]


@pytest.mark.parametrize("method", ["gradnorm", "uncertainty"])
def test_adopted_names_are_loaded(method: str) -> None:
    training = Training.make(method)
    training.run(make_batches(2), TASKS)
    fresh = Training.make(method)
    fresh.load_state_dict(training.state_dict())
    assert fresh.balancer.tasks == TASKS
    with pytest.raises(ValueError, match="unknown task 'pose'"):
        fresh.balancer(dict(zip(("depth", "normals", "pose"), fresh.net.losses(make_batches(1)[0]), strict=True)))


@pytest.mark.parametrize("method", ["gradnorm", "uncertainty", "equal"])
def test_the_state_of_other_tasks_is_refused_and_leaves_no_trace(method: str) -> None:
    training = Training.make(method)
    training.run(make_batches(3), TASKS)
    other = Training.make(method, tasks=["depth", "normals", "pose"]).balancer
    before = state_of(other)
    with pytest.raises(ValueError, match=r"depth, normals, labels.*depth, normals, pose"):
        other.load_state_dict(training.balancer.state_dict())
    with pytest.raises(ValueError, match=r"depth, normals, labels.*depth, normals, pose"):
        nn.ModuleDict({"b": other}).load_state_dict(nn.ModuleDict({"b": training.balancer}).state_dict())
    assert_bit_equal(state_of(other), before)


def test_the_state_of_another_number_of_tasks_is_refused() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        EqualWeighting(2).load_state_dict(EqualWeighting(3).state_dict())


@pytest.mark.parametrize("wrt", WRT)
def test_a_copy_loads_and_saves_for_itself(wrt: str) -> None:
    """A copy's hooks are its own: loading a wider state widens the copy, not the original."""
    original = Training.make("gradnorm", wrt=wrt, dtype=torch.float32)
    twin = Training(**copy.deepcopy(vars(original)))
    state = advanced(wrt=wrt).balancer.state_dict()
    twin.balancer.load_state_dict(state)
    assert_bit_equal(state_of(twin.balancer), {k: state[k] for k in state_of(twin.balancer)})
    assert original.balancer.next_weights.tolist() == [1.0] * len(SCALES)
    assert original.balancer.next_weights.dtype == torch.float32


def test_a_model_with_a_recording_fork_is_saved_whole(tmp_path: Path) -> None:
    training = advanced()
    assert training.net.fork.reading.recording
    torch.save(training.net, tmp_path / "net.pt")
    net: Net = torch.load(tmp_path / "net.pt", weights_only=False)
    batch = make_batches(1)[0]
    for model in (net, training.net):
        model.zero_grad()
        sum(model.losses(batch)).backward()
    assert_bit_equal([p.grad for p in net.parameters()], [p.grad for p in training.net.parameters()])
    # A new balancer reads it, as it would the original.
    balancers = [GradNorm(model.fork, wrt=model.trunk[-1]) for model in (net, training.net)]
    for model, balancer in zip((net, training.net), balancers, strict=True):
        balancer(model.losses(batch)).backward()
    assert_bit_equal(state_of(balancers[0]), state_of(balancers[1]))


CONVERSIONS = {
    "to-float64": lambda module: module.to(torch.float64),
    "double": lambda module: module.double(),
    "half": lambda module: module.half(),
    "bfloat16": lambda module: module.bfloat16(),
    "to-cpu-half": lambda module: module.to("cpu", torch.float16),
}


@pytest.mark.parametrize("method", ["gradnorm", "uncertainty", "static", "equal"])
@pytest.mark.parametrize("conversion", CONVERSIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_parent_that_changes_type_leaves_the_state_alone(method: str, conversion: str, dtype: torch.dtype) -> None:
    training = advanced(method, dtype=dtype)
    before = state_of(training.balancer), training.balancer.weights
    parent = nn.ModuleDict({"net": training.net, "balancer": training.balancer})
    CONVERSIONS[conversion](parent)
    assert_bit_equal((state_of(training.balancer), training.balancer.weights), before)
    after = next(training.net.parameters()).dtype
    assert after != dtype or (conversion, dtype) in (("double", torch.float64), ("to-float64", torch.float64))
    training.optimizer = sgd(training.net)
    training.run(make_batches(1, dtype=after))  # and goes on
    assert all(weight.isfinite() for weight in training.balancer.weights)
    expected = torch.float64 if torch.float64 in (dtype, after) else torch.float32
    assert {buffer.dtype for key, buffer in training.balancer.named_buffers() if "step" not in key} == {expected}


@pytest.mark.parametrize("method", ["gradnorm", "uncertainty", "equal"])
def test_an_evaluation_in_double_precision_leaves_the_state_in_its_own(method: str) -> None:
    balancer = advanced(method, dtype=torch.float32).balancer.eval()
    losses = torch.ones(balancer.num_tasks, dtype=torch.float64)
    with torch.no_grad():
        total = balancer(list(losses))
    assert total.dtype == torch.float64
    torch.testing.assert_close(total, balancer.weights.double().sum())
    assert {buffer.dtype for key, buffer in balancer.named_buffers() if "step" not in key} == {torch.float32}


def test_nothing_of_a_balancer_is_a_parameter_and_nothing_of_the_model_is_in_its_state() -> None:
    for training in (advanced(wrt=wrt) for wrt in WRT):
        assert list(training.balancer.parameters()) == []
        sizes = {key: value.numel() for key, value in state_of(training.balancer).items()}
        assert sizes.pop("_extra_state") == EqualWeighting(len(SCALES)).state_dict()["_extra_state"].numel()
        assert set(sizes.values()) <= {1, len(SCALES), 2 * len(SCALES)}
    assert list(UncertaintyWeighting(2).parameters()) == []


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_learns_where_float64_is_the_default_type(optimizer: str):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        net = build("linear", 2)
        balancer = GradNorm(net.fork, wrt=net.layer, optimizer=optimizer)
        x = inputs("linear")[0]
        balancer(losses_of(net(x), x)).backward()
    finally:
        torch.set_default_dtype(before)
    assert balancer.next_weights.dtype == torch.float64
    assert (balancer.next_weights - 1).abs().max() > 1e-3
