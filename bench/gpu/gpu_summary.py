"""Keep a record of each part in ``summary.json``, with the machine that it was measured on."""

import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from bench.run import atomic_file, machine_facts

SUMMARY = "summary.json"
"""Name of the file in the results folder."""
Status = Literal["done", "failed", "stopped", "not begun"]


@dataclass
class PartRecord:
    """The state in which a part was left.

    Attributes:
        status: "done": nothing failed. "failed": something did. "stopped": its time was up. "not begun": it would not
            have fitted into the time.
        seconds: how long it took, all calls together.
        reason: why it is not done; empty if it is.
        left_out: what this machine lacks, with the reason.
        failed: what failed, with the error.
        notes: how it was measured.
        commit: the commit that it was measured at; empty if there is no repository.
        code: a hash of the packages' code, without comments and docstrings.
        date: when it ended.
    """

    status: Status = "not begun"
    seconds: float = 0.0
    reason: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    commit: str = ""
    code: str = ""
    date: str = ""


SAME = ("gpu", "processor", "torch", "dry_run")
"""Facts that all results in a folder share."""
OLDEST_TORCH = "2.12"
"""The oldest PyTorch that the package accepts, as in pyproject.toml."""


class OtherMachineError(ValueError):
    """The folder holds results of another machine."""


class GpuSummary:
    """The records of all parts in a results folder.

    Args:
        folder: the results folder.
        dry: whether the results are those of a dry run.

    Raises:
        OtherMachineError: the folder holds results of another machine, another PyTorch, or another kind of run.
    """

    def __init__(self, folder: Path, dry: bool) -> None:
        self.path = folder / SUMMARY
        self.machine = machine(dry)
        self.records: dict[str, PartRecord] = {}
        if self.path.is_file():
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            for key in SAME:
                here = self.machine[key]
                if stored["machine"].get(key) != here:
                    raise OtherMachineError(
                        f"{folder} holds results with {key} {stored['machine'].get(key)!r}, but here it is {here!r}; "
                        "name another folder with --out, or remove that one"
                    )
            self.records = {name: PartRecord(**record) for name, record in stored["parts"].items()}

    def keep(self, name: str, record: PartRecord) -> None:
        """Set the record of a part, and save all."""
        self.records[name] = record
        about = {"machine": self.machine, "parts": {part: asdict(each) for part, each in self.records.items()}}
        atomic_file.write(self.path, json.dumps(about, indent=2).encode())


def machine(dry: bool) -> dict[str, object]:
    """Return the facts about the machine that a summary names.

    ``processor`` is there because it launches the steps: where they are short, it decides how long they take. ``note``
    says if this PyTorch is not supported, and is empty if it is.
    """
    old = torch.__version__ < OLDEST_TORCH
    return {
        "gpu": machine_facts.gpu(),
        "processor": machine_facts.processor(),
        "driver": _driver(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "note": f"PyTorch {torch.__version__} is older than {OLDEST_TORCH}, the oldest supported" if old else "",
        "dry_run": dry,
    }


def _driver() -> str | None:
    """Return the version of the GPU's driver; None if there is no GPU, or no ``nvidia-smi``."""
    if not torch.cuda.is_available():
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip() or None


def table(records: Mapping[str, PartRecord]) -> Table:
    """Return the records as a table for the terminal."""
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column("part", no_wrap=True)
    shown.add_column("status", no_wrap=True)
    shown.add_column("seconds", justify="right", no_wrap=True)
    shown.add_column("left out, failed, notes", overflow="fold")
    for name, record in records.items():
        lines = [record.reason] if record.reason else []
        lines += [f"left out: {what}: {why}" for what, why in record.left_out.items()]
        lines += [f"failed: {what}: {why}" for what, why in record.failed.items()]
        shown.add_row(name, record.status, f"{record.seconds:.0f}", Text("\n".join([*lines, *record.notes])))
    return shown
