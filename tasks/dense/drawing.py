"""Pictures of dense prediction: images, their targets and a model's predictions, side by side."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .images import Images, known_depth, known_normal, labelled
from .metrics import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (
    *("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9"),
    *("#000000", "#5b2a86", "#7f1d1d"),
)
"""Colours of the classes: seaborn's palette "colorblind" and three darker colours. None of them is white.

White marks pixels without a target.
"""


class Column(NamedTuple):
    """A column of N pictures.

    Attributes:
        title: the column's title.
        pixels: colours of shape ``(N, H, W, 3)``, or values of shape ``(N, H, W)``.
        colours: arguments of ``imshow`` that map values to colours; empty for colours.
    """

    title: str
    pixels: Tensor
    colours: Mapping[str, Any]


def draw(
    figure: "Figure", images: Images, predictions: Mapping[Task, Tensor], classes: Sequence[str], depth_words: str
) -> str:
    """Draw one row per image: the image, and each target, followed by its prediction if there is one.

    Args:
        figure: an empty figure.
        images: the images to draw.
        predictions: the network's predictions by task; empty if there is no network.
        classes: the classes' names, no more than there are `COLOURS`.
        depth_words: label of the colour bar of depth.

    Returns:
        A caption.
    """
    from matplotlib.patches import Patch

    columns = [Column("image", images.image.movedim(1, -1), {})]
    if images.label is not None:
        columns += _labels(images.label, predictions.get("segmentation"), len(classes))
    if images.depth is not None:
        columns += _depths(images.depth, predictions.get("depth"))
    if images.normal is not None:
        columns += _normals(images.normal, predictions.get("normals"))

    num_images, _, height, width = images.image.shape
    figure.set_size_inches(9, 1 + num_images * (8 / len(columns) * height / width + 0.05))
    grid = figure.subplots(num_images, len(columns), squeeze=False)
    for column, all_axes in zip(columns, grid.T, strict=True):
        all_axes[0].set_title(column.title, fontsize=8, fontweight="normal")
        for axes, pixels in zip(all_axes, column.pixels.cpu(), strict=True):
            axes.imshow(pixels.numpy(), interpolation="nearest", **column.colours)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(True)
        if images.depth is not None and column.title.endswith("depth"):
            of_depth = all_axes[0].images[0]
    if images.depth is not None:
        figure.colorbar(of_depth, ax=grid, label=depth_words, pad=0.01, aspect=30)
    if images.label is not None:
        handles = [Patch(color=colour, label=name) for name, colour in zip(classes, COLOURS, strict=False)]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(7, len(classes)), fontsize=8, frameon=False
        )
    beside = ", each followed by what the model predicts" if predictions else ""
    normals = "; a normal's three components are shown as red, green and blue" if images.normal is not None else ""
    return f"Images of the test set and their targets{beside}. White means no target{normals}."


def _labels(true: Tensor, logits: Tensor | None, num_classes: int) -> list[Column]:
    """Return the columns of true and, if there are ``logits``, of predicted classes."""
    from matplotlib.colors import ListedColormap

    colours = {"cmap": ListedColormap(COLOURS[:num_classes]), "vmin": -0.5, "vmax": num_classes - 0.5}
    columns = [Column("true class", true.float().where(labelled(true), torch.nan), colours)]
    return columns if logits is None else [*columns, Column("predicted class", logits.argmax(1), colours)]


def _depths(true: Tensor, predicted: Tensor | None) -> list[Column]:
    """Return the columns of true and predicted depths, both in the range of the true ones."""
    known = known_depth(true)
    low, high = (float(true[known].min()), float(true[known].max())) if known.any() else (0.0, 1.0)
    colours = {"cmap": "viridis", "vmin": low, "vmax": high}
    columns = [Column("true depth", true.where(known, torch.nan)[:, 0], colours)]
    return columns if predicted is None else [*columns, Column("predicted depth", predicted[:, 0], colours)]


def _normals(true: Tensor, predicted: Tensor | None) -> list[Column]:
    """Return the columns of true and predicted normals, whose components become red, green and blue."""

    def rgb(normals: Tensor) -> Tensor:
        shades = (F.normalize(normals, dim=1) + 1) / 2
        return shades.where(known_normal(normals)[:, None], 1.0).movedim(1, -1)

    columns = [Column("true normal", rgb(true), {})]
    return columns if predicted is None else [*columns, Column("predicted normal", rgb(predicted), {})]
