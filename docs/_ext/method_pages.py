"""Generate a page for each registered method, and the table of all methods, from what the classes declare.

A page says what the method reads, where it is measured, what it minimises, its options, what a step costs
(`results/reference/cost/methods.csv`), and how the method did in the evidence. A method that is written tomorrow gets
its page by being registered.
"""

import csv
import inspect
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from evidence_section import evidence
from page_text import escaped, facts, heading, table, write_folder
from sphinx.application import Sphinx

import balancers
from balancers import GradientBalancer, LossBalancer
from balancers.engine.method.declared import Option
from bench.catalogue import method_list
from bench.style.numbers import step_ratio

FOLDER = "methods"
OVERVIEW = "methods"
COSTS = Path(__file__).resolve().parents[2] / "results" / "reference" / "cost" / "methods.csv"
TABLE = ("<!-- lossbench list balancers --markdown -->\n", "<!-- end -->")
"""The lines before and after the table of methods in the overview's source."""
STEP = "*step* is the time of a step with ten tasks over that of equal weighting: see [what it costs](/cost.md)."
"""A sentence on the column that only the site's table has, not the one on GitHub."""
PLACES = {
    "features": "the features at the fork",
    "layer": "the last shared layer",
    "parameters": "all shared parameters",
}
READS = {
    "nothing": "nothing: the weights do not depend on the step",
    "losses": "the losses of the step",
    "norms": "the norms of the tasks' gradients",
    "gramian": "the inner products of the tasks' gradients (their Gramian)",
    "gradients": "the tasks' gradients themselves",
    "second batch": "what a second batch shows, see `~balancers.LossBalancer.second_batch`",
    "residuals": "the gradients of the losses' residuals",
}
HEADS = {
    "weighted": "trained on the weighted losses",
    "plain": "trained on the losses as they are",
}


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", lambda app: write_folder(Path(app.srcdir) / FOLDER, pages()))
    app.connect("env-get-outdated", lambda *_: [OVERVIEW])  # it changes with the methods, not only with its file
    app.connect("source-read", _fill_overview)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


@cache
def methods() -> list[type[LossBalancer]]:
    """Return the registered methods of this project, sorted by what they read and then by name."""
    known = [balancers.get(entry.name) for entry in method_list.entries()]
    return [cls for cls in known if cls.__module__.partition(".")[0] == "balancers"]


def document(cls: type[LossBalancer]) -> str:
    """Return the name of a method's page."""
    return f"{FOLDER}/{cls.name}"


def pages() -> dict[str, str]:
    """Return the methods' pages, by file name."""
    return {f"{cls.name}.rst": _page(cls) for cls in methods()}


@cache
def costs() -> dict[tuple[str, int], dict[str, str]]:
    """Return what a step of each method costs, by its name and the number of tasks."""
    with COSTS.open(encoding="utf-8") as file:
        return {(row["method"], int(row["tasks"])): row for row in csv.DictReader(file)}


# A method's page.


def _page(cls: type[LossBalancer]) -> str:
    parts = [
        heading(cls.__name__),
        f"{escaped(cls.summary)}\n",
        facts(_facts(cls)),
        heading("What it does", "-"),
        f".. autoclass:: balancers.{cls.__name__}\n   :members:\n",
        *_options(cls),
        *_costs(cls),
        *evidence(cls.name),
    ]
    return "\n".join(parts)


def _facts(cls: type[LossBalancer]) -> Iterator[tuple[str, str]]:
    yield "When to use it", escaped(cls.use_when)
    yield "In a suite", f'``name = "{cls.name}"``'
    yield "It reads", READS[cls.reads]
    if issubclass(cls, GradientBalancer):
        where = [f"{PLACES[cls.default_wrt]} (as in its paper)"]
        where += [PLACES[place] for place in PLACES if place != cls.default_wrt and place not in cls.undefined_for]
        yield "Measured at", ", or ".join(where)
    yield "The heads are", HEADS[cls.heads]
    yield "Losses must be", _losses(cls)
    yield "It also needs", ", ".join(_needs(cls))
    yield "Chance", "it draws random numbers, from its own ``seed``" if cls.random else ""


def _losses(cls: type[LossBalancer]) -> str:
    if cls.needs_positive_losses:
        return "positive"
    if inspect.getattr_static(cls, "needs_nonnegative_losses") is True:
        return "zero or more"
    return "zero or more, or the weights go astray" if cls.expects_nonnegative_losses else ""


def _needs(cls: type[LossBalancer]) -> Iterator[str]:
    if cls.looks_again:
        yield "the losses of the same batch after the optimiser's step, by `~balancers.LossBalancer.after_step`"
    if cls.needs_second_batch:
        yield "a second batch, by `~balancers.LossBalancer.second_batch`"
    if cls.needs_optimizer:
        yield "the network's optimiser, by `~balancers.LossBalancer.follow`"
    if cls.reads == "residuals":
        yield "the residuals, by `~balancers.engine.ResidualBalancer.residuals`"


