"""Warn of what would stop a method or drive it astray in silence: losses it is not made for, missing gradients."""

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..host_copy import HostCopy, is_capturing
from ..user_warnings import warn

if TYPE_CHECKING:
    from .base import LossBalancer

FIRST, EVERY = 8, 7
"""The first updates are all looked at, and then each that this number divides."""
INVALID = 20
"""Number of first updates, all of them not valid, after which a warning says so; a GradScaler skips some."""
RECENT, OFTEN = 20, 3
"""A warning comes if `OFTEN` of the last `RECENT` looks found a task's loss out of the domain."""


class TrainingWarnings:
    """Looks at the updates of a balancer, and warns once of each kind of trouble."""

    def __init__(self) -> None:
        self._updates = self._alone = self._invalid = 0
        """The number of updates looked at, of those in a row with one task, and of invalid ones; -1 after a valid."""
        self._valid: HostCopy | None = None
        self._looked: HostCopy | None = None
        self._bad: dict[int, int] = {}
        """For each task the last looks at its loss, one bit for each: 1 where it was out of the domain."""
        self._warned = self._told_missing = self._told_unreached = self._told_alone = False

    def tell_missing(self, balancer: "LossBalancer", tasks: Collection[int]) -> None:
        """Warn once of tasks that were given but got no gradient."""
        if tasks and not self._told_missing:
            self._told_missing = True
            named = ", ".join(balancer.label(i) for i in sorted(tasks))
            warn(
                f"no gradient of the loss of {named} arrived in a backward pass: was it detached? It counts as zero, "
                f"at which some methods stop all training. A task without a loss to learn from can be left out of a "
                f"{{task: loss}} dict"
            )

    def tell_unreached(self, balancer: "LossBalancer", number: int) -> None:
        """Warn once that no loss depends any more on some of the parameters that ``wrt`` lists."""
        if number and not self._told_unreached:
            self._told_unreached = True
            warn(
                f"no loss depends any more on {number} of the parameters that wrt lists for {balancer.name}: were they "
                f"frozen, or replaced after the balancer was made, as load_state_dict(assign=True) does? Give the "
                f"module itself as wrt, and it is asked for its parameters at each step"
            )

    def tell(self, balancer: "LossBalancer", losses: Tensor, index: Tensor | None, valid: Tensor) -> None:
        """Warn once of a method that has nothing to learn from.

        Args:
            balancer: the method.
            losses, index: those of an update, or of a step of a method without updates: see `look`.
            valid: a bool scalar: whether all that was measured is finite.
        """
        if not self._told_alone:
            self._tell_alone(balancer, index)
        if self._invalid >= 0 and balancer.reads != "nothing" and not is_capturing(losses):
            self._tell_invalid(balancer, losses, index, valid)

    def _tell_alone(self, balancer: "LossBalancer", index: Tensor | None) -> None:
        self._alone = self._alone + 1 if index is not None and len(index) == 1 else 0
        compares = balancer.compares_tasks and balancer.reads != "nothing" and not balancer.sees_all_tasks
        if not compares or self._alone < 2 * balancer.num_tasks:
            return
        self._told_alone = True
        remedy = "give the losses of several tasks in one call"
        if balancer.when == "backward" and not balancer.combines and not balancer._weighs_by_losses:
            number = balancer.num_tasks
            remedy = f"give accumulate={number}, so that an update sees the tasks of that many backward passes"
        warn(f"{balancer.name} compares tasks, but each of its last {self._alone} updates saw one task alone: {remedy}")

    def _tell_invalid(self, balancer: "LossBalancer", losses: Tensor, index: Tensor | None, valid: Tensor) -> None:
        """Count updates that were not valid, up to the first that was: of a run that goes well one flag is copied."""
        if self._valid is None:
            settled = balancer.settled(balancer.state()) if balancer._settles else None
            self._valid = HostCopy(valid if settled is None else valid | settled)
        if not self._valid.is_known():
            return
        self._invalid, self._valid = -1 if self._valid.is_true() else self._invalid + 1, None
        if self._invalid < INVALID:
            return
        self._invalid = -1
        if self._warned:  # of losses out of the domain
            return
        cause = "in each, a loss, a gradient or a result was not finite"
        if losses.device.type == "cpu":
            places = range(len(losses)) if index is None else index.tolist()
            finite = losses.isfinite().tolist()
            if bad := [balancer.label(i) for i, good in zip(places, finite, strict=True) if not good]:
                cause = f"in the last of them, the loss of {', '.join(bad)} was not finite"
        warn(
            f"{balancer.name} skipped its first {INVALID} updates: {cause}. With check_finite=True it raises an error "
            f"at such a step"
        )

    def look(self, balancer: "LossBalancer", losses: Tensor, index: Tensor | None) -> None:
        """Look at an update's ``losses``, ``(T',)``, those of the tasks at ``index``; None: of all tasks."""
        if self._warned or not balancer.loss_domain or is_capturing(losses):
            return
        self._updates += 1
        if self._looked is None and (self._updates <= FIRST or self._updates % EVERY == 0 or any(self._bad.values())):
            lowest = balancer.lowest_losses(balancer.state(index))
            bad = (losses <= lowest if balancer.needs_positive_losses else losses < lowest).to(torch.int8)
            if index is not None:
                absent = torch.full((balancer.num_tasks,), -1, dtype=bad.dtype, device=bad.device)
                bad = absent.index_copy(0, index, bad)
            self._looked = HostCopy(bad)
        # The host learns of such losses when it need not wait: at a later update, on a GPU.
        if self._looked is not None and self._looked.is_known():
            for task, state in enumerate(self._looked.values()):
                if state >= 0:  # below zero for a task that was left out
                    self._bad[task] = (2 * self._bad.get(task, 0) + state) % 2**RECENT
            self._looked = None
            if tasks := [task for task, looks in self._bad.items() if looks.bit_count() >= OFTEN]:
                self._warned = True
                warn(_message(balancer, tasks))


def _message(balancer: "LossBalancer", tasks: list[int]) -> str:
    named = ", ".join(balancer.label(i) for i in tasks)
    what = "zero or below, or not above its lower bound" if balancer.needs_positive_losses else "below zero"
    effect = "no weight changes" if balancer.checks_losses else balancer.out_of_domain
    return (
        f"{balancer.name} is made for {balancer.loss_domain} losses, but that of {named} is {what}, in {OFTEN} or more "
        f"of the last {RECENT} steps looked at: in such steps {effect}. Methods that take any loss are, among others, "
        f"equal, random, tchebycheff, stch and pbi, and of those that read gradients mgda and upgrad; or add a "
        f"constant to the loss that keeps it above zero"
    )
