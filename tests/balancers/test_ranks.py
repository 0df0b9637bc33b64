"""Two gloo ranks: every method weighs by the global batch, and the ranks' states and gradients are equal to the bit.

The same holds where the batches of the ranks have different tasks, under every setting of DistributedDataParallel, and
under FSDP2. `worker_ranks` says what a pair of ranks should amount to.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from balancers import GradientBalancer, names

from ..slow_params import others_slow
from .ranks import Ranks
from .worker_ranks import PLUGINS, TASKS, alone, method_of, places_of

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)
pytestmark = pytest.mark.xdist_group("processes")

FAULTY = ("ReadsItsOwnLosses", "LearnsFromItsOwnLosses", "ReadsItsOwnGradients")
METHODS = [*names(), *(name for name in PLUGINS if name not in FAULTY)]
SAYS_NOTHING = ("equal", "static", "random", "graddrop")
"""Methods that tell other ranks nothing that their weights depend on."""

REFUSES_SHARDS = ("auto-lambda", "ntk")
"""Methods that need whole parameters."""

Tasks = Sequence[Sequence[str]]
ALL: Tasks = [list(TASKS)] * 2
LACKING: Sequence[Tasks] = [[["a", "b", "c"], ["a", "c"]], [["b", "c"], ["a", "b", "c"]], [["b"], ["a", "b"]], ALL]
"""In each step one rank lacks tasks, in the third both lack one."""
APART: Sequence[Tasks] = [[["a"], ["b"]], [["b"], ["c"]], [["c"], ["a"]], [["a"], ["b"]]]
UNUSED = {"find_unused_parameters": True}
BUCKETS = {"bucket_cap_mb": 1e-4, "gradient_as_bucket_view": True}
TWICE = {"accumulate": 2}

ALIKE: Mapping[str, Any] = {"steps": [ALL] * 4, "ddp": {}, "lists": True}
WAYS: Mapping[str, Mapping[str, Any]] = {
    "lacking": {"steps": LACKING, "ddp": UNUSED},
    "apart": {"steps": APART, "ddp": UNUSED},
    "windows": {"steps": [ALL] * 3, "ddp": BUCKETS, "options": TWICE, "existing": True},
    "static graph": {"steps": [ALL] * 3, "ddp": {"static_graph": True}, "lists": True},
}
"""What `make test` runs of each method."""
MORE_WAYS: Mapping[str, Mapping[str, Any]] = {
    "alike": ALIKE,
    "lacking in buckets": {"steps": LACKING, "ddp": UNUSED | BUCKETS, "existing": True},
    "lacking in windows": {"steps": LACKING, "ddp": UNUSED, "options": TWICE},
    "always apart": {"steps": [[["a"], ["b"]]] * 4, "ddp": UNUSED | BUCKETS},
    "apart in windows": {"steps": APART, "ddp": UNUSED, "options": TWICE, "existing": True},
    "static graph in buckets": {"steps": [ALL] * 3, "ddp": BUCKETS | {"static_graph": True}, "existing": True},
    "a group of its own": {"steps": [ALL, *LACKING], "ddp": UNUSED, "process_group": "new"},
    "short windows": {"steps": LACKING, "ddp": UNUSED, "options": {"accumulate": 3}, "passes": 2, "follow": True},
    "heads as one product": {"steps": [ALL, *LACKING], "ddp": {}, "net": "one product"},
}
MEASURING_WAYS: Mapping[str, Mapping[str, Any]] = {
    "seldom": {"steps": [ALL] * 5, "ddp": {}, "options": {"update_every": 2}},
    "seldom and lacking": {"steps": [ALL, *LACKING, *APART], "ddp": UNUSED, "options": {"update_every": 2}},
}
HELD: Mapping[str, Mapping[str, Any]] = {
    "held": {"steps": [ALL] * 3, "ddp": {}, "held": True, "passes": 2},
    "held and lacking": {"steps": [ALL, *LACKING], "ddp": UNUSED, "held": True, "passes": 2},
}
SHARDED: Mapping[str, Mapping[str, Any]] = {
    f"{shard or 'root'} {'freed' if reshard else 'kept'}": {"steps": [ALL] * 3, "shard": shard, "reshard": reshard}
    for shard in ("", "each layer", "last layer", "trunk")
    for reshard in (True, False)
}
MORE_SHARDED: Mapping[str, Mapping[str, Any]] = {
    f"{name} {more}": way | extra
    for name, way in SHARDED.items()
    for more, extra in {"in windows": {"options": TWICE}, "lacking": {"steps": [ALL, *LACKING]}}.items()
}


def is_measuring(name: str) -> bool:
    return issubclass(method_of(name), GradientBalancer)


def replaces_gradients(name: str) -> bool:
    return method_of(name).replaces_gradients


def takes_turns(name: str) -> bool:
    return is_measuring(name) and not hasattr(method_of(name), "track") and name != "metabalance"


def takes_shards(name: str) -> bool:
    """Return whether the method works where FSDP shards the parameters."""
    return is_measuring(name) and name not in REFUSES_SHARDS


def at_its_place(name: str) -> tuple[str, str]:
    return name, places_of(name)[0]


EVERYWHERE = [(name, place) for name in METHODS for place in places_of(name)]
MEASURING = [name for name in METHODS if is_measuring(name)]


def agree(ranks: Ranks, name: str, place: str, way: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the ranks' records of one way to train.

    Raises:
        AssertionError: they are not equal to the bit, or not close to that of one process with the batches of both.
    """
    case = {"method": name, "place": place, **way}
    records = ranks.run("worker_ranks", case, timeout=20)
    compare(records, alone(case))
    return records


