"""``python -m bench.peers.solver_times``: compare our solvers of Gramian methods with TorchJD's.

Both take turns, on one CPU thread, to compute the method's weights from the gradients of T random tasks. The quality of
both weights is measured too: the error in the equation that the paper states, or the objective that it minimises.
TorchJD's solvers are used as its documentation says, with their own tolerances. ``solvers.csv`` and
``environment-solvers.json`` go to ``results/peers``. Nothing else should be running. It takes three minutes.
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import torch
import typer
from rich.table import Table
from rich.text import Text
from torch import Tensor

from balancers import MGDA, CAGrad, DualProj, Fork, GradientBalancer, NashMTL, UPGrad
from bench.cost.step_clock import interleave, median_interval, single_thread
from bench.run import atomic_file
from bench.style.console import new_console

from . import solver_packages

NUM_TASKS = (2, 10, 40)
CAGRAD_C = 0.4
"""CAGrad's option c, on both sides."""
ENTRIES = 200
"""Number of entries of each gradient."""
GRAMIANS, ROUNDS = 20, 10
"""Number of sets of gradients, and of rounds on each set."""

Weigh = Callable[[Tensor], Tensor]


class Pair(NamedTuple):
    """Two functions from gradients ``(T, n)`` to a method's weights ``(T,)``, and a measure of their quality.

    Attributes:
        ours: our solver.
        theirs: TorchJD's solver.
        what: the quality measure in words; less is better.
        of: computes it from the tasks' gains along the combined gradient, ``(T,)``, and the weights, ``(T,)``.
    """

    ours: Weigh
    theirs: Weigh
    what: str
    of: Callable[[Tensor, Tensor], Tensor]


def pairs(num_tasks: int) -> dict[str, Pair]:
    """Return the two solvers of each method, by its name."""
    from torchjd import aggregation

    def ours(make: Callable[..., GradientBalancer], **options: float) -> Weigh:
        solve = make(Fork(num_tasks), **options).solve
        return lambda rows: solve(rows @ rows.T)

    def on_gramian(weighting: Weigh) -> Weigh:
        return lambda rows: weighting(rows @ rows.T)

    return {
        "nash-mtl": Pair(
            ours(NashMTL),
            aggregation.NashMTL(n_tasks=num_tasks, max_norm=0.0).weighting,
            "largest difference of w_i (M w)_i from their mean, relative to it",
            lambda gains, weights: (gains * weights / (gains * weights).mean() - 1).abs().max(),
        ),
        "cagrad": Pair(
            ours(CAGrad, c=CAGRAD_C),
            on_gramian(aggregation.CAGradWeighting(c=CAGRAD_C)),
            "minus the smallest gain of a task",
            lambda gains, weights: -gains.min(),
        ),
        "mgda": Pair(
            ours(MGDA),
            on_gramian(aggregation.MGDAWeighting()),
            "squared norm of the combined gradient",
            lambda gains, weights: torch.dot(gains, weights),
        ),
        "upgrad": Pair(
            ours(UPGrad),
            on_gramian(aggregation.UPGradWeighting()),
            "largest negative gain of a task",
            lambda gains, weights: (-gains).clamp(min=0).max(),
        ),
        "dual-proj": Pair(
            ours(DualProj),
            on_gramian(aggregation.DualProjWeighting()),
            "largest negative gain of a task",
            lambda gains, weights: (-gains).clamp(min=0).max(),
        ),
    }


def measure(num_tasks: int) -> pd.DataFrame:
    """Measure all methods with ``num_tasks`` tasks, and return a row for each.

    Returns:
        ``num_tasks``, ``method``; ``ours_ms`` and ``torchjd_ms``, milliseconds; ``ratio``, theirs over ours, with a
        95 % interval, ``ratio_low`` to ``ratio_high``; ``what``, the quality measure; ``ours`` and ``torchjd``, its
        mean over the sets of gradients. Times and ratios are medians over rounds for each set, and then over the sets.
        The interval is over the sets, because how long a solver takes depends on the gradients. Each call has other
        gradients than the one before, as in training: TorchJD's Nash-MTL begins with its last solution.
    """
    generator = torch.Generator().manual_seed(num_tasks)
    sets = [torch.randn(num_tasks, ENTRIES, generator=generator, dtype=torch.float64) for _ in range(GRAMIANS)]
    rows = []
    for name, pair in pairs(num_tasks).items():
        weights = [[weigh(gradients) for gradients in sets] for weigh in (pair.ours, pair.theirs)]
        quality = [
            [float(pair.of(gradients @ (gradients.T @ w), w)) for gradients, w in zip(sets, each, strict=True)]
            for each in weights
        ]
        calls = [_in_turn(weigh, sets) for weigh in (pair.ours, pair.theirs)]
        seconds = interleave(calls, ROUNDS * len(sets)).reshape(2, ROUNDS, len(sets))
        ours_of_sets, theirs_of_sets = np.median(seconds, axis=1)
        ratios = np.median(seconds[1] / seconds[0], axis=0)
        low, high = median_interval(ratios)
        row: dict[str, object] = {"num_tasks": num_tasks, "method": name}
        row |= {"ours_ms": np.median(ours_of_sets) * 1000, "torchjd_ms": np.median(theirs_of_sets) * 1000}
        row |= {"ratio": np.median(ratios), "ratio_low": low, "ratio_high": high, "what": pair.what}
        row |= dict(zip(("ours", "torchjd"), np.mean(quality, axis=1).tolist(), strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def _in_turn(weigh: Weigh, sets: Sequence[Tensor]) -> Callable[[], Tensor]:
    """Return a call that weighs the next of the sets of gradients, again and again."""
    following = itertools.cycle(sets)
    return lambda: weigh(next(following))


def show(table: pd.DataFrame) -> Table:
    """Return the table for a terminal."""
    shown = Table(box=None, pad_edge=False)
    value = "value (less is better)"
    times = ("ours,\nms", "TorchJD,\nms", "TorchJD / ours\n[95 % interval]")
    for header in ("tasks", "method", *times, "value,\nours", "value,\nTorchJD", value):
        shown.add_column(Text(header), justify="left" if header in ("method", value) else "right")
    for _, row in table.iterrows():
        ratio = f"{row['ratio']:.1f} [{row['ratio_low']:.1f}, {row['ratio_high']:.1f}]"
        shown.add_row(
            str(row["num_tasks"]),
            str(row["method"]),
            f"{row['ours_ms']:.3f}",
            f"{row['torchjd_ms']:.3f}",
            ratio,
            f"{row['ours']:.2e}",
            f"{row['torchjd']:.2e}",
            Text(str(row["what"])),
        )
    return shown


def main(
    results: Annotated[Path, typer.Option(help="Folder for solvers.csv.")] = Path("results/peers"),
) -> None:
    """Compare the time in which we compute the weights of Gramian methods with TorchJD's."""
    with single_thread():
        table = pd.concat([measure(num_tasks) for num_tasks in NUM_TASKS], ignore_index=True)
    atomic_file.write(results / "solvers.csv", table.to_csv(index=False).encode())
    solver_packages.write_environment(results / "environment-solvers.json")
    new_console().print(show(table))


if __name__ == "__main__":
    typer.run(main)
