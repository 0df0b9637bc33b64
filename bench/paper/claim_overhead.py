"""Test claim 6: how much longer training takes with GradNorm at the last shared layer."""

import itertools
import json
from typing import Any

import pandas as pd
import torch

import tasks
from balancers import LossBalancer
from bench.analysis import Estimate
from bench.cost.cases import networks
from bench.cost.step_clock import single_thread
from bench.cost.step_comparison import compare
from bench.cost.subject import MakeStep, Subject, of_problem
from bench.cost.timed_methods import AGAIN, EQUAL, LAYER, TimedMethod
from bench.peers.double_backward import DoubleBackwardGradNorm
from bench.peers.peer import GradNormSetting as Learned
from bench.run import code_hash, machine_facts
from bench.run.seeds import generator
from bench.run.spec import run_code

from . import claims_figures
from .claim import Claim, Finding, Outcome
from .claim_verdicts import below
from .experiments import Lab

MOST = 1.10
"""Ratio of step times below which the extra time counts as about 5 %."""
SEED, BATCHES = 1, 10
COLUMNS = ("model", "method", "ratio", "ratio_low", "ratio_high", "median_ms")
SCENES = "SegNet of scenes"


def _double(subject: Subject, num_tasks: int) -> LossBalancer:
    return DoubleBackwardGradNorm(num_tasks, subject.layer, Learned())


METHODS = (EQUAL, AGAIN, LAYER, TimedMethod("double backward", _double))
CLAIMED = {LAYER.name: "GradNorm"}
SHOWN = {AGAIN.name: "a second copy of equal weighting", "double backward": "GradNorm by the paper's double backward"}

MEASURED_BY = ("bench.cost.cases", "bench.cost.step_comparison", "bench.peers.double_backward")
"""The modules that steps are timed by; what they import belongs to them."""


def overhead(lab: Lab) -> Outcome:
    """Run the experiment of claim 6. Nothing else should be running."""
    code = code_hash.file_hashes(code_hash.files_of(MEASURED_BY, ("bench",)), code_hash.OURS)
    run = run_code("scenes", "gradnorm")
    depends_on = [run, code, machine_facts.processor(), torch.__version__, lab.scale.rounds]
    with lab.workforce.one_worker():
        table = pd.DataFrame(lab.once("step timing", depends_on, lambda: _measure(lab.scale.rounds)))
    findings = []
    for row in table.to_dict("records"):
        ratio = Estimate(row["ratio"], row["ratio_low"], row["ratio_high"])
        if row["method"] in CLAIMED:
            text = f"{row['model']}: step time with {CLAIMED[row['method']]} over that with equal weighting"
            findings.append(Finding("", text, ratio, "×", below(ratio, MOST)))
        elif row["method"] in SHOWN:
            text = f"{row['model']}: step time with {SHOWN[row['method']]} over that with equal weighting"
            findings.append(Finding("", text, ratio, "×"))
    caption = (
        f"Time of a training step, as a ratio to equal weighting: median over {lab.scale.rounds} steps, each next to "
        "one of equal weighting, with 95 % intervals; one CPU thread, fused Adam. Dashed line: the paper's 5 %."
    )
    return Outcome(findings, lambda: claims_figures.overhead(table), caption, table)


def _measure(rounds: int) -> list[dict[str, Any]]:
    """Return a row for each model and method."""
    rows: list[dict[str, Any]] = []
    with single_thread():
        for name, num_tasks, make_step in _cases():
            table = compare(make_step, METHODS, num_tasks, rounds).assign(model=name)
            rows += json.loads(table[list(COLUMNS)].to_json(orient="records"))
    return rows


def _cases() -> list[tuple[str, int, MakeStep]]:
    cpu = torch.device("cpu")
    problem = tasks.create("scenes")
    data = problem.data(generator(SEED, "data"), cpu)
    batches = problem.batches(data, generator(SEED, "batches"), problem.recipe.batch_size)
    scenes = of_problem(problem, list(itertools.islice(batches, BATCHES)), cpu)
    others = [(case.problem, case.num_tasks, case.make_step) for case in networks(cpu)]
    return [(SCENES, len(problem.tasks), scenes), *others]


OVERHEAD = Claim(
    6,
    "about 5 % more training time",
    "If W is the last shared layer, GradNorm adds about 5 % to the training time.",
    "footnote in section 3",
    f"The claim holds if a step takes less than {MOST - 1:.0%} longer than one with equal weighting on each of three "
    "models, by the 95 % interval of the median. For information, the table also has the paper's own way to the "
    "gradient of the weights: a second backward pass, through the norms.",
    overhead,
)