def compare(records: Sequence[Mapping[str, Any]], expected: Mapping[str, Any]) -> None:
    for what in ("weights", "gradients", "states"):
        torch.testing.assert_close(records[1][what], records[0][what], rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(records[0][what], expected[what], rtol=1e-7, atol=1e-9, equal_nan=True)


# Every method


@pytest.mark.parametrize("way", others_slow(WAYS, "lacking", "windows"))
@pytest.mark.parametrize(("name", "place"), [at_its_place(name) for name in METHODS])
def test_a_pair_is_one_process_with_both_batches(ranks: Ranks, name: str, place: str, way: str) -> None:
    agree(ranks, name, place, WAYS[way])


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS | MORE_WAYS)
@pytest.mark.parametrize(("name", "place"), EVERYWHERE)
def test_a_pair_is_one_process_in_every_way(ranks: Ranks, name: str, place: str, way: str) -> None:
    agree(ranks, name, place, (WAYS | MORE_WAYS)[way])


@pytest.mark.slow
@pytest.mark.parametrize("way", MEASURING_WAYS)
@pytest.mark.parametrize(("name", "place"), [each for each in EVERYWHERE if takes_turns(each[0])])
def test_a_pair_is_one_process_where_few_steps_are_measured(ranks: Ranks, name: str, place: str, way: str) -> None:
    agree(ranks, name, place, MEASURING_WAYS[way])


@pytest.mark.slow
@pytest.mark.parametrize("way", HELD)
@pytest.mark.parametrize(("name", "place"), [each for each in EVERYWHERE if not replaces_gradients(each[0])])
def test_a_pair_is_one_process_where_weights_are_held(ranks: Ranks, name: str, place: str, way: str) -> None:
    agree(ranks, name, place, HELD[way])


# Steps that are not valid


def check_invalid(ranks: Ranks, name: str, place: str, bad: str, way: Mapping[str, Any]) -> None:
    """Check that a step that is not valid on rank 1 leaves both ranks' state as it was, and that training goes on."""
    records = agree(ranks, name, place, {**way, "bad": bad, "bad_step": 1})
    for record in records:
        before, after = ({**state, "last_weights": 0, "counters": 0} for state in record["states"][1:3])
        torch.testing.assert_close(after, before, rtol=0, atol=0)
        last = record["states"][-1]
        assert all(value.isfinite().all() for value in last.values())


