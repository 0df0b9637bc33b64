"""Results on disk: one file a run, under the run's key.

A run's file is a Parquet table of its steps (``step``, ``task``, ``loss``, ``weight``), with everything else that is
known of the run as JSON in the file's metadata. It is written by the process that did the run as soon as it has ended,
so that whatever is interrupted later, a finished run stays finished. To read one executes no code.
"""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from . import atomic_file
from .atomic_file import BadFileError
from .spec import RunSpec, provenance
from .training import Dynamics, Evaluation, Result, Score

METADATA = b"lossbench"


def run_path(folder: Path, key: str) -> Path:
    """Where the result of the run with this key is, or will be; ``folder`` is the suite's results folder."""
    return folder / "runs" / f"{key}.parquet"


def save(path: Path, spec: RunSpec, result: Result) -> None:
    """Writes a result."""
    steps = len(result.losses)
    trajectory = {
        "step": np.repeat(np.arange(1, steps + 1), len(result.tasks)),
        "task": pa.array(result.tasks * steps, pa.string()),
        "loss": result.losses.ravel(),
        "weight": result.weights.ravel(),
    }
    facts = {
        "spec": asdict(spec),
        **provenance(spec),
        "tasks": result.tasks,
        "sizes": result.sizes,
        "status": result.status,
        "reason": result.reason,
        "scores": [asdict(score) for score in result.scores],
        "curves": [asdict(evaluation) for evaluation in result.curves],
        "dynamics": [asdict(dynamics) for dynamics in result.dynamics],
    }
    table = pa.table(trajectory).replace_schema_metadata({METADATA: json.dumps(facts)})
    content = pa.BufferOutputStream()
    pq.write_table(table, content, compression="zstd")
    atomic_file.write(path, content.getvalue().to_pybytes())


def load(path: Path) -> Result:
    """Reads a result.

    Raises:
        BadFileError: the file is not one that `save` wrote.
    """
    try:
        table = pq.read_table(path)
        facts = json.loads(table.schema.metadata[METADATA])
        tasks = tuple(facts["tasks"])
        shape = (table.num_rows // max(1, len(tasks)), len(tasks))
        return Result(
            tasks=tasks,
            sizes=facts["sizes"],
            status=facts["status"],
            reason=facts["reason"],
            scores=[Score(**score) for score in facts["scores"]],
            curves=[Evaluation(**evaluation) for evaluation in facts["curves"]],
            dynamics=[Dynamics(**dynamics) for dynamics in facts["dynamics"]],
            losses=table["loss"].to_numpy().reshape(shape),
            weights=table["weight"].to_numpy().reshape(shape),
        )
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise BadFileError(f"{path} holds no result of a run; remove it and run the suite again") from error
