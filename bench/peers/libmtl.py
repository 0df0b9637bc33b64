"""The package LibMTL: its ``GradNorm``, in a model that `assemble` makes as LibMTL's trainer does it.

The trainer itself is not used because it requires CUDA. LibMTL's newest release on PyPI, 1.1.5, is older than
PyTorch 2, and two changes since then break it: torchvision has moved a function, so that the package can't be imported;
and ``zero_grad`` now drops gradients that LibMTL writes into afterwards. This module works around both.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tasks import Problem

from .peer import GradNormSetting, Peer

MOVED = "torchvision.models.utils"
"""Module that LibMTL imports from; its function is now in ``torch.hub``."""


class LibMTL(Peer):
    """``LibMTL.weighting.GradNorm`` on ``LibMTL.architecture.HPS``: the trunk is its encoder, the heads its decoders.

    Raises:
        ImportError: the package can't be imported.
    """

    name = "LibMTL"
    package = "LibMTL"
    differs = (
        "Can't be imported with today's torchvision, and fails with PyTorch 2; both are patched here. Measures at all "
        "shared parameters, by one backward pass for each task instead of a double backward pass. The weights are T "
        "softmax(v), and the network's optimiser trains v at the network's learning rate. L_i(0) is the mean over a "
        "first epoch of equal weighting; here it is taken from the first batch. The heads are trained on unweighted "
        "losses."
    )

    def __init__(self, problem: Problem[Any], model: nn.Module, setting: GradNormSetting | None = None) -> None:
        heads = model.get_submodule("heads").children()
        self._model = assemble("GradNorm", model.get_submodule("trunk"), heads)
        super().__init__(problem, model, setting, own=[self._model.loss_scale])

    @classmethod
    def usual_setting(cls, problem: Problem[Any]) -> GradNormSetting:
        return GradNormSetting("all shared parameters", lr=problem.recipe.lr)

    @property
    def weights(self) -> Tensor:
        scale: Tensor = self._model.loss_scale
        return len(scale) * scale.detach().softmax(-1)

    def backward(self, losses: list[Tensor]) -> None:
        stacked = stack(losses)
        if self._model.train_loss_buffer is None:
            self._model.train_loss_buffer = stacked.detach()[:, None].numpy()
        self._model.backward(stacked, alpha=self.setting.alpha)


def stack(losses: Sequence[Tensor]) -> Tensor:
    """Return the losses as LibMTL's trainer hands them on, ``(T,)``."""
    stacked = torch.zeros(len(losses))
    for i, loss in enumerate(losses):
        stacked[i] = loss
    return stacked


def assemble(weighting: str, trunk: nn.Module, heads: Iterable[nn.Module]) -> Any:
    """Return a model as LibMTL's trainer makes it (architecture and weighting in one), on the CPU, after one epoch.

    Args:
        weighting: name of a class in ``LibMTL.weighting``.
        trunk: what the tasks share.
        heads: one module for each task.
    """
    with _old_torchvision():
        architecture, weightings = import_module("LibMTL.architecture"), import_module("LibMTL.weighting")
    bases = (architecture.HPS, getattr(weightings, weighting))
    zero_grad = {"zero_grad_share_params": lambda self: self.encoder.zero_grad(set_to_none=False)}
    decoders = nn.ModuleDict({str(i): head for i, head in enumerate(heads)})
    built = type("Model", bases, zero_grad)(
        task_name=list(decoders),
        encoder_class=lambda: trunk,
        decoders=decoders,
        rep_grad=False,
        multi_input=False,
        device=torch.device("cpu"),
    )
    built.init_param()
    built.epoch = 1
    built.train_loss_buffer = None
    return built


@contextmanager
def _old_torchvision() -> Iterator[None]:
    before = sys.modules.get(MOVED)
    stand_in = ModuleType(MOVED)
    stand_in.__dict__["load_state_dict_from_url"] = torch.hub.load_state_dict_from_url
    sys.modules[MOVED] = stand_in
    try:
        yield
    finally:
        del sys.modules[MOVED]
        if before is not None:
            sys.modules[MOVED] = before
