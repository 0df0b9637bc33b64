"""What the engine relies on in PyTorch's private parts. A failing test names what a version of PyTorch changed.

They stand in `balancers/engine/torch_internals.py` alone, which the first tests check. The others have one private name
each, or a few that belong together, and say what the engine does with it.
"""

import ast
import re
import subprocess
import sys
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.checkpoint import checkpoint

import balancers
from balancers import MGDA, EqualWeighting, Fork, ForkError, GradNorm
from balancers.engine import torch_internals as internals
from balancers.engine.graph_behind import GraphBehind

PACKAGE = Path(balancers.__file__).parent
ROOM = "engine/torch_internals.py"
ALLOWED = {("engine/method/declared_state.py", "_apply")}
"""`nn.Module._apply` is what ``to``, ``half``, ``cuda`` and ``to_empty`` all call, in each module of a model. PyTorch's
own modules override it (`nn.RNNBase`), no public hook sees a conversion, and an override must stand in its class. What
``__getstate__``, ``__setstate__`` and ``__reduce__`` do is Python's contract, not PyTorch's: they are no debt."""


def changed(what: str) -> str:
    """Return the message of a test that failed."""
    return f"PyTorch {torch.__version__} changed {what}, on which balancers/{ROOM} relies"


# Where private names may stand.


def _graph() -> list[Node]:
    """Return nodes of several kinds."""
    x = torch.ones(2, 2, requires_grad=True)
    return [torch.stack([x.relu(), nn.functional.linear(x, x, x[0])]).grad_fn, x.relu().grad_fn, x.mm(x).grad_fn]


def private_attributes() -> set[str]:
    """Return the private names that modules, tensors, nodes of the graph and optimisers have."""
    parameter = nn.Parameter(torch.ones(1))
    objects = [nn.Module(), nn.Linear(1, 1), parameter, Tensor, torch.optim.Adam([parameter]), *_graph()]
    return {name for each in objects for name in dir(each) if name.startswith("_") and not name.startswith("__")}


ATTRIBUTES = private_attributes()
STRINGS = re.compile(
    r"\w*Backward\d*|_raw_saved_\w*|_saved_\w*|_torchdynamo\w*|_static_graph\w*|(torch::autograd::)?CopySlices|_?DDPSink\w*|CheckpointFunction\w*|_orig_mod\W?"
)
"""Names that PyTorch gives to nodes of the graph and to what they hold."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_uses(source: str) -> list[tuple[int, str]]:
    """Return the line and the name of each use of a private part of PyTorch in Python code; docstrings don't count."""
    tree = ast.parse(source)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    modules = set[str]()
    """Names of the code that stand for modules or classes of torch."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {
                (name.asname or name.name).split(".")[0] for name in node.names if name.name.startswith("torch")
            }
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith("torch"):
            modules |= {name.asname or name.name for name in node.names}
    uses = {(node.lineno, name) for node in ast.walk(tree) for name in _uses(node, modules, prose)}
    return sorted((line, name.removeprefix("torch::autograd::")) for line, name in uses)


def _uses(node: ast.AST, modules: set[str], prose: set[int]) -> Iterator[str]:
    match node:
        case ast.Import(names=imported):
            paths = [name.name.split(".") for name in imported if name.name.startswith("torch")]
            yield from (part for path in paths for part in path if is_private(part))
        case ast.ImportFrom(module=str(module), level=0) if module.startswith("torch"):
            parts = [*module.split("."), *(name.name for name in node.names)]
            yield from filter(is_private, parts)
        case ast.Attribute(value=value, attr=name) if is_private(name):
            root = value
            while isinstance(root, ast.Attribute):
                root = root.value
            if name in ATTRIBUTES or STRINGS.fullmatch(name) or (isinstance(root, ast.Name) and root.id in modules):
                yield name
        case ast.FunctionDef(name=name) if name in ATTRIBUTES:
            yield name
        case ast.keyword(arg=str(name)) if name in ATTRIBUTES or (STRINGS.fullmatch(name) and is_private(name)):
            yield name
        case ast.Constant(value=str(text)) if id(node) not in prose and (STRINGS.fullmatch(text) or text in ATTRIBUTES):
            yield text


def test_the_scan_finds_private_parts() -> None:
    planted = {
        "import torch\ntorch._C._x()": ["_C", "_x"],
        "from torch import _foreach_norm": ["_foreach_norm"],
        "from torch.utils import _pytree as pytree": ["_pytree"],
        "import torch._dynamo.config": ["_dynamo"],
        "import torch._dynamo as dynamo": ["_dynamo"],
        "from torch._C import x": ["_C"],
        "from torch import nn\nnn.modules.module._EXTRA": ["_EXTRA"],
        "from torch.autograd import Variable\nVariable._execution_engine.queue_callback(f)": ["_execution_engine"],
        "module._buffers['x'] = y": ["_buffers"],
        "tensor._version": ["_version"],
        "self._parameters": ["_parameters"],
        "node._saved_self": ["_saved_self"],
        "node._raw_saved_mat1": ["_raw_saved_mat1"],
        "getattr(node, '_raw_saved_self')": ["_raw_saved_self"],
        "node._set_sequence_nr(1)": ["_set_sequence_nr"],
        "node.name() == 'AddmmBackward0'": ["AddmmBackward0"],
        "name in ('CopySlices', '_DDPSinkBackward')": ["CopySlices", "_DDPSinkBackward"],
        "vars(f).update(_torchdynamo_disable=True)": ["_torchdynamo_disable"],
        "class M:\n    def _load_from_state_dict(self): ...": ["_load_from_state_dict"],
        "super()._apply(f)": ["_apply"],
        '"""Not AddmmBackward0."""\ndef f():\n    """A docstring that names _C."""': [],
        "import torch\nself._mine = torch.ones(1)\nself._mine.sum()": [],
        "torch_like._x": [],
    }
    for source, expected in planted.items():
        assert sorted(name for _, name in private_uses(source)) == sorted(expected), source


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_parts_stand_in_one_file(path: Path) -> None:
    name = path.relative_to(PACKAGE).as_posix()
    found = [] if name == ROOM else private_uses(path.read_text(encoding="utf-8"))
    debts = [f"{name}:{line} {use}" for line, use in found if (name, use) not in ALLOWED]
    assert debts == [], f"private parts of PyTorch, which belong in {ROOM}: {', '.join(debts)}"


TESTED = set[str]()
"""The private names that a test below is about."""


def relies_on(*private: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Say which private names a test is about."""
    TESTED.update(private)
    return lambda test: test


