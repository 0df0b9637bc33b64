"""Methods that read how residuals depend on the parameters, before they weigh a step's losses."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from ..fork_error import ForkError
from ..loss_input import Entries, entries
from ..measuring.task_gradients import dense
from ..measuring.vector_jacobian import in_one_pass
from ..method.declared import option
from ..method.readings import Read
from ..method.rng import Draws
from ..passes import as_measurements
from ..steps.measuring_step import nothing_measured
from ..torch_internals import before_first_backward, foreach_norm, without_hooks
from .ahead import AheadBalancer

Residuals = Sequence[Tensor] | Mapping[str, Tensor]
"""T tensors of any shape, each with its graph, or a dict of them by task."""
AT_ONCE, ENTRIES = 64, 2**24
"""The most gradients, and entries of gradients, that one pass takes."""
_REASON = "residuals are differentiated without a fork"


class ResidualBalancer(AheadBalancer):
    r"""A balancer that reads the mean diagonal of each residual's tangent kernel, as the square of ``read.norms``.

    For a residual :math:`r_i` with :math:`N_i` entries it is :math:`\frac{1}{N_i} \sum_n \lVert \nabla_\theta r_{in}
    \rVert^2`, where :math:`\theta` are the parameters ``wrt``. This takes a backward pass for each entry; several
    passes are made as one. With ``probes``, it is the mean of :math:`\frac{1}{N_i} \lVert \nabla_\theta \sum_n e_n
    r_{in} \rVert^2` over ``probes`` draws of random signs :math:`e_n`, which is right on average.

    The user gives the residuals before the balancer is called, in the steps that measure them::

        if balancer.needs_residuals:
            balancer.residuals({"equation": r, "boundary": u - g})
        balancer({"equation": r.square().mean(), "boundary": (u - g).square().mean()}).backward()
    """

    reads = "residuals"
    undefined_for = MappingProxyType({"features": _REASON, "layer": _REASON})
    probes: int = option(0, at_least=0, whole=True)
    _residuals: Residuals | None = None
    """Those of the next step, if it needs them."""

    @property
    def needs_residuals(self) -> bool:
        """Whether the next call of the balancer measures residuals, if it is one in training and with gradients."""
        begun = self._held is not None and self._held.begun
        return self.training and self.begins_window and not begun

    def residuals(self, residuals: Residuals) -> None:
        """Give the residuals of the next step; ignored if it does not need them: see `needs_residuals`.

        Args:
            residuals: T tensors of any shape, each with its graph, or a dict of them by task, which may leave out tasks
                that have no loss in the step.

        Raises:
            TypeError: they are something else.
        """
        if not self.needs_residuals:
            return
        if isinstance(residuals, str | Tensor) or not isinstance(residuals, Sequence | Mapping):
            raise TypeError(
                f"residuals is of type {type(residuals).__name__}; expected a list of tensors, or a dict by task"
            )
        self._residuals = residuals

    def look(self, read: Read, losses: Entries, given: tuple[bool, ...] | None) -> None:
        residuals, self._residuals = self._residuals, None
        if residuals is None:
            raise RuntimeError(
                f"{type(self).__name__} measures residuals in this step: before the call, give them with "
                f"balancer.residuals([...]). balancer.needs_residuals says whether the next step needs them"
            )
        if self.is_sharded():
            raise RuntimeError(f"{type(self).__name__} can't measure residuals where FSDP shards the parameters of wrt")
        draws = Draws(self.seed, self.drawn, self.last_weights)
        in_order = self._in_order(residuals, given)
        found = [None if each is None else self._mean_square(each, draws) for each in in_order]
        missing = [i for i in range(self.num_tasks) if in_order[i] is not None and found[i] is None]
        if self._ranks.size == 1 and all(mean is None for mean in found):
            raise ForkError(nothing_measured(self, observed=False))
        self.warnings.tell_missing(self, missing)
        means = torch.stack([read.losses.new_zeros(()) if mean is None else mean.to(read.losses) for mean in found])
        read.norms = (means if self._ranks.size == 1 else self._mean_losses(means, given)[0]).sqrt()

    def _in_order(self, residuals: Residuals, given: tuple[bool, ...] | None) -> list[Tensor | None]:
        """Return the residuals in task order, None for tasks that have no loss in the step.

        Raises:
            TypeError, ValueError: a residual is not what it must be, or is missing.
        """
        if isinstance(residuals, Mapping):
            names = self.tasks or tuple(residuals)
            if unknown := [name for name in residuals if name not in names]:
                raise ValueError(f"residuals has an unknown task {unknown[0]!r}; {self.made_for()}")
            found = [residuals.get(name) for name in names]
        else:
            found = list(residuals)
        if len(found) != self.num_tasks:
            raise ValueError(f"residuals has {entries(found)}, but {self.made_for()}")
        return [
            _checked(f"the residual of {self.label(i)}", each) if given is None or given[i] else None
            for i, each in enumerate(found)
        ]

    def _mean_square(self, residual: Tensor, draws: Draws) -> Tensor | None:
        """Return the mean square of the norms of the entries' gradients; None if they depend on no parameter."""
        wrt, edge = self.measured_parameters() or (), get_gradient_edge(residual)
        at_once = max(1, min(AT_ONCE, ENTRIES // max(1, sum(parameter.numel() for parameter in wrt))))
        seeds = signs(residual, self.probes, at_once, draws) if self.probes > 0 else selectors(residual, at_once)
        total: Tensor | None = None
        with as_measurements([edge.node]), before_first_backward([edge]), without_hooks(wrt):
            for some in seeds:
                parts = [dense(part) for row in in_one_pass([edge], wrt, [some]) for part in row if part is not None]
                if parts:
                    wide = torch.promote_types(parts[0].dtype, torch.float32)
                    squares = torch.stack(foreach_norm(parts, wide)).square().sum()
                    total = squares if total is None else total + squares
        return None if total is None else total / (residual.numel() * max(1, self.probes))

    def _count_draws(self) -> None:
        if self.probes > 0:
            self.drawn += 1

    def state_changed(self) -> None:
        super().state_changed()
        self._residuals = None

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_residuals": None}


def selectors(residual: Tensor, at_once: int) -> Iterator[Tensor]:
    """Yield gradients that select each entry of a residual, ``(n, *shape)``, up to ``at_once`` of them at a time."""
    size = residual.numel()
    for start in range(0, size, at_once):
        rows = torch.zeros(min(at_once, size - start), size, dtype=residual.dtype, device=residual.device)
        rows.diagonal(start).fill_(1.0)
        yield rows.view(-1, *residual.shape)


def signs(residual: Tensor, number: int, at_once: int, draws: Draws) -> Iterator[Tensor]:
    """Yield random signs, ``(n, *shape)``, ``number`` for each entry, up to ``at_once`` of them at a time."""
    for start in range(0, number, at_once):
        uniform = draws.uniform(min(at_once, number - start), *residual.shape)
        yield torch.where(uniform < 0.5, -1.0, 1.0).to(residual.dtype)


def _checked(what: str, residual: object) -> Tensor:
    if residual is None:
        raise ValueError(f"{what}, which has a loss in this step, is missing")
    if not isinstance(residual, Tensor):
        raise TypeError(f"{what} is of type {type(residual).__name__}; expected a tensor")
    if not residual.dtype.is_floating_point or residual.numel() == 0:
        kind = "has no entry" if residual.numel() == 0 else f"is of dtype {residual.dtype}"
        raise ValueError(f"{what} {kind}; expected floating-point numbers, one or more")
    if not residual.requires_grad:
        raise ValueError(
            f"{what} does not require grad, so there is nothing to measure: was it detached, or computed under no_grad?"
        )
    return residual