@pytest.mark.parametrize(("name", "place"), [at_its_place(name) for name in METHODS])
def test_an_invalid_loss_on_one_rank_changes_nothing_on_both(ranks: Ranks, name: str, place: str) -> None:
    check_invalid(ranks, name, place, "nan", {"steps": [ALL] * 4, "ddp": {}})


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("name", "place", "bad"),
    [(*each, bad) for each in EVERYWHERE for bad in ("nan", "inf", *["gradient"] * is_measuring(each[0]))],
)
def test_an_invalid_step_on_one_rank_changes_nothing_on_both(
    ranks: Ranks, name: str, place: str, bad: str, way: str
) -> None:
    steps: Sequence[Tasks] = [ALL, [["a", "c"], ["b", "c"]], *LACKING] if WAYS[way]["ddp"] == UNUSED else [ALL] * 4
    check_invalid(ranks, name, place, bad, {**WAYS[way], "steps": steps})


def check_refusal(ranks: Ranks, name: str, place: str, bad: str) -> None:
    case = {"method": name, "place": place, "steps": [ALL] * 2, "ddp": {}, "options": {"check_finite": True}}
    records = ranks.run("worker_ranks", case | {"bad": bad, "bad_step": 1, "may_be_refused": True}, timeout=15)
    for record in records:
        assert record["refused"].startswith("FloatingPointError")


@pytest.mark.parametrize(("name", "place"), [at_its_place(name) for name in METHODS])
def test_check_finite_raises_on_both_ranks(ranks: Ranks, name: str, place: str) -> None:
    """An error on one rank alone would leave the other waiting."""
    check_refusal(ranks, name, place, "nan")


@pytest.mark.slow
@pytest.mark.parametrize("bad", ["nan", "gradient"])
@pytest.mark.parametrize(("name", "place"), [each for each in EVERYWHERE if is_measuring(each[0])])
def test_check_finite_raises_on_both_ranks_everywhere(ranks: Ranks, name: str, place: str, bad: str) -> None:
    check_refusal(ranks, name, place, bad)


# FSDP


@pytest.mark.parametrize(("name", "place"), [at_its_place(name) for name in MEASURING if takes_shards(name)])
def test_a_sharded_model_is_one_process(ranks: Ranks, name: str, place: str) -> None:
    agree(ranks, name, place, SHARDED["each layer freed"])


SHARDED_AT = [("gradnorm", "features"), ("gradnorm", "layer"), ("gradnorm", "parameters"), ("moco", "parameters")]


@pytest.mark.parametrize("way", ["root kept", "last layer freed", "trunk freed", "trunk kept"])
@pytest.mark.parametrize(("name", "place"), SHARDED_AT)
def test_a_model_sharded_in_any_way_is_one_process(ranks: Ranks, name: str, place: str, way: str) -> None:
    agree(ranks, name, place, SHARDED[way])


@pytest.mark.parametrize(
    ("name", "place"),
    [("gradnorm", "features"), ("gradnorm", "trunk"), ("gradnorm", "parameters"), ("moco", "parameters")],
)
def test_a_sharded_model_is_one_process_where_ranks_lack_tasks(ranks: Ranks, name: str, place: str) -> None:
    """FSDP gathers parameters in every pass that measures, so the ranks must make as many, whatever tasks they have."""
    agree(ranks, name, place, MORE_SHARDED["each layer freed lacking"])


@pytest.mark.slow
@pytest.mark.parametrize("way", SHARDED | MORE_SHARDED)
@pytest.mark.parametrize(("name", "place"), [each for each in EVERYWHERE if each[0] not in REFUSES_SHARDS])
def test_every_method_with_a_model_sharded_in_any_way(ranks: Ranks, name: str, place: str, way: str) -> None:
    agree(ranks, name, place, (SHARDED | MORE_SHARDED)[way])


@pytest.mark.parametrize("way", ["root kept", "trunk freed"])
@pytest.mark.parametrize("place", ["features", "layer", "parameters"])
def test_sharded_weights_that_their_module_does_not_use_itself(ranks: Ranks, place: str, way: str) -> None:
    """As those of an attention's output layer: its parent uses them, and its own forward pass is never called."""
    agree(ranks, "gradnorm", place, SHARDED[way] | {"net": "attention"})


