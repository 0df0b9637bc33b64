"""A suite with fair tuning instead of its own: ``lossbench tune NAME``."""

import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import balancers
from bench.style.numbers import rounded

from . import suite_file
from .suite_file import FROM_PROBLEM, KEPT, SEARCH, Suite
from .toml_table import SuiteError, closest

TomlEntry = Mapping[str, Any]
SUFFIX = "-tuned"
FIRST_SEED = 101
"""The first seed that tuning may have where the suite has none for it."""
REPLACED = (f"{FROM_PROBLEM}first", SEARCH)
"""Static weights that a search begins with."""


def make(
    path: Path, results: Path, trials: int, problems: Sequence[str] = (), methods: Sequence[str] = ()
) -> tuple[Suite, Path]:
    """The suite in ``path`` with a search of ``trials`` in the place of its grid, and the results folder it is kept in.

    Equal weighting and searched static weights are always in it. The learning rates searched are those from one end of
    its grid to the other; without a grid, from a tenth to ten times those of its problems.

    Args:
        problems: labels or names of the suite's problems to keep; all, where there are none.
        methods: labels or names of its balancers to keep, or names of others to add.

    Raises:
        SuiteError: something is wrong with the suite, or there is no such problem or balancer.
    """
    base = suite_file.load(path)
    folder = results / f"{base.name}{SUFFIX}"
    top = tomllib.loads(base.text)
    if problems:
        top["problems"] = _kept(top["problems"], problems, "problem")
    if methods:
        others = [name for name in methods if name in balancers.names() and not _named(top["balancers"], name)]
        top["balancers"] = [
            *_kept(top["balancers"], [name for name in methods if name not in others], "balancer"),
            *({"name": name} for name in others),
        ]
    top["balancers"] = _with_equal_and_static(top["balancers"])
    taken = {*base.reported_seeds, *base.repeated_seeds}
    fresh = next(seed for seed in range(FIRST_SEED, FIRST_SEED + len(taken) + 1) if seed not in taken)
    top["seeds"].setdefault("tuning", [fresh])
    top["search"] = {"trials": trials, "rates": list(_rates(base, top))}
    top.pop("learning_rates", None)
    top["plugins"] = [os.path.relpath(file, folder.resolve()) for file in base.plugins]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / KEPT).write_text(_toml(top), encoding="utf-8")
    return suite_file.load(folder / KEPT), folder


def _kept(entries: Sequence[TomlEntry], names: Iterable[str], what: str) -> list[TomlEntry]:
    """The ``entries`` that one of ``names`` is the label or the name of, in their order."""
    found = [(name, _named(entries, name)) for name in names]
    if missing := [name for name, named in found if not named]:
        known = [_label(entry) for entry in entries]
        raise SuiteError(f"no {what} of the suite is called {missing[0]!r}{closest(missing[0], known)}")
    return [entry for entry in entries if any(entry in named for _, named in found)]


def _named(entries: Sequence[TomlEntry], name: str) -> list[TomlEntry]:
    return [entry for entry in entries if name in (_label(entry), entry["name"])]


def _label(entry: TomlEntry) -> str:
    return str(entry.get("label", entry["name"]))


def _with_equal_and_static(entries: Sequence[TomlEntry]) -> list[TomlEntry]:
    found = list(entries)
    if not any(entry["name"] == "equal" for entry in found):
        found.insert(0, {"name": "equal"})
    first = [entry for entry in found if entry["name"] == "static" and entry["options"].get("weights") in REPLACED]
    others = [entry for entry in found if entry not in first]
    label = "static" if "static" not in map(_label, others) else "static, searched"
    searched = {"name": "static", "label": label, "options": {"weights": SEARCH}}
    place = found.index(first[0]) if first else next(i for i, e in enumerate(found) if e["name"] == "equal") + 1
    return [*found[:place], searched, *(entry for entry in found[place:] if entry in others)]


def _rates(base: Suite, top: Mapping[str, Any]) -> tuple[float, float]:
    if base.searches:
        low, high = top["search"]["rates"]
        return low, high
    if base.learning_rates:
        return base.learning_rates[0], base.learning_rates[-1]
    own = [entry.recipe.lr for entry in base.problems]
    return rounded(min(own) / 10, 3), rounded(max(own) * 10, 3)


def _toml(top: Mapping[str, Any]) -> str:
    """The text of a suite."""
    tables = {key: value for key, value in top.items() if isinstance(value, dict)}
    arrays = {key: top[key] for key in ("problems", "balancers")}
    lines = [f"{key} = {_value(value)}" for key, value in top.items() if key not in (*tables, *arrays)]
    for key, table in tables.items():
        lines += [f"\n[{key}]", *(f"{name} = {_value(value)}" for name, value in table.items())]
    for key, entries in arrays.items():
        for entry in entries:
            lines += [f"\n[[{key}]]", *(f"{name} = {_value(value)}" for name, value in entry.items())]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    """A value in TOML, which JSON is too but for its tables."""
    if isinstance(value, dict):
        pairs = (f"{_key(key)} = {_value(one)}" for key, one in value.items())
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)
