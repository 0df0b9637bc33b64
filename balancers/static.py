"""Static weighting: use weights that were chosen beforehand."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from .engine import LossBalancer, State, register


@register
class StaticWeighting(LossBalancer):
    """Use the given weights in every step.

    Args:
        weights: one per task, or a ``{task: weight}`` dict; not negative, not all zero. They are used as they are,
            whatever their sum.
        tasks: the tasks' names; by default those of a dict.
        options: see `LossBalancer`.

    Raises:
        TypeError: ``weights`` is one number, or something else that holds none.
        ValueError: a weight is negative or not finite, all weights are zero, or their number is not that of the
            tasks; or a dict has other tasks than ``tasks``.

    Example::

        balancer = StaticWeighting({"class": 1.0, "box": 0.2})
        balancer(losses).backward()
    """

    name = "static"
    summary = "Use weights that were chosen beforehand, by hand or by a search."
    use_when = "When the right weights are known, from the noise of the labels or from a search."
    reads = "nothing"

    def __init__(
        self,
        weights: Sequence[float] | Mapping[str, float] | Tensor,
        *,
        tasks: int | Sequence[str] | None = None,
        compile: bool = False,
        **options: object,
    ) -> None:
        if not isinstance(weights, Collection):
            raise TypeError(f"weights is of type {type(weights).__name__}; expected one weight per task")
        if isinstance(weights, Mapping):
            names = list(weights)
            tasks = names if tasks is None or tasks == len(names) else tasks
            if isinstance(tasks, int) or {*tasks} != {*names}:
                raise ValueError(f"weights has the tasks {names}, but tasks is {tasks!r}")
            weights = [weights[task] for task in tasks]
        values = torch.as_tensor(weights, dtype=torch.float64, device="cpu")
        if values.numel() == 0:
            raise ValueError("weights is empty; expected one weight per task")
        super().__init__(len(values) if tasks is None else tasks, compile=compile, **options)
        if values.shape != (self.num_tasks,):
            raise ValueError(f"weights has shape {tuple(values.shape)}, but {self.made_for()}")
        if not (values.isfinite().all() and values.min() >= 0 and values.any()):
            raise ValueError(f"weights is {values.tolist()}; expected finite numbers, 0 or more, not all of them 0")
        self.declare("last_weights", values.tolist())
        if isinstance(weights, Tensor):
            self.fit(weights)

    def weigh(self, state: State) -> Tensor:
        """Return the given weights, ``(T,)``."""
        return state["last_weights"]
