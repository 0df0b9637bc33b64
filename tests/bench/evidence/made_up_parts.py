"""Make up what is kept of the parts of the evidence, with the rows and problems of its suites, for tests."""

import json
import zlib
from collections.abc import Collection, Mapping
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from bench.analysis import choose_learning_rates
from bench.evidence.evidence_parts import TABLES, part_name
from bench.run import suite_text
from bench.suite import suite_file

METRIC = "relative error"
RATES = (3e-4, 1e-3, 3e-3)
SCALED = {"static": 0.93, "one over the initial loss": 0.9, "one over the initial gradient norm": 0.92}
FACTORS = SCALED | {
    "static, searched": 0.91,
    "uncertainty": 0.8,
    "dwa": 1.0,
    "famo": 0.86,
    "gradnorm": 0.95,
    "pcgrad": 1.02,
    "nash-mtl": 0.9,
    "nash-mtl, features": 0.88,
    "pcgrad, features": 1.01,
    "mgda, parameters": 1.3,
    "mgda, features": 1.2,
    "equal, weight decay 0.01": 0.99,
    "equal, 0.5 x steps": 1.16,
    "equal, 2 x steps": 0.86,
    "equal, 4 x steps": 0.76,
    "random": 1.05,
}
"""Score of each row over that of equal weighting on a problem that is not a control."""
COSTS = {"uncertainty": 1.05, "nash-mtl": 2.4, "pcgrad": 1.9, "mgda, parameters": 2.1, "gradnorm": 1.2}
CONTROLS = ("same-tasks", "apart")
LEFT = {"mgda, parameters": 1.3, "random": 1.05}
"""Rows that differ from equal weighting on the controls, beside those of other lengths."""
LONG_MEMORY = {"gradnorm": 1.4, "famo": 0.8}
"""Factors by which table B differs."""


def keep(
    kept: Path,
    tables: Collection[str] = ("A", "B", "reserved"),
    problems: Collection[str] | None = None,
    factors: Mapping[tuple[str, str], float] | None = None,
    seeds: int = 10,
    noise: float = 0.03,
    timed: bool = True,
    num_metrics: int = 0,
    forkless: Collection[str] = ("helmholtz", "burgers", "reaction-diffusion", "poisson-l-shape"),
) -> Path:
    """Write the parts below ``kept``, and return it.

    Args:
        kept: The folder to write.
        tables: The tables.
        problems: The labels of the problems; None for all.
        factors: Scores over those of equal weighting by problem and row, in place of `FACTORS`, in all tables.
        seeds: Number of seeds of each set.
        noise: Standard deviation of the logarithm of the scores.
        timed: Whether the steps' costs were measured.
        num_metrics: Number of metrics of single tasks on each problem.
        forkless: The problems on which rows at the features are left out.
    """
    for table in tables:
        written = suite_text.read(suite_file.find(TABLES[table])).values
        for entry in written["problems"]:
            label = entry.get("label", entry["name"])
            if problems is None or label in problems:
                rows = [row for row in written["balancers"] if not (row.get("needs_fork") and label in forkless)]
                _part(
                    kept / part_name(table, label), table, label, rows, factors or {}, seeds, noise, timed, num_metrics
                )
    return kept


