"""The part of a graph by which features depend on parameters: what runs when these are differentiated."""

from collections.abc import Sequence
from functools import cached_property

from torch import Tensor

from ..graph_behind import GraphBehind
from ..torch_internals import some_recomputes


class Between:
    """The nodes between some features and parameters.

    Args:
        graph: all that is behind the features.
        parameters: leaves of the graph.
    """

    def __init__(self, graph: GraphBehind, parameters: Sequence[Tensor]) -> None:
        self.parameters, wanted = parameters, set(parameters)
        variables = ((leaf, getattr(leaf, "variable", None)) for leaf in graph.leaves)
        self.leaves = {leaf: variable for leaf, variable in variables if variable in wanted}
        """The parameters that the features depend on, by the nodes that accumulate their gradients."""
        waiting = list(self.leaves)
        self.nodes = set(waiting)
        while waiting:
            for user in graph.users[waiting.pop()]:
                if user not in self.nodes:
                    self.nodes.add(user)
                    waiting.append(user)
        self.starts = [start for start in graph.starts if start in self.nodes]
        """The features' nodes."""

    @cached_property
    def recomputes(self) -> bool:
        """Whether a node recomputes what it saved: see `some_recomputes`."""
        return some_recomputes(self.nodes)
