"""Save and load the results of runs: one file per run, named by the run's key.

The file is a Parquet table of the run's steps (``step``, ``task``, ``loss``, ``weight``). Everything else about the
run is JSON in the file's metadata. The process that does the run writes the file as soon as the run has ended, so that
a later interruption loses no finished run. Loading a file executes no code.
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
from .training import Dynamics, Evaluation, RunResult, Score

METADATA = b"lossbench"


def run_path(folder: Path, key: str) -> Path:
    """Return the path of the result of the run with this key, in the suite's results ``folder``."""
    return folder / "runs" / f"{key}.parquet"


def save(path: Path, spec: RunSpec, result: RunResult) -> None:
    """Write the result of the run ``spec`` to ``path``."""
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


def load(path: Path) -> RunResult:
    """Read a result.

    Raises:
        BadFileError: `save` did not write this file.
    """
    try:
        table = pq.read_table(path)
        facts = json.loads(table.schema.metadata[METADATA])
        tasks = tuple(facts["tasks"])
        shape = (table.num_rows // max(1, len(tasks)), len(tasks))
        return RunResult(
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
