"""Find waits for a device, and tensors on another one, on a machine that has none.

`DeviceWatch` looks at every operator that a step calls, on one of two devices that have no values: "meta", and "lazy",
which is simulated. On these, a value can't be read at all, and a copy to the host is seen as such. `autocast` stands in
for `torch.autocast`, which knows neither device.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

DEVICES = ("lazy", "meta")
READS = ("_local_scalar_dense", "item", "is_nonzero", "equal", "allclose")
"""Operators that return a value to the host."""
CHECKS = ("_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_lstsq", "linalg_pinv")
"""Operators that wait on CUDA to see whether they succeeded."""

MAKES = ("rand", "randn", "lift_fresh")
"""Operators that make what is then copied to the device; the last is that of `torch.tensor`."""


def simulated(device: str) -> AbstractContextManager[object]:
    """Return a context, to enter as often as needed, in which tensors can be on ``device``, one of `DEVICES`."""
    return nullcontext() if device == "meta" else FakeTensorMode(allow_non_fake_inputs=True)


class DeviceWatch(TorchDispatchMode):
    """Raise AssertionError where an operator waits for the device, or where its tensors are not all on it.

    Nothing may be copied from the device to the host. Two things may be copied from the host to the device:

    - random numbers that the engine draws on the host (`rng.py`), for a device without generators,
    - state, and constants that a method declared (`declared_state.py`), while `moving` is true.

    Args:
        device: the type of the device.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.moving = False
        """Whether this is a balancer's first window, which moves its state to the device."""
        self.calls = 0
        """The number of operators seen."""
        self.draws = 0
        """The number of copies of random numbers to the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if func.namespace == "prim":  # asks for a tensor's device
            return func(*args, **kwargs)
        self.calls += 1
        given, target = _tensors((args, kwargs)), _target(name, args, kwargs)
        if name in READS + CHECKS or _has_size_from_values(func, name, args):
            raise AssertionError(f"{func} at {_line()} waits for the device")
        if target not in (None, self.device) and any(tensor.device.type == self.device for tensor in given):
            raise AssertionError(f"{func} at {_line()} copies from the device to the host")
        arrives = target == self.device and self._elsewhere(given) == {"cpu"}
        if (arrives or name in MAKES) and self._is_allowed(name, arrives):
            return func(*args, **kwargs)
        self._check(func, given)
        returned = func(*args, **kwargs)
        self._check(func, _tensors(returned))
        return returned

    def _elsewhere(self, tensors: Sequence[Tensor]) -> set[str]:
        """Return the other devices that ``tensors`` are on."""
        return {tensor.device.type for tensor in tensors} - {self.device}

    def _check(self, func: Any, tensors: Sequence[Tensor]) -> None:
        if places := self._elsewhere(tensors):
            raise AssertionError(f"{func} at {_line()} has a tensor on {', '.join(sorted(places))}, not {self.device}")

    def _is_allowed(self, name: str, arrives: bool) -> bool:
        """Return whether an operator belongs to a copy to the device that this class allows."""
        module = _engine_frame()[0]
        if module == "balancers.engine.method.rng":
            self.draws += arrives
            return arrives or name in ("rand", "randn")
        return module == "balancers.engine.method.declared_state" and self.moving and (arrives or name == "lift_fresh")


def _tensors(values: object) -> list[Tensor]:
    return [value for value in pytree.tree_leaves(values) if isinstance(value, Tensor)]


def _target(name: str, args: Any, kwargs: Any) -> str | None:
    """Return the type of the device that an operator copies to; None if it copies nothing."""
    if name == "_to_copy":
        device = kwargs.get("device")
        return args[0].device.type if device is None else torch.device(device).type
    return args[0].device.type if name == "copy_" else None


def _has_size_from_values(func: Any, name: str, args: Any) -> bool:
    """Return whether the size of an operator's result, or of a step within it, depends on values."""
    if name in ("index", "index_put", "index_put_"):
        by_mask = any(tensor.dtype in (torch.bool, torch.uint8) for tensor in _tensors(args[1]))
        return by_mask and (name == "index" or args[2].numel() > 1)  # to set one value is a `masked_fill`
    return bool({torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(func.tags))


def _engine_frame() -> tuple[str, int]:
    """Return the module and line of the innermost frame in the package `balancers`; empty if there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] == "balancers":
            return module, frame.f_lineno
        frame = frame.f_back
    return "", 0


def _line() -> str:
    module, line = _engine_frame()
    return f"{module}:{line}" if module else "the caller's code"


class _Products(TorchFunctionMode):
    """Compute matrix products in bfloat16."""

    FUNCTIONS = (F.linear, torch.mm, torch.bmm, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.FUNCTIONS:
            args = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(torch.bfloat16), args)
        return func(*args, **(kwargs or {}))


@contextmanager
def autocast(device: str) -> Iterator[None]:
    """Do to matrix products what `torch.autocast` with bfloat16 does, for a device that it does not know."""
    was_available, was_enabled, was_dtype = (
        torch.amp.is_autocast_available,
        torch.is_autocast_enabled,
        torch.get_autocast_dtype,
    )
    with pytest.MonkeyPatch.context() as patch, _Products():
        patch.setattr(torch.amp, "is_autocast_available", lambda of: of == device or was_available(of))
        patch.setattr(torch, "is_autocast_enabled", lambda *of: of == (device,) or was_enabled(*of))
        patch.setattr(torch, "get_autocast_dtype", lambda of: torch.bfloat16 if of == device else was_dtype(of))
        yield
