"""T linear heads of equal shape, stored and computed as one.

The forward pass is one matrix product for all heads. The backward pass is one too, until a balancer reads each task's
gradient of the features: it then uses one batched product, which does the same arithmetic.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..own_precision import own_precision
from ..torch_internals import FORK_COMPILED, autocasts, in_transform, not_compiled
from .fork import Fork, Passage, mark_all_heads


class LinearHeads(nn.Module):
    r"""Map features of shape ``(..., in_features)`` to outputs ``(..., T, out_features)`` by one linear head per task.

    The module equals T ``nn.Linear`` modules behind a `Fork`, initial values included, but it is faster: with 40 tasks,
    a training step takes two thirds of the time. Its fork is ``heads.fork``.

    Entry ``i`` of ``outputs.unbind(-2)`` belongs to task ``i``. A balancer accepts a ``(T,)`` tensor of losses, such as
    ``(outputs - targets).square().mean((0, 2))``, as it is.

    Raises:
        ValueError: ``num_tasks`` is less than 1.

    Example::

        heads = LinearHeads(num_tasks=10, in_features=64, out_features=1)
        balancer = GradNorm(heads.fork)
        outputs = heads(trunk(x))  # (B, 10, 1)
        balancer((outputs - targets).square().mean((0, 2))).backward()
    """

    def __init__(self, num_tasks: int, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.fork = Fork(num_tasks)
        self.weight = nn.Parameter(torch.empty(num_tasks, out_features, in_features))
        """Weights of shape ``(T, out_features, in_features)``."""
        self.bias = nn.Parameter(torch.empty(num_tasks, out_features)) if bias else None
        """Biases of shape ``(T, out_features)``, or None."""
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise each head as ``nn.Linear`` initialises itself."""
        num_tasks, out_features, in_features = self.weight.shape
        with torch.no_grad():
            for i in range(num_tasks):
                like = self.weight
                head = nn.Linear(in_features, out_features, self.bias is not None, like.device, like.dtype)
                self.weight[i] = head.weight
                if self.bias is not None:
                    self.bias[i] = head.bias

    def forward(self, features: Tensor) -> Tensor:
        if not (self.fork.reading.recording and torch.is_grad_enabled()):
            return _linear(features, self.weight, self.bias)
        return self._recorded(features)

    @not_compiled(FORK_COMPILED)
    def _recorded(self, features: Tensor) -> Tensor:
        if not self.fork.reading.records(features) or in_transform():
            return _linear(features, self.weight, self.bias)
        [(features, passage)] = self.fork.reading.record([features])
        shape, device = features.shape[:-1], features.device.type
        given = [features if len(shape) == 1 else features.reshape(-1, features.shape[-1]), self.weight, self.bias]
        if autocasts() and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            given = [None if tensor is None else tensor.to(dtype) for tensor in given]
        outputs: Tensor = _Recorded.apply(*given, passage)
        mark_all_heads(outputs.grad_fn, self.fork, passage)
        return outputs if len(shape) == 1 else outputs.view(*shape, *outputs.shape[1:])

    def extra_repr(self) -> str:
        num_tasks, out_features, in_features = self.weight.shape
        return f"num_tasks={num_tasks}, {in_features=}, {out_features=}, bias={self.bias is not None}"


def _linear(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the outputs of all heads, ``(..., T, out)``, for features ``(..., in)``."""
    outputs = F.linear(features, weight.flatten(0, 1), None if bias is None else bias.flatten())
    return outputs.view(*features.shape[:-1], *weight.shape[:2])


class _Recorded(torch.autograd.Function):
    """`_linear` for features ``(N, in)``, with a backward pass that shows the fork each task's gradient of them."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, passage: Passage) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.passage = passage
        return _linear(features, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, weight = ctx.saved_tensors  # (N, in), (T, out, in)
        [gradient] = gradients  # (N, T, out)
        of_features = torch.bmm(gradient.transpose(0, 1), weight)  # (T, N, in)
        passage, step = ctx.passage, ctx.passage.step()
        combined = None if step is not None and step.combines else of_features.sum(0)
        if step is not None:  # summed first: the step may overwrite them
            with own_precision(features):
                step.observe(passage, features, None, of_features, weight.numel() if ctx.needs_input_grad[1] else 0)
                if step.combines and not passage.gated:
                    combined = step.combined(passage)
        del of_features  # free memory for the weight's gradient, often as large
        of_weight = of_bias = None
        if ctx.needs_input_grad[1]:
            of_weight = torch.mm(gradient.reshape(-1, weight.shape[:2].numel()).t(), features).view_as(weight)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum(0)
        return combined, of_weight, of_bias, None