def test_each_private_part_has_a_test() -> None:
    found = {use for _, use in private_uses((PACKAGE / ROOM).read_text(encoding="utf-8"))} | {use for _, use in ALLOWED}
    assert found == TESTED, "each name in the file, and no other, has a test in this file"


# Modules


@relies_on("_buffers")
def test_a_module_holds_its_buffers_in_a_dict() -> None:
    """Looking buffers up costs next to nothing, and follows those that are replaced."""
    module = nn.Sequential(nn.BatchNorm1d(2))
    module.register_buffer("own", torch.ones(2))
    what = changed("nn.Module._buffers")
    assert dict(internals.buffers_of(module)) == dict(module.named_buffers(recurse=False)), what
    module.own = torch.zeros(3)
    assert internals.buffers_of(module)["own"] is module.own, what


# Backward passes


@relies_on("_C", "_current_graph_task_id")
def test_a_backward_pass_has_a_number_of_its_own() -> None:
    """Hooks tell the pass that they measure from others through the same graph."""
    seen: dict[str, list[int]] = {"outer": [], "inner": []}
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    z = y * 3

    def inner(gradient: Tensor) -> None:
        seen["inner"].append(internals.current_pass())

    def outer(gradient: Tensor) -> None:
        seen["outer"].append(internals.current_pass())
        if len(seen["outer"]) == 1:
            with torch.enable_grad():
                other = torch.ones(2, requires_grad=True) * 2
                total = other.sum()
            other.register_hook(inner)
            total.backward()
            seen["outer"].append(internals.current_pass())

    what = changed("torch._C._current_graph_task_id")
    assert internals.current_pass() == -1, f"{what}: it is not -1 outside of a backward pass"
    z.register_hook(outer)
    y.register_hook(outer)
    z.sum().backward(retain_graph=True)
    first = [*seen["outer"]]
    assert len(first) == 3, what
    assert min(first) >= 0, f"{what}: it is negative within a backward pass"
    assert len({*first}) == 1, f"{what}: it differs within one pass, or after a pass within it"
    assert seen["inner"][0] not in first, f"{what}: a pass within a pass has the same number"
    z.sum().backward()
    assert not {*seen["outer"][3:]} & {*first}, f"{what}: the next pass has the same number"
    assert internals.current_pass() == -1, f"{what}: it is not -1 after a backward pass"


def test_a_pass_that_an_exception_ended_gives_its_number_to_no_other() -> None:
    seen = []
    x = torch.ones(1, requires_grad=True)
    y = x * 2
    fails = [True]

    def hook(gradient: Tensor) -> None:
        seen.append(internals.current_pass())
        if fails[0]:
            raise KeyboardInterrupt

    y.register_hook(hook)
    with pytest.raises(KeyboardInterrupt):
        y.sum().backward(retain_graph=True)
    fails[0] = False
    y.sum().backward()
    assert seen[0] != seen[1], changed("torch._C._current_graph_task_id: a later pass has the same number")
    assert internals.current_pass() == -1


@relies_on("_execution_engine")
def test_a_callback_is_called_when_the_pass_has_ended() -> None:
    """The balancer updates when all gradients are there; none is missing, and `.grad` is set."""
    order: list[str] = []
    x, y = (torch.ones(1, requires_grad=True) for _ in range(2))
    product = x * y

    def hook(gradient: Tensor) -> None:
        order.append("hook")
        internals.after_this_pass(lambda: order.append(f"callback, {x.grad is not None and y.grad is not None}"))

    product.register_hook(hook)
    x.register_post_accumulate_grad_hook(lambda _: order.append("x"))
    y.register_post_accumulate_grad_hook(lambda _: order.append("y"))
    product.sum().backward()
    what = changed("Variable._execution_engine.queue_callback")
    assert order[0] == "hook", what
    assert order[-1] == "callback, True", f"{what}: it is not called after all gradients are there"
    assert sorted(order[1:-1]) == ["x", "y"], what
    assert len(order) == 4, f"{what}: it is called more than once"


def test_a_callback_belongs_to_the_innermost_pass() -> None:
    """Measurements are passes within the pass; a callback that is queued outside of them waits for the outer pass."""
    order: list[str] = []
    x = torch.ones(1, requires_grad=True)
    y = x * 2

    def hook(gradient: Tensor) -> None:
        internals.after_this_pass(lambda: order.append("outer callback"))
        with torch.enable_grad():
            other = torch.ones(1, requires_grad=True)
            product = other * 2
        product.register_hook(lambda _: internals.after_this_pass(lambda: order.append("inner callback")))
        torch.autograd.grad(product, other)
        order.append("measured")

    y.register_hook(hook)
    y.sum().backward()
    expected = ["inner callback", "measured", "outer callback"]
    assert order == expected, changed("Variable._execution_engine.queue_callback: passes share their callbacks")


def test_no_callback_is_called_after_an_exception_nor_in_the_next_pass() -> None:
    called: list[int] = []
    x = torch.ones(1, requires_grad=True)
    y = x * 2
    fails = [True]

    def hook(gradient: Tensor) -> None:
        if fails[0]:
            internals.after_this_pass(lambda: called.append(1))
            raise KeyboardInterrupt

    y.register_hook(hook)
    with pytest.raises(KeyboardInterrupt):
        y.sum().backward(retain_graph=True)
    fails[0] = False
    y.sum().backward()
    assert called == [], changed("Variable._execution_engine.queue_callback: it outlives a pass that failed")


def test_an_exception_in_a_callback_reaches_the_caller() -> None:
    """So does a refusal at the end of a pass that measured nothing."""
    x = torch.ones(1, requires_grad=True)
    y = x * 2

    def refuse() -> None:
        raise ValueError("planted")

    y.register_hook(lambda _: internals.after_this_pass(refuse))
    with pytest.raises(ValueError, match="planted"):
        y.sum().backward()
    assert internals.current_pass() == -1


