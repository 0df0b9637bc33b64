"""Check docs/guides/error-messages.md: users get each message on it, and each message that they may get is on it.

Most of the library's messages are provoked here, with lines that a user might write. The others need a GPU, several
processes or a package, or belong to the command line: they are looked up in the source.
"""

import ast
import copy
import re
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import grad
from torch.utils.checkpoint import checkpoint

from balancers import (
    CapturedStep,
    Fork,
    GradNorm,
    LossBalancer,
    MoCo,
    NTKWeighting,
    PCGrad,
    StaticWeighting,
    UncertaintyWeighting,
    create,
)
from balancers.engine.classes.base import DROPPED
from balancers.engine.classes.training_warnings import INVALID
from balancers.integrations.physics_checks import check_fits

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "guides" / "error-messages.md"
DOTS, HOLE = "…", "\0"
"""What stands for a part that varies: on the page, and in the strings of the source."""

NOT_ON_THE_PAGE = {
    # For those who write a method, who read docs/add-a-method.md.
    "must override": "a method without its functions",
    "so it must be a LearnedState": "a method that returns what it may not",
    "so it must declare replaces_gradients": "a method that returns what it may not",
    "; expected some of": "a method whose function takes an unknown argument",
    f"{HOLE} returned ": "a method that returns what it may not",
    "register expects a subclass": "a class that is no method",
    "to be registered": "a method without a name or summary",
    "is taken by": "two methods of one name",
    "has for something else": "a method that declares a name of its base class",
    "which follows from what it reads": "a method that sets what the engine sets",
    "the entry point": "a plug-in that names no method",
    # Never seen by a user.
    "torch.vmap": "caught where it is raised, and done another way",
    "does not require grad: was it detached? A task": "the losses are checked for this before the fork is",
}
"""Parts of messages that are not on the page, and why."""


# The page.


