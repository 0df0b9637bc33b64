"""Exchange numbers between the ranks of ``torch.distributed`` that learn together.

A balancer talks on process groups of its own: in DistributedDataParallel's, ranks whose batches hold different tasks
would get out of step. What only the host knows (which tasks a batch has) goes over the host's network, so that no
device is waited for.
"""

import zlib
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

AVAILABLE = dist.is_available()
GroupOption: TypeAlias = "dist.ProcessGroup | Literal[False] | None"
"""The ranks that learn together: a process group; None for all ranks, False for each on its own."""


class _Groups(NamedTuple):
    world: object
    """The default group when these were made: where it is another one, they are made anew."""
    device: "dist.ProcessGroup"
    host: "dist.ProcessGroup"


_made: dict[tuple[int, ...], _Groups] = {}


def _is_group(value: object) -> bool:
    """Return whether ``value`` is a process group, or what ``dist.new_group`` returns on ranks outside of it."""
    return AVAILABLE and (isinstance(value, dist.ProcessGroup) or value is dist.GroupMember.NON_GROUP_MEMBER)


class Ranks:
    """The ranks that one balancer learns with. A rank outside of the group learns on its own.

    Raises:
        TypeError: ``group`` is neither a process group, nor None, nor False.
    """

    def __init__(self, group: GroupOption) -> None:
        if not (group is None or group is False or _is_group(group)):
            raise TypeError(
                f"process_group is of type {type(group).__name__}; expected a process group of torch.distributed, None "
                f"for all ranks, or False for each rank on its own"
            )
        self._alone = group is False
        self._group = group or None

    @property
    def size(self) -> int:
        """The number of ranks; 1 without ``torch.distributed``."""
        if self._alone or not AVAILABLE or not dist.is_initialized():
            return 1
        return max(dist.get_world_size(self._group), 1)  # -1 on a rank outside the group

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the sums over all ranks, in one message."""
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat, group=self._groups().device)
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean over all ranks."""
        [total] = self.sum([tensor])
        return total / self.size

    def union(self, given: Sequence[bool], tasks: Sequence[str] | None) -> tuple[bool, ...]:
        """Return for each task whether any rank was given it; ``given`` says so for this rank.

        Raises:
            ValueError: the ranks don't have the same ``tasks`` in the same order.
        """
        names = zlib.crc32(repr(tasks).encode())
        sums = torch.tensor([*given, names], dtype=torch.int64, device="cpu")
        dist.all_reduce(sums, group=self._groups().host)
        *counts, total = sums.tolist()
        if total != names * self.size:
            raise ValueError(
                f"the ranks' tasks differ, or their order; here they are {tasks}: give tasks=[...] by name"
            )
        return tuple(count > 0 for count in counts)

    def _groups(self) -> _Groups:
        ranks = tuple(dist.get_process_group_ranks(self._group))
        world = dist.group.WORLD
        if ranks not in _made or _made[ranks].world is not world:
            for key in [key for key, made in _made.items() if made.world is not world]:
                del _made[key]
            alone = len(ranks) < dist.get_world_size()
            device = dist.new_group(list(ranks), use_local_synchronization=alone)
            host = device
            if "cpu:" not in dist.get_backend_config(device):
                host = dist.new_group(list(ranks), backend="gloo", use_local_synchronization=alone)
            _made[ranks] = _Groups(world, device, host)
        return _made[ranks]

    def __getstate__(self) -> dict[str, object]:
        if self._group is not None:
            raise TypeError("a balancer with a process_group can't be copied or pickled: save its state_dict instead")
        return self.__dict__