@relies_on("_set_sequence_nr")
def test_a_node_can_be_run_early() -> None:
    """One task's gradient of the features is read before the next task's head is run."""
    order: list[str] = []
    z = torch.ones(3, requires_grad=True) * 1.0
    aliases = [z[...] for _ in "ab"]
    outputs = [alias * 2 for alias in aliases]
    for task, alias, output in zip("ab", aliases, outputs, strict=True):
        assert hasattr(alias.grad_fn, "_set_sequence_nr"), changed("Node._set_sequence_nr: it is gone")
        internals.run_early(alias.grad_fn)
        alias.grad_fn.register_prehook(lambda _, task=task: order.append(f"features {task}"))
        output.register_hook(lambda _, task=task: order.append(f"head {task}"))
    (outputs[0].sum() + outputs[1].sum()).backward()
    expected = ["head b", "features b", "head a", "features a"]
    assert order == expected, changed(f"Node._set_sequence_nr: the order is {order}")


def test_running_early_changes_no_gradient() -> None:
    gradients = []
    for early in (False, True):
        x = torch.linspace(-1, 1, 5, requires_grad=True)
        z = x.tanh()
        aliases = [z[...], z[...]]
        if early:
            for alias in aliases:
                internals.run_early(alias.grad_fn)
        (aliases[0].square().sum() + (3 * aliases[1]).exp().sum()).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


@relies_on("_autograd", "_get_current_graph_task_keep_graph", "_will_engine_execute_node")
def test_code_in_a_pass_may_free_a_graph_that_the_pass_would_have_freed() -> None:
    """Not one that the pass reaches by another way, nor one that it keeps."""
    what = changed("torch._C._will_engine_execute_node, torch._C._autograd._get_current_graph_task_keep_graph")
    x, other = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)

    def seen(middle_too: bool, run: Callable[[Tensor], None]) -> list[bool]:
        """Return what a hook hears of a graph of its own, and of one whose middle the loss may need too."""
        hidden, middle, start, heard = x.exp() * other, x.exp(), x * other, list[bool]()
        end = middle.exp()
        start.register_hook(
            lambda _: heard.extend(
                internals.frees_behind(graph.users, graph.leaves) for graph in map(GraphBehind, ([hidden], [end]))
            )
        )
        run((start + middle if middle_too else start).sum())
        return heard

    def to_both(loss: Tensor) -> None:
        loss.backward(inputs=[x, other])

    for run in (Tensor.backward, to_both, lambda loss: torch.autograd.grad(loss, [x, other])):
        assert seen(False, run) == [True, True], what
        assert seen(True, run) == [True, False], what
    assert seen(False, lambda loss: loss.backward(retain_graph=True)) == [False, False], what
    assert seen(False, lambda loss: loss.backward(inputs=[x])) == [False, True], what
    assert seen(False, lambda loss: torch.autograd.grad(loss, x)) == [False, True], what


@relies_on("_is_any_autocast_enabled")
def test_autocast_is_seen() -> None:
    assert not internals.autocasts(), changed("_is_any_autocast_enabled")
    with torch.autocast("cpu", torch.bfloat16):
        assert internals.autocasts(), changed("_is_any_autocast_enabled")
        with torch.autocast("cpu", enabled=False):
            assert not internals.autocasts(), changed("_is_any_autocast_enabled")
    assert not internals.autocasts(), changed("_is_any_autocast_enabled")


@relies_on("_are_functorch_transforms_active", "_current_level")
def test_functional_transforms_are_seen() -> None:
    """In them nothing can be measured by hooks."""
    seen: dict[str, bool] = {}

    def look(name: str) -> Callable[[Tensor], Tensor]:
        def function(x: Tensor) -> Tensor:
            seen[name] = internals.in_transform()
            return x.square().sum()

        return function

    x = torch.ones(3)
    torch.func.grad(look("grad"))(x)
    torch.func.vmap(look("vmap"))(x)
    torch.func.vjp(look("vjp"), x)
    torch.func.jvp(look("jvp"), (x,), (x,))
    torch.func.jacrev(look("jacrev"))(x)
    torch.func.hessian(look("hessian"))(x)
    torch.func.linearize(look("linearize"), x)
    with forward_ad.dual_level():
        look("forward mode")(forward_ad.make_dual(x, x))
    missed = [name for name, found in seen.items() if not found]
    private = "torch._C._are_functorch_transforms_active or forward_ad._current_level"
    assert not missed, changed(f"{private}: {', '.join(missed)} is not seen")
    look("outside")(x)
    y = torch.ones(3, requires_grad=True)
    look("recorded")(y).backward()
    torch.func.functional_call(nn.Identity(), {}, (x,))
    assert not seen["outside"], changed(f"{private}: outside of a transform one is seen")
    assert not seen["recorded"], changed(f"{private}: in ordinary recording a transform is seen")
    assert not internals.in_transform(), changed(f"{private}: after all transforms one is seen")


@relies_on("_functorch")
def test_a_batched_gradient_is_seen() -> None:
    """A pass with ``is_grads_batched=True`` is no step of training, and its gradients stand for several."""
    seen: list[bool] = []
    x = torch.ones(3, requires_grad=True)
    y = x * 2
    y.register_hook(lambda gradient: seen.append(internals.is_batched(gradient)))
    torch.autograd.grad(y, x, torch.eye(3), is_grads_batched=True, retain_graph=True)
    torch.autograd.grad(y, x, torch.ones(3))
    torch.func.vmap(lambda row: seen.append(internals.is_batched(row)) or row)(torch.eye(3))
    assert seen == [True, False, True], changed(f"torch._C._functorch: {seen}")


# Compilation