def quoted() -> list[str]:
    """Return the messages on the page: what is bold code."""
    found = re.findall(r"\*\*`(.+?)`\*\*", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [" ".join(message.split()) for message in found]


ENTRIES = quoted()


def means(message: str, pattern: str, wildcard: str) -> bool:
    """Return whether ``pattern`` is the whole of ``message``, with anything in place of each ``wildcard``."""
    literal = [re.escape(" ".join(part.split(" "))) for part in pattern.split(wildcard)]
    return re.fullmatch(".*".join(literal), message, re.DOTALL) is not None


# The strings of the source.

CLAUSES = {"made_for": f"this balancer was made for {HOLE}", "entries": f"{HOLE} entries"}
"""What functions add to messages."""


def text_of(node: ast.expr) -> str:
    """Return a string of the source, with a hole for each expression in it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.FormattedValue):
        called = node.value.func if isinstance(node.value, ast.Call) else None
        name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
        return CLAUSES.get(name, HOLE)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return HOLE


@cache
def sources(folder: str) -> list[str]:
    """Return the text of each module in ``folder``."""
    return [path.read_text(encoding="utf-8") for path in sorted((ROOT / folder).rglob("*.py"))]


@cache
def strings_of(source: str) -> list[str]:
    """Return all strings in the text of a module."""
    nodes = ast.walk(ast.parse(source))
    return [text_of(node) for node in nodes if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp)]


def in_source(entry: str) -> bool:
    """Return whether a string of the source has the words of ``entry``."""
    words = [word for part in entry.split(DOTS) for word in part.split() if len(word) > 5]
    modules = [source for folder in ("balancers", "bench", "tasks") for source in sources(folder)]
    likely = [source for source in modules if all(word in source.replace('\\"', '"') for word in words)]
    return any(means(text, entry, DOTS) for source in likely for text in strings_of(source))


@cache
def told_by_library() -> list[str]:
    """Return what `balancers` raises or warns of. Where a function returns the message, these are its strings."""
    trees = [ast.parse(source) for source in sources("balancers")]
    functions = dict[str, list[str]]()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                returned = [each.value for each in ast.walk(node) if isinstance(each, ast.Return) and each.value]
                functions.setdefault(node.name, []).extend(map(text_of, returned))
    told = list[str]()
    for tree in trees:
        for node in ast.walk(tree):
            call = node.exc if isinstance(node, ast.Raise) else node
            if not isinstance(call, ast.Call) or not call.args:
                continue
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if isinstance(node, ast.Raise) or name in ("warn", "_warn_of_dropped"):
                [first, *_] = call.args
                texts = [text_of(first)]
                if name == "_warn_of_dropped":  # which adds the method and a number
                    texts = [f"{HOLE}: {text_of(first)}".replace("{}", HOLE)]
                if isinstance(first, ast.Call):
                    function = first.func.attr if isinstance(first.func, ast.Attribute) else ast.unparse(first.func)
                    texts = functions[function]
                told += [text for text in texts if text.replace(HOLE, "").strip(": ")]
    return sorted(set(told))


# What users get.


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4))
        self.fork = Fork(2)
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(2))

    def of(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the losses of what each head gets."""
        return [head(z).square().mean() for head, z in zip(self.heads, features, strict=True)]

    def losses(self) -> list[Tensor]:
        return self.of(self.fork(self.trunk(torch.ones(2, 3))))


def two(sign: float = 1.0) -> list[Tensor]:
    return [sign * torch.ones((), requires_grad=True) for _ in range(2)]


def named(**options: Any) -> LossBalancer:
    return UncertaintyWeighting(["depth", "normals"], **options)


def layer() -> nn.Linear:
    return nn.Linear(3, 3)


Lines = Callable[[], object]
PROVOKED: dict[str, Lines] = {
    # Make a balancer.
    "no fork": lambda: GradNorm(),
    "a number as fork": lambda: GradNorm(2),  # type: ignore[arg-type]
    "no tasks": lambda: GradNorm(None, wrt=layer()),
    "no wrt": lambda: GradNorm(None, tasks=2),
    "tasks unlike the fork's": lambda: GradNorm(Fork(2), tasks=["depth"]),
    "a fork of no task": lambda: Fork(0),
    "undefined without a fork": lambda: create("graddrop", None, wrt=layer(), tasks=2),
    "a misspelt method": lambda: create("gradnrom", Fork(2)),
    "an unknown option": lambda: UncertaintyWeighting(2, alpha=1.5),
    "an option out of range": lambda: GradNorm(Fork(2), alpha=-1.0),
    "compile": lambda: UncertaintyWeighting(2, compile="yes"),  # type: ignore[arg-type]
    "too many preferences": lambda: create("tchebycheff", 2, preferences=[1.0, 1.0, 1.0]),
    "preferences by other names": lambda: create("tchebycheff", ["depth", "normals"], preferences={"depth": 1.0}),
    "no preference": lambda: create("pbi", 2, preferences=0.0),
    "no preference of gradients": lambda: create("sdmgrad", None, wrt=layer(), tasks=2, preferences=0.0),
    "an initial weight of 0": lambda: create("self-adaptive", 2, initial=0.0),
    "an unknown primary task": lambda: create("pcd", Fork(2), primary=5),
    "unknown primary tasks": lambda: create("auto-lambda", None, wrt=layer(), tasks=["depth", "normals"], primary="x"),
    "a fork as tasks": lambda: UncertaintyWeighting(Fork(2)),  # type: ignore[arg-type]
    "a string as tasks": lambda: UncertaintyWeighting("depth"),
    "numbers as names": lambda: UncertaintyWeighting([1, 2]),  # type: ignore[list-item]
    "a name twice": lambda: UncertaintyWeighting(["depth", "depth"]),
    "a set of names": lambda: UncertaintyWeighting({"depth", "normals"}),  # type: ignore[arg-type]
    "a fork as static weights": lambda: StaticWeighting(Fork(2)),  # type: ignore[arg-type]
    "no static weights": lambda: StaticWeighting([]),
    "a negative static weight": lambda: StaticWeighting([-1.0, 1.0]),
    "static weights of other tasks": lambda: StaticWeighting([1.0, 1.0], tasks=["depth"]),
    "one task as two": lambda: create("vqgan", Fork(2), reference=0, adversarial=0),
    "tracking and update_every": lambda: MoCo(None, wrt=layer(), tasks=2, update_every=2),
    "averaging": lambda: create("graddrop", Fork(2), averaging=0.9),
    "a process group": lambda: named(process_group=1),
    # Pass the losses.
    "a number as losses": lambda: named()(1.0),
    "a tensor of other losses": lambda: named()(torch.ones(3)),
    "too many losses": lambda: named()([*two(), *two()]),
    "a first dict without a task": lambda: UncertaintyWeighting(2)({"depth": two()[0]}),
    "an unknown task": lambda: named()({"dept": two()[0]}),
    "no loss": lambda: named()({}),
    "numbers as keys": lambda: UncertaintyWeighting(2)(dict(enumerate(two()))),
    "a number as loss": lambda: named()([1.0, 2.0]),
    "a loss that is None": lambda: named()({"depth": None, "normals": two()[0]}),  # type: ignore[dict-item]
    "a loss that is not reduced": lambda: named()([torch.ones(2, requires_grad=True)] * 2),
    "a whole number as loss": lambda: named()([torch.tensor(1)] * 2),
    "a detached loss": lambda: named()([loss.detach() for loss in two()]),
    # The parameters in wrt.
    "a number as wrt": lambda: GradNorm(Fork(2), wrt=3),  # type: ignore[arg-type]
    "a name as wrt": lambda: GradNorm(Fork(2), wrt="trunk"),  # type: ignore[arg-type]
    "a frozen module": lambda: GradNorm(Fork(2), wrt=layer().requires_grad_(False)),
    "no parameters": lambda: GradNorm(Fork(2), wrt=[]),
    "a set of parameters": lambda: GradNorm(Fork(2), wrt={*layer().parameters()}),
    "frozen parameters": lambda: GradNorm(Fork(2), wrt=layer().requires_grad_(False).parameters()),
    # Attached forks.
    "a number as head": lambda: Fork.attach([1, 2]),  # type: ignore[list-item]
    "one head for two tasks": lambda: Fork.attach([layer()] * 2),
    "heads with a shared part": lambda: Fork.attach([nn.Sequential(part) for part in [layer()] * 2]),
    # Weightings.
    "a name as weighting": lambda: PCGrad(Fork(2), weighting="uncertainty"),
    "a weighting of other tasks": lambda: PCGrad(Fork(2), weighting=UncertaintyWeighting(3)),
    "a weighting that accumulates": lambda: PCGrad(Fork(2), weighting=named(accumulate=2)),
    "a second weighting": lambda: create("imtl", Fork(2), weighting=named()),
    "a weighting that looks ahead": lambda: PCGrad(Fork(2), weighting=create("coba", 2)),
    "a weighting by gradients": lambda: PCGrad(Fork(2), weighting=create("graddrop", Fork(2))),
    "a weighting with a weighting": lambda: PCGrad(Fork(2), weighting=PCGrad(Fork(2), weighting=named())),
    # Others.
    "a loss that is not finite": lambda: named(check_finite=True)([loss * torch.inf for loss in two()]),
    "after_step first": lambda: create("famo", 2).after_step(two()),
    "no optimiser": lambda: named().follow(None),  # type: ignore[arg-type]
    "no closure": lambda: create("coba", 2)(two()),
    "a closure for another method": lambda: named().second_batch(two),
    "losses as closure": lambda: create("coba", 2).second_batch(two()),  # type: ignore[arg-type]
    "a step that can't be captured": lambda: CapturedStep(two, [named(accumulate=2)]),
    "an average of no weights": lambda: GradNorm(Fork(2)).average_weights(),
    "a copy with a group": lambda: copy.deepcopy(named(process_group=dist.GroupMember.NON_GROUP_MEMBER)),
    "another checkpoint": lambda: named().load_state_dict(UncertaintyWeighting(["a", "b"]).state_dict()),
    "a checkpoint of long names": lambda: named().load_state_dict(UncertaintyWeighting(["a" * 5000, "b"]).state_dict()),
    "no balancer for PINA": lambda: check_fits("uncertainty", "PINA"),  # type: ignore[arg-type]
    "a fork for PINA": lambda: check_fits(GradNorm(Fork(2)), "PINA"),
    "a second batch for PINA": lambda: check_fits(create("coba", 2), "PINA"),
}
"""Lines that lead to an error or a warning, by what is wrong with them."""


def provoked(lines: Lines) -> Lines:
    """Add a function to `PROVOKED`, by its name."""
    PROVOKED[lines.__name__.replace("_", " ")] = lines
    return lines


@provoked
def a_balancer_after_the_forward_pass() -> None:
    net = Net()
    losses = net.losses()
    GradNorm(net.fork)(losses).backward()


@provoked
def a_forward_pass_without_the_fork() -> None:
    net = Net()
    balancer, z = GradNorm(net.fork), net.trunk(torch.ones(2, 3))
    balancer(net.of([z, z])).backward()


@provoked
def losses_of_two_forward_passes() -> None:
    net = Net()
    balancer, losses = GradNorm(net.fork), net.losses()
    balancer(losses)
    balancer([a + b for a, b in zip(losses, net.losses(), strict=True)]).backward()


@provoked
def a_frozen_trunk() -> None:
    net = Net()
    net.trunk.requires_grad_(False)
    GradNorm(net.fork)(net.losses()).backward()


@provoked
def a_backward_pass_that_stops_at_the_heads() -> None:
    net = Net()
    GradNorm(net.fork)(net.losses()).backward(inputs=list(net.heads.parameters()))


@provoked
def losses_in_another_order() -> None:
    net = Net()
    GradNorm(net.fork)(net.losses()[::-1]).backward()


@provoked
def a_head_that_does_not_use_the_fork() -> None:
    net = Net()
    balancer, z = GradNorm(net.fork), net.trunk(torch.ones(2, 3))
    balancer(net.of([net.fork(z)[0], z.detach()])).backward()


@provoked
def a_penalty_on_the_trunk() -> None:
    net = Net()
    balancer, losses = GradNorm(net.fork), net.losses()
    balancer([losses[0] + net.trunk[0].weight.square().sum(), losses[1]]).backward()


@provoked
def a_layer_that_two_heads_share() -> None:
    net, shared = Net(), nn.Linear(4, 4)
    balancer = GradNorm(net.fork)
    balancer(net.of([shared(z) for z in net.fork(net.trunk(torch.ones(2, 3)))])).backward()


@provoked
def a_head_that_works_in_place() -> None:
    net = Net()
    balancer = GradNorm(net.fork)
    balancer(net.of([z.relu_() for z in net.fork(net.trunk(torch.ones(2, 3)))])).backward()


@provoked
def features_that_are_no_tensor() -> None:
    net = Net()
    balancer = GradNorm(net.fork)
    net.fork(3)
    del balancer


@provoked
def a_forward_pass_for_each_task() -> None:
    net = Net()
    balancer, x = PCGrad(net.fork), torch.ones(2, 3)
    balancer([head(net.fork(net.trunk(x))[i]).square().mean() for i, head in enumerate(net.heads)]).backward()


@provoked
def a_fork_that_is_called_twice() -> None:
    net = Net()
    balancer, z = GradNorm(net.fork), net.trunk(torch.ones(2, 3))
    balancer([a + b for a, b in zip(net.of(net.fork(z)), net.of(net.fork(z)), strict=True)])


@provoked
def batches_of_two_sizes() -> None:
    net = Net()
    balancer = create("encodec", net.fork)
    pairs = net.fork([net.trunk(torch.ones(rows, 3)) for rows in (2, 3)])
    balancer(net.of([torch.cat(pair) for pair in pairs])).backward()


@provoked
def an_attached_head_that_runs_twice() -> None:
    net = Net()
    balancer, z = GradNorm(Fork.attach(list(net.heads))), net.trunk(torch.ones(2, 3))
    balancer([net.heads[0](z).sum() + net.heads[0](z).sum(), net.heads[1](z).sum()])


@provoked
def attached_heads_with_other_features() -> None:
    net = Net()
    balancer = GradNorm(Fork.attach(list(net.heads)))
    balancer([head(net.trunk(torch.ones(2, 3))).sum() for head in net.heads])


@provoked
def a_layer_behind_the_fork() -> None:
    net = Net()
    GradNorm(net.fork, wrt=net.heads[0])(net.losses()).backward()


@provoked
def parameters_of_another_model() -> None:
    GradNorm(None, wrt=Net().trunk, tasks=2)(Net().losses()).backward()


@provoked
def a_task_without_shared_parameters() -> None:
    net = Net()
    GradNorm(None, wrt=net.trunk, tasks=2)([net.losses()[0], net.heads[0].weight.sum()]).backward()


@provoked
def a_task_that_is_detached_later() -> None:
    net = Net()
    balancer = GradNorm(net.fork)
    for z in (net.trunk(torch.ones(2, 3)), torch.ones(2, 4)):
        balancer(net.of([net.fork(net.trunk(torch.ones(2, 3)))[0], net.fork(z)[1]])).backward()


@provoked
def a_layer_that_is_frozen_later() -> None:
    net = Net()
    balancer = GradNorm(None, wrt=net.trunk.parameters(), tasks=2)
    balancer(net.losses()).backward()
    net.trunk[0].requires_grad_(False)
    balancer(net.losses()).backward()


@provoked
def a_part_of_the_trunk() -> None:
    net = Net()
    MoCo(net.fork, wrt=net.trunk[2])(net.losses()).backward()


@provoked
def a_part_of_the_trunk_that_is_frozen_later() -> None:
    net = Net()
    balancer = MoCo(net.fork, wrt=net.trunk)
    net.trunk[0].requires_grad_(False)
    balancer(net.losses()).backward()


@provoked
def a_sparse_embedding() -> None:
    embedding = nn.Embedding(3, 4, sparse=True)
    balancer, z = MoCo(None, wrt=embedding, tasks=2), embedding(torch.tensor([1]))
    balancer([z.sum(), z.square().sum()]).backward()


@provoked
def heads_that_look_up_features() -> None:
    net, first = Net(), torch.tensor([0])
    balancer, aliases = PCGrad(net.fork), net.fork(net.trunk(torch.ones(2, 3)))
    balancer([nn.functional.embedding(first, z, sparse=True).square().sum() for z in aliases]).backward()


@provoked
def a_sum_of_two_calls() -> None:
    net = Net()
    balancer = GradNorm(net.fork)
    (balancer(net.losses()) + balancer(net.losses())).backward()


@provoked
def a_second_backward_pass() -> None:
    net = Net()
    loss = create("graddrop", net.fork)(net.losses())
    loss.backward(retain_graph=True)
    loss.backward()


@provoked
def a_backward_pass_that_is_differentiated() -> None:
    net = Net()
    PCGrad(net.fork)(net.losses()).backward(create_graph=True)


@provoked
def a_combined_loss_that_is_measured() -> None:
    net = Net()
    balancer, losses = PCGrad(net.fork), net.losses()
    GradNorm(None, wrt=net.trunk, tasks=2)([balancer(losses), losses[0]]).backward()


@provoked
def weights_that_can_not_hold() -> None:
    with create("graddrop", Fork(2)).held():
        pass


@provoked
def two_blocks_of_held() -> None:
    balancer = named()
    with balancer.held(), balancer.held():
        pass


@provoked
def a_reentrant_checkpoint() -> None:
    net = Net()
    balancer, x = GradNorm(net.fork, wrt=net.trunk), torch.ones(2, 3, requires_grad=True)
    balancer(net.of(net.fork(checkpoint(net.trunk, x, use_reentrant=True)))).backward()


@provoked
def a_transform_of_the_backward_pass() -> None:
    balancer = PCGrad(Fork(2))
    grad(lambda x: balancer([x.sum(), x.square().sum()]))(torch.ones(3))


@provoked
def a_transform_of_the_call() -> None:
    balancer = NTKWeighting(None, wrt=layer(), tasks=2)
    grad(lambda x: balancer([x.sum(), x.square().sum()]))(torch.ones(3))


@provoked
def a_gradient_that_is_not_finite() -> None:
    net = Net()
    balancer = GradNorm(net.fork, check_finite=True)
    balancer([(loss - loss.detach()).sqrt() for loss in net.losses()]).backward()


@provoked
def losses_below_zero() -> None:
    net = Net()
    balancer = GradNorm(net.fork)
    for _ in range(5):
        balancer([-loss for loss in net.losses()]).backward()


@provoked
def losses_that_are_never_finite() -> None:
    balancer = named()
    for _ in range(INVALID):
        balancer([loss * float("nan") for loss in two()]).backward()


@provoked
def one_task_in_each_batch() -> None:
    net = Net()
    balancer = GradNorm(net.fork, tasks=["depth", "normals"])
    for _ in range(5):
        balancer({"depth": net.losses()[0]}).backward()


@provoked
def no_after_step() -> None:
    balancer = create("famo", 2)
    for _ in range(2):
        balancer(two()).backward()


@provoked
def no_after_step_later() -> None:
    balancer = create("famo", 2)
    balancer(two()).backward()
    balancer.after_step(two())
    for _ in range(DROPPED + 1):
        balancer(two()).backward()


@provoked
def after_step_with_another_task() -> None:
    balancer = create("famo", ["depth", "normals"])
    balancer(dict(zip(["depth", "normals"], two(), strict=True))).backward()
    balancer.after_step({"depth": two()[0]})


@provoked
def an_optimizer_that_never_steps() -> None:
    balancer, weights = named(), [nn.Parameter(loss.detach()) for loss in two()]
    balancer.follow(torch.optim.SGD(weights))
    for _ in range(DROPPED + 1):
        balancer([weight.square() for weight in weights]).backward()


@provoked
def an_optimizer_that_is_not_followed() -> None:
    net = layer()
    balancer = create("auto-lambda", None, wrt=net, tasks=3, primary=[0])
    balancer.second_batch(lambda: list(net(torch.ones(3)).square()))
    balancer(list(net(torch.ones(3)).square())).backward()


@provoked
def an_optimizer_of_other_parameters() -> None:
    net, other = layer(), nn.Parameter(torch.ones(2))
    balancer, optimizer = (
        create("auto-lambda", None, wrt=[*net.parameters(), other], tasks=3),
        torch.optim.SGD(net.parameters()),
    )
    balancer.follow(optimizer)
    balancer.second_batch(lambda: list(net(torch.ones(3)).square() + other.sum()))
    balancer(list(net(torch.ones(3)).square() + other.sum())).backward()


@provoked
def values_of_tasks_without_names() -> None:
    create("tchebycheff", 2, preferences={"depth": 1.0, "normals": 2.0})


@provoked
def values_of_tasks_that_are_set_later() -> None:
    create("tchebycheff", 2).preferences = [1.0, 2.0]


@provoked
def a_second_batch_of_another_kind() -> None:
    balancer = create("coba", 2)
    balancer.second_batch(lambda: two()[:1])
    balancer(two())


@provoked
def a_second_batch_without_a_task() -> None:
    balancer = create("coba", ["depth", "normals"])
    balancer.second_batch(lambda: {"depth": two()[0]})
    balancer(two())


def residuals(given: Callable[[Tensor], Any]) -> Lines:
    """Return a step of which the residuals are ``given`` of the output of a network."""

    def step() -> None:
        net = layer()
        balancer, out = NTKWeighting(None, wrt=net, tasks=["pde", "start"]), net(torch.ones(3))
        if (found := given(out)) is not None:
            balancer.residuals(found)
        balancer([out.sum(), out.square().sum()])

    return step


PROVOKED |= {
    "no residuals": residuals(lambda out: None),
    "residuals of another type": residuals(lambda out: 3),
    "too many residuals": residuals(lambda out: [out] * 3),
    "a residual of an unknown task": residuals(lambda out: {"pde": out, "end": out}),
    "a residual that is missing": residuals(lambda out: {"pde": out}),
    "a number as residual": residuals(lambda out: [out, 1.0]),
    "a residual of whole numbers": residuals(lambda out: [out, out.long()]),
    "a detached residual": residuals(lambda out: [out, out.detach()]),
}


@cache
def produced(name: str) -> str:
    """Return the message that lines of `PROVOKED` lead to; empty if they lead to none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            PROVOKED[name]()
        except Exception as error:
            return " ".join(str(error).split())
    told = [str(warning.message) for warning in caught if warning.category is RuntimeWarning]
    return " ".join(told[-1].split()) if told else ""


@pytest.mark.parametrize("name", PROVOKED)
def test_what_users_get_is_on_the_page(name: str) -> None:
    message = produced(name)
    assert message, "no error and no warning"
    assert any(means(message, entry, DOTS) for entry in ENTRIES), message


@pytest.mark.parametrize("entry", ENTRIES)
def test_what_is_on_the_page_is_what_users_get(entry: str) -> None:
    assert any(means(produced(name), entry, DOTS) for name in PROVOKED) or in_source(entry)


@pytest.mark.parametrize("told", told_by_library(), ids=lambda text: text.replace(HOLE, DOTS)[:60])
def test_all_that_the_library_tells_users_is_on_the_page(told: str) -> None:
    """By the page's words, or by lines that lead to it, which the page is checked for above."""
    if any(part in told for part in NOT_ON_THE_PAGE):
        return
    on_page = any(means(told, entry, DOTS) for entry in ENTRIES)
    assert on_page or any(means(produced(name), told, HOLE) for name in PROVOKED), told.replace(HOLE, DOTS)


def test_no_reason_for_leaving_a_message_out_is_out_of_date() -> None:
    for part in NOT_ON_THE_PAGE:
        assert any(part in told for told in told_by_library()), part


def test_no_message_stands_on_the_page_twice() -> None:
    assert len(set(ENTRIES)) == len(ENTRIES)
