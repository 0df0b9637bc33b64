"""Walk the autograd graph behind some features, once for all who ask about it."""

from collections.abc import Sequence

from torch import Tensor
from torch.autograd.graph import Node


class GraphBehind:
    """Every node that some features depend on.

    A graph of a thousand nodes takes two thirds of a millisecond, most of it PyTorch's, which wraps each node anew.

    It keeps nodes and no features, whose memory it would hold for as long.

    Args:
        features: z, one tensor or several.
    """

    def __init__(self, features: Sequence[Tensor]) -> None:
        self.starts = list({z.grad_fn: None for z in features if z.grad_fn is not None})
        self.users: dict[Node, list[Node]] = {start: [] for start in self.starts}
        """Each node, with those among them that take its result."""
        self.leaves: dict[Node, None] = {}
        """The nodes that depend on no other: those that accumulate gradients."""
        users, waiting = self.users, list(self.starts)
        while waiting:
            node = waiting.pop()
            sources = node.next_functions
            if not sources:
                self.leaves[node] = None
            for source, _ in sources:
                if source is None:
                    continue
                known = users.get(source)
                if known is None:
                    users[source] = [node]
                    waiting.append(source)
                else:
                    known.append(node)
