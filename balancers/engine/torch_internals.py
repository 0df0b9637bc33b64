"""The private parts of PyTorch that this package uses, each with the reason and the public way that was tried.

No other module uses any. `tests/balancers/test_torch_internals.py` has a test for each, which names what a new version
of PyTorch broke.
"""

import functools
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FunctionType
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd import Variable, forward_ad
from torch.autograd.graph import GradientEdge, Node, saved_tensors_hooks
from torch.utils import _pytree

# Nested structures. `torch.utils.pytree`, the public module, is missing from the older versions that are supported.

tree_flatten = _pytree.tree_flatten
tree_unflatten = _pytree.tree_unflatten

COMPILED = "a balancer measures with hooks, which torch.compile can't trace: it runs outside of compiled graphs"
FORK_COMPILED = "a fork that a balancer reads shows gradients to it with hooks, which torch.compile can't trace"
Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")

# Modules

COMPILED_PREFIX = "_orig_mod."
"""The prefix that `torch.compile` gives the names of a module's parameters; no public function removes it."""


def buffers_of(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's own buffers by name: the module's dict itself.

    A step looks up some thirty of them. Each takes half a microsecond as an attribute, for which Python first looks in
    vain, and ``named_buffers`` takes ten for all.
    """
    return cast(dict[str, Tensor], module._buffers)


# Backward passes


NO_PASS = -1
"""The number that stands for no backward pass."""


def current_pass() -> int:
    """Return the number of the backward pass that this code runs in; `NO_PASS` outside of one.

    A hook must tell the pass that it belongs to from a later one through the same graph, also if an exception ended the
    first. Public hooks get the gradient alone. ``register_multi_grad_hook`` uses the same number.
    """
    number: int = torch._C._current_graph_task_id()
    return number


def after_this_pass(callback: Callable[[], None]) -> None:
    """Call ``callback`` when the backward pass that this code runs in has ended without an exception.

    DistributedDataParallel and FSDP use the same function. Public hooks sit at tensors; which of them is the last to
    get a gradient depends on the graph.
    """
    cast(Any, Variable._execution_engine).queue_callback(callback)


def frees_behind(nodes: Iterable[Node], leaves: Collection[Node]) -> bool:
    """Return whether code in this backward pass may free these nodes, which features depend on: the pass won't.

    ``leaves`` are those among them that depend on no other.

    It may if the pass frees its graph and reaches all leaves there, but none of the nodes on the way to them. Nothing
    public tells a hook of either.
    """
    if torch._C._autograd._get_current_graph_task_keep_graph():
        return False
    return all(_is_reached(node) == (node in leaves) for node in nodes)


def _is_reached(node: Node) -> bool:
    """Return whether this backward pass gets to ``node``."""
    try:
        reached: bool = torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf whose gradient `torch.autograd.grad` returns
        return True
    return reached


def run_early(node: Any) -> None:
    """Make autograd run ``node`` before all other nodes that are ready.

    A task's gradient of the features is then read before the next task's is computed, so that one is held at a time.
    Results are the same without it. There is no public way to order nodes.
    """
    if hasattr(node, "_set_sequence_nr"):
        node._set_sequence_nr(2**62)


def in_transform() -> bool:
    """Return whether `torch.func` or forward mode takes derivatives now.

    Their tensors can't be stored or measured by hooks. The public API does not tell.
    """
    active: bool = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return active


def autocasts() -> bool:
    """Return whether autocast is on for any device.

    The public functions ask of one device, whose name alone takes a microsecond to find, and a step asks T times.
    """
    on: bool = torch._C._is_any_autocast_enabled()
    return on


def not_compiled(reason: str) -> Callable[[Callable[Parameters, Returned]], Callable[Parameters, Returned]]:
    """Make `torch.compile` break its graph at a function, and with ``fullgraph=True`` refuse with ``reason``.

    This is `torch.compiler.disable`, which costs a second to import and some microseconds a call, where it is needed.
    """

    def decorate(function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
        disabled: list[Callable[Parameters, Returned]] = []

        def refuse() -> None:
            """Do nothing; the compiler breaks its graph here, and tells the reason."""

        vars(refuse).update(_torchdynamo_disable=True, _torchdynamo_disable_msg=reason)

        @functools.wraps(function)
        def call(*arguments: Parameters.args, **options: Parameters.kwargs) -> Returned:
            if not torch.compiler.is_compiling():
                return function(*arguments, **options)
            refuse()
            if not disabled:
                disabled.append(torch.compiler.disable(function, reason=reason))
            return disabled[0](*arguments, **options)

        # The compiler counts how often it has seen a piece of code, so that each function needs one of its own.
        own = cast(FunctionType, call)
        own.__code__ = own.__code__.replace(co_name=function.__name__)
        return call

    return decorate


def compiled(function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
    """Return a function that is compiled when it is called.

    `torch.compile` counts how often it has compiled a piece of code, and gives up at a few, so the function is a copy.
    """
    plain = cast(FunctionType, function)
    own = FunctionType(
        plain.__code__.replace(), plain.__globals__, plain.__name__, plain.__defaults__, plain.__closure__
    )
    return cast(Callable[Parameters, Returned], torch.compile(own, dynamic=False))


def in_compiled_autograd() -> bool:
    """Return whether code runs in a backward pass of compiled autograd, which runs hooks in a graph of its own."""
    module = sys.modules.get("torch._dynamo.compiled_autograd")
    return module is not None and bool(module.in_compiled_autograd_region)


def is_batched(tensor: Tensor) -> bool:
    """Return whether a gradient stands for several: in a pass with ``is_grads_batched=True``, or under `torch.vmap`."""
    batched: bool = torch._C._functorch.is_legacy_batchedtensor(tensor) or torch._C._functorch.is_batchedtensor(tensor)
    return batched


def gradients_at(
    edges: Sequence[GradientEdge], inputs: Sequence[Tensor], seeds: Sequence[Tensor], retain_graph: bool
) -> tuple[Tensor | None, ...]:
    """Return the gradients of ``inputs`` for ``seeds`` at the edges, None for one that is not reached.

    `torch.autograd.grad` does the same after a look at each argument, which takes as long as a small layer. It also
    leaves a mode, such as one that changes how a checkpoint runs again, before it differentiates.
    """
    found: tuple[Tensor | None, ...] = torch.autograd.graph._engine_run_backward(
        tuple(edges), tuple(seeds), retain_graph, False, tuple(inputs), allow_unreachable=True, accumulate_grad=False
    )
    return found


# The autograd graph

VIEWS = ("ViewBackward0", "UnsafeViewBackward0")
IN_PLACE = ("torch::autograd::CopySlices", "AsStridedBackward0")
"""Nodes that autograd inserts where a view was changed in place."""
REENTRANT = "CheckpointFunctionBackward"
"""The node of a checkpoint with ``use_reentrant=True``, which hides what it recomputes."""
STACK = "StackBackward0"
"""The node of `torch.stack`."""
DDP_SINK = "_DDPSinkBackward"
"""Name of the node that DDP may put behind a model's outputs. One node passes all outputs through unchanged."""


class LinearNode(NamedTuple):
    """A node of ``x W^T + b``. The graph has no public way to read what an operator saved."""

    inputs: Callable[[], Tensor]
    """Returns ``x``, ``(N, in)``."""
    source: Node | None
    """The node that ``x`` comes from."""
    weight: Node | None
    """The node of the weight's leaf."""
    bias: Node | None
    """The node of the bias's leaf; None without a bias."""


def has_hooks(tensor: Tensor) -> bool:
    """Return whether hooks may change the gradient of ``tensor``, which a user registered. Nothing public tells."""
    return bool(tensor._backward_hooks)


def is_relu(node: Node) -> bool:
    """Return whether ``node`` is that of `torch.relu`."""
    return node.name() == "ReluBackward0"


def linear_node(node: Node) -> LinearNode | None:
    """Return what a node of a linear layer saved; None if it is another node, or its input is checkpointed."""
    recorded, bias = cast(Any, node), cast(Node | None, None)
    match node.name(), [following for following, _ in node.next_functions]:
        case "AddmmBackward0", [bias, source, weight] if recorded._saved_alpha == recorded._saved_beta == 1:
            saved = "mat1"
        case "MmBackward0", [source, weight]:
            saved = "self"
        case _:
            return None
    if weight is None or weight.name() != "TBackward0" or _has_unpack_hook(node, f"_raw_saved_{saved}", True):
        return None
    return LinearNode(lambda: getattr(node, f"_saved_{saved}"), source, _leaf(weight.next_functions[0][0]), _leaf(bias))


class Convolution(NamedTuple):
    """A node of a convolution, in one dimension or more. Each tuple has a number for each dimension."""

    inputs: Callable[[], Tensor]
    """Returns ``x``, ``(B, in, ...)``."""
    source: Node | None
    weight: Node | None
    bias: Node | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def convolution_node(node: Node) -> Convolution | None:
    """Return what a node of a convolution saved; None if it is another node, or its input is checkpointed."""
    if node.name() != "ConvolutionBackward0" or _has_unpack_hook(node, "_raw_saved_input", True):
        return None
    recorded, [source, weight, *bias] = cast(Any, node), [following for following, _ in node.next_functions]
    if recorded._saved_transposed:
        return None
    return Convolution(
        lambda: recorded._saved_input,
        source,
        _leaf(weight),
        _leaf(bias[0]) if bias else None,
        recorded._saved_stride,
        recorded._saved_padding,
        recorded._saved_dilation,
        recorded._saved_groups,
    )


def layer_node(node: Node) -> LinearNode | Convolution | None:
    """Return what a node of a linear layer or of a convolution saved: see `linear_node` and `convolution_node`."""
    match node.name():
        case "AddmmBackward0" | "MmBackward0":
            return linear_node(node)
        case "ConvolutionBackward0":
            return convolution_node(node)
    return None


def convolution_gradients(node: Convolution, gradient: Tensor, weight: Tensor, has_bias: bool) -> list[Tensor]:
    """Return the gradients of a convolution's weight and, with ``has_bias``, of its bias, for that of its outputs.

    `torch.nn.grad` has public functions for the weight alone, in one to three dimensions; they call the same operator.
    """
    sizes = [len(weight)] if has_bias else None
    still = [0] * len(node.stride)
    found: list[Tensor]
    _, *found = torch.ops.aten.convolution_backward(
        gradient, node.inputs(), weight, sizes, node.stride, node.padding, node.dilation, False, still, node.groups,
        [False, True, has_bias],
    )  # fmt: skip
    return found[: 1 + has_bias]


def _leaf(node: Node | None) -> Node | None:
    """Return the node of the parameter behind ``node``, through autocast's conversion of it."""
    return node.next_functions[0][0] if node is not None and node.name() == "ToCopyBackward0" else node


@functools.lru_cache(1024)
def _saved_names(kind: type) -> tuple[str, ...]:
    """Return the names of what nodes of a kind save."""
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))


