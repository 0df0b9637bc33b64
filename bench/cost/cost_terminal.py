"""The tables of costs in the terminal."""

from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from bench.style.console import new_console
from bench.style.numbers import NOTHING, number, quantity

from .gradient_agreement import Gradients
from .own_model import Report

MOST_TASKS = 12
LEFT = ("case", "method", "task")
"""Columns of words."""

Cells = dict[str, Sequence[str]]


def limits(table: pd.DataFrame) -> Table:
    """The limits table, a section a case."""
    flops = _each(_share_of_equal, table["extra_flops"], table["flops_bound"], table["flops"] - table["extra_flops"])
    memory = _each(_beside_bound, table["extra_peak_bytes"], table["peak_bytes_bound"])
    return _by_case(
        table,
        {
            **_times(table),
            "fastest": _each("{:.3f}".format, table["ratio_to_fastest"]),
            "+calls": _each("{:d}".format, table["extra_operator_calls"]),
            "+FLOP (bound)": flops,
            "+memory (bound)": memory,
        },
    )


def times(table: pd.DataFrame) -> Table:
    """Times alone, a section a case."""
    return _by_case(table, _times(table))


KEY = (
    "time: over equal weighting's, a median and its interval; fastest: over the problem's fastest equal weighting; "
    "+: more than equal weighting; every 10: times are means over ten steps, the rest is of one between updates; "
    "products alone, norms alone: what the layer's and the features' gradients take without a method, the floor"
)
"""What the columns of the limits table mean."""


def costs(table: pd.DataFrame) -> Table:
    """What the methods cost on one subject."""
    return _table(
        {
            **_times(table),
            "+calls": _each("{:d}".format, table["extra_operator_calls"]),
            "FLOP": _each(lambda value: quantity(value, ""), table["flops"]),
            "+FLOP": _each(_percent, table["extra_flops"], table["flops"] - table["extra_flops"]),
            "memory": _each(lambda value: quantity(value, "B"), table["peak_bytes"]),
            "+memory": _each(lambda value: quantity(value, "B"), table["extra_peak_bytes"]),
        }
    )


def print_own(report: Report) -> None:
    """Prints what was found of a user's own model."""
    out = new_console()
    out.print(Text(f"Cost of a step: {report.machine}", style="bold"), costs(report.costs))
    wrt = f"with respect to {report.gradients.wrt}"
    out.print(Text(f"The tasks' gradients, {wrt}, first and last step", style="bold"), gradients(report.gradients))
    for sentence in (agreement(report.gradients), *report.notes):
        out.print(Text(sentence))


def gradients(found: Gradients) -> Table:
    """How large the tasks' losses and gradients were in the first step and in the last, at most `MOST_TASKS`."""
    columns = {"loss": found.losses[0], "loss, end": found.losses[-1]}
    columns |= {"gradient norm": found.norms[0], "norm, end": found.norms[-1]}
    cells = {name: _each(number, values[:MOST_TASKS]) for name, values in columns.items()}
    return _table({"task": found.tasks[:MOST_TASKS], **cells})


def agreement(found: Gradients) -> str:
    """What the cosines say, in a sentence."""
    pairs = np.triu_indices(len(found.tasks), k=1)
    medians = found.median_cosines.to_numpy()[pairs]
    if np.isnan(medians).all():
        return "In no step did two tasks have gradients other than zero."
    ends = [int(np.nanargmin(medians)), int(np.nanargmax(medians))]
    named = [f"{_number(medians[at])} ({found.tasks[pairs[0][at]]}, {found.tasks[pairs[1][at]]})" for at in ends]
    cosines = found.cosines[:, *pairs]
    below = np.mean(cosines[np.isfinite(cosines)] < 0)
    where = named[0] if len(medians) == 1 else f"from {named[0]} to {named[1]}"
    return f"Cosines between the tasks' gradients, medians over steps: {where}; {below:.0%} of all are below 0."


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _by_case(table: pd.DataFrame, cells: Cells) -> Table:
    case: list[str] = []
    for about, rows in table.groupby(["problem", "batch", "heads"], sort=False):
        problem, batch, heads = about
        lines = [str(problem), f"batch {batch}", f"{heads} heads"]
        case += [line for line, _ in zip_longest(lines[: len(rows)], range(len(rows)), fillvalue="")]
    starts = table.groupby(["problem", "batch", "heads"], sort=False).cumcount().eq(0)
    return _table({"case": case, **cells}, ends=set(np.flatnonzero(starts) - 1))


def _times(table: pd.DataFrame) -> Cells:
    return {
        "method": list(table["method"]),
        "time [95 %]": _each(_ratio, table["ratio"], table["ratio_low"], table["ratio_high"]),
        "ms": _each(number, table["median_ms"]),
        "+ms": _each("{:.2f}".format, table["extra_ms"]),
    }


def _ratio(ratio: float, low: float, high: float) -> str:
    """A ratio of times, to the thousandths that limits are about."""
    if not np.isfinite(ratio):
        return NOTHING
    return f"{ratio:.3f} [{low:.3f}, {high:.3f}]" if low < high else f"{ratio:.3f}"


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else NOTHING


def _share_of_equal(extra: float, bound: float, of_equal: float) -> str:
    text = _percent(extra, of_equal)
    return f"{text} ({_percent(bound, of_equal)})" if np.isfinite(bound) else text


def _beside_bound(extra: float, bound: float) -> str:
    text = quantity(extra, "B")
    return f"{text} ({quantity(bound, 'B')})" if np.isfinite(bound) else text


def _each(form: Callable[..., str], *columns: Iterable[float]) -> list[str]:
    """A text for each row; the minus that typography knows is as wide as a digit."""
    return [form(*row).replace("-", "−") for row in zip(*columns, strict=True)]


def _table(cells: Cells, ends: "set[int] | frozenset[int]" = frozenset()) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in cells:
        table.add_column(Text(name), justify="left" if name in LEFT else "right", no_wrap=True)
    for place, row in enumerate(zip(*cells.values(), strict=True)):
        table.add_row(*map(Text, row), end_section=place in ends)
    return table
