"""Save and load the results of runs: one file per run, named by the run's key.

The file is a Parquet table of the run's steps (``step``, ``task``, ``loss``, ``weight``). Everything else about the
run is JSON in the file's metadata, beside a checksum of that JSON and of the table's numbers: Parquet itself reads many
damaged files without an error. Loading a file executes no code.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks import Recipe

from . import atomic_file
from .atomic_file import BadFileError
from .spec import PROVENANCE, Method, RunSpec, key_of, provenance
from .training import Dynamics, Evaluation, RunResult, Score

METADATA = b"lossbench"
CHECKSUM = b"checksum"


def run_path(folder: Path, key: str) -> Path:
    """Return the path of the result of the run with this key, in the suite's results ``folder``."""
    return folder / "runs" / f"{key}.parquet"


def save(path: Path, spec: RunSpec, result: RunResult) -> None:
    """Write the result of the run ``spec`` to ``path``."""
    atomic_file.write(path, encode(spec, result))


def load(path: Path) -> RunResult:
    """Read a result from the path that `run_path` returns for its key.

    Raises:
        BadFileError: `save` did not write this file, it has changed since, or it is that of another run.
    """
    try:
        return decode(path.read_bytes(), path.stem)
    except BadFileError:
        raise BadFileError(
            f"{path} holds no whole result of the run with this key; remove it and run the suite again"
        ) from None


def load_spec(path: Path) -> tuple[RunSpec, dict[str, str]]:
    """Return the specification of a stored run, and what its result depended on besides it: see `provenance`.

    Raises:
        BadFileError: see `load`; or another version stored the run, whose specification this one has no words for.
    """
    load(path)
    facts = json.loads(pq.read_schema(path).metadata[METADATA])
    try:
        recipe = facts["spec"]["recipe"]
        recipe = Recipe(**{**recipe, "betas": tuple(recipe["betas"])})
        spec = RunSpec(**{**facts["spec"], "recipe": recipe, "method": Method(**facts["spec"]["method"])})
    except (KeyError, TypeError, ValueError) as error:
        raise BadFileError(f"{path} is of another version of lossbench, and this one can't do the run again") from error
    return spec, {name: facts[name] for name in PROVENANCE}


def encode(spec: RunSpec, result: RunResult) -> bytes:
    """Return the content of a result's file."""
    facts = {
        "spec": asdict(spec),
        **provenance(spec),
        "tasks": result.tasks,
        "sizes": result.sizes,
        "status": result.status,
        "reason": result.reason,
        "limit": result.limit,
        "processor": result.processor,
        "scores": [asdict(score) for score in result.scores],
        "curves": [asdict(evaluation) for evaluation in result.curves],
        "dynamics": [asdict(dynamics) for dynamics in result.dynamics],
    }
    text = json.dumps(facts).encode()
    losses, weights = result.losses.ravel(), result.weights.ravel()
    trajectory = {**_labels(len(result.losses), result.tasks), "loss": losses, "weight": weights}
    metadata = {METADATA: text, CHECKSUM: _checksum(text, losses, weights)}
    content = pa.BufferOutputStream()
    pq.write_table(pa.table(trajectory).replace_schema_metadata(metadata), content, compression="zstd")
    whole: bytes = content.getvalue().to_pybytes()
    return whole


def decode(content: bytes, key: str) -> RunResult:
    """Return the result of the run with this ``key``, from the ``content`` of its file.

    Raises:
        BadFileError: `encode` did not make this content, it was damaged, or it is that of another run.
    """
    try:
        # `pq.read_table` leaves a thread behind, which aborts a process that ends soon after (apache/arrow#34314).
        table = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
        text = table.schema.metadata[METADATA]
        losses, weights = table["loss"].to_numpy(), table["weight"].to_numpy()
        if table.schema.metadata[CHECKSUM] != _checksum(text, losses, weights):
            raise BadFileError("the checksum differs")
        facts = json.loads(text)
        if key_of(facts["spec"], facts) != key:
            raise BadFileError("the key differs")
        tasks = tuple(facts["tasks"])
        shape = (table.num_rows // max(1, len(tasks)), len(tasks))
        for name, label in _labels(shape[0], tasks).items():
            if not table[name].combine_chunks().equals(label):
                raise BadFileError(f"the column {name} differs")
        return RunResult(
            tasks=tasks,
            sizes=facts["sizes"],
            status=facts["status"],
            reason=facts["reason"],
            limit=facts["limit"],
            processor=facts["processor"],
            scores=[Score(**score) for score in facts["scores"]],
            curves=[Evaluation(**evaluation) for evaluation in facts["curves"]],
            dynamics=[Dynamics(**dynamics) for dynamics in facts["dynamics"]],
            losses=losses.reshape(shape),
            weights=weights.reshape(shape),
        )
    except (pa.ArrowException, KeyError, TypeError, ValueError, OSError) as error:
        raise BadFileError("this is no whole result of the run with this key") from error


def _labels(steps: int, tasks: tuple[str, ...]) -> dict[str, pa.Array]:
    """Return the columns that say which step and task a row of the table is about."""
    return {
        "step": pa.array(np.repeat(np.arange(1, steps + 1), len(tasks))),
        "task": pa.array(tasks * steps, pa.string()),
    }


def _checksum(text: bytes, losses: np.ndarray, weights: np.ndarray) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in (text, losses.tobytes(), weights.tobytes()):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest().encode()
