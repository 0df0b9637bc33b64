"""Warn at the line of the user's code, also from within a backward pass."""

import os
import sys
import warnings
from pathlib import Path

import torch

INSIDE = tuple(str(folder) + os.sep for folder in (Path(torch.__file__).parent, Path(__file__).parents[1]))
"""The folders of PyTorch and of this package."""


def warn(message: str) -> None:
    """Warn of what runs as it is but is hardly meant so, at the innermost line outside of PyTorch and this package.

    On a GPU, hooks run in a thread of PyTorch's own, which has no such line: the outermost line stands for it.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, RuntimeWarning, stacklevel=level)
