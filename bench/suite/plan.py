"""List the runs of a suite, in the suite's order: problems, then balancers, learning rates and seeds.

In a suite that searches, a learning rate stands for a trial: it brings the trial's options of the method with it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd
import torch

from bench.analysis import has_best_rate
from bench.run.spec import Method, Phase, RunSpec
from bench.style.numbers import rounded

from .suite_entries import BalancerEntry, ProblemEntry, Suite

Grids = Mapping[str, Sequence[float]]
"""The learning rates to try, by the problem's label."""
Cell = tuple[str, str]
"""The labels of a problem and a balancer."""
OwnRates = Mapping[Cell, Sequence[float]]
"""Learning rates that a balancer tries on a problem, besides those of the grid or in place of them."""


@dataclass(frozen=True)
class Planned:
    """A run, and the suite's labels of its problem and balancer.

    Runs with equal specifications have equal keys, and share one result. After a run that is ``pictured``, its model's
    output on the test split is drawn.
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
    """Return the learning rates to try first on each problem; none if the suite has neither a grid nor a search."""
    return {entry.label: suite.learning_rates for entry in suite.problems}


def tuning(suite: Suite, grids: Grids, own: OwnRates | None = None) -> list[Planned]:
    """Return the runs by which learning rates are chosen.

    Args:
        grids: The rates that every balancer tries, apart from one with trials or with rates around another's.
        own: The rates that a balancer tries besides.
    """
    own = own or {}
    return [
        _planned(suite, problem, balancer, "tuning", lr, seed)
        for problem in suite.problems
        for balancer in suite.balancers_on(problem.label)
        for lr in dict.fromkeys(
            [*_common(suite, balancer, problem, grids), *own.get((problem.label, balancer.label), ())]
        )
        for seed in suite.tuning_seeds
    ]


def _common(suite: Suite, balancer: BalancerEntry, problem: ProblemEntry, grids: Grids) -> Sequence[float]:
    """Return the learning rates that ``balancer`` tries without regard to any result, or only to the grid's growth."""
    if balancer.rates_around:
        return ()
    return grids[problem.label] if suite.searches or not balancer.trials else balancer.trial_rates(problem.label)


def reported(suite: Suite, selection: pd.DataFrame | None) -> list[Planned]:
    """Return the runs that are reported.

    Args:
        selection: The table with the chosen learning rates. If None, the runs have their problem's own.
    """
    rates = chosen_rates(selection)
    return reported_at(suite, lambda problem, balancer: rates.get((problem, balancer)))


def reported_at(suite: Suite, rate: Callable[[str, str], float | None]) -> list[Planned]:
    """Return the runs that are reported, at given learning rates.

    Args:
        rate: Returns the learning rate for the labels of a problem and a balancer, or None for the problem's own.
    """
    planned = [
        _planned(suite, problem, balancer, "reported", rate(problem.label, balancer.label) or problem.recipe.lr, seed)
        for problem in suite.problems
        for balancer in suite.balancers_on(problem.label)
        for seed in suite.reported_seeds
    ]
    equal = suite.written.roles(suite.name).equal
    pictured = {run.problem: run for run in reversed(planned) if run.balancer == equal}
    return [replace(run, pictured=run is pictured.get(run.problem)) for run in planned]


def repeated(suite: Suite, reported: Sequence[Planned], selection: pd.DataFrame | None = None) -> list[Planned]:
    """Return the ``reported`` runs on the suite's repeated seeds.

    Args:
        selection: The table with the learning rates that the `retuning` runs choose. If None, the runs have those of
            the reported runs.
    """
    cells = {(run.problem, run.balancer): run for run in reported}
    rates = chosen_rates(selection)
    return [
        Planned(run.problem, run.balancer, replace(run.spec, phase="repeated", seed=seed, recipe=recipe))
        for cell, run in cells.items()
        for recipe in [replace(run.spec.recipe, lr=rates.get(cell, run.spec.lr))]
        for seed in suite.repeated_seeds
    ]


def chosen_rates(selection: pd.DataFrame | None) -> dict[Cell, float]:
    """Return the learning rate that a table of that name chooses for each cell; none without a table."""
    if selection is None:
        return {}
    chosen = selection[selection["chosen"]]
    return dict(zip(zip(chosen["problem"], chosen["balancer"], strict=True), chosen["lr"].tolist(), strict=True))