def recorded_nodes() -> int:
    """Return a number that grows with each node of the autograd graph that this thread records.

    A backward pass records none, unless a checkpoint runs a forward pass again. Nothing public tells of that.
    """
    number: int = cast(Any, torch.autograd)._get_sequence_nr()
    return number


def recorded_before(start: Node | None, number: int) -> bool:
    """Return whether ``start`` depends on a node recorded before `recorded_nodes` returned ``number``.

    Nodes of another thread have numbers of their own. Nothing public tells the order of nodes.
    """
    return any(cast(Any, node)._sequence_nr() < number for node in upstream(start))


def recomputes(start: Node | None) -> bool:
    """Return whether a node that ``start`` depends on recomputes what it saved: a checkpoint, or an offloaded tensor.

    Each differentiation through such a graph runs the forward pass again. Nothing public says so before it happens.
    """
    return some_recomputes(upstream(start))


def some_recomputes(nodes: Iterable[Node]) -> bool:
    """Return whether one of the nodes recomputes what it saved: see `recomputes`."""
    return any(_has_unpack_hook(node, name, False) for node in nodes for name in _saved_names(type(node)))


def upstream(*starts: Node | None) -> Iterator[Node]:
    """Yield ``starts`` and every node that they depend on, each once."""
    waiting, seen = list(dict.fromkeys(starts)), {*starts, None}
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        yield node
        for following, _ in node.next_functions:
            if following not in seen:
                seen.add(following)
                waiting.append(following)


