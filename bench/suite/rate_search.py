"""Decide which learning rates a suite tries, in stages: each stage follows from the results of those before it."""

from collections.abc import Generator
from dataclasses import dataclass

import pandas as pd

from bench.analysis import has_best_rate

from . import plan
from .plan import Cell, Grids, OwnRates, Planned
from .suite_entries import Suite


@dataclass(frozen=True)
class Stage:
    """The rates that are tried up to a stage, those of earlier stages included."""

    name: str
    grids: Grids
    own: OwnRates

    def runs(self, suite: Suite) -> list[Planned]:
        """Return the tuning runs of this stage and of all before it."""
        return plan.tuning(suite, self.grids, self.own)


def stages(suite: Suite) -> Generator[Stage, pd.DataFrame, None]:
    """Yield the stages of a suite's search for learning rates.

    First comes the grid, or the trials of a search. While the best rate of any method lies at an edge of the grid, the
    grid grows beyond it, as often as the suite allows. Then each method tries two more rates, at the suite's finer
    factor below and above its best one. Last come the methods whose rates are tried around those of another: at first
    three, and while the best of them lies at an edge one more beyond it, as often as the grid may grow. A method that
    scores the same at all rates, such as one that fails at all of them, has no best rate, so nothing is tried near it.

    Each `send` takes the table ``selection`` of the runs up to the stage that was yielded.
    """
    alone = [entry.label for entry in suite.balancers if entry.trials or entry.rates_around]
    grids: Grids = plan.grids(suite)
    own: OwnRates = {}
    selection = yield Stage("trials" if suite.searches else "learning rates", grids, own)
    for _ in range(suite.growths):
        grown = plan.extended(grids, selection, alone)
        if grown == grids:
            break
        grids = grown
        selection = yield Stage("learning rates beyond the grid", grids, own)
    if suite.finer is None:
        return
    own = {cell: plan.around(lr, suite.finer) for cell, lr in _best_rates(selection).items() if cell[1] not in alone}
    selection = yield Stage("learning rates between those of the grid", grids, own)
    if not any(entry.rates_around for entry in suite.balancers):
        return
    chosen = plan.chosen_rates(selection)
    around: OwnRates = {
        (problem.label, entry.label): plan.around(chosen[problem.label, entry.rates_around], suite.finer)
        for problem in suite.problems
        for entry in suite.balancers_on(problem.label)
        if entry.rates_around
    }
    for _ in range(1 + suite.growths):
        selection = yield Stage("learning rates around another method's", grids, {**own, **around})
        best = _best_rates(selection)
        wider = {cell: plan.grown(rates, {best[cell]} if cell in best else set()) for cell, rates in around.items()}
        if wider == around:
            return
        around = wider


def _best_rates(selection: pd.DataFrame) -> dict[Cell, float]:
    """Return the best rates, by the labels of problem and balancer.

    A balancer that scores the same at all rates, such as one that fails at all of them, has no best one.
    """
    return plan.chosen_rates(selection[has_best_rate(selection)])
