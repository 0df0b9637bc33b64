"""Which runs a suite consists of. The order is that of the suite: problems, then balancers, learning rates, seeds.

In a suite that searches, a learning rate stands for a trial: the method's options go with it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd
import torch

from bench.run.spec import Method, Phase, RunSpec
from bench.style.numbers import rounded

from .suite_file import BalancerEntry, ProblemEntry, Suite

Grids = Mapping[str, Sequence[float]]
"""The learning rates to try, by the problem's label."""


@dataclass(frozen=True)
class Planned:
    """A run and the suite's labels for it. Runs of equal specification have equal keys, and one result.

    Of a ``pictured`` one, what its model makes of the test split is drawn.
    """

    problem: str
    balancer: str
    spec: RunSpec
    pictured: bool = False

    @cached_property
    def key(self) -> str:
        """The run's key."""
        return self.spec.key


def grids(suite: Suite) -> Grids:
    """The suite's grid, for each problem; without one, no learning rates."""
    return {entry.label: suite.learning_rates for entry in suite.problems}


def tuning(suite: Suite, grids: Grids) -> list[Planned]:
    """The runs that learning rates are chosen by."""
    return [
        _planned(suite, problem, balancer, "tuning", lr, seed)
        for problem in suite.problems
        for balancer in suite.balancers
        for lr in grids[problem.label]
        for seed in suite.tuning_seeds
    ]


def reported(suite: Suite, selection: pd.DataFrame | None) -> list[Planned]:
    """The runs that are reported, at the chosen learning rates; without a selection, at the problems' own."""
    rates: dict[tuple[str, str], float] = {}
    if selection is not None:
        chosen = selection[selection["chosen"]]
        pairs = zip(chosen["problem"], chosen["balancer"], strict=True)
        rates = dict(zip(pairs, chosen["lr"].tolist(), strict=True))
    return reported_at(suite, lambda problem, balancer: rates.get((problem, balancer)))


def reported_at(suite: Suite, rate: Callable[[str, str], float | None]) -> list[Planned]:
    """The runs that are reported, at the learning rate of a problem's and a balancer's label; None is the problem's."""
    planned = [
        _planned(suite, problem, balancer, "reported", rate(problem.label, balancer.label) or problem.recipe.lr, seed)
        for problem in suite.problems
        for balancer in suite.balancers
        for seed in suite.reported_seeds
    ]
    pictured = {run.problem: run for run in reversed(planned) if run.spec.method.name == "equal"}
    return [replace(run, pictured=run is pictured.get(run.problem)) for run in planned]


def repeated(suite: Suite, reported: Sequence[Planned]) -> list[Planned]:
    """The ``reported`` runs on the suite's other seeds."""
    cells = {(run.problem, run.balancer): run for run in reported}
    return [
        Planned(run.problem, run.balancer, replace(run.spec, phase="repeated", seed=seed))
        for run in cells.values()
        for seed in suite.repeated_seeds
    ]


def baselines(suite: Suite, reported: Sequence[Planned]) -> list[Planned]:
    """The models trained on one task's loss alone, where a problem has that baseline, labelled by the task.

    Each has the learning rate of a ``reported`` run of equal weighting; without those, the problem's own.
    """
    if not suite.baselines:
        return []
    rates = {run.problem: run.spec.lr for run in reported if run.spec.method.name == "equal"}
    planned = []
    for problem in suite.problems:
        names = problem.problem.tasks if "single-task" in problem.problem.baselines else ()
        for i, task in enumerate(names):
            alone = Method("static", None, {"weights": [float(i == j) for j in range(len(names))]})
            entry = BalancerEntry(task, "static", {problem.label: alone})
            lr = rates.get(problem.label, problem.recipe.lr)
            planned += [_planned(suite, problem, entry, "baseline", lr, seed) for seed in suite.reported_seeds]
    return planned


def front(suite: Suite, rates: Mapping[str, Sequence[float]]) -> list[Planned]:
    """The static weights of the trials with these learning rates, by problem, on the reported seeds."""
    return [
        replace(_planned(suite, problem, balancer, "front", lr, seed), balancer=trial_label(suite, balancer.label, lr))
        for balancer in suite.balancers
        if balancer.searches_weights
        for problem in suite.problems
        for lr in rates.get(problem.label, ())
        for seed in suite.reported_seeds
    ]


def trial_label(suite: Suite, balancer: str, lr: float) -> str:
    """What a trial's method is called where it stands for itself: ``static, trial 3``."""
    return f"{balancer}, trial {trial(suite, lr)}"


def trial(suite: Suite, lr: float) -> int:
    """The number of the trial of a search with this learning rate, from 1."""
    return 1 + suite.learning_rates.index(lr)


def costs(suite: Suite) -> list[Planned]:
    """The steps that are timed: one a problem, a balancer and a device that this machine has."""
    devices = [device for device in suite.cost_devices if device == "cpu" or torch.cuda.is_available()]
    return [
        _planned(replace(suite, device=device), problem, balancer, "cost", problem.recipe.lr, suite.reported_seeds[0])
        for device in devices
        for problem in suite.problems
        for balancer in suite.balancers
    ]


def extended(grids: Grids, selection: pd.DataFrame) -> Grids:
    """The grids with one more value beyond each edge that is some method's best, by the ratio of the two next to it.

    A method that scores the same at all rates, such as one that fails at all of them, has no best.
    """
    different = selection.groupby(["problem", "balancer"])["mean_validation_score"].transform("nunique") > 1
    best = selection[selection["chosen"] & different].groupby("problem")["lr"].agg(set).to_dict()
    return {problem: grown(grid, best.get(problem, set())) for problem, grid in grids.items()}


def widened(grid: Sequence[float]) -> Sequence[float]:
    """The grid with the value beyond each edge that it may be extended by."""
    return grown(grid, {grid[0], grid[-1]})


def grown(grid: Sequence[float], best: set[float]) -> Sequence[float]:
    """The grid with one more value beyond each edge that is among the ``best``."""
    below = [rounded(grid[0] ** 2 / grid[1], 3)] if grid[0] in best else []
    above = [rounded(grid[-1] ** 2 / grid[-2], 3)] if grid[-1] in best else []
    return (*below, *grid, *above)


def _planned(
    suite: Suite, problem: ProblemEntry, balancer: BalancerEntry, phase: Phase, lr: float, seed: int
) -> Planned:
    spec = RunSpec(
        problem=problem.name,
        problem_options=problem.options,
        recipe=replace(problem.recipe, lr=lr),
        method=balancer.method(problem.label, lr),
        seed=seed,
        phase=phase,
        device=suite.device,
        evaluations=suite.evaluations,
    )
    return Planned(problem.label, balancer.label, spec)
