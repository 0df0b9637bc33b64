"""Lay out the tables of costs for the terminal."""

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
"""Maximum number of tasks in the table of gradients."""
LEFT = ("case", "method", "task")
"""Columns that hold words, and are aligned to the left."""

Cells = dict[str, Sequence[str]]


def limits(table: pd.DataFrame) -> Table:
    """Return the limits table, with a section for each case."""
    flops = _each(_share_of_equal, table["extra_flops"], table["flops_bound"], table["flops"] - table["extra_flops"])
    memory = _each(_beside_bound, table["extra_peak_bytes"], table["peak_bytes_bound"])
    return _by_case(
        table,
        {
            **_times(table, extra=False),
            **_compiled(table),
            "time over\nfastest": _each("{:.3f}".format, table["ratio_to_fastest"]),
            "extra\ncalls": _each("{:d}".format, table["extra_operator_calls"]),
            "extra FLOP\n(bound)": flops,
            "extra memory\n(bound)": memory,
        },
    )


def times(table: pd.DataFrame) -> Table:
    """Return a table of times only, with a section for each case."""
    return _by_case(table, _times(table))


KEY = (
    "time ratio: a step's time over equal weighting's, as a median with its 95 % interval;\n"
    "time over fastest: a step's time over the fastest equal weighting on the same problem and batch;\n"
    "extra: in addition to equal weighting; extra FLOP: in % of equal weighting's;\n"
    "bound: lower bound of FLOP, upper bound of memory;\n"
    "compiled: the time ratio with compile=True;\n"
    "gradnorm every 10: times are means over ten steps, all else is of a step between two updates;\n"
    "products alone, norms alone: the least time for the layer's gradients, and for the features' gradient norms."
)
"""Explains the columns and rows of the limits table."""


def costs(table: pd.DataFrame) -> Table:
    """Return the table of what each method costs on one subject."""
    return _table(
        {
            **_times(table),
            **_compiled(table),
            "extra\ncalls": _each("{:d}".format, table["extra_operator_calls"]),
            "FLOP": _each(lambda value: quantity(value, ""), table["flops"]),
            "extra FLOP": _each(_percent, table["extra_flops"], table["flops"] - table["extra_flops"]),
            "peak memory": _each(lambda value: quantity(value, "B"), table["peak_bytes"]),
            "extra memory": _each(lambda value: quantity(value, "B"), table["extra_peak_bytes"]),
        }
    )


def print_own(report: Report) -> None:
    """Print the results for a user's own model."""
    out = new_console()
    out.print(Text(f"Cost of a step: {report.machine}", style="bold"), costs(report.costs))
    wrt = f"with respect to {report.gradients.wrt}"
    out.print(
        Text(f"The tasks' gradients, {wrt}, in the first and the last step", style="bold"), gradients(report.gradients)
    )
    for sentence in (agreement(report.gradients), *report.notes):
        out.print(Text(sentence))


def gradients(found: Gradients) -> Table:
    """Return a table of the losses and gradient norms in the first and the last step, of at most `MOST_TASKS` tasks."""
    columns = {"loss, first step": found.losses[0], "loss, last step": found.losses[-1]}
    columns |= {"gradient norm, first step": found.norms[0], "gradient norm, last step": found.norms[-1]}
    cells = {name: _each(number, values[:MOST_TASKS]) for name, values in columns.items()}
    return _table({"task": found.tasks[:MOST_TASKS], **cells})


def agreement(found: Gradients) -> str:
    """Return a sentence that sums up the cosines."""
    pairs = np.triu_indices(len(found.tasks), k=1)
    medians = found.median_cosines.to_numpy()[pairs]
    if np.isnan(medians).all():
        return "There are no cosines: in no step did two tasks have gradients other than zero."
    ends = [int(np.nanargmin(medians)), int(np.nanargmax(medians))]
    named = [f"{_number(medians[at])} ({found.tasks[pairs[0][at]]}, {found.tasks[pairs[1][at]]})" for at in ends]
    cosines = found.cosines[:, *pairs]
    below = np.mean(cosines[np.isfinite(cosines)] < 0)
    where = named[0] if len(medians) == 1 else f"from {named[0]} to {named[1]}"
    return (
        f"Median cosines between the tasks' gradients over the steps: {where}. {below:.0%} of all cosines are below 0."
    )


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


def _times(table: pd.DataFrame, extra: bool = True) -> Cells:
    cells: Cells = {
        "method": list(table["method"]),
        "time ratio\n[95 % interval]": _each(_ratio, table["ratio"], table["ratio_low"], table["ratio_high"]),
        "step,\nms": _each(number, table["median_ms"]),
    }
    return cells | ({"extra\nms": _each("{:.2f}".format, table["extra_ms"])} if extra else {})


def _compiled(table: pd.DataFrame) -> Cells:
    if "compiled_ratio" not in table:
        return {}
    return {"com-\npiled": ["" if np.isnan(each) else f"{each:.3f}" for each in table["compiled_ratio"]]}


def _ratio(ratio: float, low: float, high: float) -> str:
    """Format a ratio of times with three decimals: ratios in the limits table differ by thousandths."""
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
    """Return a text for each row, with a true minus sign in place of the hyphen, because it is as wide as a digit."""
    return [form(*row).replace("-", "−") for row in zip(*columns, strict=True)]


def _table(cells: Cells, ends: "set[int] | frozenset[int]" = frozenset()) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in cells:
        table.add_column(Text(name), justify="left" if name in LEFT else "right", no_wrap=True)
    for place, row in enumerate(zip(*cells.values(), strict=True)):
        table.add_row(*map(Text, row), end_section=place in ends)
    return table
