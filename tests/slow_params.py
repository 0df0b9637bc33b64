"""Choose which parameters of a test `make test` runs; `make test-all` runs all of them."""

from collections.abc import Iterable
from typing import Any

import pytest


def others_slow(values: Iterable[Any], *quick: Any) -> list[Any]:
    """Return ``values`` for ``pytest.mark.parametrize``, with the mark ``slow`` on all but those in ``quick``."""
    listed = list(values)
    assert all(value in listed for value in quick)
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in listed]