@pytest.mark.parametrize("place", ["layer", "parameters"])
def test_bare_sharded_parameters_are_refused(ranks: Ranks, place: str) -> None:
    case = {"method": "gradnorm", "place": place, "given": "parameters", "may_be_refused": True}
    for record in ranks.run("worker_ranks", case | SHARDED["each layer freed"], timeout=15):
        assert re.match(r"TypeError: wrt holds a sharded parameter.*give the module", record["refused"])


@pytest.mark.parametrize("name", REFUSES_SHARDS)
def test_methods_that_need_whole_parameters_say_so(ranks: Ranks, name: str) -> None:
    case = {"method": name, "place": "parameters", "may_be_refused": True}
    for record in ranks.run("worker_ranks", case | SHARDED["each layer freed"], timeout=15):
        assert re.match(r"RuntimeError: .*FSDP shards", record["refused"])


def check_made_before(ranks: Ranks, name: str, place: str, given: str, way: str) -> None:
    made = {"made": "before", "given": given, "may_be_refused": True}
    case = {"method": name, "place": place, **SHARDED[way], **made}
    records = ranks.run("worker_ranks", case, timeout=15)
    if "refused" in records[0]:
        for record in records:
            assert "fully_shard" in record["refused"]
            assert len(record["refused"]) < 500
    else:
        compare(records, alone(case))


@pytest.mark.parametrize("way", ["root kept", "last layer freed"])
@pytest.mark.parametrize("given", ["module", "parameters"])
@pytest.mark.parametrize(("name", "place"), SHARDED_AT)
def test_a_balancer_made_before_the_model_is_sharded_works_or_is_refused(
    ranks: Ranks, name: str, place: str, given: str, way: str
) -> None:
    check_made_before(ranks, name, place, given, way)


@pytest.mark.slow
@pytest.mark.parametrize("way", SHARDED)
@pytest.mark.parametrize("given", ["module", "parameters"])
@pytest.mark.parametrize(("name", "place"), [each for each in EVERYWHERE if takes_shards(each[0])])
def test_balancers_made_before_the_model_is_sharded_work_or_are_refused(
    ranks: Ranks, name: str, place: str, given: str, way: str
) -> None:
    check_made_before(ranks, name, place, given, way)


# Process groups


@pytest.mark.parametrize("group", ["none", "new"])
@pytest.mark.parametrize("name", ["loss-share", "gls", "gradnorm", "upgrad", "famo"])
def test_rank_0_may_call_a_balancer_alone(ranks: Ranks, name: str, group: str) -> None:
    """With ``process_group=False``, or with a group of rank 0 alone, which also rank 1 gives to its balancer."""
    name = "LossShare" if name == "loss-share" else name
    case = {"method": name, "place": places_of(name)[0], "steps": [ALL, *LACKING], "process_group": group}
    record, other = ranks.run("worker_ranks", case | {"function": "rank_0_alone"}, timeout=15)
    assert other is None
    torch.testing.assert_close(record, alone(case), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["gradnorm", "upgrad"])
def test_a_process_group_of_all_ranks_is_as_good_as_none(ranks: Ranks, name: str) -> None:
    agree(ranks, *at_its_place(name), MORE_WAYS["a group of its own"])


def test_windows_of_unlike_length(ranks: Ranks) -> None:
    """At the end of an epoch, a rank may have one pass where another has two: norms are of the mean over all passes."""
    case = {"method": "gradnorm", "place": "parameters", "function": "uneven_windows"}
    first, second = ranks.run("worker_ranks", case, timeout=30)
    torch.testing.assert_close(first["state"], second["state"], rtol=0, atol=0)
    mean = (first["sums"] + second["sums"]) / (first["passes"] + second["passes"])
    weights = first["norms"] / mean.norm(dim=1)  # the norms are of weighted losses
    torch.testing.assert_close(weights, second["norms"] / mean.norm(dim=1))
    torch.testing.assert_close(weights.sum(), torch.tensor(3.0, dtype=torch.float64))


