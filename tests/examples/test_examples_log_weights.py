"""The example of logging writes a table, and TensorBoard's scalars where that package is installed."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from .programs import check_that_it_trains, load

TASKS = ["depth", "normal", "edge"]
BOARD = "torch.utils.tensorboard"


class Writer:
    """What the program uses of TensorBoard's `SummaryWriter`."""

    made: list["Writer"] = []

    def __init__(self, folder: str) -> None:
        self.folder, self.scalars, self.closed = folder, {}, False
        self.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars[step, name] = value

    def close(self) -> None:
        self.closed = True


@pytest.mark.slow
def test_without_tensorboard_it_writes_a_table_and_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, BOARD, None)  # an import of it fails

    rows = load("log_weights").main(steps=150, folder=tmp_path / "runs")

    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["balancer.csv"]
    assert [row["step"] for row in rows] == [float(step) for step in range(0, 150, 10)]
    assert [row[f"weight/{task}"] for row in rows[:1] for task in TASKS] == [1.0, 1.0, 1.0]
    assert all(row[f"gradient_norm/{task}"] > 0 for row in rows for task in TASKS)
    check_that_it_trains(rows, TASKS)
    first, header, *table = capsys.readouterr().out.splitlines()
    assert "TensorBoard is not installed" in first
    assert header.split() == ["step", *(f"{kind}/{task}" for kind in ("weight", "loss") for task in TASKS)]
    assert [float(line.split()[0]) for line in table] == [0, 30, 60, 90, 120]
    assert float(table[1].split()[1]) == round(rows[3]["weight/depth"], 3)


def test_with_tensorboard_it_writes_all_scalars_there_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(BOARD)
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, BOARD, module)

    rows = load("log_weights").main(steps=30, folder=tmp_path)

    [board] = Writer.made
    assert board.closed
    assert board.folder == str(tmp_path)
    for row in rows:
        for name in set(row) - {"step"}:
            assert board.scalars[row["step"], f"balancer/{name}"] == row[name]