def _has_unpack_hook(node: Node, name: str, unknown: bool) -> bool:
    """Return whether a saved tensor is unpacked by a hook; ``unknown`` before PyTorch 2.10, which does not tell."""
    try:
        saved = getattr(node, name)
    except RuntimeError:  # freed by an earlier pass
        return unknown
    return any(
        getattr(each, "unpack_hook", each if unknown else None) not in (None, _as_it_is)
        for each in (saved if isinstance(saved, tuple) else (saved,))
    )


def saved_here() -> saved_tensors_hooks:
    """Have a graph keep the tensors that it saves, in this context: a checkpoint around it must not take them.

    A hook that packs a tensor must return another one. A node that saves its own output would otherwise hold itself,
    and never be freed unless a backward pass frees its graph.
    """
    return saved_tensors_hooks(Tensor.detach, _as_it_is)


def _as_it_is(tensor: Tensor) -> Tensor:
    """Unpack what `saved_here` saved; it counts as no hook."""
    return tensor


def without_hooks(leaves: Sequence[Tensor]) -> AbstractContextManager[None]:
    """Keep hooks that were registered on leaves from seeing gradients, within this context.

    A hook is to see the combined gradient, once. ``torch.autograd.grad`` shows it each gradient that is measured, and
    has no option for that.
    """
    hooked = [hooks for leaf in leaves if (hooks := cast(Any, leaf)._backward_hooks)]
    return _without(hooked) if hooked else nullcontext()


