"""Users whose losses are on very different scales are told so, and what to do."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from typer.testing import CliRunner

from bench.analysis import loss_scales
from bench.cli import app
from bench.report import answer, report_page
from bench.suite import try_suite

pytestmark = pytest.mark.xdist_group("processes")

SMALL = (Path(__file__).parents[1] / "plugins" / "small.py").read_text()
PAIR = (("a", 1.0), ("b", 10.0))


def test_the_largest_and_the_smallest_loss_are_named() -> None:
    said = loss_scales.advice({"size": 5166.0, "kind": 1.1, "near": 20.0})
    assert said.startswith("The first loss of size (5.17e+03) is 4,696 times that of kind (1.1).")
    assert "variance of its targets" in said
    assert loss_scales.advice({"size": 5166.0, "kind": 1.1}, "pets").startswith("On pets, the first loss of size")


@pytest.mark.parametrize(
    "losses",
    [{}, {"a": 1.0}, {"a": 1.0, "b": 100.0}, {"a": -1.0, "b": 5000.0}, {"a": 0.0, "b": 5000.0}, {"a": float("inf")}],
)
def test_losses_of_like_size_and_those_without_a_scale_need_nothing(losses: dict[str, float]) -> None:
    assert loss_scales.advice(losses) == ""


def test_first_losses_are_means_over_the_first_step() -> None:
    rows = [("p", seed, step, task, seed * step * size) for seed in (1, 3) for step in (1, 2) for task, size in PAIR]
    trajectory = pd.DataFrame(rows, columns=["problem", "seed", "step", "task", "loss"])
    assert loss_scales.first_losses(trajectory) == {"p": {"a": 2.0, "b": 20.0}}
    assert loss_scales.first_losses(trajectory.iloc[:0]) == {}


def far_apart(tmp_path: Path, name: str) -> Path:
    """Return a file with a problem whose second task's targets are fifty times those of the first."""
    path = tmp_path / "apart.py"
    path.write_text(SMALL.replace('name = "small"', f'name = "{name}"').replace("(1.0, 3.0)", "(1.0, 50.0)"))
    return path


def test_try_says_so_before_it_compares(tmp_path: Path) -> None:
    file = far_apart(tmp_path, "unscaled")
    _, notes = try_suite.make(file, tmp_path / "results", minutes=60, seconds_of=lambda *_: 0.0)
    assert [note for note in notes if note.startswith("On unscaled, the first loss of b (")]


def test_problems_of_ours_beside_a_users_method_are_left_out() -> None:
    """Some are on different scales on purpose, and their losses can't be scaled in a suite."""
    names = ("regression", "unknown-here")
    rows = [(name, 1, task, loss) for name in names for task, loss in (("a", 1.0), ("b", 1000.0))]
    entries = "".join(f'[[problems]]\nname = "{name}"\n' for name in names)
    trajectory = pd.DataFrame(rows, columns=["problem", "step", "task", "loss"])
    results = SimpleNamespace(suite_toml=f'plugins = ["mine.py"]\n{entries}', tables={"trajectory": trajectory})
    [told] = answer.far_apart(results)
    assert told.startswith("On unknown-here, the first loss of b (1e+03) is 1,000 times that of a (1).")


@pytest.mark.slow
def test_the_terminal_and_the_page_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(try_suite, "METHODS", ("equal", "uncertainty"))
    file, said = far_apart(tmp_path, "raw"), "On raw, the first loss of b ("
    done = CliRunner().invoke(app, ["try", str(file), "--minutes", "0", "--results", str(tmp_path), "--jobs", "1"])
    assert done.exit_code == 0, done.output
    assert done.output.count(said) == 2  # before the comparison, and below its answer
    assert report_page.write(tmp_path / "apart").read_text().count(said) == 1
