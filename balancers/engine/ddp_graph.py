"""Find the nodes that DistributedDataParallel (DDP) adds to the autograd graph, and hide measurements from it."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.autograd.graph import Node

from .loss_input import Entries, roots

DDP_SINK = "_DDPSinkBackward"
"""Name of the node that DDP may put behind a model's outputs. One node passes all outputs through unchanged."""


@contextmanager
def before_first_backward(losses: Entries) -> Iterator[None]:
    """Keep DDP from counting a differentiation of ``losses`` inside this context as a backward pass.

    With ``static_graph=True``, DDP averages the gradients at the end of its very first backward pass. It must not
    mistake an earlier measurement for that pass.
    """
    waiting: list[Node] = [root.edge.node for root in roots(losses) if root is not None]
    seen, models = set(waiting), []
    while waiting:
        node = waiting.pop()
        model = getattr(node, "ddp_weakref", lambda: None)() if node.name() == DDP_SINK else None
        if model is not None and model.static_graph and not model._static_graph_delay_allreduce_enqueued:
            model._static_graph_delay_allreduce_enqueued = True
            models.append(model)
        new = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= new
        waiting += new
    try:
        yield
    finally:
        for model in models:
            model._static_graph_delay_allreduce_enqueued = False
