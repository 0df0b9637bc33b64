"""Two gloo ranks under DistributedDataParallel: the weights are those of the global batch, and the same on both."""

import pytest
import torch
import torch.distributed as dist

from ..slow_params import others_slow
from .integration import (
    SAMPLEWISE,
    SCALES,
    WRT,
    GradNormReference,
    Net,
    Part,
    Trajectory,
    UncertaintyReference,
    assert_bit_equal,
    assert_same,
    in_parts,
    joint,
    make_batches,
    run_reference,
)
from .ranks import WORLD_SIZE, Ranks

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)
pytestmark = pytest.mark.xdist_group("processes")

STEPS, BAD_STEP = 6, 2


def make_windows(accumulate: int, short: int = 0) -> list[list[Part]]:
    """Return ``STEPS`` windows with ``accumulate`` passes on each rank, and one with ``short`` passes."""
    full = STEPS * WORLD_SIZE * accumulate
    batches = make_batches(full + WORLD_SIZE * short)
    windows = in_parts(batches[:full], WORLD_SIZE * accumulate)
    return windows + (in_parts(batches[full:], WORLD_SIZE * short) if short else [])


def case(layer: str = "linear", wrt: str = "layer", accumulate: int = 1, short: int = 0, **more: object) -> dict:
    windows = [[(part.batch, part.seed) for part in window] for window in make_windows(accumulate, short)]
    settings = {"method": "gradnorm", "layer": layer, "wrt": wrt, "accumulate": accumulate, "windows": windows}
    return settings | more


EVERY = {
    f"{layer}-{wrt}-{accumulate}": case(layer, wrt, accumulate)
    for layer in ("linear", "attention", "batchnorm", "dropout")
    for wrt in WRT
    for accumulate in (1, 4)
}
INSIDE = {
    f"{inside}-inside-{layer}-{wrt}-{accumulate}": case(layer, wrt, accumulate, inside=inside)
    for inside in ("losses", "balancer")
    for layer, wrt, accumulate in (("linear", "layer", 1), ("batchnorm", "features", 4), ("linear", "parameters", 1))
}
DDP_OPTIONS = {
    f"{option}-{wrt}-{inside}": case(wrt=wrt, ddp={option: True}, inside=inside)
    for option in ("find_unused_parameters", "static_graph")
    for wrt in ("layer", "parameters")
    for inside in (None, "losses", "balancer")
} | {"buckets": case(ddp={"gradient_as_bucket_view": True, "bucket_cap_mb": 0.0001})}
SHORT = {f"short-{wrt}": case(wrt=wrt, accumulate=4, short=3) for wrt in WRT}
UNCERTAINTY = {f"uncertainty-{k}": case(accumulate=k, method="uncertainty") for k in (1, 4)} | {
    "uncertainty-inside": case(method="uncertainty", inside="balancer")
}
OMIT = {
    f"omit-{wrt}": case(
        wrt=wrt, inside="balancer", omit={2: [1], 3: [0], 4: [0, 1]}, ddp={"find_unused_parameters": True}
    )
    for wrt in WRT
}
BAD = {
    f"bad-{how}-{wrt}-{accumulate}": case(wrt=wrt, accumulate=accumulate, bad=how, bad_step=BAD_STEP)
    for how in ("loss", "gradient")
    for wrt in WRT
    for accumulate in (1, 4)
} | {"bad-loss-uncertainty": case(method="uncertainty", bad="loss", bad_step=BAD_STEP)}
TRAINED = EVERY | INSIDE | DDP_OPTIONS | SHORT | UNCERTAINTY | OMIT | BAD
AVERAGED = EVERY | INSIDE | DDP_OPTIONS | UNCERTAINTY
QUICK = [name for name in TRAINED if not name.startswith(("attention", "batchnorm", "dropout"))]
"""The cases that are no slow tests: other layers behave alike, and one process tests each of them."""
CASES = TRAINED | {"check-finite": case(bad="loss", bad_step=BAD_STEP, check_finite=True)}


class Records(dict[str, list[dict]]):
    """Each rank's record of each case, which is run when it is asked for first."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self._ranks = ranks

    def __missing__(self, name: str) -> list[dict]:
        self[name] = self._ranks.run("worker_distributed", CASES[name])
        return self[name]


@pytest.fixture(scope="module")
def records(ranks: Ranks) -> Records:
    return Records(ranks)


def trajectory(record: dict, leave_out: int | None = None) -> Trajectory:
    rows = zip(record["weights"], record["gradients"], strict=True)
    return Trajectory.of([row for step, row in enumerate(rows) if step != leave_out])


def reference(case: dict, windows: list[list[Part]]) -> Trajectory:
    method = GradNormReference() if case["method"] == "gradnorm" else UncertaintyReference()
    return run_reference(Net(case["layer"]), method, windows, case["wrt"])


@pytest.mark.parametrize("name", others_slow(TRAINED, *QUICK))
def test_both_ranks_agree_bit_for_bit(name: str, records: Records) -> None:
    first, second = records[name]
    assert_bit_equal(second["states"], first["states"])
    assert_bit_equal(second["weights"], first["weights"])


@pytest.mark.parametrize("name", others_slow(AVERAGED, *(name for name in QUICK if name in AVERAGED)))
def test_the_averaged_passes_of_all_ranks(name: str, records: Records) -> None:
    expected = reference(CASES[name], make_windows(CASES[name]["accumulate"]))
    for record in records[name]:
        assert_same(trajectory(record), expected)


@pytest.mark.parametrize("name", [name for name in EVERY | UNCERTAINTY if CASES[name]["layer"] in SAMPLEWISE])
def test_one_process_with_the_joint_batch(name: str, records: Records) -> None:
    expected = reference(CASES[name], joint(make_windows(CASES[name]["accumulate"])))
    assert_same(trajectory(records[name][0]), expected)


@pytest.mark.parametrize("name", SHORT)
def test_close_window(name: str, records: Records) -> None:
    expected = reference(CASES[name], joint(make_windows(4, short=3)))
    assert len(expected.weights) == STEPS + 1
    assert_same(trajectory(records[name][0]), expected)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_loss_on_one_rank_leaves_both_as_they_were(name: str, records: Records) -> None:
    """The steps after it go on as if it had not been."""
    windows = make_windows(CASES[name]["accumulate"])
    del windows[BAD_STEP]
    expected = reference(CASES[name], windows)
    for record in records[name]:
        assert_bit_equal(record["states"][BAD_STEP + 1], record["states"][BAD_STEP])
        assert_same(trajectory(record, leave_out=BAD_STEP), expected)


def test_check_finite_refuses_on_both_ranks(records: Records) -> None:
    """An error on one rank alone would leave the other waiting."""
    assert all(
        "not finite" in record["refused"] or "not valid" in record["refused"] for record in records["check-finite"]
    )


@pytest.mark.parametrize("name", OMIT)
def test_a_task_left_out_on_some_ranks(name: str, records: Records) -> None:
    """Its weight moves if any rank has a loss for it, and holds if none has."""
    weights = torch.stack([state["next_weights"] for state in records[name][0]["states"]])
    task = weights[:, 1].diff() != 0
    assert task.tolist() == [True, True, True, True, False, True]
    assert (weights.diff(dim=0)[:, [0, 2]] != 0).all()
    torch.testing.assert_close(weights.sum(1), torch.full_like(weights.sum(1), len(SCALES)))