@relies_on("_torchdynamo_disable", "_torchdynamo_disable_msg")
@pytest.mark.usefixtures("fresh_compiler")
def test_the_compiler_breaks_its_graph_at_a_function_and_does_not_enter_it() -> None:
    compiling: list[bool] = []

    @internals.not_compiled("planted reason")
    def function(x: Tensor) -> Tensor:
        compiling.append(torch.compiler.is_compiling())
        return x + 1

    def model(x: Tensor) -> Tensor:
        return function(x * 2) * 3

    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    what = changed("_torchdynamo_disable")
    for value in (1.0, 2.0):
        assert compiled(torch.full((), value)).item() == 3 * (2 * value + 1), what
    assert compiling == [False, False], f"{what}: the function is traced"
    assert len(graphs) == 2, f"{what}: {len(graphs)} graphs, not one before the function and one after it"


@pytest.mark.usefixtures("fresh_compiler")
def test_with_fullgraph_the_compiler_refuses_by_the_reason() -> None:
    @internals.not_compiled("planted reason")
    def function(x: Tensor) -> Tensor:
        return x + 1

    compiled = torch.compile(lambda x: function(x * 2), backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="planted reason"):
        compiled(torch.ones(()))
    # As it does for a balancer and for a fork that one reads.
    with pytest.raises(Exception, match="a balancer measures with hooks"):
        torch.compile(EqualWeighting(2), backend="eager", fullgraph=True)([torch.ones((), requires_grad=True)] * 2)


@pytest.mark.slow
def test_the_compiler_is_not_imported_before_it_is_needed() -> None:
    """Importing it takes longer than all else that this package does."""
    code = (
        "import sys, torch, balancers\n"
        "assert 'torch._dynamo' not in sys.modules, 'by the import'\n"
        "b = balancers.EqualWeighting(2)\n"
        "b([torch.ones((), requires_grad=True)] * 2).backward()\n"
        "assert 'torch._dynamo' not in sys.modules, 'by the first step'\n"
    )
    environment = {"PYTHONPATH": str(PACKAGE.parent), "PATH": "", "OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, f"the compiler is imported {found.stderr.strip().splitlines()[-1:]}"


# The autograd graph


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype, requires_grad=True)


def names_of(node: Node | None) -> set[str]:
    """Return the names of a node and of all that it depends on."""
    waiting, found, seen = [node], set[str](), set[Node]()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found.add(node.name())
            waiting += [following for following, _ in node.next_functions]
    return found


@relies_on("ViewBackward0", "UnsafeViewBackward0")
def test_views_have_these_names() -> None:
    """Between a linear layer of more than two dimensions and the features."""
    x, weight, bias = leaf(2, 3, 4), leaf(5, 4), leaf(5)
    with_bias, without = nn.functional.linear(x, weight, bias).grad_fn, nn.functional.linear(x, weight).grad_fn
    for node in (with_bias, without):
        assert node.name() in internals.VIEWS, changed(f"the name of a linear layer's view: {node.name()}")
    assert leaf(4).view(2, 2).grad_fn.name() in internals.VIEWS, changed("the name of a view")
    for node in (with_bias, without):
        found = internals.linear_node(node.next_functions[0][0])
        assert found is not None, changed("what is behind a linear layer's view")


@relies_on("_backward_hooks")
def test_a_tensor_tells_of_its_hooks() -> None:
    z = torch.ones(2, requires_grad=True) * 2
    assert not internals.has_hooks(z)
    handle = z.register_hook(lambda gradient: 2 * gradient)
    assert internals.has_hooks(z), changed("where a tensor keeps its hooks")
    handle.remove()
    assert not internals.has_hooks(z)


@relies_on("ReluBackward0")
def test_a_relu_is_known_by_its_name() -> None:
    x = leaf(3)
    for node in (torch.relu(x).grad_fn, nn.ReLU()(x).grad_fn, nn.ReLU(inplace=True)(x * 1).grad_fn):
        assert internals.is_relu(node), changed(f"the name of a ReLU: {node.name()}")
    for node in (nn.functional.gelu(x).grad_fn, nn.functional.leaky_relu(x).grad_fn, x.clamp(min=0).grad_fn):
        assert not internals.is_relu(node), changed(f"the name of {node.name()}")


@relies_on(
    "ConvolutionBackward0",
    "_raw_saved_input",
    "_saved_input",
    "_saved_stride",
    "_saved_padding",
    "_saved_dilation",
    "_saved_groups",
    "_saved_transposed",
)
@pytest.mark.parametrize("num", [1, 2, 3])
def test_a_convolution_shows_its_inputs_leaves_and_geometry(num: int) -> None:
    """The norms of its gradients are taken from these."""
    convolve = [nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d][num - 1]
    x, weight, bias = leaf(2, 4, *[7] * num), leaf(6, 2, *[3] * num), leaf(6)
    hidden = x * 2
    options = {"stride": (2,) * num, "padding": (1,) * num, "dilation": (2,) * num, "groups": 2}
    what = changed("ConvolutionBackward0")
    for biases in ((bias,), ()):
        found = internals.convolution_node(convolve(hidden, weight, *biases, **options).grad_fn)
        assert found is not None, f"{what}: it is not recognised"
        assert found.inputs().equal(hidden), f"{what}: its inputs are not in _saved_input"
        assert found.source is hidden.grad_fn, f"{what}: the first of next_functions is not the inputs' node"
        assert getattr(found.weight, "variable", None) is weight, f"{what}: the second is not the weight's"
        assert getattr(found.bias, "variable", None) is (bias if biases else None), f"{what}: the third, the bias's"
        given = {key: getattr(found, key) for key in options}
        assert given == options, f"{what}: {given}"
    transposed = nn.functional.conv_transpose1d(leaf(1, 2, 3), leaf(2, 2, 2)).grad_fn
    assert internals.convolution_node(transposed) is None, f"{what}: a transposed one is taken for another"


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("num", [1, 2, 3])
def test_a_convolutions_gradients_are_those_of_autograd(num: int, has_bias: bool) -> None:
    layer = getattr(nn, f"Conv{num}d")(4, 6, 3, stride=2, padding=1, dilation=2, groups=2).double()
    z = layer(torch.randn(2, 4, *[9] * num, dtype=torch.float64))
    node, gradient = internals.layer_node(z.grad_fn), torch.randn_like(z)
    assert isinstance(node, internals.Convolution)
    found = internals.convolution_gradients(node, gradient, layer.weight, has_bias)
    expected = torch.autograd.grad(z, [layer.weight, layer.bias][: 1 + has_bias], gradient)
    torch.testing.assert_close(found, list(expected), rtol=1e-10, atol=1e-12)


