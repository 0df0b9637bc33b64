"""Made-up results folders, as a suite would leave them, for tests of the report."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from bench.analysis import choose_learning_rates, impute_failures

METRIC = "normalised loss"
STEPS = 2000
SIGMAS = {
    2: (1, 100),
    3: (1, 10, 100),
    4: (1, 5, 20, 100),
    10: (48, 3, 54, 16, 9, 30, 52, 26, 47, 81),
    40: tuple(range(1, 41)),
}

# label: registered name, factor of the loss, factor of a step's time, power of 1/sigma that its weights go to
BALANCERS = {
    "equal": ("equal", 1.0, 1.0, 0),
    "static 1/sigma²": ("static", 0.4, 1.01, 2),
    "uncertainty": ("uncertainty", 1.0, 1.08, 1.5),
    "GradNorm": ("gradnorm", 0.7, 1.2, 1),
}
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
) -> Path:
    """Write what a suite leaves in ``results/<suite>``; the first seed of ``failing`` fails on the last problem."""
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
            "steps": STEPS,
            "batch_size": 100,
        }
    )
    phases = [("tuning", lr, seed) for lr in grid for seed in (101, 102)] + [("reported", 1e-3, seed) for seed in seeds]
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
            final = (
                0.2 * count * factor * hardness[seed] * (1 + abs(np.log(lr / 1e-3))) * np.exp(random.normal(0, 0.04))
            )
            for checkpoint, split in product(("last", "best"), ("validation", "test")):
                if phase == "reported" or split == "validation":
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
    (folder / "tables").mkdir(parents=True)
    for name, table in tables.items():
        table.to_parquet(folder / "tables" / f"{name}.parquet", index=False)
    entries = [f'[[problems]]\nname = "regression"\nlabel = {json.dumps(label)}' for label in problems["problem"]]
    entries += [
        f"[[balancers]]\nname = {json.dumps(name)}\nlabel = {json.dumps(label, ensure_ascii=False)}"
        for label, (name, *_) in balancers.items()
    ]
    suite = "\n\n".join(['description = "GradNorm and its baselines"\ndevice = "cpu"', *entries])
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


def trajectory(run, sigmas, power, random) -> list[dict]:
    """Weights on their way from 1 to what is proportional to ``sigma ** -power``."""
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
