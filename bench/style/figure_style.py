"""Give all figures one look: each method's colour, dashes and marker, one type size, and labels that do not collide.

A figure is drawn for a page on which one point is :data:`PIXELS_PER_POINT` pixels, so that 9 pt appear as 13 px.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression

from .short_label import short
from .small_file import small_svg

PIXELS_PER_POINT = 1.45
"""Pixels of the page per point of a figure."""
INK, FAINT, GRID, PAPER = "#262626", "#8a8a8a", "#e3e3e3", "#ffffff"
"""Colours of text, of axes, of grid lines and of the background."""

# First Okabe and Ito's hues in seaborn's order, without pale pink and yellow, which are barely visible on white. The
# other eight are at least as far from these and from each other as these are among themselves (25 in CIELAB), and have
# a contrast of 2.2 or more with white and with the page's dark background.
_PALETTE = [
    *(colour for i, colour in enumerate(sns.color_palette("colorblind").as_hex()) if i not in (6, 8)),
    *("#a8244f", "#8a8f00", "#6a4fe0", "#0e7c7b", "#e0359b", "#80512a", "#7bbf3a", "#50627a"),
]
# The numbers of dashes and of markers are chosen so that labels of one colour differ in both, see `styles`.
_DASHES: list[tuple[float, ...]] = [
    *((), (5, 1.5), (1.2, 1.2), (6, 1.5, 1.2, 1.5)),
    *((9, 3), (6, 1.5, 1.2, 1.5, 1.2, 1.5)),
]
_MARKERS = {"o": "●", "s": "■", "D": "◆", "^": "▲", "v": "▼", "P": "✚", "X": "✖", "*": "★"}
NUM_COLOURS = len(_PALETTE)
"""Number of colours: as many methods differ in colour alone."""
DIVERGING = LinearSegmentedColormap.from_list(
    "better to worse", ["#0173b2", "#7fb4d6", "#f3f2ee", "#eeb877", "#cc6a00"]
)
"""Colours from better (blue) to worse (orange), which those with any colour blindness tell apart."""


@dataclass(frozen=True)
class Style:
    """A method's colour, its dashes (lengths on and off, in points) and its marker.

    The dashes and the marker are for readers who cannot see the colour, and for methods that share it.
    """

    colour: str
    dashes: tuple[float, ...]
    marker: str

    @property
    def glyph(self) -> str:
        """The character that looks like the marker, for text."""
        return _MARKERS[self.marker]


def styles(balancers: Sequence[str]) -> dict[str, Style]:
    """Return the style of each label, which depends on the label's place in the suite.

    Up to 16 labels differ in colour. Up to 96 labels that share a colour differ both in dashes and in marker, so that
    they differ in figures of lines and in figures of marks.
    """
    markers = list(_MARKERS)
    return {
        label: Style(
            _PALETTE[i % NUM_COLOURS],
            _DASHES[(i + i // NUM_COLOURS) % len(_DASHES)],
            markers[(i + i // NUM_COLOURS) % len(markers)],
        )
        for i, label in enumerate(balancers)
    }


@contextmanager
def theme(size: float = 9) -> Iterator[None]:
    """Draw with unobtrusive axes and type of ``size`` points; labels are plain text, never parsed as formulas."""
    settings = {
        "font.size": size,
        "axes.titlesize": size + 0.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": size,
        "xtick.labelsize": size - 0.5,
        "ytick.labelsize": size - 0.5,
        "legend.fontsize": size,
        "legend.frameon": False,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "axes.linewidth": 0.7,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "xtick.major.size": 3,
        "ytick.major.size": 3,
        "xtick.minor.size": 1.5,
        "ytick.minor.size": 1.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "axes.facecolor": "none",
        "font.sans-serif": ["DejaVu Sans"],
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "lossbench",
    }
    with mpl.rc_context():
        sns.set_theme(context="paper", style="ticks", rc=settings)
        yield


def mark(artists: Artist | Iterable[Artist], label: str, balancers: Sequence[str]) -> None:
    """Mark parts of a figure as those of one method: in the SVG they get the class ``method-PLACE``."""
    for artist in [artists] if isinstance(artists, Artist) else artists:
        artist.set_gid(f"method-{balancers.index(label)}")


def save(figure: Figure, folder: Path, name: str, dpi: float = 150) -> None:
    """Write ``name.svg`` and ``name.png`` into ``folder``; equal figures give equal files."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # one layout for both files
    drawing = StringIO()
    figure.savefig(drawing, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r'id="(method-\d+)"', r'class="\1"', drawing.getvalue())
    (folder / f"{name}.svg").write_text(small_svg(svg), encoding="utf-8")
    figure.savefig(folder / f"{name}.png", dpi=dpi, facecolor="white", metadata={"Software": None})


