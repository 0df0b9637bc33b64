"""Give a part its folder and its device, and save what it measures piece by piece."""

import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch

from bench.run import atomic_file

FINDINGS = "findings.json"
"""Name of the file in a part's folder that says what was left out and what failed."""
PIECE, CODE = "piece", "code"
"""Columns of a table: the piece that a row belongs to, and a hash of the code that measured it."""
INTERRUPTED = "its process ended while it was measured: it was killed, or its time was up"
"""Why a piece failed that has no other reason."""


class NotMeasurableError(Exception):
    """Something can't be measured; the message says why, and trying again would not help."""


@dataclass
class Findings:
    """The pieces that a part left out or that failed, each with the reason; and sentences on how it was measured."""

    left_out: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path) -> "Findings":
        """Return the findings in ``folder``; none if the part wrote none."""
        path = folder / FINDINGS
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else cls()


class PartMeasurement:
    """A part that is being measured.

    Args:
        folder: where its results go.
        device: the device to measure on.
        dry: whether this is a dry run, which measures as little as possible.
        seconds: how long the part may take.
        code: a hash of the code that measures. What other code measured is measured again.

    Attributes:
        findings: of this run of the part.
        earlier: the findings of the run before.
    """

    def __init__(self, folder: Path, device: torch.device, dry: bool, seconds: float, code: str = "") -> None:
        self.folder, self.device, self.dry, self.seconds, self.code = folder, device, dry, seconds, code
        self.earlier = Findings.load(folder)
        self.findings = Findings()
        self._save()

    def leave_out(self, what: str, why: str) -> None:
        """Record that ``what`` can't be measured on this machine."""
        known = self.findings.left_out.get(what)
        self.findings.left_out[what] = f"{known}; {why}" if known else why
        self._save()

    def fail(self, what: str, why: str) -> None:
        """Record that ``what`` failed; the next call tries it again."""
        self.findings.failed[what] = why
        self._save()

    def note(self, sentence: str) -> None:
        """Record how the part was measured."""
        self.findings.notes.append(sentence)
        self._save()

    def collect(self, name: str, pieces: Mapping[str, Callable[[], pd.DataFrame]]) -> None:
        """Measure all ``pieces`` that the table ``name`` does not have yet, and save the table after each.

        Rows that other code measured are dropped. A piece that raises is recorded with its error, or with
        `NotMeasurableError` as left out, and the others go on. A piece counts as failed while it is measured, in case
        its process is killed. Pieces that failed in an earlier run come last, the one that failed last at the end.

        Raises:
            RuntimeError: the device does not work any more, so that all further pieces would fail.
        """
        path = self.folder / f"{name}.csv"
        table = self._kept(path)
        missing = [piece for piece in pieces if piece not in set(table[PIECE])]
        before = {piece: place for place, piece in enumerate(self.earlier.failed, 1) if piece in missing}
        self.findings.failed |= {piece: self.earlier.failed[piece] for piece in before}
        for piece in sorted(missing, key=lambda piece: before.get(piece, 0)):
            self.findings.failed.pop(piece, None)
            self.fail(piece, INTERRUPTED)
            try:
                rows = pieces[piece]()
            except NotMeasurableError as reason:
                del self.findings.failed[piece]
                self.leave_out(piece, str(reason))
                continue
            except Exception as error:
                traceback.print_exc()
                self.fail(piece, sentence(error))
                self._require_device(error)
                continue
            rows.insert(0, PIECE, piece)
            rows[CODE] = self.code
            table = pd.concat([table, rows], ignore_index=True) if len(table) else rows
            atomic_file.write(path, table.to_csv(index=False).encode())
            del self.findings.failed[piece]
            self._save()
            print(f"measured {piece}", flush=True)

    def _kept(self, path: Path) -> pd.DataFrame:
        """Return the rows of the table at ``path`` that this code measured."""
        table = pd.read_csv(path, dtype={CODE: str}) if path.is_file() else pd.DataFrame({PIECE: [], CODE: []})
        return table[table[CODE].fillna("") == self.code] if CODE in table else table.iloc[:0]

    def _require_device(self, cause: Exception) -> None:
        """Raise unless the device computes, draws random numbers and is on its default stream.

        After a failed capture of a CUDA graph, the stream and the generator can be left in the state of the capture.
        """
        if self.device.type != "cuda":
            return
        try:
            torch.cuda.synchronize()
            torch.rand(1, device=self.device)
            if torch.cuda.current_stream() != torch.cuda.default_stream():
                raise RuntimeError("a failed capture has left its stream behind")
        except Exception as error:
            raise RuntimeError(f"the device does not work any more: {sentence(error)}") from cause

    def _save(self) -> None:
        atomic_file.write(self.folder / FINDINGS, json.dumps(vars(self.findings), indent=2).encode())


def sentence(error: Exception) -> str:
    """Return the type of an error and the first line of its message."""
    message = str(error).strip()
    return f"{type(error).__name__}: {message.splitlines()[0]}" if message else type(error).__name__
