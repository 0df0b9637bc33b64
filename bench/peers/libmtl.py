"""The package LibMTL: its ``GradNorm``, in a model put together as its trainer does, which itself asks for CUDA.

Its newest release on PyPI, 1.1.5, is older than PyTorch 2, and two things have changed since: torchvision has moved a
function, for want of which the package can't be imported; and ``zero_grad`` drops gradients that it goes on to write
into. Both are put right here.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tasks import Problem

from .peer import GradNormSetting, Peer

MOVED = "torchvision.models.utils"
"""The module whose function is in ``torch.hub`` now."""


class LibMTL(Peer):
    """``LibMTL.weighting.GradNorm`` on ``LibMTL.architecture.HPS``, the trunk its encoder and the heads its decoders.

    Raises:
        ImportError: the package can't be imported.
    """

    name = "LibMTL"
    package = "LibMTL"
    differs = (
        "Can't be imported beside today's torchvision, and fails with PyTorch 2: both are patched here. Takes all "
        "shared parameters, by one backward pass a task instead of a double one. The weights are T softmax(v), and the "
        "network's optimiser trains v at the network's learning rate. L_i(0) is the mean over a first epoch of equal "
        "weighting; here the first batch stands for it. The heads are trained on unweighted losses."
    )

    def __init__(self, problem: Problem[Any], model: nn.Module, setting: GradNormSetting | None = None) -> None:
        self._model = _put_together(problem, model)
        super().__init__(problem, model, setting, own=[self._model.loss_scale])

    @classmethod
    def usual_setting(cls, problem: Problem[Any]) -> GradNormSetting:
        return GradNormSetting("all shared parameters", lr=problem.recipe.lr)

    @property
    def weights(self) -> Tensor:
        scale: Tensor = self._model.loss_scale
        return len(scale) * scale.detach().softmax(-1)

    def backward(self, losses: list[Tensor]) -> None:
        stacked = torch.zeros(len(losses))
        for i, loss in enumerate(losses):  # as its trainer does
            stacked[i] = loss
        if self._model.train_loss_buffer is None:
            self._model.train_loss_buffer = stacked.detach()[:, None].numpy()
        self._model.backward(stacked, alpha=self.setting.alpha)


def _put_together(problem: Problem[Any], model: nn.Module) -> Any:
    """What the trainer calls a model: an architecture and a weighting in one, on the CPU, past the first epoch."""
    with _torchvision_as_it_was():
        architecture, weighting = import_module("LibMTL.architecture"), import_module("LibMTL.weighting")
    bases = (architecture.HPS, weighting.GradNorm)
    zero_grad = {"zero_grad_share_params": lambda self: self.encoder.zero_grad(set_to_none=False)}
    names = [str(i) for i in range(len(problem.tasks))]
    built = type("Model", bases, zero_grad)(
        task_name=names,
        encoder_class=lambda: model.get_submodule("trunk"),
        decoders=nn.ModuleDict(dict(zip(names, model.get_submodule("heads").children(), strict=True))),
        rep_grad=False,
        multi_input=False,
        device=torch.device("cpu"),
    )
    built.init_param()
    built.epoch = 1
    built.train_loss_buffer = None
    return built


@contextmanager
def _torchvision_as_it_was() -> Iterator[None]:
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