def spans_decades(values: ArrayLike, factor: float = 10) -> bool:
    """Return whether ``values`` need a logarithmic axis: all positive, and the range exceeds the ratio ``factor``."""
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    return bool(finite.size and finite.min() > 0 and finite.max() > factor * finite.min())


def log_axis(panel: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with a handful of ticks that are plain numbers.

    Ticks are at decades, at 1, 2 and 5 times a decade, or at even steps, whichever suits the axis's limits.
    """
    set_scale, limits = (panel.set_xscale, panel.get_xlim) if which == "x" else (panel.set_yscale, panel.get_ylim)
    set_scale("log")
    low, high = limits()
    axis = panel.xaxis if which == "x" else panel.yaxis
    if high < 8 * low:
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    else:
        axis.set_major_locator(LogLocator(subs=(1.0,) if high > 300 * low else (1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    if high > 300 * low:  # eight small ticks a decade would be a grey bar
        axis.set_minor_locator(NullLocator())


def step_axis(panel: Axes, last: float) -> None:
    """Make the x axis a linear axis of training steps from 0 to ``last``."""
    panel.set_xlim(0, last)
    panel.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10], integer=True))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    panel.set_xlabel("training step")


def category_axis(panel: Axes, labels: Sequence[str]) -> None:
    """Make the y axis a list of rows from top to bottom, one per label."""
    panel.set_yticks(range(len(labels)), [short(label) for label in labels])
    panel.set_ylim(len(labels) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    panel.grid(False, axis="y")


End = tuple[float, str, str]
"""The right end of a line: its height in data coordinates, the line's name and its colour."""


def label_ends(
    figure: Figure, ends: Sequence[tuple[Axes, Sequence[End]]], length: int = 24, balancers: Sequence[str] = ()
) -> None:
    """Write the names of the lines at their right ends, moved apart as far as legibility needs.

    Call this once for all panels of a figure, when their limits are final.

    Args:
        figure: the figure of all panels.
        ends: the panels, each with the ends of its lines.
        length: maximum number of characters of a name.
        balancers: labels of all methods; names among them are marked with `mark`.
    """
    figure.draw_without_rendering()  # the layout computes the heights of the panels only now
    for panel, named in ends:
        points = panel.get_window_extent().height * 72 / figure.dpi
        gap = mpl.rcParams["font.size"] * 1.25 / points
        wanted = [panel.transLimits.transform(panel.transScale.transform((1, y)))[1] for y, _, _ in named]
        heights = np.clip(wanted, 0, 1)
        for place, height, (_, text, colour) in zip(spread(heights, gap), heights, named, strict=True):
            (line,) = panel.plot(
                [1, 1.03], [height, place], color=colour, linewidth=0.7, transform=panel.transAxes, clip_on=False
            )
            name = panel.text(1.055, place, short(text, length), color=colour, va="center", transform=panel.transAxes)
            if text in balancers:
                mark([line, name], text, balancers)


def spread(heights: ArrayLike, gap: float) -> NDArray[np.float64]:
    """Return the places in [0, 1] nearest to ``heights``, in the same order and at least ``gap`` apart.

    If there is no room for that, places beyond 1 are returned.
    """
    wanted = np.asarray(heights, dtype=float)
    if not wanted.size:
        return wanted
    order = np.argsort(wanted, kind="stable")
    # "At least a gap apart" is the same as "not decreasing" once the gaps below each place are subtracted.
    gaps = gap * np.arange(wanted.size)
    rising = isotonic_regression(wanted[order] - gaps).x
    places = np.empty_like(wanted)
    places[order] = np.clip(rising, 0, max(0.0, 1 - gap * (wanted.size - 1))) + gaps
    return places


def panels(count: int, columns: int = 2, width: float = 4.8, height: float = 2.9) -> tuple[Figure, list[Axes]]:
    """Return a figure and its ``count`` panels, each ``width`` by ``height`` inches; a single column is wider."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * (1.35 if columns == 1 else columns), height * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(count)]
