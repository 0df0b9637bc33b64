"""Save and load the picture of a run: its problem's data and what the trained model predicts, drawn by the problem."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from torch import nn

from tasks import Problem

from . import atomic_file, checked_json
from .atomic_file import BadFileError
from .training import Training

SIZE = (9.0, 5.0)
"""Width and height in inches; a problem can change them."""
DPI = 100


@dataclass(frozen=True)
class Picture:
    """A picture as PNG, and its caption. ``png`` is empty if nothing was drawn."""

    png: bytes
    caption: str


def path(folder: Path, key: str) -> Path:
    """Return the path of the caption of a run's picture; the picture has the same name with the ending ``.png``."""
    return folder / "pictures" / f"{key}.json"


def draw(problem: Problem[object], data: object, model: nn.Module | None) -> Picture:
    """Return what `Problem.draw` draws; empty if the problem does not define it."""
    if type(problem).draw is Problem.draw:
        return Picture(b"", "")
    return render(lambda figure: problem.draw(figure, data, model))


def render(drawn: Callable[[Figure], str]) -> Picture:
    """Call ``drawn`` with an empty figure, and return the picture with the caption that it returns.

    An empty caption means that there is no picture.
    """
    from bench.style.figure_style import theme  # imported here because most workers draw nothing

    with theme():
        figure = Figure(figsize=SIZE, layout="constrained")
        caption = drawn(figure)
        content = io.BytesIO()
        if caption:
            figure.savefig(content, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return Picture(content.getvalue(), caption)


def of(training: Training) -> Picture:
    """Draw the data of a finished run's problem and what its model predicts; if the run failed, the data alone.

    If drawing raises an error, the caption holds its message, and there is no picture.
    """
    try:
        model = training.model if training.result.status == "ok" else None
        return draw(training.problem, training.data, model)
    except (Exception, SystemExit) as error:
        return Picture(b"", f"No picture: {type(error).__name__}: {error}")


def save(about: Path, picture: Picture) -> None:
    """Write a picture, and its caption to ``about``."""
    if picture.png:
        atomic_file.write(about.with_suffix(".png"), picture.png)
    facts = {"caption": picture.caption, "png": checked_json.checksum(picture.png) if picture.png else ""}
    checked_json.write(about, facts)


def load(about: Path) -> Picture:
    """Read a picture; return an empty one if there is no caption at ``about``.

    Raises:
        BadFileError: the caption or the picture has changed since it was saved.
    """
    if not about.is_file():
        return Picture(b"", "")
    facts = checked_json.read(about)
    png = about.with_suffix(".png")
    content = png.read_bytes() if facts["png"] and png.is_file() else b""
    if facts["png"] and checked_json.checksum(content) != facts["png"]:
        raise BadFileError(f"{png} is damaged; remove {about.name} and run the suite again")
    return Picture(content, facts["caption"])