@relies_on("AddmmBackward0", "_saved_alpha", "_saved_beta", "TBackward0", "_raw_saved_", "_saved_")
def test_a_linear_layer_with_a_bias_shows_its_inputs_and_leaves() -> None:
    """Its gradients are matrix products of these, in place of a pass through the graph."""
    x, weight, bias = leaf(3, 4), leaf(5, 4), leaf(5)
    hidden = x * 2
    found = internals.linear_node(nn.functional.linear(hidden, weight, bias).grad_fn)
    what = changed("AddmmBackward0")
    assert found is not None, f"{what}: it is not recognised"
    assert found.inputs().equal(hidden), f"{what}: its inputs are not in _saved_mat1"
    assert found.source is hidden.grad_fn, f"{what}: the second of next_functions is not the inputs' node"
    assert getattr(found.weight, "variable", None) is weight, f"{what}: the third is not the weight's"
    assert getattr(found.bias, "variable", None) is bias, f"{what}: the first is not the bias's"


def test_a_scaled_product_is_no_linear_layer() -> None:
    x, weight, bias = leaf(3, 4), leaf(5, 4), leaf(5)
    for scales in ({"alpha": 2.0}, {"beta": 0.5}):
        node = torch.addmm(bias, x, weight.t(), **scales).grad_fn
        assert node._saved_alpha == scales.get("alpha", 1.0), changed("AddmmBackward0._saved_alpha")
        assert node._saved_beta == scales.get("beta", 1.0), changed("AddmmBackward0._saved_beta")
        assert internals.linear_node(node) is None


@relies_on("MmBackward0")
def test_a_linear_layer_without_a_bias_shows_its_inputs_and_leaf() -> None:
    x, weight = leaf(3, 4), leaf(5, 4)
    hidden = x * 2
    found = internals.linear_node(nn.functional.linear(hidden, weight).grad_fn)
    what = changed("MmBackward0")
    assert found is not None, f"{what}: it is not recognised"
    assert found.inputs().equal(hidden), f"{what}: its inputs are not in _saved_self"
    assert found.source is hidden.grad_fn, f"{what}: the first of next_functions is not the inputs' node"
    assert getattr(found.weight, "variable", None) is weight, f"{what}: the second is not the weight's"
    assert found.bias is None
    assert internals.linear_node((x @ torch.ones(4, 5)).grad_fn) is None, "a product with a constant"
    assert internals.linear_node((x @ leaf(4, 5)).grad_fn) is None, "a weight that is not transposed"


@relies_on("ToCopyBackward0")
def test_autocasts_conversion_stands_before_the_parameters() -> None:
    x, weight, bias = leaf(3, 4), leaf(5, 4), leaf(5)
    for given in ((weight, bias), (weight,)):
        with torch.autocast("cpu", torch.bfloat16):
            found = internals.linear_node(nn.functional.linear(x * 2, *given).grad_fn)
        assert found is not None, changed("what autocast records of a linear layer")
        for node, parameter in zip((found.weight, found.bias), given, strict=False):
            variable = getattr(node, "variable", None)
            assert variable is parameter, changed(
                f"ToCopyBackward0: autocast's conversion is now {node and node.name()}"
            )


def test_saved_inputs_may_be_read_again_until_the_graph_is_freed() -> None:
    """A measurement reads them in the midst of a pass, and the pass does so after it."""
    x, weight, bias = leaf(3, 4), leaf(5, 4), leaf(5)
    output = nn.functional.linear(x * 2, weight, bias)
    found = internals.linear_node(output.grad_fn)
    assert found is not None
    assert found.inputs().equal(found.inputs())
    output.sum().backward()
    assert weight.grad is not None
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        found.inputs()  # in the words of PyTorch, which a user knows
    internals.recomputes(output.grad_fn)  # no error, as nothing is unpacked


@relies_on("_backward_hooks")
def test_hooks_of_leaves_can_be_kept_from_a_measurement() -> None:
    weight, calls = nn.Parameter(torch.ones(2)), list[Tensor]()
    handle = weight.register_hook(lambda gradient: calls.append(gradient) or 2 * gradient)
    loss, what = (3 * weight).sum(), changed("Tensor._backward_hooks")
    with internals.without_hooks([weight, torch.ones(2)]):
        [inside] = torch.autograd.grad(loss, weight, retain_graph=True)
    assert not calls, f"{what}: a hook saw a gradient that was measured"
    assert inside.tolist() == [3, 3], what
    loss.backward(retain_graph=True)
    assert len(calls) == 1, f"{what}: the hook is not there afterwards"
    assert weight.grad.tolist() == [6, 6], what
    handle.remove()
    loss.backward()
    assert len(calls) == 1, f"{what}: a handle no longer removes its hook"


def test_a_hook_can_come_before_those_of_a_user() -> None:
    weight, what = nn.Parameter(torch.ones(2)), changed("Tensor._backward_hooks")
    alone = internals.hook_first(weight, lambda gradient: gradient + 5)
    (3 * weight).sum().backward()
    assert weight.grad.tolist() == [8, 8], what
    alone.remove()
    weight.grad = None
    others = [weight.register_hook(lambda gradient: 2 * gradient), weight.register_hook(lambda gradient: gradient + 1)]
    first = internals.hook_first(weight, lambda gradient: gradient + 5)
    (3 * weight).sum().backward()
    assert weight.grad.tolist() == [17, 17], f"{what}: hooks run in another order"
    first.remove()
    weight.grad = None
    (3 * weight).sum().backward()
    assert weight.grad.tolist() == [7, 7], f"{what}: a handle no longer removes its hook"
    for handle in others:
        handle.remove()
    assert not weight._backward_hooks, what


