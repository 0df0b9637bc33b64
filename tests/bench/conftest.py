"""Make suites of a small problem, which run in a moment."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.suite import suite_file
from bench.suite.suite_entries import Suite

PLUGINS = [Path(__file__).parent / "plugins" / name for name in ("small.py", "methods.py")]

Entry = Mapping[str, Any]
MakeSuite = Callable[..., Suite]


def toml(value: object) -> str:
    """Write ``value`` in TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return repr(value).replace("'", '"')


@pytest.fixture
def suite_text() -> Callable[..., str]:
    """Return a function that writes the TOML of a suite of the small problem; each argument replaces a part of it."""

    def write(
        problems: Sequence[Entry] = ({"name": "small"},),
        balancers: Sequence[Entry] = ({"name": "equal"}, {"name": "gradnorm"}),
        learning_rates: Sequence[float] | None = (0.003, 0.01),
        tuning: Sequence[int] = (11, 12),
        reported: Sequence[int] = (1, 2, 3),
        plugins: Sequence[Path] = PLUGINS,
        rounds: int = 0,
        limits: Entry | None = None,
        **top: object,
    ) -> str:
        lines = [f"{key} = {toml(value)}" for key, value in {"evaluations": 4, **top}.items()]
        lines.append(f"plugins = {toml([str(path) for path in plugins])}")
        lines += ["[seeds]", f"reported = {toml(reported)}", f"tuning = {toml(tuning)}"]
        if learning_rates is not None:
            lines += ["[learning_rates]", f"grid = {toml(learning_rates)}"]
        lines += ["[cost]", f"rounds = {rounds}"]
        if limits is not None:
            lines += ["[limits]", *(f"{key} = {toml(value)}" for key, value in limits.items())]
        for kind, entries in (("problems", problems), ("balancers", balancers)):
            for entry in entries:
                lines += [f"[[{kind}]]", *(f"{key} = {toml(value)}" for key, value in entry.items())]
        return "\n".join(lines) + "\n"

    return write


@pytest.fixture
def make_suite(tmp_path: Path, suite_text: Callable[..., str]) -> MakeSuite:
    """Return a function that writes such a suite to ``mine.toml`` and loads it."""

    def make(**parts: object) -> Suite:
        path = tmp_path / "mine.toml"
        path.write_text(suite_text(**parts))
        return suite_file.load(path)

    return make
