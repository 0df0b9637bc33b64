"""Make a suite that tunes all methods fairly from another suite: ``lossbench tune NAME``."""

import copy
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import balancers
from bench.analysis import label_of
from bench.run import code_hash, suite_text
from bench.style.numbers import rounded

from . import suite_file
from .suite_entries import Suite
from .suite_file import FROM_PROBLEM, SEARCH
from .toml_table import SuiteError, closest
from .write_toml import to_toml

TomlEntry = Mapping[str, Any]
"""A problem or a balancer as it is written in a suite's file."""
SUFFIX = "-tuned"
"""End of the new suite's name; names of problems and balancers follow where only these are tuned."""
LONGEST = 80
"""The number of characters of these names above which a hash replaces them, as folders' names have a limit."""
FIRST_SEED = 101
"""The smallest tuning seed for a suite that has none."""
REPLACED = (f"{FROM_PROBLEM}first", SEARCH)
"""Static weights that the searched ones replace: the first trials of a search have them too."""


def make(
    path: Path, results: Path, trials: int, problems: Sequence[str] = (), methods: Sequence[str] = ()
) -> tuple[Suite, list[str]]:
    """Make a suite like that in ``path``, with a search in place of its grid. No file is written.

    The new suite always has equal weighting and searched static weights. Its learning rates lie between the ends of the
    suite's grid; if the suite has no grid, between a tenth and ten times the learning rates of its problems. What only
    a grid has is left out: balancers whose learning rates lie around another's, and seeds for retuning.

    Args:
        path: The suite's file.
        results: The folder that holds results folders.
        trials: The number of trials of each method on each problem.
        problems: Labels or names of the suite's problems to keep; if there are none, all are kept.
        methods: Labels or names of the suite's balancers to keep, and names of other balancers to add; if there are
            none, all of the suite's are kept.

    Returns:
        The new suite, and sentences about what was left out. The suite's name is that of its results folder; if only
        some problems or balancers are tuned, it ends in their names.

    Raises:
        SuiteError: The suite has a mistake, or has no such problem or balancer.
    """
    base = suite_file.load(path)
    top = copy.deepcopy(dict(base.written.values))
    if problems:
        top["problems"] = _kept(top["problems"], problems, "problem")
    if methods:
        new = [name for name in methods if name in balancers.names() and not _named(top["balancers"], name)]
        others = list(dict.fromkeys(new))
        top["balancers"] = [
            *_kept(top["balancers"], [name for name in methods if name not in others], "balancer"),
            *({"name": name} for name in others),
        ]
    notes = _leave_out(top)
    top["balancers"] = _with_equal_and_static(top["balancers"])
    taken = {*base.reported_seeds, *base.repeated_seeds}
    fresh = next(seed for seed in range(FIRST_SEED, FIRST_SEED + len(taken) + 1) if seed not in taken)
    top["seeds"].setdefault("tuning", [fresh])
    top["search"] = {"trials": trials, "rates": list(_rates(base, top))}
    top.pop("learning_rates", None)
    made = _checked({**top, "plugins": [str(file) for file in base.plugins]}, path)
    name = f"{base.name}{SUFFIX}{_part(problems, methods)}"
    top["plugins"] = [os.path.relpath(file, (results / name).resolve()) for file in base.plugins]
    return replace(made, name=name, written=suite_text.parse(to_toml(top))), notes


def _leave_out(top: dict[str, Any]) -> list[str]:
    """Remove from a suite's values what a search has no use for, and return a sentence about each."""
    notes = [
        f"{label_of(entry)} is left out: it tries learning rates around those of {entry['rates_around']}, and a search "
        "has trials instead"
        for entry in top["balancers"]
        if entry.get("rates_around")
    ]
    top["balancers"] = [entry for entry in top["balancers"] if not entry.get("rates_around")]
    if top["seeds"].pop("retuning", None):
        notes.append("seeds.retuning is left out: the repeated runs have the chosen trial's learning rate")
    return notes


def _checked(top: Mapping[str, Any], path: Path) -> Suite:
    """Return the suite with these values, which were made from the suite in ``path``, after checking all of it."""
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / path.name
        draft.write_text(to_toml(top), encoding="utf-8")
        try:
            return suite_file.load(draft)
        except SuiteError as error:
            reason = str(error).removeprefix(f"{draft.name}: ")
            raise SuiteError(f"{path.name}, as tune changes it: {reason}") from error


def _part(problems: Sequence[str], methods: Sequence[str]) -> str:
    """Return the end of the name of a suite that has only these problems or balancers; empty if it has all."""
    chosen = [*sorted({*problems}), *sorted({*methods})]
    names = "".join(f"-{re.sub(r'[^a-z0-9]+', '-', name.lower())}" for name in chosen)
    return names if len(names) <= LONGEST else f"-{code_hash.digest(names)[:8]}"


def _kept(entries: Sequence[TomlEntry], names: Iterable[str], what: str) -> list[TomlEntry]:
    """Return the ``entries`` whose label or name is among ``names``, in their order.

    Args:
        what: The kind of the entries, "problem" or "balancer", for the error's message.

    Raises:
        SuiteError: No entry has one of the names.
    """
    entries_by_name = {name: _named(entries, name) for name in names}
    if missing := [name for name, named in entries_by_name.items() if not named]:
        known = [label_of(entry) for entry in entries] + (balancers.names() if what == "balancer" else [])
        raise SuiteError(f"no {what} of the suite is called {missing[0]!r}{closest(missing[0], known)}")
    return [entry for entry in entries if any(entry in named for named in entries_by_name.values())]


def _named(entries: Sequence[TomlEntry], name: str) -> list[TomlEntry]:
    """Return the ``entries`` that have ``name`` as their label or name."""
    return [entry for entry in entries if name in (label_of(entry), entry["name"])]


def _with_equal_and_static(entries: Sequence[TomlEntry]) -> list[TomlEntry]:
    """Return the balancers with equal weighting and searched static weights, which replace those of `REPLACED`."""
    all_entries = list(entries)
    if not any(entry["name"] == "equal" for entry in all_entries):
        all_entries.insert(0, {"name": "equal"})
    replaced = [entry for entry in all_entries if _is_replaced(entry)]
    others = [entry for entry in all_entries if entry not in replaced]
    label = "static" if "static" not in map(label_of, others) else "static, searched"
    searched = {"name": "static", "label": label, "options": {"weights": SEARCH}}
    if replaced:
        place = all_entries.index(replaced[0])
    else:
        place = 1 + next(i for i, entry in enumerate(all_entries) if entry["name"] == "equal")
    return [*all_entries[:place], searched, *(entry for entry in all_entries[place:] if entry in others)]


def _is_replaced(entry: TomlEntry) -> bool:
    """Tell whether searched static weights replace an entry: static weights as in `REPLACED`, or only named."""
    return bool(entry["name"] == "static" and entry.get("options", {}).get("weights", SEARCH) in REPLACED)


def _rates(base: Suite, top: Mapping[str, Any]) -> tuple[float, float]:
    """Return the lowest and the highest learning rate of the search."""
    if base.searches:
        low, high = top["search"]["rates"]
        return low, high
    if base.learning_rates:
        return base.learning_rates[0], base.learning_rates[-1]
    own = [entry.recipe.lr for entry in base.problems]
    return rounded(min(own) / 10, 3), rounded(max(own) * 10, 3)
