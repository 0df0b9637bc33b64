"""Import DeepXDE for tests: with its PyTorch backend, no file in the home folder, and the default device as it was."""

import os
from types import ModuleType

import pytest
import torch


def import_deepxde() -> ModuleType:
    """Return the package, or skip the tests if it is not installed."""
    os.environ.setdefault("DDE_BACKEND", "pytorch")  # else it looks for a backend, and writes down which it found
    before = torch.get_default_device()
    deepxde: ModuleType = pytest.importorskip("deepxde")
    if torch.get_default_device() != before:  # on a machine with a GPU
        torch.set_default_device(before)
    return deepxde