def _options(cls: type[LossBalancer]) -> list[str]:
    base = GradientBalancer if issubclass(cls, GradientBalancer) else LossBalancer
    shared = {"seed", *base._options}
    own = {name: option for name, option in cls._options.items() if name not in shared and not option.combining}
    if not own:
        return []
    defaults = inspect.signature(cls).parameters
    rows = [
        (f"``{name}``", _default(defaults[name].default), _allowed(option), _worth_trying(cls, name))
        for name, option in own.items()
    ]
    text = "The description above says what each does. All methods of its kind also take the options of"
    return [
        heading("Options of its own", "-"),
        f"{text} `{base.__name__} <balancers.{base.__name__}>`.\n",
        table(("option", "default", "allowed", "worth trying"), rows),
    ]


def _default(value: object) -> str:
    if callable(value):
        return "depends on the tasks"
    if value is inspect.Parameter.empty:
        return "must be given"
    return f"``{json.dumps(value) if isinstance(value, str) else value}``"


def _allowed(option: Option) -> str:
    if option.task:
        return "one task, by its index or its name"
    if option.one_of:
        kind = " or ".join(f'``"{one}"``' for one in option.one_of)
    elif isinstance(option.default, bool):
        kind = "``True`` or ``False``"
    elif option.free:
        kind = "see above"
    else:
        limits = {"above": option.above, "at least": option.at_least, "at most": option.at_most, "below": option.below}
        bounds = [f"{words} {limit:g}" for words, limit in limits.items() if abs(limit) != float("inf")]
        kind = f"{'whole numbers' if option.whole else 'numbers'} {' and '.join(bounds)}".strip()
    several = "; one for all tasks, one per task, or a dict" if option.per_task else ""
    return f"{kind}{several}{'; or ``None``' * (option.default is None)}"


def _worth_trying(cls: type[LossBalancer], name: str) -> str:
    limits = cls.tunable.get(name)
    if limits is None:
        return "–"
    return f"{limits.low:g} to {limits.high:g}{', evenly by the logarithm' if limits.log else ''}"


def _costs(cls: type[LossBalancer]) -> list[str]:
    rows = [(tasks, row) for (name, tasks), row in sorted(costs().items()) if name == cls.name]
    if not rows or cls.name == "equal":
        return []
    wrt = rows[0][1]["wrt"]
    at = f", measured at {PLACES[wrt]}" if wrt else ""
    text = (
        f"The time of a training step over that of equal weighting{at}: on the GradNorm paper's toy problem, with "
        f"batches of 100, on one CPU thread ({rows[0][1]['machine'].partition(',')[0]}). Brackets hold a 95 % "
        f"interval. Larger models make these ratios smaller: see :doc:`/cost`."
    )
    header = ("tasks", "time of a step", "added milliseconds", "added operator calls", "added peak memory")
    return [heading("What it costs", "-"), f"{text}\n", table(header, [_cost(tasks, row) for tasks, row in rows])]


def _cost(tasks: int, row: Mapping[str, str]) -> tuple[str, ...]:
    memory = int(row["extra_peak_bytes"]) / 1024
    return (
        str(tasks),
        _ratio(row),
        f"{float(row['extra_ms']):.2f}",
        row["extra_operator_calls"],
        f"{memory:,.0f} KiB" if memory >= 1 else "less than 1 KiB",
    )


def _ratio(row: Mapping[str, str]) -> str:
    return step_ratio(float(row["ratio"]), float(row["ratio_low"]), float(row["ratio_high"]))


# The overview.


def _fill_overview(app: Sphinx, document: str, content: list[str]) -> None:
    """Put a table that links to the methods' pages, with a step's cost, in place of the one that GitHub shows."""
    if document != OVERVIEW:
        return
    before, begin, rest = content[0].partition(TABLE[0])
    _, end, after = rest.partition(TABLE[1])
    if not begin or not end:
        raise LookupError(f"docs/{OVERVIEW}.md has no table between {TABLE[0].strip()} and {TABLE[1]}")
    names = "\n".join(f"/{FOLDER}/{cls.name}" for cls in methods())
    toctree = f"```{{toctree}}\n:hidden:\n\n{names}\n```\n"
    content[0] = f"{before}{STEP}\n\n```{{container}} filtered-table\n{overview()}\n```\n{after}\n\n{toctree}"


def overview() -> str:
    """Return the table of all methods, in Markdown."""
    lines = ["| method | reads | heads | to tune | step | when to use it |", "|---|---|---|---|---|---|"]
    for cls in methods():
        [entry] = method_list.entries([cls.name])
        row = costs().get((cls.name, 10))
        step = f"{float(row['ratio']):.2f}×" if row else "–"
        link = f"[`{cls.name}`](/{FOLDER}/{cls.name}.rst)"
        cells = (link, entry.reads, entry.heads, entry.options or "–", step, entry.use_when)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