def test_an_input_that_is_recomputed_or_offloaded_is_seen() -> None:
    """By the unpack hook of what the node saved, which public attributes show from PyTorch 2.10 on."""
    x, weight, bias = leaf(3, 4), leaf(5, 4), leaf(5)

    def run() -> Tensor:
        return nn.functional.linear(x * 2, weight, bias)

    plain = run()
    assert not internals.recomputes(plain.grad_fn), changed("SavedTensor.unpack_hook: a plain graph has one")
    assert internals.linear_node(plain.grad_fn) is not None
    checkpointed = checkpoint(run, use_reentrant=False)
    with torch.autograd.graph.save_on_cpu():
        offloaded = run()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        hooked = run()
    for kind, output in (("checkpoint", checkpointed), ("save_on_cpu", offloaded), ("saved_tensors_hooks", hooked)):
        assert internals.recomputes(output.grad_fn), changed(f"SavedTensor.unpack_hook: {kind} is not seen")
        assert internals.recomputes((output * 3).sum().grad_fn), changed(f"the way to a node before {kind}")
        assert internals.linear_node(output.grad_fn) is None, changed(f"SavedTensor.unpack_hook: {kind} is not seen")
    with internals.saved_here():
        kept = run()
    assert not internals.recomputes(kept.grad_fn), changed("SavedTensor.unpack_hook: it is not the hook itself")


def test_a_checkpoint_that_runs_again_records_nodes() -> None:
    """By which a balancer learns that the forward pass was recomputed; other backward passes record none."""
    layer, what = nn.Linear(3, 3), changed("torch.autograd._get_sequence_nr")
    for saved in (False, True):
        x = leaf(2, 3)
        y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False) if saved else layer(x)
        before = internals.recorded_nodes()
        torch.autograd.grad(y.sum(), x)
        passed = internals.recorded_nodes() - before
        assert passed >= 2 if saved else passed == 1, f"{what}: {passed}, of which one is the sum's"


@relies_on("_sequence_nr")
def test_nodes_have_the_numbers_of_the_time_when_they_were_recorded() -> None:
    """By which an audit learns that a forward pass ran before the balancer was made; leaves have no time."""

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return 2 * gradient

    what = changed("Node._sequence_nr")
    layer = nn.Linear(3, 3)
    for run in (layer, Twice.apply):
        x = leaf(2, 3)
        before = internals.recorded_nodes()
        y = run(x)
        after = internals.recorded_nodes()
        assert not internals.recorded_before(y.sum().grad_fn, before), what
        assert internals.recorded_before(y.sum().grad_fn, after), what
    assert not internals.recorded_before(None, 0), what


@relies_on("_engine_run_backward")
def test_a_checkpoint_runs_again_within_a_mode() -> None:
    """In `torch.autograd.grad`, it would not."""
    seen: list[str] = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    weight, x, what = leaf(4), leaf(3, 4), changed("torch.autograd.graph._engine_run_backward")
    unused = leaf(2)
    y = checkpoint(lambda x: torch.sin(weight * x), x, use_reentrant=False)
    edge, seed = torch.autograd.graph.get_gradient_edge(y), torch.ones(3, 4)
    for _ in range(2):  # the graph is kept
        seen.clear()
        with Mode():
            found = internals.gradients_at([edge], [weight, unused], [seed], retain_graph=True)
        assert "sin" in seen, what
    expected = torch.autograd.grad(torch.sin(weight * x), weight, seed)
    torch.testing.assert_close(found, (expected[0], None))


def test_saved_lists_of_tensors_are_looked_through() -> None:
    """Some nodes save a tuple of tensors, such as those of an index."""
    x, at = leaf(4, 4), torch.tensor([0, 2])
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        output = x[at]
    assert isinstance(output.grad_fn._raw_saved_indices, tuple), changed("what IndexBackward0 saves")
    assert internals.recomputes(output.grad_fn)


@relies_on("CheckpointFunctionBackward")
def test_a_reentrant_checkpoint_has_this_name() -> None:
    output = checkpoint(lambda x: x * 2, leaf(3), use_reentrant=True)
    assert output.grad_fn.name() == internals.REENTRANT, changed(f"a reentrant checkpoint's: {output.grad_fn.name()}")


@relies_on("StackBackward0")
def test_a_stack_has_this_name_and_its_parts_in_order() -> None:
    """Losses that were stacked are differentiated one by one."""
    parts = [leaf() * (i + 1) for i in range(3)]
    node = get_gradient_edge(torch.stack(parts)).node
    assert node.name() == internals.STACK, changed(f"the name of torch.stack's node: {node.name()}")
    assert [before for before, _ in node.next_functions] == [part.grad_fn for part in parts]


@relies_on("CopySlices", "AsStridedBackward0")
def test_a_change_in_place_of_a_view_has_these_names() -> None:
    """An in-place ReLU at the beginning of a head changes what the fork handed to all heads."""
    z = leaf(3) * 1
    first, second = z[...], z[...]
    nn.ReLU(inplace=True)(first)
    found = names_of((first * 2).grad_fn) | names_of((second * 3).grad_fn)
    assert set(internals.IN_PLACE) <= found, changed(f"the nodes of a changed view: {', '.join(sorted(found))}")
    fork = Fork(2)
    untouched = fork(leaf(3) * 1)
    assert not set(internals.IN_PLACE) & names_of((untouched[0] * 2).grad_fn)


OWN: dict[str, Callable[[Tensor], Tensor]] = {
    "flattened": lambda h: nn.ReLU(inplace=True)(h.unflatten(1, (2, 2)).flatten(1)),
    "sliced": lambda h: h[:, :2].relu_(),
    "strided": lambda h: torch.as_strided(h, (2, 2), (2, 1)),
}


@pytest.mark.parametrize("kind", OWN)
def test_a_head_may_change_views_of_its_own_in_place(kind: str) -> None:
    """The same nodes stand there, and they are no cause to refuse: the features are as they were."""
    torch.manual_seed(0)
    trunk, fork, heads = nn.Linear(3, 4), Fork(2), [nn.Linear(4, 4) for _ in range(2)]
    balancer = GradNorm(fork, trunk)
    z = trunk(torch.randn(5, 3))
    losses = [OWN[kind](head(alias)).square().mean() for head, alias in zip(heads, fork(z), strict=True)]
    gradients = [torch.autograd.grad(loss, list(trunk.parameters()), retain_graph=True) for loss in losses]
    expected = torch.stack([torch.cat([part.flatten() for part in each]).norm() for each in gradients])
    balancer(losses).backward()
    torch.testing.assert_close(balancer.statistics["gradient_norms"], expected)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("combines", [False, True])