@pytest.mark.parametrize("name", ["mgda", "moco", "gradnorm"])
def test_a_rank_whose_only_task_shares_no_parameters(ranks: Ranks, name: str) -> None:
    """Its gradient is zero; the other rank waits for it."""
    case = {"method": name, "place": "parameters", "function": "off_the_shared_parameters"}
    first, second = ranks.run("worker_ranks", case, timeout=30)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_ranks_that_order_the_tasks_differently_are_refused_or_agree(ranks: Ranks) -> None:
    """As when each makes its dict of losses from a set, whose order differs from process to process."""
    for name in ("gls", "uncertainty"):
        case = {"method": name, "place": "", "function": "named_by_dicts"}
        first, second = ranks.run("worker_ranks", case, timeout=15)
        assert first == second if "refused" not in first else "order" in first["refused"] and "refused" in second, name


@pytest.mark.parametrize("place", ["features", "layer"])
def test_ranks_stop_measuring_at_the_same_step(ranks: Ranks, place: str) -> None:
    """With ``freeze_after``, however late one rank's host learns that its device has reached it."""
    case = {"method": "gradnorm", "place": place, "steps": [ALL] * 25, "ddp": {}, "options": {"freeze_after": 2}}
    records = ranks.run("worker_ranks", case | {"function": "knows_late"}, timeout=15)
    expected = alone(case)
    for record in records:
        torch.testing.assert_close(record["weights"], expected["weights"], rtol=1e-7, atol=1e-9)


# The checks can fail


@pytest.mark.parametrize(
    ("name", "place"),
    [("ReadsItsOwnLosses", ""), ("LearnsFromItsOwnLosses", ""), ("ReadsItsOwnGradients", "layer")],
)
@pytest.mark.parametrize("way", ["lacking", "static graph"])
def test_methods_that_skip_the_averaging_are_found(ranks: Ranks, name: str, place: str, way: str) -> None:
    with pytest.raises(AssertionError, match="not equal"):
        agree(ranks, name, place, WAYS[way])


def check_found_alone(ranks: Ranks, name: str, place: str) -> None:
    """Check that `agree` tells that ranks don't talk."""
    with pytest.raises(AssertionError, match="not equal"):
        agree(ranks, name, place, ALIKE | {"process_group": "none"})


@pytest.mark.parametrize(("name", "place"), [at_its_place(name) for name in METHODS if name not in SAYS_NOTHING])
def test_ranks_that_do_not_talk_are_found(ranks: Ranks, name: str, place: str) -> None:
    check_found_alone(ranks, name, place)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "place"), [each for each in EVERYWHERE if each[0] not in SAYS_NOTHING])
def test_ranks_that_do_not_talk_are_found_everywhere(ranks: Ranks, name: str, place: str) -> None:
    check_found_alone(ranks, name, place)


@pytest.mark.slow
def test_an_error_on_one_rank_ends_both(ranks: Ranks) -> None:
    case = {"method": "gradnorm", "place": "layer", "steps": [ALL] * 2, "function": "rank_1_fails"}
    with pytest.raises(AssertionError, match="RuntimeError: planted"):
        ranks.run("worker_ranks", case, timeout=30)


def crashing(counted: Path, times: int) -> dict[str, Any]:
    counted.write_text("")
    return {"method": "gls", "place": "", "function": "rank_1_crashes", "counted": str(counted), "times": times}


@pytest.mark.slow
def test_a_rank_that_crashes_is_started_once_more(ranks: Ranks, tmp_path: Path) -> None:
    case = crashing(tmp_path / "crashes", 1)
    with pytest.warns(RuntimeWarning, match="The job is run again"):
        assert ranks.run("worker_ranks", case, timeout=30) == ["finished"] * 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the ranks did not finish")
def test_a_rank_that_crashes_again_fails(ranks: Ranks, tmp_path: Path) -> None:
    case = crashing(tmp_path / "crashes", 2)
    with pytest.raises(AssertionError, match="did not finish worker_ranks"):
        ranks.run("worker_ranks", case, timeout=30)
    assert len((tmp_path / "crashes").read_text()) == 2


@pytest.mark.slow
def test_a_rank_that_waits_too_long_is_ended(ranks: Ranks) -> None:
    case = {"method": "gls", "place": "", "function": "rank_1_is_absent"}
    with pytest.raises(AssertionError, match="no result after 1"):
        ranks.run("worker_ranks", case, timeout=1.0)
