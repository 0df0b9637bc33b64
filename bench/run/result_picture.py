"""What a problem's data look like and what a trained model makes of them, as the problem itself draws it."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from torch import nn

from tasks import Problem

from . import atomic_file
from .training import Training

SIZE = (9.0, 5.0)
"""Inches, unless the problem wants another size."""
DPI = 100


@dataclass(frozen=True)
class Picture:
    """A picture as PNG, and what is to be seen in it. ``png`` is empty where nothing was drawn."""

    png: bytes
    caption: str


def path(folder: Path, key: str) -> Path:
    """Where the caption of a run's picture is, or will be; the picture is beside it."""
    return folder / "pictures" / f"{key}.json"


def draw(problem: Problem[object], data: object, model: nn.Module | None) -> Picture:
    """What `Problem.draw` draws."""
    if type(problem).draw is Problem.draw:
        return Picture(b"", "")
    return render(lambda figure: problem.draw(figure, data, model))


def render(drawn: Callable[[Figure], str]) -> Picture:
    """What ``drawn`` draws into an empty figure, of which it returns the caption; empty if that is."""
    from bench.style.figure_style import theme  # most workers draw nothing, and are spared the import

    with theme():
        figure = Figure(figsize=SIZE, layout="constrained")
        caption = drawn(figure)
        content = io.BytesIO()
        if caption:
            figure.savefig(content, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return Picture(content.getvalue(), caption)


def save(training: Training, about: Path) -> None:
    """Draws what the model of a run that has ended makes of its problem's data; of one that failed, the data alone.

    A problem that can't draw does no harm: its caption then says why.
    """
    try:
        model = training.model if training.result.status == "ok" else None
        picture = draw(training.problem, training.data, model)
    except Exception as error:
        picture = Picture(b"", f"No picture: {type(error).__name__}: {error}")
    if picture.png:
        atomic_file.write(about.with_suffix(".png"), picture.png)
    atomic_file.write(about, json.dumps({"caption": picture.caption}).encode())


def save_none(about: Path, why: str) -> None:
    """Leaves word that there is no picture."""
    atomic_file.write(about, json.dumps({"caption": why}).encode())


def load(about: Path) -> Picture:
    """Reads a picture; empty where there is none."""
    if not about.is_file():
        return Picture(b"", "")
    png = about.with_suffix(".png")
    caption = json.loads(about.read_text(encoding="utf-8"))["caption"]
    return Picture(png.read_bytes() if png.is_file() else b"", caption)
