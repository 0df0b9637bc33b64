"""Have a method decide, in a backward pass, what its gradients are multiplied by or replaced with.

The gradients of the losses come from a step that measured them: see `measuring_step` and `combining_step`. Ranks are
put together, a weighting before the method is applied, and the method is asked. What it learns is written when the pass
ends.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor

from ..method.readings import NOTHING, Read, Result
from ..steps.measuring_step import MeasuringStep
from ..steps.step import scale_of
from ..torch_internals import foreach_norm
from .prior_weighting import Scaled, keep, scale, teach

if TYPE_CHECKING:
    from .base import LossBalancer
    from .gradients import GradientBalancer


def decide(
    balancer: "GradientBalancer", step: MeasuringStep, columns: list[Tensor], gramian: Tensor | None = None
) -> tuple[Tensor, list[Tensor] | None]:
    """Have the method decide on a pass's gradients, and write its state at the end of the pass.

    Args:
        balancer: the method's balancer.
        step: the step that measured the gradients.
        columns: of each tensor of features or parameters, the gradients of the losses times ``step.factors``,
            ``(T, ...)``. They are overwritten.
        gramian: their inner products, ``(T, T)``, where these were measured in their place.

    Returns:
        What these gradients are multiplied by, ``(T,)``; and what takes the place of their weighted sums, or at
        parameters without a gate is added to their plain sums, where that is not it.
    """
    shapes = [column.shape[1:] for column in columns]
    # Methods flatten the gradients of each parameter, also those of a scalar.
    columns[:] = [column.unsqueeze(-1) if column.ndim == 1 else column for column in columns]
    facts, columns, gramian = _pass_facts(balancer, step, columns, gramian)
    index, factor, to_last = facts.indices, facts.factor, facts.to_last
    measured = _measured(balancer, step, facts, columns, gramian)
    read, tracked, by = measured.read, measured.tracked, None if measured.scaled is None else measured.scaled.weights
    finite = measured.finite if step.valid is None else measured.finite & step.valid
    update = balancer.compiled("_updated") if balancer.compiles and index is None else balancer._updated
    arguments = balancer._arguments(balancer._update_takes, index, read=read)
    if balancer.weighting is not None and "state" in arguments:
        # A method that keeps the last weights multiplies gradients by them that the weighting has multiplied already.
        arguments["state"] = {**arguments["state"], "last_weights": to_last if by is None else ratio(to_last, by)}
    valid, result = update(read, arguments, index, finite)
    assert result.weights is not None
    shares = torch.where(valid, result.weights, to_last)
    replaced = _directions(balancer, step, columns, result, factor)
    if tracked is not None and balancer.replaces_gradients:
        replaced = tracked.directions(shares * factor, valid, as_differences=not step.gated)
    if by is not None:
        shares = torch.where(valid, shares * by, to_last)
    if replaced is not None:
        replaced = [each.reshape(shape) for each, shape in zip(replaced, shapes, strict=True)]
    weights = torch.where(valid, result.weights * facts.used, facts.shown) if balancer.weighs else shares
    if index is not None:
        weights = balancer.last_weights.index_copy(0, index, weights)
        shares = torch.zeros_like(weights).index_copy(0, index, shares)
    if balancer.check_finite:
        balancer._check_valid(valid)

    def end() -> None:
        balancer._commit(result, read, index, valid)
        balancer._count_draws()
        balancer._show_statistics(result.statistics, facts.given)
        if tracked is not None:
            balancer.commit({f"{balancer.tracks}_{k}": new for k, new in enumerate(tracked.new)}, index, valid)
        balancer._record(weights)
        if balancer.weighting is not None:
            _end_weighting(balancer, balancer.weighting, step, facts, measured, valid)
        balancer._after_update(valid, read.losses, index)

    step.commit = end
    return shares, replaced


def _pass_facts(
    balancer: "GradientBalancer", step: MeasuringStep, columns: list[Tensor], gramian: Tensor | None
) -> tuple["_PassFacts", list[Tensor], Tensor | None]:
    """Return what is known of a pass beside its gradients, and those of the tasks that take part on any rank."""
    shown = balancer.last_weights
    losses, used, factors = (each.to(shown.dtype) for each in (step.losses, step.weights, step.factors))
    given, losses, columns = _of_all_ranks(balancer, step, losses, columns)
    index, absent = None if balancer.sees_all_tasks else balancer.index(given), cast(Tensor | float, 0.0)
    if index is not None:
        columns = [column[index] for column in columns]
        gramian = None if gramian is None else gramian[index][:, index]
        absent = shown.index_fill(0, index, 0.0).sum()
        factors, used, shown = factors[index], used[index], shown[index]
    # Losses that were not multiplied have the factor of the whole pass; those that were, its multiple.
    factor, to_last = factors[0], shown
    if balancer.weighs:  # which may leave tasks without weight
        factor, to_last = scale_of(factors, used), ratio(shown, used)
    return _PassFacts(given, index, losses, used, absent, shown, factor, to_last), columns, gramian


def _measured(
    balancer: "GradientBalancer",
    step: MeasuringStep,
    facts: "_PassFacts",
    columns: list[Tensor],
    gramian: Tensor | None,
) -> "_Measured":
    """Return the gradients of a pass as the method reads them, after its weighting if it has one."""
    weighting, index, used = balancer.weighting, facts.indices, facts.used
    read = Read(facts.losses if index is None else facts.losses[index], used, facts.rest)
    if balancer.sees_all_tasks and facts.given is not None:
        read.present = balancer.mask(facts.given)
    own = balancer._ranks.size > 1 and step.wrt is None  # a rank's features are variables of its own
    finite, scaled, tracked = list[Tensor](), cast(Scaled | None, None), None
    if balancer.reads == "gramian" or (weighting is not None and weighting.reads in ("norms", "gramian")):
        if gramian is None:
            gramian = reduce(torch.add, [_gramian(column.to(used.dtype)) for column in columns])
        finite.append(_read_gramian(balancer, read, gramian, facts.factor, own))
    if weighting is not None and weighting.reads == "norms":
        read.norms = read.gramian.diagonal().clamp(min=0).sqrt() / used.abs()
    if weighting is not None and weighting.combines:
        scaled = scale(weighting, replace(read), index, finite[0])
        finite.append(scaled.valid)
        read.gramian = read.gramian * torch.outer(scaled.weights, scaled.weights)
    if balancer.tracks:
        balancer._check_tracked()
        are_finite = None if balancer.replaces_gradients else _are_finite(columns)  # before they are overwritten
        tracked = _track(balancer, columns, facts, read.present, None if scaled is None else scaled.weights)
        read.tracked = tracked.total
        finite.append((_are_finite(tracked.plain) if are_finite is None else are_finite) & (facts.factor != 0))
    elif balancer.reads == "gradients":
        if balancer.per_parameter:
            balancer._check_tracked()
        rows = [column.to(used.dtype) / facts.divisor for column in columns]
        are_finite = _are_finite(rows) & (facts.factor != 0)
        finite.append(balancer._ranks.mean(are_finite.to(used.dtype)) == 1 if own else are_finite)
        read.mean = balancer._ranks.mean if own else read.mean
        read.gradients = rows if scaled is None else [_times(each, scaled.weights) for each in rows]
    return _Measured(read, reduce(torch.logical_and, finite), tracked, scaled)


def _end_weighting(
    balancer: "GradientBalancer",
    weighting: "LossBalancer",
    step: MeasuringStep,
    facts: "_PassFacts",
    measured: "_Measured",
    valid: Tensor,
) -> None:
    """Have the weighting learn from the pass, at its end."""
    if measured.scaled is not None:
        keep(weighting, measured.scaled, facts.indices, valid)
        return
    norms = measured.read.norms
    if facts.indices is not None and norms is not NOTHING:
        norms = torch.zeros_like(facts.losses).index_copy(0, facts.indices, norms)
    teach(weighting, Read(facts.losses, step.weights.to(facts.losses.dtype), norms=norms), facts.given, valid)


def _of_all_ranks(
    balancer: "GradientBalancer", step: MeasuringStep, losses: Tensor, columns: list[Tensor]
) -> tuple[tuple[bool, ...] | None, Tensor, list[Tensor]]:
    """Return the tasks that take part on any rank, and the mean losses and gradients over all ranks."""
    given = step.given
    if balancer._ranks.size > 1:
        losses, given = balancer._mean_losses(losses, given)
        if step.wrt is not None:
            columns = [balancer._ranks.mean(column) for column in columns]
    return given, losses, columns


def _read_gramian(balancer: "GradientBalancer", read: Read, gramian: Tensor, scale: Tensor, own: bool) -> Tensor:
    """Read the Gramian, zero where it is not finite; return whether it is.

    With ``own``, each rank's features are variables of their own, in a loss that is the mean over ranks.
    """
    gramian = gramian / scale / scale  # whose square may overflow
    if own:
        gramian = balancer._ranks.mean(gramian) / balancer._ranks.size
    finite = gramian.trace() < torch.inf  # no product is larger than the squares of both
    read.gramian = balancer.statistics["gramian"] = torch.where(finite, gramian, 0.0)
    return finite


def _directions(
    balancer: "GradientBalancer", step: MeasuringStep, columns: Sequence[Tensor], result: Result, scale: Tensor
) -> list[Tensor] | None:
    """Return what replaces the weighted sums, or without a gate is added to the plain sums; None: nothing does."""
    if result.directions is None:
        return None
    if not balancer.replaces_gradients or (balancer.fork is not None and step.wrt is not None and not step.gated):
        raise TypeError(
            f"{type(balancer).__name__} returned directions, so it must declare replaces_gradients = True, and be "
            f"undefined_for layers at a fork, whose gradients do not go on into the trunk"
        )
    replaced = [direction * scale for direction in result.directions]
    if step.wrt is None or step.gated:
        return replaced
    return [new - rows.to(new.dtype).sum(0) for new, rows in zip(replaced, columns, strict=True)]


def _track(
    balancer: "GradientBalancer", columns: list[Tensor], facts: "_PassFacts", present: Tensor | None, by: Tensor | None
) -> "_Tracked":
    """Track the gradients times ``by``, parameter by parameter, each of which is freed when it was tracked."""
    made, state, factor, divisor = _Tracked(), dict(balancer.state(facts.indices)), facts.factor, facts.divisor
    if balancer.sees_all_tasks:
        state["present"] = torch.ones_like(facts.shown) if present is None else present.to(facts.shown.dtype)
    tracking = balancer.tracking(state)
    for k, column in enumerate(columns):
        if balancer.replaces_gradients:
            made.plain.append(column.sum(0).flatten().to(factor.dtype))
        gradient = column.to(factor.dtype)
        # A method that combines gradients, and not what it tracks, needs them again: they are not overwritten.
        gradient = gradient.div_(divisor) if balancer.replaces_gradients else gradient / divisor
        if balancer.replaces_gradients and balancer.needs_positive_losses:
            made.if_invalid.append(torch.mv(gradient.flatten(1).t(), facts.to_last * factor))
        if by is not None:
            gradient = _times(gradient, by)
        new, part = balancer.track(gradient, state[f"{balancer.tracks}_{k}"], tracking)
        made.total = made.total + part if made.total.numel() else part
        made.new.append(new)
        columns[k] = new
    return made


class _PassFacts(NamedTuple):
    """The tasks, losses and weights of a pass. T' tasks take part on any rank."""

    given: tuple[bool, ...] | None
    """For each task whether it takes part; None if all do."""
    indices: Tensor | None
    """The tasks that do, ``(T',)``; None if all do."""
    losses: Tensor
    """``(T,)``: the mean over ranks."""
    used: Tensor
    """``(T',)``: what the losses were multiplied by."""
    rest: Tensor | float
    """The sum of the weights last used of the tasks that take no part."""
    shown: Tensor
    """``(T',)``: the weights last used."""
    factor: Tensor
    """A scalar: what all losses were multiplied by besides ``used``, such as a GradScaler's scale."""
    to_last: Tensor
    """``(T',)``: what this pass's gradients are to be multiplied by to have the weights last used."""

    @property
    def divisor(self) -> Tensor:
        """A scalar: `factor`, or 1 in a pass whose gradients are all zero because it is 0."""
        return torch.where(self.factor == 0, 1.0, self.factor)