def test_a_head_that_changes_the_features_in_place_is_refused_by_name(which: int, combines: bool) -> None:
    trunk, fork, heads = nn.Linear(3, 4), Fork(3), [nn.Linear(4, 1) for _ in range(3)]
    balancer = MGDA(fork) if combines else GradNorm(fork, trunk)
    aliases = fork(trunk(torch.randn(5, 3)))
    outputs = [head(z.relu_() if i == which else z) for i, (head, z) in enumerate(zip(heads, aliases, strict=True))]
    with pytest.raises(ForkError, match=r"a head changes .*in place.*ReLU\(inplace=True\)"):
        balancer([output.square().mean() for output in outputs])


@pytest.fixture
def alone() -> Iterator[None]:
    """Give the process a group of its own."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@relies_on("_DDPSinkBackward", "_static_graph_delay_allreduce_enqueued")
@pytest.mark.usefixtures("alone")
@pytest.mark.xdist_group("processes")
def test_ddps_sink_and_its_first_backward_pass() -> None:
    """A measurement before the first backward pass must not count as that pass."""
    model = nn.parallel.DistributedDataParallel(nn.Linear(3, 2), static_graph=True)
    output = model(torch.ones(4, 3))
    what = changed("DistributedDataParallel")
    assert internals.DDP_SINK in names_of(output.grad_fn), f"{what}: no node of this name behind its outputs"
    assert model.static_graph is True, f"{what}: static_graph"
    assert model._static_graph_delay_allreduce_enqueued is False, f"{what}: _static_graph_delay_allreduce_enqueued"
    loss = output.sum()
    with internals.before_first_backward([get_gradient_edge(loss)]):
        assert model._static_graph_delay_allreduce_enqueued is True, f"{what}: ddp_weakref of the sink's node"
        torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    assert model._static_graph_delay_allreduce_enqueued is False, f"{what}: the measurement counts as the first pass"
    loss.backward()
    assert model._static_graph_delay_allreduce_enqueued is True, f"{what}: its first pass no longer sets this"
    with internals.before_first_backward([get_gradient_edge(model(torch.ones(4, 3)).sum())]):
        pass
    assert model._static_graph_delay_allreduce_enqueued is True, "a later measurement changes nothing"


@pytest.mark.usefixtures("alone")
@pytest.mark.xdist_group("processes")
def test_ddps_sink_passes_each_output_through_unchanged() -> None:
    """The audit goes from an output of the sink to the input of the same number."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.one(x), self.other(x).relu()

    outputs = nn.parallel.DistributedDataParallel(Two(), static_graph=True)(torch.ones(4, 3))
    edges = [get_gradient_edge(output) for output in outputs]
    what = changed("DistributedDataParallel's sink")
    assert edges[0].node is edges[1].node, f"{what}: outputs have nodes of their own"
    assert [edge.output_nr for edge in edges] == [0, 1], f"{what}: its outputs are in another order"
    behind = [node.name() for node, _ in edges[0].node.next_functions]
    assert behind == ["AddmmBackward0", "ReluBackward0"], f"{what}: {behind} are behind it"


@relies_on("_orig_mod.")
def test_a_compiled_modules_parameters_have_a_prefix() -> None:
    names = [name for name, _ in nn.Sequential(torch.compile(nn.Linear(2, 2))).named_parameters()]
    expected = [f"0.{internals.COMPILED_PREFIX}{name}" for name in ("weight", "bias")]
    assert names == expected, changed("the names of a compiled module's parameters")


# Optimisers and norms


