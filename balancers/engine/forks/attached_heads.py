"""Pre-hooks that hand each head its own alias of the features, for a model whose code has no fork."""

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..fork_error import ForkError
from ..torch_internals import COMPILED, current_pass, not_compiled, saved_here, tree_flatten, tree_unflatten

if TYPE_CHECKING:
    from .fork import Fork


class AttachedHeads:
    """Heads that get their aliases of the features from a fork, whenever a balancer reads it.

    Args:
        fork: the fork, for as many tasks as there are heads.
        heads: the head of each task.
        apart: whether heads may get features of their own in a step, such as those of a batch for each task.

    Raises:
        TypeError: a head is not a module.
        ValueError: two heads are the same module or share one.
    """

    def __init__(self, fork: "Fork", heads: Sequence[nn.Module], apart: bool) -> None:
        _check(heads)
        self._fork, self._apart = fork, apart
        self._features: list[Tensor] = []
        """The features that the heads of this forward pass are called with."""
        self._aliases: list[Any] = []
        """For each head its aliases of them; None if it has them already."""
        self._token: object = None
        """Changes when a balancer is called, so that an unfinished step is not continued."""
        self._handles = [
            head.register_forward_pre_hook(partial(self._hand, task), prepend=True, with_kwargs=True)
            for task, head in enumerate(heads)
        ]

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self.end()

    def end(self) -> None:
        """Let go of the features and aliases of heads that were not called."""
        self._features, self._aliases, self._token = [], [], None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_features": [], "_aliases": [], "_token": None}

    @not_compiled(COMPILED)
    def _hand(
        self, task: int, head: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Replace the features among a head's arguments by the head's aliases."""
        reading = self._fork.reading
        # A checkpoint that recomputes a head has the aliases' graph already.
        if not (reading.recording and torch.is_grad_enabled()) or current_pass() >= 0:
            return None
        leaves, structure = tree_flatten((args, kwargs))
        features = list({id(leaf): leaf for leaf in leaves if reading.records(leaf)}.values())
        if not features:
            return None
        if not self._is_round_of(features):
            self._begin(task, features)
        aliases, self._aliases[task] = self._aliases[task], None
        if aliases is None:
            raise ForkError(
                f"head {task} ({type(head).__name__}) ran twice on the same features: if one module serves several "
                f"tasks, use fork=None with the shared parameters"
            )
        of_feature = {id(z): alias for z, alias in zip(features, aliases, strict=True)}
        if all(each is None for each in self._aliases):
            self.end()
        handed: tuple[tuple[Any, ...], dict[str, Any]] = tree_unflatten(
            [of_feature.get(id(leaf), leaf) for leaf in leaves], structure
        )
        return handed

    def _is_round_of(self, features: Sequence[Tensor]) -> bool:
        return len(features) == len(self._features) and all(map(_is, features, self._features))

    def _begin(self, task: int, features: list[Tensor]) -> None:
        """Make the aliases of new features."""
        token = self._fork.reading.now()
        # A head that has its alias already begins another forward pass; the one before it left out some heads.
        if self._token is token and not self._apart and self._aliases[task] is not None:
            others = ", ".join(str(i) for i, each in enumerate(self._aliases) if each is None)
            raise ForkError(
                f"head {task} got other features than head {others} before it in this step. Attach modules that all "
                f"get the same tensors; if each task has a batch of its own, attach with apart=True"
            )
        self._features, self._token = features, token
        with saved_here():  # a checkpoint around a head does not save for it
            self._aliases = list(self._fork(features))


def _is(one: object, other: object) -> bool:
    return one is other


def _check(heads: Sequence[nn.Module]) -> None:
    for i, head in enumerate(heads):
        if not isinstance(head, nn.Module):
            raise TypeError(f"heads[{i}] is of type {type(head).__name__}; expected a module")
    for (i, one), (j, other) in combinations(enumerate(heads), 2):
        if one is other:
            raise ValueError(
                f"heads[{i}] and heads[{j}] are one module, which serves both tasks, so that no fork can tell them "
                f"apart: use fork=None with the shared parameters"
            )
        modules, parameters = {*other.modules()}, {*other.parameters()}
        shared: list[object] = [each for each in one.modules() if each in modules]
        shared += [each for each in one.parameters() if each in parameters]
        if shared:
            kind = type(shared[0]).__name__
            raise ValueError(
                f"heads[{i}] and heads[{j}] share a {kind}: put what is shared into the trunk, or use fork=None"
            )