def _part(folder, table, problem, entries, factors, seeds, noise, timed, num_metrics) -> None:
    random = np.random.default_rng(zlib.crc32(f"{table}/{problem}".encode()))
    shared = np.random.default_rng(zlib.crc32(problem.encode()))
    labels = [entry.get("label", entry["name"]) for entry in entries]
    phases = [("tuning", lr, seed) for lr in RATES for seed in (101, 102)]
    phases += [("reported", 1e-3, 11 + place) for place in range(seeds)]
    phases += [("repeated", 1e-3, 1011 + place) for place in range(seeds)]
    hardness = {seed: np.exp(shared.normal(0, 0.2)) for _, _, seed in phases}
    runs, scores, of_equal = [], [], {}
    for label, (phase, lr, seed) in product(labels, phases):
        run = {"problem": problem, "balancer": label, "phase": phase, "lr": lr, "seed": seed}
        steps = 2000 * next((entry.get("times_steps", 1) for entry in entries if entry.get("label") == label), 1)
        runs.append({"key": "/".join(map(str, run.values())), **run, "status": "ok", "reason": "", "steps": steps})
        factor = factors.get((problem, label), _factor(problem, label))
        factor *= LONG_MEMORY.get(label, 1.0) if table == "B" else 1.0
        on_control = noise / 10 if problem in CONTROLS else noise
        value = 0.2 * factor * hardness[seed] * (1 + abs(np.log(lr / 1e-3))) * np.exp(random.normal(0, on_control))
        of_equal.setdefault((phase, lr, seed), value)
        if label == "equal, under a second name":
            value = of_equal[phase, lr, seed]
        splits = ["validation"] if phase == "tuning" else ["validation", "test", "train"]
        for checkpoint, split in product(("last", "best"), splits):
            if checkpoint == "best" and (split == "train" or phase != "reported"):
                continue
            about = {"checkpoint": checkpoint, "split": split, "metric": METRIC, "task": None, "imputed": False}
            scores.append({**run, **about, "value": value * (0.9 if split == "train" else 1.0)})
            if (checkpoint, split) == ("last", "test"):
                names = [f"error of task {k}" for k in range(num_metrics)]
                scores += [{**run, **about, "metric": name, "task": name[9:], "value": value} for name in names]
    about = {"problem": problem, "name": problem, "summary": "A made-up problem.", "num_tasks": 3, "tasks": "a, b, c"}
    about |= {"samples": "train 10,000", "primary": METRIC, "higher_is_better": False, "unit": "", "steps": 2000}
    facts = pd.DataFrame([{**about, "batch_size": 100, "control": problem in CONTROLS}])
    frame = pd.DataFrame(scores)
    selection = choose_learning_rates(frame.assign(key=""), facts).assign(origin="grid")
    tables = {"problems": facts, "runs": pd.DataFrame(runs), "scores": frame, "selection": selection}
    of_tasks = [(f"error of task {k}", f"task {k}") for k in range(num_metrics)]
    tables["metrics"] = pd.DataFrame(
        [
            {"problem": problem, "metric": metric, "task": task, "unit": "", "higher_is_better": False}
            for metric, task in [(METRIC, None), *of_tasks]
        ]
    )
    tables["retuning"] = selection
    if timed and table != "B":
        tables["costs"] = pd.DataFrame(_costs(problem, labels))
    folder.mkdir(parents=True)
    for name, content in tables.items():
        content.to_parquet(folder / f"{name}.parquet", index=False)
    environment = {"commit": "0f3c2a9d1b", "processor": "a processor", "versions": {"torch": "2.13.0"}}
    (folder / "environment.json").write_text(json.dumps(environment))


def _factor(problem: str, label: str) -> float:
    lengths = label.startswith("equal, ") and label.endswith("steps")
    if problem in CONTROLS and not lengths:
        return LEFT.get(label, 1.0)
    return FACTORS.get(label, 1.0)


def _costs(problem, labels) -> list[dict]:
    parts = {"forward": 0.3, "backward": 0.55, "optimizer": 0.15, "step": 1.0}
    return [
        {
            **{"problem": problem, "balancer": label, "device": "cpu", "threads": 1, "part": part},
            **{"median_ms": share * slow, "q25_ms": 0.98 * share * slow, "q75_ms": 1.03 * share * slow},
            **{"ratio_to_equal": slow, "ratio_low": 0.99 * slow, "ratio_high": 1.01 * slow},
            **{"flops": 41_234_567, "operator_calls": 312, "peak_bytes": None},
        }
        for label in labels
        for slow in [COSTS.get(label, 1.0)]
        for part, share in parts.items()
    ]
