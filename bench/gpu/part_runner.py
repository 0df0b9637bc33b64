"""Start the parts one after another, each in a process of its own, until the time is up."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from bench.run import code_hash, machine_facts

from .gpu_summary import GpuSummary, PartRecord, Status
from .part_measurement import Findings

LOG = "log.txt"
"""Name of the file in a part's folder with what its process printed."""
LINES = 3
"""Number of last lines of a log that a failed part's reason shows."""


@dataclass(frozen=True)
class Part:
    """A part of the measurement.

    Attributes:
        name: name of the part and of its folder.
        about: what it does, in a few words.
        least: seconds that must be left for it to begin.
        most: seconds after which it is stopped; a later call goes on.
    """

    name: str
    about: str
    least: float
    most: float


Command = Callable[[Part, float], Sequence[str]]
"""Returns the command line of a part, for the seconds that the part may take."""


def run(
    parts: Sequence[Part],
    folder: Path,
    summary: GpuSummary,
    seconds: float,
    code: str,
    command: Command,
    say: Callable[[str], None],
) -> None:
    """Run those of ``parts`` that this code has not done, and keep a record of each as soon as it ends.

    Args:
        parts: in the order in which they run.
        folder: the results folder; each part has its own folder in it.
        summary: where the records are kept.
        seconds: how long all parts may take together.
        code: a hash of the code, see `packages_code`.
        command: makes the command line of a part's process.
        say: prints a line.
    """
    end = time.monotonic() + seconds
    for part in parts:
        known = summary.records.get(part.name, PartRecord())
        before = known if known.code in ("", code) else PartRecord()
        left = end - time.monotonic()
        if before.status == "done":
            say(f"{part.name}: done before")
        elif left < part.least:
            reason = f"{max(0.0, left):.0f} s were left, and it needs at least {part.least:.0f} s; call again to go on"
            say(f"{part.name}: not begun: {reason}")
            unfinished: Status = "stopped" if known.status == "done" else known.status  # done, but by other code
            status: Status = unfinished if known.seconds else "not begun"
            summary.keep(part.name, replace(known, status=status, reason=reason))
        else:
            say(f"{part.name}: {part.about}, at most {min(part.most, left):.0f} s")
            summary.keep(part.name, replace(before, status="stopped", reason="interrupted; call again to go on"))
            record = _run(part, folder / part.name, min(part.most, left), before, code, command)
            summary.keep(part.name, record)
            say(f"{part.name}: {record.status} after {record.seconds - before.seconds:.0f} s. {record.reason}".rstrip())


def _run(part: Part, folder: Path, seconds: float, before: PartRecord, code: str, command: Command) -> PartRecord:
    """Run one part and return its record."""
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            command(part, seconds),
            cwd=machine_facts.ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        try:
            ended: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            ended = None
        finally:
            _end(process)
    text = _without_folders(folder / LOG)
    findings, facts = Findings.load(folder), machine_facts.describe(jobs=1)
    record = PartRecord(
        status="done" if ended == 0 and not findings.failed else "stopped" if ended is None else "failed",
        seconds=round(before.seconds + time.monotonic() - start, 1),
        left_out=findings.left_out,
        failed=findings.failed,
        notes=findings.notes,
        commit=str(facts["commit"] or ""),
        code=code,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if ended is None:
        record.reason = f"stopped after {seconds:.0f} s; call again to go on"
    elif ended != 0:
        ending = " | ".join(text.strip().splitlines()[-LINES:])
        record.reason = f"its process ended with {ended}: {ending}"
    elif findings.failed:
        record.reason = f"{len(findings.failed)} failed; call again to try them again"
    return record


def packages_code() -> str:
    """Return a hash of the packages' code, without comments and docstrings."""
    files = (path for package in code_hash.OURS for path in (machine_facts.ROOT / package).rglob("*.py"))
    return code_hash.digest(code_hash.file_hashes(files, code_hash.OURS))


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and all that it started; it leads a session of its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _without_folders(log: Path) -> str:
    """Take the machine's folders out of a log, and return its text."""
    text = log.read_text(encoding="utf-8", errors="replace")
    for folder in (str(machine_facts.ROOT), sys.prefix, str(Path.home())):
        text = text.replace(f"{folder}{os.sep}", "")
    log.write_text(text, encoding="utf-8")
    return text