@contextmanager
def _without(hooked: Sequence[dict[int, Any]]) -> Iterator[None]:
    """Keep dicts of hooks empty within this context."""
    copies = [dict(hooks) for hooks in hooked]
    for hooks in hooked:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, own in zip(hooked, copies, strict=True):
            hooks.update(own)


def hook_first(leaf: Tensor, hook: Callable[[Tensor], Tensor | None]) -> torch.utils.hooks.RemovableHandle:
    """Register a hook on a leaf that sees its gradient before all other hooks do.

    ``register_hook`` puts it behind them, and has no option as those of modules have (``prepend``).
    """
    hooks = cast(Any, leaf)._backward_hooks
    others = dict(hooks or {})
    handle: torch.utils.hooks.RemovableHandle = leaf.register_hook(hook)
    hooks = cast(Any, leaf)._backward_hooks
    for number in others:  # autograd goes by the order in which keys came into the dict, not by `move_to_end`
        del hooks[number]
    hooks.update(others)
    return handle


def static_model(node: Node) -> Any:
    """Return the DDP with ``static_graph=True`` that a node belongs to; None if it belongs to none."""
    model = getattr(node, "ddp_weakref", lambda: None)() if node.name() == DDP_SINK else None
    return model if model is not None and model.static_graph else None


def has_static_sink(edges: Iterable[GradientEdge]) -> bool:
    """Return whether a node that these edges depend on belongs to a DDP with ``static_graph=True``."""
    return any(True for _ in _static_models(edges))


def _static_models(edges: Iterable[GradientEdge]) -> Iterator[Any]:
    """Yield each such model."""
    waiting, models = [edge.node for edge in edges], list[object]()
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        model = static_model(node)
        if model is not None and model not in models:
            models.append(model)
            yield model
        new = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= new
        waiting += new


@contextmanager
def before_first_backward(edges: Sequence[GradientEdge]) -> Iterator[None]:
    """Keep DDP from counting a differentiation from ``edges`` inside this context as a backward pass.

    With ``static_graph=True``, DDP averages the gradients at the end of its very first backward pass. It must not
    mistake an earlier measurement for that pass, and has no public way to be told.
    """
    models = [model for model in _static_models(edges) if not model._static_graph_delay_allreduce_enqueued]
    for model in models:
        model._static_graph_delay_allreduce_enqueued = True
    try:
        yield
    finally:
        for model in models:
            model._static_graph_delay_allreduce_enqueued = False


# Optimisers


def fused_adam(
    parameter: Tensor, first: Tensor, second: Tensor, gradient: Tensor, step: Tensor, lr: float, skip: Tensor
) -> None:
    """Update ``parameter``, its ``first`` and its ``second`` moment in place by one step of Adam.

    Its betas are 0.9 and 0.999, its eps is 1e-8.

    The kernel of `torch.optim.Adam` with ``fused=True``. The optimiser itself takes 60 µs of Python for one small
    vector, and the formula written out takes eleven operators in place of one.

    Args:
        parameter, first, second, gradient: ``(T,)`` each.
        step: float32 scalar, the number of steps including this one.
        lr: the learning rate.
        skip: bool scalar: whether to change nothing.
    """
    torch._fused_adam_(
        [parameter],
        [gradient],
        [first],
        [second],
        [],
        [step],
        lr=lr,
        beta1=0.9,
        beta2=0.999,
        weight_decay=0.0,
        eps=1e-8,
        amsgrad=False,
        maximize=False,
        found_inf=skip.float(),
    )


def foreach_norm(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Return the norm of each tensor, in one call, as `torch.nn.utils.get_total_norm` does."""
    norms = torch._foreach_norm(list(tensors)) if dtype is None else torch._foreach_norm(list(tensors), dtype=dtype)
    return list(norms)


def flattened(tensors: Sequence[Tensor]) -> Tensor:
    """Return the entries of several tensors in one, ``(P,)``, in one call; DistributedDataParallel uses the same."""
    flat: Tensor = torch._C._nn.flatten_dense_tensors(list(tensors))
    return flat


def unflattened(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return the parts of ``flat``, ``(P,)``, in the shapes of ``like``, as views, in one call: see `flattened`."""
    return list(torch._C._nn.unflatten_dense_tensors(flat, list(like)))


def foreach_copy(destinations: list[Tensor], sources: list[Tensor]) -> None:
    """Copy tensors into others in one call, which is what takes the time of small ones; optimisers use the same."""
    if destinations:
        torch._foreach_copy_(destinations, sources)