class _Measured(NamedTuple):
    """The measurements of a pass's gradients."""

    read: Read
    finite: Tensor
    """A bool scalar: whether all of them are finite."""
    tracked: "_Tracked | None"
    scaled: Scaled | None
    """The result of a weighting that reads inner products; None without one."""


class _Tracked:
    """The results of `track`, one for each parameter."""

    def __init__(self) -> None:
        self.new: list[Tensor] = []
        """The new values, ``(T', ...)``."""
        self.total = NOTHING
        """The sum of the second values that ``track`` returned."""
        self.plain: list[Tensor] = []
        """The sum of the tasks' gradients, which the backward pass sends to the parameter, flattened; empty if the
        method multiplies gradients and replaces none."""
        self.if_invalid: list[Tensor] = []
        """The gradient that the parameter receives if the step is not valid, flattened; empty if it needs none."""

    def directions(self, weights: Tensor, valid: Tensor, as_differences: bool) -> list[Tensor]:
        """Return the sum of each parameter's tracked values times ``weights``, ``(T',)``.

        With ``as_differences``, the plain sum of the gradients is subtracted. It may be so much larger that the
        difference has few digits left.
        """
        found = []
        for k, (new, plain) in enumerate(zip(self.new, self.plain, strict=True)):
            rows = new.flatten(1).t()
            direction = torch.addmv(plain, rows, weights, beta=-1) if as_differences else torch.mv(rows, weights)
            if self.if_invalid:
                otherwise = self.if_invalid[k] - plain if as_differences else self.if_invalid[k]
                direction = torch.where(valid, direction, otherwise)
            found.append(direction.view(new.shape[1:]))
        return found


def ratio(numerators: Tensor, denominators: Tensor) -> Tensor:
    """Return the ratios, zero where the denominator is."""
    return torch.where(denominators == 0, 0.0, numerators / denominators)


def _times(rows: Tensor, weights: Tensor) -> Tensor:
    """Return rows ``(T', ...)``, each times its weight."""
    return (rows.movedim(0, -1) * weights).movedim(-1, 0)


def _are_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Return a bool scalar: whether all entries are finite."""
    dtype = reduce(torch.promote_types, (each.dtype for each in tensors), torch.float32)  # half's norms overflow
    return torch.stack(foreach_norm(tensors, dtype)).amax() < torch.inf


def _gramian(column: Tensor) -> Tensor:
    """Return the inner products of T gradients, ``(T, ...)``."""
    rows = column.flatten(1)
    return rows @ rows.mT
