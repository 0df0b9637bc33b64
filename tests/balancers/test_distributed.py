"""Two gloo ranks under DistributedDataParallel: the weights are those of the global batch, and the same on both."""

import subprocess
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

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
    finish,
    in_parts,
    joint,
    make_batches,
    run_reference,
    start,
)

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)
torch.set_num_threads(1)

RANKS, STEPS, BAD_STEP = 2, 8, 2


def make_windows(accumulate: int, short: int = 0) -> list[list[Part]]:
    """``STEPS`` windows of ``accumulate`` passes a rank, and one of ``short``."""
    full = STEPS * RANKS * accumulate
    batches = make_batches(full + RANKS * short)
    return in_parts(batches[:full], RANKS * accumulate) + (in_parts(batches[full:], RANKS * short) if short else [])


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
CASES = TRAINED | {"check-finite": case(bad="loss", bad_step=BAD_STEP, check_finite=True)}


class Records(dict):
    """By case, what each rank recorded of it."""

    failure = ""

    def __missing__(self, name: str) -> list[dict]:
        pytest.fail(f"the ranks did not get past {name}: {self.failure}")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """All cases, run by one pair of processes; those from the first that hangs or fails on are missing."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    torch.save(CASES, folder / "cases.pt")
    records = Records()
    try:
        finish([start("worker_distributed.py", rank, RANKS, folder) for rank in range(RANKS)], timeout=120)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        records.failure = str(error)[-3000:]
    for name in CASES:
        files = [folder / f"{name}.{rank}.pt" for rank in range(RANKS)]
        if all(file.exists() for file in files):
            records[name] = [torch.load(file, weights_only=True) for file in files]
    return records


def trajectory(record: dict, leave_out: int | None = None) -> Trajectory:
    rows = zip(record["weights"], record["gradients"], strict=True)
    return Trajectory.of([row for step, row in enumerate(rows) if step != leave_out])


def reference(case: dict, windows: list[list[Part]]) -> Trajectory:
    method = GradNormReference() if case["method"] == "gradnorm" else UncertaintyReference()
    return run_reference(Net(case["layer"]), method, windows, case["wrt"])


@pytest.mark.parametrize("name", TRAINED)
def test_both_ranks_agree_bit_for_bit(name: str, records: Records) -> None:
    first, second = records[name]
    assert_bit_equal(second["states"], first["states"])
    assert_bit_equal(second["weights"], first["weights"])


@pytest.mark.parametrize("name", EVERY | INSIDE | DDP_OPTIONS | UNCERTAINTY)
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
    """And what follows is as if that window had not been."""
    windows = make_windows(CASES[name]["accumulate"])
    del windows[BAD_STEP]
    expected = reference(CASES[name], windows)
    for record in records[name]:
        assert_bit_equal(record["states"][BAD_STEP + 1], record["states"][BAD_STEP])
        assert_same(trajectory(record, leave_out=BAD_STEP), expected)


def test_check_finite_refuses_on_both_ranks(records: Records) -> None:
    """One rank's error alone would leave the other waiting."""
    assert all(
        "not finite" in record["refused"] or "not valid" in record["refused"] for record in records["check-finite"]
    )


@pytest.mark.parametrize("name", OMIT)
def test_a_task_that_ranks_leave_out(name: str, records: Records) -> None:
    """Its weight moves where any rank has it, and holds where none has."""
    weights = torch.stack([state["next_weights"] for state in records[name][0]["states"]])
    task = weights[:, 1].diff() != 0
    assert task.tolist() == [True, True, True, True, False, True, True, True]
    assert (weights.diff(dim=0)[:, [0, 2]] != 0).all()
    torch.testing.assert_close(weights.sum(1), torch.full_like(weights.sum(1), len(SCALES)))