@relies_on("_fused_adam_")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fused_kernel_is_adam(dtype: torch.dtype) -> None:
    """Its steps are those of `torch.optim.Adam`, to rounding, and it writes in place."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, generator=generator, dtype=dtype)
    expected = nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([expected], lr=0.025)
    found, first, second = start.clone(), torch.zeros(5, dtype=dtype), torch.zeros(5, dtype=dtype)
    addresses = [tensor.data_ptr() for tensor in (found, first, second)]
    for number in range(1, 6):
        gradient = torch.randn(5, generator=generator, dtype=dtype)
        expected.grad, kept, step = gradient.clone(), gradient.clone(), torch.tensor(float(number))
        optimizer.step()
        internals.fused_adam(found, first, second, gradient, step, 0.025, torch.tensor(False))
        what = changed("torch._fused_adam_")
        torch.testing.assert_close(found, expected.detach(), msg=lambda text: f"{what}: {text}")  # noqa: B023
        torch.testing.assert_close(first, optimizer.state[expected]["exp_avg"])
        torch.testing.assert_close(second, optimizer.state[expected]["exp_avg_sq"])
        assert gradient.equal(kept), f"{what}: it changes the gradient"
        assert step.item() == number, f"{what}: it counts the step itself"
    assert [tensor.data_ptr() for tensor in (found, first, second)] == addresses
    kept = [tensor.clone() for tensor in (found, first, second)]
    internals.fused_adam(found, first, second, torch.full_like(found, torch.nan), step, 0.025, torch.tensor(True))
    assert all(map(torch.equal, (found, first, second), kept)), changed("torch._fused_adam_: found_inf skips no step")


def test_the_fused_kernel_takes_parts_of_one_tensor() -> None:
    """The moments are rows of one tensor of state."""
    moments = torch.zeros(2, 3)
    found = torch.ones(3)
    internals.fused_adam(found, moments[0], moments[1], torch.ones(3), torch.tensor(1.0), 0.1, torch.tensor(False))
    torch.testing.assert_close(found, torch.full((3,), 0.9), msg=changed("torch._fused_adam_: parts of a tensor"))
    torch.testing.assert_close(moments, torch.tensor([[0.1] * 3, [0.001] * 3]))


@relies_on("_foreach_norm")
def test_foreach_norm_is_the_norm_of_each() -> None:
    tensors = [torch.randn(4, 3), torch.randn(2), torch.randn(()), torch.randn(2, 2, 2)]
    for dtype in (None, torch.float64):
        found = internals.foreach_norm(tensors, dtype)
        expected = [torch.linalg.vector_norm(tensor, dtype=dtype) for tensor in tensors]
        torch.testing.assert_close(found, expected, msg=lambda text: changed(f"torch._foreach_norm: {text}"))
    half = internals.foreach_norm([torch.full((4,), 2.0**14, dtype=torch.float16)], torch.float32)
    assert half[0].item() == 2.0**15, changed("torch._foreach_norm: it overflows in the inputs' type")


@relies_on("_foreach_copy_")
def test_foreach_copy_copies_each() -> None:
    destinations = [torch.zeros(3), torch.zeros((), dtype=torch.float64), torch.zeros(2, 2)]
    sources = [torch.randn(3), torch.tensor(2.0, dtype=torch.float64), torch.randn(2, 2)]
    internals.foreach_copy(destinations, sources)
    torch.testing.assert_close(destinations, sources, msg=lambda text: changed(f"torch._foreach_copy_: {text}"))
    internals.foreach_copy([], [])


@relies_on("_nn")
def test_tensors_are_flattened_and_taken_apart() -> None:
    tensors, what = [torch.randn(4, 3).t(), torch.randn(()), torch.randn(2, 2, 2)], changed("flatten_dense_tensors")
    flat = internals.flattened(tensors)
    torch.testing.assert_close(flat, torch.cat([tensor.flatten() for tensor in tensors]), msg=what)
    parts = internals.unflattened(flat, tensors)
    torch.testing.assert_close(parts, tensors, msg=changed("unflatten_dense_tensors"))
    flat.zero_()
    assert not any(part.any() for part in parts), changed("unflatten_dense_tensors: its parts are no views")


# Nested features and batches


@relies_on("_pytree")
def test_nested_structures_are_taken_apart_and_put_together() -> None:
    """Features that a fork hands out, and batches of a captured step. `torch.utils.pytree` does not exist."""
    pytree = pytest.importorskip("torch.utils._pytree")
    Pair = namedtuple("Pair", ["first", "second"])
    nested = [{"b": 1, "a": (2, [3])}, Pair(4, OrderedDict(z=5, y=6)), None, "text"]
    leaves, structure = pytree.tree_flatten(nested)
    assert leaves == [1, 2, 3, 4, 5, 6, "text"] or leaves == [1, 2, 3, 4, 5, 6, None, "text"], changed("_pytree")
    rebuilt = pytree.tree_unflatten(leaves, structure)
    assert rebuilt == nested, changed("_pytree.tree_unflatten")
    assert isinstance(rebuilt[1], Pair), changed("_pytree: a named tuple")
    outputs = Fork(2)(nested)
    assert outputs == (nested, nested)


# What is allowed elsewhere


@relies_on("_apply")
def test_every_conversion_of_a_module_goes_through_apply() -> None:
    """An override keeps a balancer's numbers in their type when the model around it changes its own."""
    balancer = EqualWeighting(2)
    model = nn.ModuleDict({"net": nn.Linear(1, 1), "balancer": balancer})
    conversions: dict[str, Callable[[], object]] = {
        "half": model.half,
        "bfloat16": model.bfloat16,
        "double": model.double,
        "float": model.float,
        "to(dtype)": lambda: model.to(torch.float16),
        "to(device, dtype)": lambda: model.to("cpu", torch.float16),
        "type": lambda: model.type(torch.float16),
    }
    for name, convert in conversions.items():
        convert()
        what = changed(f"nn.Module._apply: {name} no longer calls it in each module")
        assert balancer.last_weights.dtype == torch.float32, what
    model.to("meta")
    assert balancer.last_weights.is_meta, changed("nn.Module._apply: to(device)")
    model.to_empty(device="cpu")
    assert balancer.last_weights.device.type == "cpu", changed("nn.Module._apply: to_empty")
    assert isinstance(balancer.last_weights, Tensor)
    assert "last_weights" in dict(balancer.named_buffers()), changed("nn.Module._apply: buffers are not kept as such")


def test_the_extra_state_has_this_key() -> None:
    """`load_state_dict` reads it before PyTorch does, to refuse the state of other tasks."""
    state = nn.ModuleDict({"b": EqualWeighting(["x", "y"])}).state_dict()
    assert "b._extra_state" in state, changed("the key of get_extra_state")


def test_a_loaded_buffer_that_is_assigned_is_another_tensor() -> None:
    """By which the engine knows that it must take a copy of its own."""
    module = nn.BatchNorm1d(2)
    before = module.running_mean
    state = module.state_dict() | {"running_mean": torch.ones(2)}
    module.load_state_dict(state)
    assert module.running_mean is before, changed("load_state_dict: it no longer copies into buffers")
    module.load_state_dict(state, assign=True)
    assert module.running_mean is not before, changed("load_state_dict(assign=True)")


def test_the_gradient_of_a_relu_is_this_operator() -> None:
    """The layer's fast path calls it for all tasks at once, and in place."""
    x = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    z = x.relu()
    gradient = torch.tensor([3.0, 4.0, 5.0])
    [expected] = torch.autograd.grad(z, x, gradient)
    z = z.detach()
    found = torch.ops.aten.threshold_backward(gradient, z, 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, msg=changed("aten.threshold_backward"))
    several = gradient.repeat(2, 1)
    torch.ops.aten.threshold_backward.grad_input(several, z, 0, grad_input=several)
    torch.testing.assert_close(several, expected.repeat(2, 1), rtol=0, atol=0, msg=changed("aten.threshold_backward"))


def test_nodes_carry_metadata_and_the_leaf_of_a_parameter() -> None:
    """A fork marks its nodes, and the audit finds parameters."""
    x = leaf(2)
    node = (x * 2).grad_fn
    node.metadata["fork"] = 1
    assert (x * 1).grad_fn.metadata == {}, changed("Node.metadata: nodes share it")
    assert node.metadata["fork"] == 1, changed("Node.metadata")
    assert node.next_functions[0][0].variable is x, changed("AccumulateGrad.variable")
