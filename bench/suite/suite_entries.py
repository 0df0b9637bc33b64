"""A suite in memory: its problems and balancers, each with its options checked, its seeds, rates and limits."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.run.spec import Device, Method, Options
from bench.run.suite_text import SuiteText
from tasks import Problem, Recipe


@dataclass(frozen=True)
class StatedLimits:
    """The limits of each run that a suite states, by which a run fails. None states none.

    Attributes:
        seconds: The time of a run.
        memory: The resident memory of a run's process, in GiB.
    """

    seconds: float | None = None
    memory: float | None = None


UNLIMITED = StatedLimits()


@dataclass(frozen=True)
class ProblemEntry:
    """A problem of a suite; ``recipe`` is the problem's own recipe with the changes that the suite makes."""

    label: str
    name: str
    options: Options
    recipe: Recipe
    problem: Problem[Any]


@dataclass(frozen=True)
class BalancerEntry:
    """A balancer of a suite.

    Attributes:
        label: The balancer's label in the suite.
        name: Its registered name.
        methods: The balancer with its options, by the problem's label; without the problems that it leaves out.
        trials: The balancer with the options of each trial, by the problem's label and the trial's learning rate. Empty
            in a suite that does not search.
        searches_weights: True for static weighting whose weights are searched for.
        times_steps: The number of training steps, as a multiple of the problem's.
        weight_decay: The recipe's weight decay.
        rates_around: The label of the balancer around whose chosen learning rate this one's are tried; empty if it
            tries the suite's grid.
    """

    label: str
    name: str
    methods: Mapping[str, Method]
    trials: Mapping[str, Mapping[float, Method]] = field(default_factory=dict)
    searches_weights: bool = False
    times_steps: float = 1.0
    weight_decay: float = 0.0
    rates_around: str = ""

    def recipe(self, recipe: Recipe, lr: float) -> Recipe:
        """Return the problem's ``recipe`` with the changes that this entry makes, at a learning rate."""
        steps = max(1, round(self.times_steps * recipe.steps))
        return replace(recipe, lr=lr, steps=steps, weight_decay=self.weight_decay)

    def method(self, problem: str, lr: float) -> Method:
        """Return the balancer with its options on ``problem``, or with those of the trial that ``lr`` belongs to."""
        return self.trials.get(problem, {}).get(lr, self.methods[problem])

    def trial_rates(self, problem: str) -> tuple[float, ...]:
        """Return the learning rates of the trials on ``problem``; none if this entry has no trials."""
        return tuple(self.trials.get(problem, ()))


@dataclass(frozen=True)
class Suite:
    """A suite that has been read and checked.

    Attributes:
        name: The suite's name, which is also the name of its results folder.
        description: A sentence about the suite; may be empty.
        written: The suite's file as written.
        device: The device of the runs.
        evaluations: The number of evaluations during a run.
        baselines: Whether models are also trained on each task alone.
        plugins: The files that register further problems and balancers.
        tuning_seeds: The seeds of the runs by which learning rates are chosen.
        reported_seeds: The seeds of the runs that are reported.
        repeated_seeds: Other seeds, on which the reported runs are made again to see which verdicts change.
        retuning_seeds: The seeds of the runs by which the repeated runs' learning rates are chosen, among the reported
            runs' and both of its neighbours. If there are none, repeated runs have the reported runs' learning rates.
        learning_rates: The grid. If the suite ``searches``, the learning rates of the trials, all different, in the
            order of trials. If empty, each run has its problem's own learning rate, untuned.
        growths: How many times the grid may grow beyond an edge.
        finer: The factor between a method's best learning rate of the grid and two more that it tries; None if it tries
            no more.
        searches: Whether the suite searches for options and weights.
        cost_rounds: How often each step is timed; 0 for a suite that times nothing.
        cost_devices: The devices on which steps are timed.
        problems: The problems that can be run.
        balancers: The balancers.
        left_out: The problems whose data are missing, by label, and a sentence about what is missing.
        limits: The limits that a run fails by if it exceeds them.
        runs_per_gpu: How many runs share a GPU.
    """

    name: str
    description: str
    written: SuiteText
    device: Device
    evaluations: int
    baselines: bool
    plugins: tuple[Path, ...]
    tuning_seeds: tuple[int, ...]
    reported_seeds: tuple[int, ...]
    repeated_seeds: tuple[int, ...]
    retuning_seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    growths: int
    finer: float | None
    searches: bool
    cost_rounds: int
    cost_devices: tuple[Device, ...]
    problems: tuple[ProblemEntry, ...]
    balancers: tuple[BalancerEntry, ...]
    left_out: Mapping[str, str]
    limits: StatedLimits = UNLIMITED
    runs_per_gpu: int = 1

    def balancers_on(self, problem: str) -> list[BalancerEntry]:
        """Return the balancers that train the problem with this label."""
        return [entry for entry in self.balancers if problem in entry.methods]
