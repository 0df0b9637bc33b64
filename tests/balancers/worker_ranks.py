"""The job of `test_ranks`: some steps of one method on each rank, or on the batches of both ranks in one process.

Both train the same network on the same samples. The process that trains alone goes by what the ranks should amount to:
the objective is the mean over the ranks, in which a loss that a rank lacks counts as zero; a balancer reads each task's
mean loss over the ranks that have it.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from balancers import (
    Draws,
    Fork,
    GradDrop,
    GradientBalancer,
    LinearHeads,
    LossBalancer,
    Read,
    Result,
    State,
    get,
    state,
)
from balancers.engine import ResidualBalancer
from balancers.engine.host_copy import HostCopy
from balancers.engine.method.declared_state import COUNTER_DIGITS

TASKS = ("a", "b", "c")
PLACES = ("features", "layer", "parameters")
RANKS, SAMPLES = 2, 3
"""The number of ranks, and of samples in a pass of each."""
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "auto-lambda": {"optimizer": "sgd", "lr": 0.5},
    "coba": {"window": 4, "warm_up": 1},
    "dwa": {"period": 1},
    "ntk": {"update_every": 1},
    "relobralo": {"alpha": 0.6, "rho": 0.5},
    "sdmgrad": {"lr": 0.1},
    "softadapt": {"period": 1, "beta": 2.0},
    "m-config": {"takes_turns": False},
    "static": {"weights": [0.5, 1.0, 1.5]},
}
"""What methods need to be made, or for their weights to move within a few steps."""


# Methods that are not registered: two that keep the contract, and three that don't.


class LossShare(LossBalancer):
    """Weighs by the losses, and by their averages over the steps before."""

    name = "loss-share"
    summary = "Weigh each task by its share of the losses."
    averages: Tensor = state(1.0)

    def weigh(self, losses: Tensor, state: State) -> Tensor:
        mixed = losses + state["averages"]
        return mixed / mixed.sum()

    def update(self, read: Read, state: State) -> Result:
        return Result(state={"averages": torch.lerp(state["averages"], read.losses, 0.3)})


class AverageGramian(GradientBalancer):
    """Keeps an average of the Gramian, and draws random numbers."""

    name = "average-gramian"
    summary = "Divide each gradient by its average norm, with some noise."
    reads = "gramian"
    averages: Tensor = state(0.1, shape="TT")

    def update(self, read: Read, state: State, draws: Draws) -> Result:
        new = torch.lerp(state["averages"], read.gramian, 0.5)
        noise = 1 + 0.1 * draws.uniform(len(read.losses))
        return Result(noise / new.diagonal().sqrt(), {"averages": new})


class ReadsItsOwnLosses(LossShare):
    """Weighs by the losses of its own rank."""

    def _mean_losses(self, losses: Tensor, given: Any) -> Any:
        return losses, given


class LearnsFromItsOwnLosses(LossShare):
    """Weighs by the losses of all ranks, but learns from those of its own."""

    def _learn(self, read: Read, *more: Any) -> None:
        read.losses = self.statistics["losses"]
        super()._learn(read, *more)


class ReadsItsOwnGradients(AverageGramian):
    """Reads the gradients of its own rank."""

    def decide(self, step: Any, columns: list[Tensor], gramian: Tensor | None = None) -> Any:
        ranks, self._ranks = self._ranks, type(self._ranks)(False)
        try:
            return super().decide(step, columns, gramian)
        finally:
            self._ranks = ranks


PLUGINS: Mapping[str, type[LossBalancer]] = {
    method.__name__: method
    for method in (LossShare, AverageGramian, ReadsItsOwnLosses, LearnsFromItsOwnLosses, ReadsItsOwnGradients)
}


class GradDropOfRanks(GradDrop):
    """GradDrop as the ranks compute it: each draws the same numbers for the features of its own samples."""

    def update(self, read: Read, state: State, draws: Draws) -> Result:
        parts = []
        for rank in range(RANKS):
            mine = [gradient[:, rank * SAMPLES : (rank + 1) * SAMPLES] for gradient in read.gradients]
            again = Draws(self.seed, self.drawn, self.last_weights)
            parts.append(super().update(replace(read, gradients=mine), state, again))
        directions = [torch.cat(each) for each in zip(*(part.directions or () for part in parts), strict=True)]
        return Result(parts[0].weights, directions=directions)


def method_of(name: str) -> type[LossBalancer]:
    """Return a registered method, or one of `PLUGINS`."""
    return PLUGINS[name] if name in PLUGINS else get(name)


def places_of(name: str) -> list[str]:
    """Return the places at which a method is defined, its default first; one empty name if it reads no gradients."""
    method = method_of(name)
    if not issubclass(method, GradientBalancer):
        return [""]
    defined = [place for place in PLACES if place not in method.undefined_for]
    return sorted(defined, key=lambda place: place != method.default_wrt)


# What is trained.


class Attention(nn.Module):
    """Self-attention between the entries of each sample. It uses the weights of its last layer without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(1, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(-1)
        attended: Tensor = self.attend(x, x, x, need_weights=False)[0]
        return (x + attended).squeeze(-1)


class Net(nn.Module):
    """A trunk, a fork and three heads. It returns the losses of some tasks.

    Args:
        kind: ``"attention"`` for a last shared layer of another kind, ``"one product"`` for `LinearHeads`.
        seed: seed of the initial values.
    """

    def __init__(self, kind: str = "", seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        last = Attention() if kind == "attention" else nn.Linear(6, 6)
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), last, nn.Tanh())
        self.heads = LinearHeads(len(TASKS), 6, 2) if kind == "one product" else ForkedHeads()
        self.double()

    @property
    def fork(self) -> Fork:
        return self.heads.fork

    def forward(
        self, x: Tensor, y: Tensor, tasks: Sequence[str], parts: int = 1, with_zero: bool = False
    ) -> dict[str, Tensor]:
        """Return each task's mean loss over the samples; of several equal parts of them, ``(parts,)``.

        The entry ``"zero"`` depends on all heads: FSDP needs gradients of the same parameters on all ranks.
        """
        z = self.trunk(x)
        outputs = self.heads(z, tasks) if isinstance(self.heads, ForkedHeads) else self._by_task(z, tasks)
        losses = {}
        for task, output in outputs.items():
            errors = (output - y[:, TASKS.index(task)]).square()
            losses[task] = errors.mean() if parts == 1 else errors.view(parts, -1).mean(1)
        if with_zero:
            losses["zero"] = 0.0 * torch.stack([parameter.sum() for parameter in self.heads.parameters()]).sum()
        return losses

    def _by_task(self, z: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        outputs = dict(zip(TASKS, self.heads(z).unbind(-2), strict=True))
        return {task: output for task, output in outputs.items() if task in tasks}


class ForkedHeads(nn.Module):
    """A fork and three heads."""

    def __init__(self) -> None:
        super().__init__()
        self.fork = Fork(len(TASKS))
        self.of_task = nn.ModuleDict({task: nn.Linear(6, 2) for task in TASKS})

    def forward(self, z: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Return the outputs of some tasks."""
        aliases = zip(TASKS, self.fork(z), strict=True)
        return {task: self.of_task[task](alias) for task, alias in aliases if task in tasks}


def make(case: Mapping[str, Any], net: Net, process_group: Any, method: type[LossBalancer] | None = None) -> Any:
    """Return the case's balancer."""
    place, given = case["place"], case.get("given", "module")
    options = {"tasks": list(TASKS), "process_group": process_group, **OPTIONS.get(case["method"], {})}
    options |= case.get("options", {})
    create: Callable[..., LossBalancer] = method or method_of(case["method"])
    if not place:
        return create(**options)
    if place == "features":
        return create(net.fork, **options)
    shared = net.trunk[2] if place == "layer" else net.trunk
    fork = None if place == "parameters" else net.fork
    return create(fork, wrt=shared if given == "module" else list(shared.parameters()), **options)


def batches(case: Mapping[str, Any]) -> list[list[tuple[Tensor, Tensor]]]:
    """Return the samples of each pass of each step, those of rank 0 first: inputs, and targets ``(N, T, 2)``."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def one_pass() -> tuple[Tensor, Tensor]:
        scales = normal(RANKS, len(TASKS), 1).mul(0.7).exp().repeat_interleave(SAMPLES, 0)
        return normal(RANKS * SAMPLES, 5), scales * normal(RANKS * SAMPLES, len(TASKS), 2)

    passes = case.get("passes", case.get("options", {}).get("accumulate", 1))
    return [[one_pass() for _ in range(passes)] for _ in case["steps"]]


class OfRank:
    """A rank's share of the training, under DistributedDataParallel or FSDP."""

    def __init__(self, case: Mapping[str, Any], rank: int) -> None:
        self.case, self.rank = case, rank
        self.zero: Tensor | float = 0.0
        """What to add to the balancer's scalar, so that the backward pass reaches all parameters."""
        self.net = Net(case.get("net", ""), seed=rank if "ddp" in case else 0)  # DDP hands out rank 0's values
        before = case.get("made") == "before"
        if before:
            self.balancer = self._make()
        self._model: Any = self._wrapped()
        if not before:
            self.balancer = self._make()

    def _make(self) -> Any:
        group = self.case.get("process_group", "all")
        return make(self.case, self.net, {"all": None, "none": False}[group] if group != "new" else dist.new_group())

    def _wrapped(self) -> nn.Module:
        if "ddp" in self.case:
            return DistributedDataParallel(self.net, **self.case["ddp"])
        from torch.distributed.fsdp import fully_shard  # here, as it takes a second to import

        trunk, again = self.net.trunk, self.case["reshard"]
        blocks = {"each layer": [trunk[0], trunk[2]], "last layer": [trunk[2]], "trunk": [trunk], "": []}
        for block in blocks[self.case["shard"]]:
            fully_shard(block, reshard_after_forward=again)
        return fully_shard(self.net, reshard_after_forward=again)

    def losses(
        self, x: Tensor, y: Tensor, tasks: Sequence[Sequence[str]], bad: str = "", model: nn.Module | None = None
    ) -> dict[str, Tensor]:
        mine = slice(self.rank * SAMPLES, (self.rank + 1) * SAMPLES)
        model = model or self._model
        losses: dict[str, Tensor] = model(x[mine], y[mine], tasks[self.rank], with_zero="shard" in self.case)
        self.zero = losses.pop("zero", 0.0)
        if bad and self.rank == 1:
            losses["b"] = spoilt(losses["b"], bad)
        self.residuals = dict(losses)
        return losses

    def second(self, *batch: Any) -> dict[str, Tensor]:
        """Return the losses of another batch, which DDP knows nothing of: it takes one forward pass a step."""
        zero = self.zero
        losses = self.losses(*batch, model=self.net if "ddp" in self.case else None)
        self.zero = zero
        return losses

    def passing(self, last: bool) -> AbstractContextManager[None]:
        """Return the context of a backward pass, of which the last averages the gradients over the ranks."""
        if "ddp" in self.case:
            return nullcontext() if last else self._model.no_sync()
        self._model.set_requires_gradient_sync(last)
        return nullcontext()


class OfAll:
    """The whole training in one process."""

    def __init__(self, case: Mapping[str, Any], process_group: Any = False) -> None:
        self.net, self.zero = Net(case.get("net", "")), 0.0
        self.balancer = make(case, self.net, process_group, GradDropOfRanks if case["method"] == "graddrop" else None)

    def losses(self, x: Tensor, y: Tensor, tasks: Sequence[Sequence[str]], bad: str = "") -> dict[str, Tensor]:
        losses, self.residuals = {}, {}
        for task, of_ranks in self.net(x, y, [task for some in tasks for task in some], RANKS).items():
            parts = [loss for loss, some in zip(of_ranks, tasks, strict=True) if task in some]
            if bad and task == "b":
                parts[-1] = spoilt(parts[-1], bad)
            objective, value = torch.stack(parts).sum() / RANKS, torch.stack(parts).mean()
            losses[task] = objective + (value - objective).detach()
            self.residuals[task] = torch.stack(parts)
        return losses

    def second(self, *batch: Any) -> dict[str, Tensor]:
        return self.losses(*batch)

    def passing(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext()


def spoilt(loss: Tensor, how: str) -> Tensor:
    """Return a loss that is not finite, or for ``"gradient"`` one whose gradient alone is not."""
    return loss + (0.0 * loss).sqrt() if how == "gradient" else loss * float(how)


def alone(case: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the record of one process that has the batches of both ranks."""
    return trained(case, OfAll(case))


def trained(case: Mapping[str, Any], share: OfRank | OfAll) -> dict[str, list[Any]]:
    """Train, and return each pass's weights, each step's gradients, and the states before, between and after."""
    net, balancer = share.net, share.balancer
    parameters = list(net.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    if case.get("follow") or balancer.needs_optimizer:
        balancer.follow(optimizer)
    record: dict[str, list[Any]] = {"weights": [], "gradients": [], "states": [state_of(balancer)]}
    for t, (passes, tasks) in enumerate(zip(batches(case), case["steps"], strict=True)):
        bad = case.get("bad", "") if t == case.get("bad_step") else ""

        def given(x: Tensor, y: Tensor, tasks: Any = tasks, bad: str = bad) -> Any:
            losses = share.losses(x, y, tasks, bad)
            if isinstance(balancer, ResidualBalancer):
                balancer.residuals(share.residuals)
            if balancer.needs_second_batch:
                its = [TASKS] * RANKS if balancer.needs_optimizer else tasks
                balancer.second_batch(partial(share.second, -x, y, its, bad))
            return list(losses.values()) if case.get("lists") else losses

        for k, parameter in enumerate(parameters):
            parameter.grad = torch.full_like(parameter, 0.1 * (k + 1)) if case.get("existing") else None
        with balancer.held() if case.get("held") else nullcontext():
            for i, (x, y) in enumerate(passes):
                with share.passing(last=i == len(passes) - 1):
                    (balancer(given(x, y)) / len(passes) + share.zero).backward()
                record["weights"].append(balancer.weights)
        record["gradients"].append(flat([parameter.grad for parameter in parameters], parameters))
        if not bad:
            optimizer.step()
        if balancer.looks_again:
            with torch.no_grad():
                balancer.after_step(given(x, y))
        record["states"].append(state_of(balancer))
    return record


def flat(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    """Return all tensors, zero where there is none, as one vector; sharded ones are gathered."""
    whole = [torch.zeros_like(other) if tensor is None else tensor for tensor, other in zip(tensors, like, strict=True)]
    return torch.cat([(t.full_tensor() if hasattr(t, "full_tensor") else t).detach().flatten() for t in whole])


def state_of(balancer: nn.Module) -> dict[str, Tensor]:
    """Return a copy of what the balancer saves, with the counters of turns and draws by themselves."""
    state = {key: value.clone() for key, value in balancer.state_dict().items()}
    numbers = state.pop("_extra_state")
    return state | {"counters": numbers[: 2 * COUNTER_DIGITS], "names and seed": numbers[2 * COUNTER_DIGITS :]}


def run(case: Mapping[str, Any], rank: int, world_size: int) -> Any:
    """Return this rank's record of the case, or what the function that the case names returns.

    A case that may be refused returns the refusal.
    """
    assert world_size == RANKS
    if "function" in case:
        return FUNCTIONS[case["function"]](case, rank)
    try:
        return trained(case, OfRank(case, rank))
    except (ValueError, TypeError, RuntimeError, FloatingPointError) as error:
        if not case.get("may_be_refused"):
            raise
        return {"refused": f"{type(error).__name__}: {error}"}


# Other jobs.


def rank_0_alone(case: Mapping[str, Any], rank: int) -> Any:
    """Train on rank 0 alone, with a balancer that both ranks make."""
    share = OfAll(case, False if case["process_group"] == "none" else dist.new_group([0]))
    return trained(case, share) if rank == 0 else None


def rank_1_crashes(case: Mapping[str, Any], rank: int) -> str:
    """Crash on rank 1 outside of Python, as often as the case says; the file that it names counts the times."""
    counted = Path(case["counted"])
    if rank == 1 and (times := len(counted.read_text())) < case["times"]:
        counted.write_text("x" * (times + 1))
        os.abort()
    dist.barrier()
    return "finished"


def rank_1_fails(case: Mapping[str, Any], rank: int) -> None:
    """Fail on rank 1, while the balancer of rank 0 waits for it."""
    if rank == 1:
        raise RuntimeError("planted")
    trained(case, OfRank(case | {"ddp": {}}, rank))


def rank_1_is_absent(case: Mapping[str, Any], rank: int) -> None:
    """Leave rank 0 waiting."""
    if rank == 0:
        dist.all_reduce(torch.ones(1))


def named_by_dicts(case: Mapping[str, Any], rank: int) -> Any:
    """Return the weights by task of a balancer that takes the tasks' names from dicts, in another order on rank 1."""
    balancer = make(case | {"options": {"tasks": len(TASKS)}}, Net(), None)
    order = TASKS if rank == 0 else (*TASKS[1:], TASKS[0])
    try:
        for step in range(2):
            losses = {task: torch.tensor(step + 1.0 + TASKS.index(task), requires_grad=True) for task in order}
            balancer(losses).backward()
    except ValueError as error:
        return {"refused": str(error)}
    return dict(zip(balancer.tasks, balancer.weights.tolist(), strict=True))


def uneven_windows(case: Mapping[str, Any], rank: int) -> Any:
    """Return the norms and the state after a window of two passes on each rank, and one of one and of two."""
    net = Net()
    balancer = make(case | {"options": {"accumulate": 2}}, net, None)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    balancer.follow(optimizer)
    generator = torch.Generator().manual_seed(rank)
    passes = []
    for number in (2, 1 + rank):
        passes = []
        for _ in range(number):
            x = torch.randn(SAMPLES, 5, generator=generator, dtype=torch.float64)
            y = torch.randn(SAMPLES, 3, 2, generator=generator, dtype=torch.float64)
            losses = net(x, y, TASKS)
            shared = list(net.trunk.parameters())
            found = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses.values()]
            passes.append(torch.stack([flat(each, shared) for each in found]))
            balancer(losses).backward()
        optimizer.step()
    norms = balancer.statistics["gradient_norms"]
    return {"sums": torch.stack(passes).sum(0), "passes": len(passes), "norms": norms, "state": state_of(balancer)}


def off_the_shared_parameters(case: Mapping[str, Any], rank: int) -> Any:
    """Return the weights where rank 1 has one task alone, whose loss does not depend on the shared parameters."""
    net = Net()
    balancer = make(case, net, None)
    x, y = torch.ones(SAMPLES, 5, dtype=torch.float64), torch.ones(SAMPLES, 3, 2, dtype=torch.float64)
    for _ in range(2):
        losses = net(x, y, TASKS[:2])
        if rank == 1:
            losses = {TASKS[2]: sum(parameter.square().sum() for parameter in net.heads.parameters())}
        balancer(losses).backward()
    return balancer.weights


class SlowEvent:
    """Stands for an event of a CUDA device, which is some steps behind its host."""

    def __init__(self) -> None:
        self._left = 20

    def query(self) -> bool:
        self._left -= 1
        return self._left < 0

    def synchronize(self) -> None:
        self._left = 0


def knows_late(case: Mapping[str, Any], rank: int) -> Any:
    """Train where the host of rank 1 learns later than that of rank 0 what the devices computed."""
    init, is_capturing = HostCopy.__init__, torch.cuda.is_current_stream_capturing

    def slow(flag: HostCopy, value: Tensor) -> None:
        init(flag, value)
        flag._copied = SlowEvent() if rank == 1 else None  # type: ignore[assignment]

    HostCopy.__init__ = slow  # type: ignore[method-assign]
    torch.cuda.is_current_stream_capturing = lambda: False
    try:
        return trained(case, OfRank(case, rank))
    finally:
        HostCopy.__init__ = init  # type: ignore[method-assign]
        torch.cuda.is_current_stream_capturing = is_capturing


FUNCTIONS: Mapping[str, Callable[[Mapping[str, Any], int], Any]] = {
    function.__name__: function
    for function in (
        rank_0_alone,
        rank_1_crashes,
        rank_1_fails,
        rank_1_is_absent,
        named_by_dicts,
        knows_late,
        uneven_windows,
        off_the_shared_parameters,
    )
}
