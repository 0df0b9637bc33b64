"""Run the balancers' tests on the device: those that make a tensor are given the option ``--device``."""

import subprocess
import sys
from collections import Counter
from importlib.util import find_spec

import pandas as pd

from bench.run import atomic_file, code_hash, machine_facts

from . import outcome_log
from .part_measurement import PartMeasurement

FILES = (
    *("host_copy", "finite", "gradnorm", "heads_gradnorm", "ghost_norms", "update_every", "combining"),
    *("methods", "fork", "heads", "layer", "reference", "contract", "capture"),
)
"""Test files in the order in which they run. Last, those that capture steps: a failed capture can harm what follows."""
FEW = ("host_copy", "gradnorm")
"""Test files of a dry run."""


def run(part: PartMeasurement) -> None:
    """Run the tests, and write ``outcomes.jsonl`` and ``tests.csv``, which counts the outcomes of each file."""
    folder = machine_facts.ROOT / "tests" / "balancers"
    if find_spec("pytest") is None or not folder.is_dir():
        part.leave_out("tests", "pytest is not installed" if folder.is_dir() else "there is no folder tests")
        return
    path = part.folder / "outcomes.jsonl"
    files = [folder / f"test_{name}.py" for name in (FEW if part.dry else FILES)]
    code = code_hash.digest([part.code, code_hash.file_hashes(folder.rglob("*.py"), code_hash.OURS)])
    command = [sys.executable, "-m", "pytest", *map(str, files), "-q", "-m", "not slow", "--device", part.device.type]
    command += ["-p", "bench.gpu.outcome_log", outcome_log.OPTION, str(path), outcome_log.CODE, code]
    command += ["--continue-on-collection-errors"]
    # The project's own options need pytest-benchmark.
    command += ["-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib --strict-markers"]
    ended = subprocess.run(command, cwd=machine_facts.ROOT, check=False).returncode
    outcomes = pd.DataFrame(outcome_log.load(path, code).values(), columns=["test", "outcome", "seconds", "reason"])
    if ended not in (0, 1, 2, 5) or outcomes.empty:  # passed, failed, not collected, none left to run
        raise RuntimeError(f"pytest ended with {ended}; log.txt has what it printed")
    outcomes["file"] = outcomes["test"].str.partition("::")[0].str.rpartition("/")[2]
    counts = outcomes.pivot_table(index="file", columns="outcome", values="test", aggfunc="count", fill_value=0)
    counts["seconds"] = outcomes.groupby("file")["seconds"].sum()
    atomic_file.write(part.folder / "tests.csv", counts.reset_index().to_csv(index=False).encode())
    skipped = outcomes[outcomes["outcome"] == "skipped"]
    for (file, reason), count in Counter(zip(skipped["file"], skipped["reason"], strict=True)).items():
        part.leave_out(f"{count} tests of {file}", str(reason).removeprefix("Skipped: "))
    for row in outcomes[outcomes["outcome"] == "failed"].itertuples():
        part.fail(str(row.test), str(row.reason))
    passed = int((outcomes["outcome"] == "passed").sum())
    part.note(f"{passed} tests passed on {part.device.type}")
