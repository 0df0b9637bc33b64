"""Make results folders with invented numbers, in the form that a suite leaves, for tests of the report."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from bench.analysis import (
    SuiteTables,
    assign_roles,
    choose_learning_rates,
    derived_tables,
    impute_failures,
    suite_tables,
)

METRIC = "normalised loss"
STEPS = 2000
SIGMAS = {
    2: (1, 100),
    3: (1, 10, 100),
    4: (1, 5, 20, 100),
    10: (48, 3, 54, 16, 9, 30, 52, 26, 47, 81),
    40: tuple(range(1, 41)),
    5: (1, 2, 4, 8, 16),
}

# label: (registered name, factor of the loss, factor of a step's time, power of 1/sigma that the weights approach)
BALANCERS = {
    "equal": ("equal", 1.0, 1.0, 0),
    "static 1/sigma²": ("static", 0.4, 1.01, 2),
    "uncertainty": ("uncertainty", 1.0, 1.08, 1.5),
    "GradNorm": ("gradnorm", 0.7, 1.2, 1),
}
SECOND = "equal, under a second name"
CORE = {
    "equal": ("equal", 1.0, 1.0, 0),
    "static": ("static", 0.8, 1.01, 2),
    "uncertainty": ("uncertainty", 0.82, 1.05, 1.5),
    "dwa": ("dwa", 1.01, 1.01, 0.1),
    "famo": ("famo", 0.9, 1.1, 0.8),
    "gradnorm": ("gradnorm", 0.86, 1.2, 1),
    "pcgrad": ("pcgrad", 1.1, 1.9, 0.1),
    "nash-mtl": ("nash-mtl", 0.97, 2.4, 0.9),
    "random": ("random", 1.06, 1.02, 0.1),
    SECOND: ("static", 1.0, 1.0, 0),
}
OPTIONS = {"static": {"weights": "problem:first"}, SECOND: {"weights": "problem:ones"}}
HOSTILE = ('<script>alert("x")</script>', 'it\'s "quoted" & $\\frac{$ [red]', "x" * 200)


def build(
    folder: Path,
    num_tasks=(2, 10),
    balancers=BALANCERS,
    problem_label="regression, {} tasks",
    grid=(3e-4, 1e-3, 3e-3),
    seeds=(1, 2, 3, 4, 5),
    timed=True,
    cuda=False,
    failing="uncertainty",
    options=None,
    repeated=(),
    alone=(),
    noise=0.04,
) -> Path:
    """Write the results folder of a suite, and return it.

    Args:
        folder: the folder to write; its name is that of the suite.
        num_tasks: number of tasks of each problem.
        balancers: facts of each method by its label, as in `BALANCERS`.
        problem_label: pattern of the problems' labels.
        grid: learning rates that were tried; empty if nothing was tuned.
        seeds: seeds of the reported runs.
        timed: True if the cost of steps was measured.
        cuda: True if it was measured on CUDA too.
        failing: label of the method that fails on the last problem with the first seed.
        options: options of the methods by label.
        repeated: seeds of the repeated runs.
        alone: factors of the tasks' metrics in single-task training. If there are any, the last problem is a control,
            on which methods differ little.
        noise: standard deviation of the logarithm of the scores.
    """
    random = np.random.default_rng(0)
    problems = pd.DataFrame(
        {
            "problem": [problem_label.format(count) for count in num_tasks],
            "name": "regression",
            "summary": "The GradNorm paper's toy family.",
            "num_tasks": num_tasks,
            "tasks": ", ".join(f"sigma {sigma:g}" for sigma in SIGMAS[2]),
            "samples": "train 10,000, test 2,000",
            "primary": METRIC,
            "higher_is_better": False,
            "unit": "",
            "description": "mean of the losses, each over its first",
            "steps": STEPS,
            "batch_size": 100,
            "control": [bool(alone) and place == len(num_tasks) - 1 for place in range(len(num_tasks))],
        }
    )
    entries = [
        {"name": name, "label": label} | ({"options": options[label]} if label in (options or {}) else {})
        for label, (name, *_) in balancers.items()
    ]
    roles = assign_roles(folder.name, entries)
    phases = [("tuning", lr, seed) for lr in grid for seed in (101, 102)] + [("reported", 1e-3, seed) for seed in seeds]
    phases += [("repeated", 1e-3, seed) for seed in repeated]
    of_equal: dict[tuple, float] = {}
    hardness = {seed: np.exp(random.normal(0, 0.2)) for _, _, seed in phases}
    rows: dict[str, list[dict]] = {name: [] for name in ("runs", "scores", "curves", "trajectory", "dynamics")}
    for (problem, count), label in product(zip(problems["problem"], num_tasks, strict=True), balancers):
        _, factor, _, power = balancers[label]
        for phase, lr, seed in phases:
            run = {"problem": problem, "balancer": label, "phase": phase, "lr": lr, "seed": seed}
            run = {"key": "/".join(map(str, run.values())), **run}
            failed = (label, problem, seed) == (failing, problems["problem"].iloc[-1], seeds[0])
            reason = "the loss of task sigma 3 is not finite at step 941 [nan, 1.0]"
            rows["runs"].append(
                {**run, "status": "failed" if failed else "ok", "reason": reason * failed, "steps": STEPS}
            )
            if problem in set(problems.loc[problems["control"], "problem"]):
                factor = factor**0.02
            final = (
                0.2 * count * factor * hardness[seed] * (1 + abs(np.log(lr / 1e-3))) * np.exp(random.normal(0, noise))
            )
            place = (problem, phase, lr, seed)
            if label == roles.equal:
                of_equal[place] = final
            if label == roles.second:
                final = of_equal[place]
            for checkpoint, split in product(("last", "best"), ("validation", "test")):
                if phase != "tuning" or split == "validation":
                    about = {"checkpoint": checkpoint, "split": split, "metric": METRIC, "task": None, "imputed": False}
                    rows["scores"].append({**run, **about, "value": np.nan if failed else final})
            for step in np.linspace(0, STEPS, 21).round():
                value = final + (count - final) * np.exp(-step / 300 + random.normal(0, 0.05))
                about = {"step": step, "metric": METRIC, "task": None}
                rows["curves"].append({**run, **about, "value": np.nan if failed and step > 941 else value})
            if phase == "reported":
                rows["trajectory"] += trajectory(run, np.array(SIGMAS[count], dtype=float), power, random)
                for step in np.linspace(1, STEPS, 50).round():
                    norm = 0.1 * factor * np.exp(-step / 900)
                    rows["dynamics"].append(
                        {**run, "step": step, "weight_sum": float(count), "trunk_update_norm": norm}
                    )
    metrics = [{"problem": problem, "metric": METRIC, "task": None} for problem in problems["problem"]]
    for task, factor in enumerate(alone):
        problem, count = problems["problem"].iloc[-1], num_tasks[-1]
        metrics.append({"problem": problem, "metric": f"loss of {task}", "task": f"task {task}"})
        for seed in seeds:
            about = {"key": f"alone/{task}/{seed}", "problem": problem, "balancer": f"task {task}", "seed": seed}
            rows["runs"].append(
                {**about, "phase": "baseline", "lr": 1e-3, "status": "ok", "reason": "", "steps": STEPS}
            )
            value = 0.2 * count * factor * hardness[seed] * np.exp(random.normal(0, noise))
            for metric, of in ((f"loss of {task}", f"task {task}"), (METRIC, None)):
                about |= {"phase": "baseline", "lr": 1e-3, "checkpoint": "last", "split": "test", "imputed": False}
                rows["scores"].append({**about, "metric": metric, "task": of, "value": value})
    tables = {name: pd.DataFrame(content) for name, content in rows.items()} | {"problems": problems}
    constants = pd.DataFrame(
        [
            {"problem": problem, "seed": seed, "split": split, "value": 1.3 * count}
            for problem, count in zip(problems["problem"], num_tasks, strict=True)
            for seed, split in product(hardness, ("validation", "test"))
        ]
    )
    tables["scores"] = impute_failures(tables["scores"], tables["runs"], problems, constants)
    if grid:
        tables["selection"] = choose_learning_rates(tables["scores"], problems)
    if timed:
        devices = ["cpu", "cuda"] if cuda else ["cpu"]
        tables["costs"] = costs(problems, balancers, devices)
        tables["micro"] = micro(devices)
    tables["metrics"] = pd.DataFrame(metrics).assign(unit="", higher_is_better=False)
    base = SuiteTables(**{name: table for name, table in tables.items() if name in suite_tables.COLUMNS})
    tables |= derived_tables(base, roles)
    del tables["leaderboard"]  # made when the folder is read, so that it follows the tables that a test changes
    if repeated:
        tables["delta_m"] = changes(problems, balancers, seeds, random)
    (folder / "tables").mkdir(parents=True)
    for name, table in tables.items():
        table.to_parquet(folder / "tables" / f"{name}.parquet", index=False)
    texts = [f'[[problems]]\nname = "regression"\nlabel = {json.dumps(label)}' for label in problems["problem"]]
    for entry in entries:
        lines = [
            "[[balancers]]",
            *(f"{key} = {json.dumps(entry[key], ensure_ascii=False)}" for key in ("name", "label")),
        ]
        lines += [f"options = {{ {key} = {json.dumps(value)} }}" for key, value in entry.get("options", {}).items()]
        texts.append("\n".join(lines))
    suite = "\n\n".join(['description = "GradNorm and its baselines"\ndevice = "cpu"', *texts])
    (folder / "suite.toml").write_text(suite, encoding="utf-8")
    environment = {
        "commit": "0f3c2a9d1b",
        "versions": {"torch": "2.13.0"},
        "processor": "a processor",
        "gpu": None,
        "protocol": "ab12" * 16,
    }
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    return folder


def core(folder: Path, seeds=range(11, 21), repeated=range(21, 31), **changes) -> Path:
    """Write the results folder of the suite ``core``: eight methods and two controls, five problems and a control."""
    defaults = {"options": OPTIONS, "alone": (1.2, 0.8), "problem_label": "problem of {}", "noise": 0.08}
    defaults |= {"num_tasks": (2, 3, 4, 10, 40, 5), "balancers": CORE}
    return build(folder, seeds=tuple(seeds), repeated=tuple(repeated), **(defaults | changes))


def changes(problems, balancers, seeds, random) -> pd.DataFrame:
    """Return invented relative changes to single-task training, in percent."""
    return pd.DataFrame(
        [
            {
                "problem": problem,
                "balancer": label,
                "seed": seed,
                "delta_m": 3 * place - 4 + 20 * (1 - factor) + random.normal(0, 2),
            }
            for place, problem in enumerate(problems["problem"])
            for label, (_, factor, *_) in balancers.items()
            for seed in seeds
        ]
    )


def trajectory(run, sigmas, power, random) -> list[dict]:
    """Return rows of weights that move from 1 towards values proportional to ``sigma ** -power``."""
    target = np.log(sigmas**-power / np.mean(sigmas**-power))
    noise = random.normal(0, 0.05 * power, sigmas.size)
    return [
        {**run, "step": step, "task": f"sigma {sigma:g}", "loss": sigma**2 * np.exp(-step / 500), "weight": weight}
        for step in np.linspace(1, STEPS, 100).round()
        for sigma, weight in zip(sigmas, np.exp((target + noise) * (1 - np.exp(-step / 400))), strict=True)
    ]


def costs(problems, balancers, devices) -> pd.DataFrame:
    parts = {"forward": 0.3, "backward": 0.55, "optimizer": 0.15, "step": 1.0}
    rows = [
        {
            **{"problem": problem, "balancer": label, "device": device, "threads": 1, "part": part},
            **{"median_ms": share * slow, "q25_ms": 0.98 * share * slow, "q75_ms": 1.03 * share * slow},
            **{"ratio_to_equal": slow, "ratio_low": 0.99 * slow, "ratio_high": 1.01 * slow},
            **dict.fromkeys(("flops", "operator_calls", "peak_bytes")),
            **({"flops": 41_234_567, "operator_calls": 312} if part == "step" else {}),
        }
        for problem in problems["problem"]
        for label, (_, _, slow, _) in balancers.items()
        for device in devices
        for part, share in parts.items()
    ]
    return pd.DataFrame(rows).astype(dict.fromkeys(("flops", "operator_calls", "peak_bytes"), "Int64"))


def micro(devices) -> pd.DataFrame:
    table = pd.DataFrame(
        [
            {"num_tasks": count, "what": what, "cpu_ms": time * (1 + count / 20)}
            for what, time in (("gradient-norm step", 0.1), ("whole step", 1.1))
            for count in (2, 10, 40)
        ]
    )
    return table.assign(cuda_ms=table["cpu_ms"] / 4, ratio=4.0) if "cuda" in devices else table
