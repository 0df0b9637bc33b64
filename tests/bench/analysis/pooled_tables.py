"""Make the tables of a suite whose test scores are given, half of them on each set of seeds, for tests."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from bench.analysis import SuiteTables

LENGTHS = {0.5: "equal, 0.5 x steps", 1.0: "equal", 2.0: "equal, 2 x steps", 4.0: "equal, 4 x steps"}


def pooled_tables(
    scores: Mapping[str, Mapping[str, ArrayLike]],
    *,
    higher: Collection[str] = (),
    controls: Collection[str] = (),
    sets: Sequence[str] = ("reported", "repeated"),
) -> SuiteTables:
    """Return tables with these primary test scores by problem and balancer.

    The scores of a balancer are spread evenly over the ``sets`` of seeds. Beside each of them are scores that no
    statistic may read: of another checkpoint, split, phase and metric.
    """
    problems = [
        {"problem": name, "primary": f"{name} score", "higher_is_better": name in higher, "control": name in controls}
        for name in scores
    ]
    rows = []
    for problem, of_problem in scores.items():
        for balancer, values in of_problem.items():
            for place, part in enumerate(np.array_split(np.asarray(values, dtype=float), len(sets))):
                for seed, value in enumerate(part.tolist(), start=100 * place):
                    row = {"problem": problem, "balancer": balancer, "seed": seed, "value": value}
                    row |= {"metric": f"{problem} score", "phase": sets[place], "split": "test", "checkpoint": "last"}
                    others = ({"split": "train"}, {"checkpoint": "best"}, {"phase": "tuning"}, {"metric": "other"})
                    rows += [row, *({**row, "value": -1e6, **other} for other in others)]
    return SuiteTables(problems=pd.DataFrame(problems), scores=pd.DataFrame(rows))


def correlated(random: np.random.Generator, deviation: float, rows: int, seeds: int) -> NDArray[np.float64]:
    """Draw noise of shape ``(rows, seeds)`` whose rows have correlation one half: half of it belongs to the seed."""
    shared, own = random.normal(size=(1, seeds)), random.normal(size=(rows, seeds))
    return np.asarray(deviation * np.sqrt(0.5) * (shared + own))
