"""The part of a graph by which features depend on parameters: what runs when these are differentiated."""

from collections.abc import Sequence
from functools import cached_property

from torch import Tensor

from ..torch_internals import dependents, some_recomputes


class Between:
    """The nodes between some features and parameters, which are found by one walk over all that is behind the features.

    Args:
        features: z, one tensor or several.
        parameters: leaves of the graph.
    """

    def __init__(self, features: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
        self.parameters, wanted = parameters, set(parameters)
        self.starts = list({z.grad_fn: None for z in features if z.grad_fn is not None})
        users, leaves = dependents(self.starts)
        waiting = [leaf for leaf in leaves if getattr(leaf, "variable", None) in wanted]
        self.nodes = set(waiting)
        while waiting:
            for user in users[waiting.pop()]:
                if user not in self.nodes:
                    self.nodes.add(user)
                    waiting.append(user)

    @cached_property
    def recomputes(self) -> bool:
        """Whether a node recomputes what it saved: see `some_recomputes`."""
        return some_recomputes(self.nodes)