def retuning(suite: Suite, reported: Sequence[Planned]) -> list[Planned]:
    """Return the runs by which the repeated runs' learning rates are chosen; none if the suite has no such seeds.

    Each balancer tries its reported learning rate and both neighbours.
    """
    cells = {(run.problem, run.balancer): run for run in reported}
    return [
        Planned(
            run.problem,
            run.balancer,
            replace(run.spec, phase="tuning", seed=seed, recipe=replace(run.spec.recipe, lr=lr)),
        )
        for run in cells.values()
        for lr in around(run.spec.lr, suite.finer)
        for seed in suite.retuning_seeds
    ]


def around(lr: float, factor: float | None) -> tuple[float, ...]:
    """Return a learning rate and both of its neighbours, at a ``factor``; the rate alone if there is none."""
    return (lr,) if factor is None else (rounded(lr / factor, 3), lr, rounded(lr * factor, 3))


def baselines(suite: Suite, reported: Sequence[Planned]) -> list[Planned]:
    """Return the runs that train a model on one task's loss alone; each is labelled by its task.

    Only problems that declare the baseline "single-task" have such runs. Their learning rate is that of the
    ``reported`` runs of equal weighting; if there are none, the problem's own.
    """
    if not suite.baselines:
        return []
    equal = suite.written.roles(suite.name).equal
    rates = {run.problem: run.spec.lr for run in reported if run.balancer == equal}
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
    """Return the runs of chosen trials of searched static weights, on the reported seeds.

    Args:
        rates: The learning rates of these trials, by the problem's label.
    """
    return [
        replace(_planned(suite, problem, balancer, "front", lr, seed), balancer=trial_label(suite, balancer.label, lr))
        for balancer in suite.balancers
        if balancer.searches_weights
        for problem in suite.problems
        for lr in rates.get(problem.label, ())
        for seed in suite.reported_seeds
    ]


def trial_label(suite: Suite, balancer: str, lr: float) -> str:
    """Return the label of a single trial of a method, such as ``static, trial 3``."""
    return f"{balancer}, trial {trial(suite, lr)}"


def trial(suite: Suite, lr: float) -> int:
    """Return the number, from 1, of the trial with this learning rate."""
    return 1 + suite.learning_rates.index(lr)


def costs(suite: Suite) -> list[Planned]:
    """Return the steps that are timed: one per problem, balancer and device of the suite that this machine has."""
    devices = [device for device in suite.cost_devices if device == "cpu" or torch.cuda.is_available()]
    return [
        _planned(replace(suite, device=device), problem, balancer, "cost", problem.recipe.lr, suite.reported_seeds[0])
        for device in devices
        for problem in suite.problems
        for balancer in suite.balancers_on(problem.label)
    ]


def extended(grids: Grids, selection: pd.DataFrame, alone: Iterable[str] = ()) -> Grids:
    """Return the grids, each with one more value beyond every edge that is some method's best learning rate.

    The new value continues the ratio of the two values next to it. A method that scores the same at all rates, such as
    one that fails at all of them, has no best.

    Args:
        alone: Labels of balancers that don't try the grid.
    """
    selection = selection[~selection["balancer"].isin(list(alone))]
    best = selection[selection["chosen"] & has_best_rate(selection)].groupby("problem")["lr"].agg(set).to_dict()
    return {problem: grown(grid, best.get(problem, set())) for problem, grid in grids.items()}


def possible_rates(suite: Suite) -> Sequence[float]:
    """Return every learning rate that the suite can lead to, apart from those of trials in a suite with a grid."""
    rates: Sequence[float] = suite.learning_rates
    if suite.searches:
        return rates
    for _ in range(suite.growths):
        rates = widened(rates)
    for _ in range(2 if suite.finer else 0):  # around the best of the grid, and around the best of these
        rates = sorted({other for lr in rates for other in around(lr, suite.finer)})
    return rates


def widened(grid: Sequence[float]) -> Sequence[float]:
    """Return the grid with one more value beyond both edges, that is, as large as it may become."""
    return grown(grid, {grid[0], grid[-1]})


def grown(grid: Sequence[float], best: set[float]) -> Sequence[float]:
    """Return the grid with one more value beyond each edge that is among the ``best``."""
    below = [rounded(grid[0] ** 2 / grid[1], 3)] if grid[0] in best else []
    above = [rounded(grid[-1] ** 2 / grid[-2], 3)] if grid[-1] in best else []
    return (*below, *grid, *above)


def _planned(
    suite: Suite, problem: ProblemEntry, balancer: BalancerEntry, phase: Phase, lr: float, seed: int
) -> Planned:
    spec = RunSpec(
        problem=problem.name,
        problem_options=problem.options,
        recipe=balancer.recipe(problem.recipe, lr),
        method=balancer.method(problem.label, lr),
        seed=seed,
        phase=phase,
        device=suite.device,
        evaluations=suite.evaluations,
    )
    return Planned(problem.label, balancer.label, spec)
