"""List what each method declares about itself, as a table for the terminal or in Markdown."""

import inspect
from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

import balancers
from balancers import GradientBalancer, LossBalancer
from bench.style.markdown_table import markdown_table

from .plain_formula import plain_text

READS = {
    "nothing": "nothing",
    "losses": "losses",
    "norms": "gradient norms",
    "gramian": "Gramian",
    "gradients": "gradients",
    "second batch": "a second batch",
    "residuals": "residuals",
}


class ListedMethod(NamedTuple):
    """One line of the list of methods."""

    name: str
    reads: str
    """The quantities that the method reads; of gradients, also the locations, that of its paper first."""
    heads: str
    options: str
    """Options worth tuning, each with its default and range."""
    summary: str
    use_when: str


def entries(names: Sequence[str] | None = None) -> list[ListedMethod]:
    """Return the registered methods of these names, sorted by what they read and then by name; None: all methods."""
    known = [balancers.get(name) for name in (balancers.names() if names is None else names)]
    order = list(READS)
    return [_entry(cls) for cls in sorted(known, key=lambda cls: (order.index(cls.reads), cls.name))]


def markdown(methods: list[ListedMethod]) -> str:
    """Return the methods as a table in Markdown."""
    lines = [
        (f"`{e.name}`", f"`{balancers.get(e.name).__name__}`", e.reads, e.heads, e.options or "–", e.use_when)
        for e in methods
    ]
    return markdown_table(["method", "class", "reads", "heads", "to tune", "when to use it"], lines)


def table(methods: list[ListedMethod]) -> Table:
    """Return the methods as a table for the terminal."""
    lines = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
    lines.add_column("balancer", no_wrap=True)
    lines.add_column("what it does, and when to use it")
    for e in methods:
        facts = [f"Reads {e.reads}", *([f"tune {e.options}"] if e.options else []), f"heads {e.heads}"]
        text = Text(f"{e.summary} {e.use_when}").append("\n" + "; ".join(facts), style="dim")
        lines.add_row(Text(e.name, style="bold"), text)
    return lines


def documentation(name: str) -> str:
    """Return how a method is called, and its documentation with formulas as text."""
    cls = balancers.get(name)
    signature = inspect.signature(cls)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return f"{cls.__name__}{signature.replace(parameters=bare)}\n\n{plain_text(inspect.getdoc(cls) or '')}"


def _entry(cls: type[LossBalancer]) -> ListedMethod:
    reads = READS[cls.reads]
    if issubclass(cls, GradientBalancer):
        places = [wrt for wrt in ("features", "layer", "parameters") if wrt not in cls.undefined_for]
        places.sort(key=lambda wrt: wrt != cls.default_wrt)
        reads += f" ({', '.join(places)})"
    if cls.random:
        reads += ", at random"
    if cls.looks_again:
        reads += ", twice a step"
    defaults = inspect.signature(cls).parameters
    options = [
        f"{option} {defaults[option].default:g} [{limits.low:g}, {limits.high:g}]"
        for option, limits in cls.tunable.items()
    ]
    return ListedMethod(cls.name, reads, cls.heads, ", ".join(options), cls.summary, cls.use_when)
