"""Check what a method's functions return, and name the class and the function where it can't be used.

Only types, names and shapes are looked at, which the host knows: no operator is called.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .readings import Result

if TYPE_CHECKING:
    from .declared_method import DeclaredMethod


def check_weights(balancer: "DeclaredMethod", weights: Tensor, number: int) -> None:
    """Check what `weigh` returned: one weight for each of ``number`` tasks.

    Raises:
        TypeError: it is not a tensor.
        ValueError: it has another shape.
    """
    if not isinstance(weights, Tensor):
        raise TypeError(f"{_named(balancer, 'weigh')} returned {_type(weights)}; expected a tensor of weights")
    if weights.shape != (number,):
        raise ValueError(f"{_named(balancer, 'weigh')} returned {_unlike('weights', weights, (number,))}")


def check_result(balancer: "DeclaredMethod", result: Result, number: int, index: Tensor | None) -> None:
    """Check what `update` returned, or what `solve` did; see `Result`.

    Args:
        balancer: the balancer, whose method returned it.
        result: what it returned.
        number: that of the tasks whose rows the function got.
        index: these tasks; None: all.

    Raises:
        TypeError: it is no `Result`, or lacks weights, or a part of it is no tensor.
        ValueError: a part has another shape than expected, or is of a state that is not declared.
    """
    function = "solve" if balancer._update_takes is None else "update"
    if not isinstance(result, Result):
        raise TypeError(
            f"{_named(balancer, function)} returned {_type(result)}; expected Result(state={{...}}), or "
            f"Result(weights, ...) of a method that combines gradients"
        )
    if balancer.combines and result.weights is None:
        raise TypeError(
            f"{_named(balancer, function)} returned no weights; a method that reads {_reads(balancer)} returns "
            f"Result(weights, ...)"
        )
    for name, value in (("weights", result.weights), ("gradient", result.gradient)):
        if value is not None:
            _check(balancer, function, name, value, (number,))
    for name, value in result.state.items():
        if name not in balancer._declared:
            known = ", ".join(_own(balancer)) or "none"
            raise ValueError(f"{_named(balancer, function)} returned new values of {name!r}; its state is {known}")
        _check(balancer, function, f"state[{name!r}]", value, _shape(balancer, name, index))


def _check(balancer: "DeclaredMethod", function: str, what: str, value: Tensor, shape: Iterable[int]) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{_named(balancer, function)} returned {_type(value)} as {what}; expected a tensor")
    if value.shape != shape:
        raise ValueError(f"{_named(balancer, function)} returned {_unlike(what, value, shape)}")


def _shape(balancer: "DeclaredMethod", name: str, index: Tensor | None) -> Iterable[int]:
    """Return the shape of the rows of a state that belong to the tasks at ``index``; None: to all."""
    shape: torch.Size = balancer.get_buffer(name).shape
    if index is None:
        return shape
    dims = balancer._task_dims[name]
    return tuple(len(index) if dim in dims else size for dim, size in enumerate(shape))


def _own(balancer: "DeclaredMethod") -> list[str]:
    """Return the names of the state that the method's `update` may change."""
    return [name for name in balancer._declared if name != "last_weights"]


def _named(balancer: "DeclaredMethod", function: str) -> str:
    return f"{type(balancer).__name__}.{function}"


def _type(value: Any) -> str:
    return f"an object of type {type(value).__name__}"


def _unlike(what: str, value: Tensor, shape: Iterable[int]) -> str:
    return f"{what} of shape {tuple(value.shape)}; expected {tuple(shape)}"


def _reads(balancer: "DeclaredMethod") -> str:
    return "the Gramian" if balancer.reads == "gramian" else "the gradients"
