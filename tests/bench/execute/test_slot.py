"""A slot's child does jobs, and a job that ends its child harms no other."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bench.execute.job import Limits
from bench.execute.slot import ChildEndedError, MemoryLimitError, Slot, TimeLimitError
from bench.execute.this_machine import ThisMachine

from . import engine_jobs

pytestmark = pytest.mark.xdist_group("processes")
NONE = Limits()


@pytest.fixture(scope="module")
def slot() -> Iterator[Slot]:
    """Return the slot that all tests of this file share."""
    made = Slot()
    yield made
    made.stop()


def test_one_child_does_all_jobs_on_one_thread(slot: Slot) -> None:
    first = slot.do(NONE, engine_jobs.process)
    assert first != os.getpid()
    assert slot.do(NONE, engine_jobs.add, 1, 2) == 3
    assert slot.do(NONE, engine_jobs.process) == first
    assert slot.do(NONE, engine_jobs.environment, "OMP_NUM_THREADS") == "1"


@pytest.mark.slow
def test_slots_take_gpus_in_turns_and_see_one_alone() -> None:
    engine = ThisMachine(4, ["5", "7"])
    try:
        seen = [slot.do(NONE, engine_jobs.environment, "CUDA_VISIBLE_DEVICES") for slot in engine._slots]
    finally:
        engine.stop()
    assert seen == ["5", "7", "5", "7"]


def test_errors_of_the_job_propagate(slot: Slot) -> None:
    with pytest.raises(TimeoutError, match="mine"):
        slot.do(NONE, engine_jobs.refuse)
    with pytest.raises(RuntimeError, match="UnsendableError: 1"):
        slot.do(NONE, engine_jobs.refuse_unsendably)
    with pytest.raises(RuntimeError, match="SystemExit: no data"):  # which would end the thread that waits for the job
        slot.do(NONE, engine_jobs.leave, "no data")


def test_a_child_that_ends_is_replaced(slot: Slot) -> None:
    first = slot.do(NONE, engine_jobs.process)
    with pytest.raises(ChildEndedError) as caught:
        slot.do(NONE, engine_jobs.end, 3)
    assert caught.value.clause == "its process ended itself with exit code 3"
    assert slot.do(NONE, engine_jobs.process) != first


@pytest.mark.slow
def test_a_killed_child_is_told_by_its_signal(slot: Slot) -> None:
    child = slot.do(NONE, engine_jobs.process)
    slot_killer = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(1); os.kill({child}, 9)"])
    with pytest.raises(ChildEndedError) as caught:
        slot.do(NONE, engine_jobs.sleep, 60.0)
    slot_killer.wait()
    assert caught.value.exit_code == -signal.SIGKILL
    assert "signal 9; perhaps it ran out of memory" in caught.value.clause


@pytest.mark.slow
def test_limits_end_the_job_alone(slot: Slot) -> None:
    with pytest.raises(TimeLimitError):
        slot.do(Limits(seconds=0.5), engine_jobs.sleep, 600.0)
    with pytest.raises(MemoryLimitError):
        slot.do(Limits(memory=300e6), engine_jobs.eat, 3_000_000_000)
    assert slot.do(Limits(seconds=60.0, memory=1e12), engine_jobs.add, 1, 1) == 2


def test_stop_ends_the_child_whatever_it_does() -> None:
    slot = Slot()
    child = psutil.Process(slot.do(NONE, engine_jobs.process))
    slot.stop()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    slot.stop()  # once more does nothing


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 1.5], ids=["before the job has begun", "during it"])
def test_who_waits_for_a_job_is_told_that_another_thread_stopped_it(slot: Slot, delay: float) -> None:
    told = list[Exception]()

    def wait() -> None:
        try:
            slot.do(NONE, engine_jobs.sleep, 600.0)
        except ChildEndedError as error:
            told.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    time.sleep(delay)
    end = time.monotonic() + 30.0
    while thread.is_alive():  # again, if the child was started after the stop
        assert time.monotonic() < end
        slot.stop()
        thread.join(0.02)
    assert [error.clause for error in told] == ["its process was stopped"]
    assert slot.do(NONE, engine_jobs.add, 1, 2) == 3


def test_a_child_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = tmp_path / "owner.py"
    program.write_text(
        "import os, time\n"
        "from bench.execute.slot import Slot\n"
        "from bench.execute.job import Limits\n"
        "if __name__ == '__main__':\n"
        "    print(Slot().do(Limits(), os.getpid), flush=True)\n"
        "    time.sleep(600)\n"
    )
    root = Path(__file__).resolve().parents[3]
    owner = subprocess.Popen(
        [sys.executable, program], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(root)}, text=True
    )
    assert owner.stdout is not None
    child = psutil.Process(int(owner.stdout.readline()))
    owner.kill()
    owner.wait()
    end = time.monotonic() + 30.0
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.1)
