"""Make steps with TorchJD: each way that its documentation has to combine gradients at a place.

TorchJD's options are our defaults. Where a method of TorchJD is inexact, its own tolerances are kept.

- All shared parameters: ``autojac.mtl_backward`` with the features, the trunk's parameters and each head's (it would
  search the graph for them), and ``jac_to_grad`` on the trunk, all tasks in parallel or one by one, and where the
  weights come from a Gramian, with this Gramian summed over parameters (``optimize_gramian_computation``) or not; or
  ``autogram.Engine`` of the trunk, whose weights multiply the losses.
- The last shared layer: the weights come from ``autogram.Engine`` of the layer, or from the Jacobian of the layer by
  ``mtl_backward``. They then multiply the losses in a backward pass through the whole network.
- The features: ``mtl_backward`` with a detached copy of the features as the only shared parameter, or ``autojac.jac``
  of the losses with respect to the features. The combined gradient then goes through the trunk.

Autogram, and every way at the layer, multiplies the heads' gradients by the weights too; autojac and our methods at a
fork leave them as they are.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torchjd import aggregation, autojac
from torchjd.aggregation import Aggregator, GramianWeightedAggregator, WeightedAggregator
from torchjd.autogram import Engine

from balancers.engine.method.declared_method import Wrt
from bench.cost.subject import MakeStep

from .contender import PeerContender

Make = Callable[[], Aggregator]

AGGREGATORS: Mapping[str, Callable[[int], Aggregator]] = {
    "aligned-mtl": lambda _: aggregation.AlignedMTL(),
    "cagrad": lambda _: aggregation.CAGrad(c=0.4),
    "config": lambda _: aggregation.ConFIG(),
    "dual-proj": lambda _: aggregation.DualProj(),
    # With one step to warm up, its risks are relative to those of the first step, as ours are.
    "excess-mtl": lambda _: aggregation.ExcessMTL(robust_step_size=0.01, n_warmup_steps=1),
    "fairgrad": lambda _: aggregation.FairGrad(alpha=2.0),
    "graddrop": lambda _: aggregation.GradDrop(),
    "gradvac": lambda _: aggregation.GradVac(beta=0.01),
    "imtl-g": lambda _: aggregation.IMTLG(),
    "mgda": lambda _: aggregation.MGDA(),
    "nash-mtl": lambda num_tasks: aggregation.NashMTL(n_tasks=num_tasks, max_norm=0.0),
    "pcgrad": lambda _: aggregation.PCGrad(),
    "upgrad": lambda _: aggregation.UPGrad(),
}
"""By the name of our method, what makes TorchJD's for T tasks."""

CHUNKS: Mapping[str, int | None] = {"in parallel": None, "one by one": 1}
"""By name, the values of ``parallel_chunk_size``."""


class TorchJD(PeerContender):
    """A contender that combines gradients with an aggregator of its own.

    Args:
        make_step: see `Contender`.
        num_tasks: T.
        make_aggregator: makes the aggregator.
        cut: see `Features`.
    """

    name = "TorchJD"

    def __init__(self, make_step: MakeStep, num_tasks: int, make_aggregator: Make, cut: bool = False) -> None:
        super().__init__(make_step, num_tasks, cut)
        self.aggregator = make_aggregator()
        self.shared_params = list(self.trunk.parameters())
        self.tasks_params = [list(head.parameters()) for head in self.subject.model.get_submodule("heads").children()]


class OfTrunk(TorchJD):
    """Combines the gradients of the trunk's parameters: ``mtl_backward`` and ``jac_to_grad``."""

    def __init__(
        self, make_step: MakeStep, num_tasks: int, make_aggregator: Make, chunk: int | None, sum_gramians: bool
    ) -> None:
        super().__init__(make_step, num_tasks, make_aggregator)
        self._chunk = chunk
        self._sum_gramians = sum_gramians

    def backward(self, losses: list[Tensor]) -> None:
        features, _, _ = self.features.take()
        autojac.mtl_backward(
            losses,
            features=features,
            tasks_params=self.tasks_params,
            shared_params=self.shared_params,
            parallel_chunk_size=self._chunk,
        )
        if self._sum_gramians:
            assert isinstance(self.aggregator, GramianWeightedAggregator)
            autojac.jac_to_grad(self.shared_params, self.aggregator, optimize_gramian_computation=True)
        else:
            autojac.jac_to_grad(self.shared_params, self.aggregator)


class OfGramian(TorchJD):
    """Weighs the losses by the Gramian of the trunk's or the layer's parameters: ``autogram.Engine``."""

    def __init__(self, make_step: MakeStep, num_tasks: int, make_aggregator: Make, of_layer: bool) -> None:
        super().__init__(make_step, num_tasks, make_aggregator)
        assert isinstance(self.aggregator, GramianWeightedAggregator)
        self._weighting = self.aggregator.gramian_weighting
        self._engine = Engine(self.layer if of_layer else self.trunk, batch_dim=None)

    def backward(self, losses: list[Tensor]) -> None:
        self.features.take()
        stacked = torch.stack(losses)
        stacked.backward(self._weighting(self._engine.compute_gramian(stacked)))


class OfLayer(TorchJD):
    """Weighs the losses by the Jacobian of the last shared layer: ``mtl_backward``, of this layer alone."""

    def __init__(self, make_step: MakeStep, num_tasks: int, make_aggregator: Make, chunk: int | None) -> None:
        super().__init__(make_step, num_tasks, make_aggregator)
        self._chunk = chunk

    def backward(self, losses: list[Tensor]) -> None:
        features, _, _ = self.features.take()
        parameters = list(self.layer.parameters())
        autojac.mtl_backward(
            losses,
            features=features,
            tasks_params=[()] * len(losses),
            shared_params=parameters,
            retain_graph=True,
            parallel_chunk_size=self._chunk,
        )
        assert isinstance(self.aggregator, WeightedAggregator)
        weights = autojac.jac_to_grad(parameters, self.aggregator)
        for parameter in parameters:
            parameter.grad = None
        torch.stack(losses).backward(weights)


class OfFeatures(TorchJD):
    """Combines the gradients of a leaf that stands for the features: ``mtl_backward`` and ``jac_to_grad``."""

    def __init__(self, make_step: MakeStep, num_tasks: int, make_aggregator: Make, chunk: int | None) -> None:
        super().__init__(make_step, num_tasks, make_aggregator, cut=True)
        self._chunk = chunk

    def backward(self, losses: list[Tensor]) -> None:
        features, leaf, handed = self.features.take()
        autojac.mtl_backward(
            losses,
            features=handed,
            tasks_params=self.tasks_params,
            shared_params=[leaf],
            parallel_chunk_size=self._chunk,
        )
        autojac.jac_to_grad([leaf], self.aggregator)
        features.backward(leaf.grad)


class JacobianOfFeatures(TorchJD):
    """Combines the rows of the losses' Jacobian with respect to the features: ``autojac.jac``."""

    def __init__(self, make_step: MakeStep, num_tasks: int, make_aggregator: Make, chunk: int | None) -> None:
        super().__init__(make_step, num_tasks, make_aggregator)
        self._chunk = chunk
        self._of_heads = [each for of_task in self.tasks_params for each in of_task]

    def backward(self, losses: list[Tensor]) -> None:
        features, _, _ = self.features.take()
        (jacobian,) = autojac.jac(losses, features, retain_graph=True, parallel_chunk_size=self._chunk)
        torch.stack(losses).sum().backward(inputs=self._of_heads)
        features.backward(self.aggregator(jacobian.flatten(1)).view_as(features))


def ways(method: str, place: Wrt, make_step: MakeStep, num_tasks: int) -> dict[str, Callable[[], TorchJD]]:
    """Return, by name, what makes a contender in each way that TorchJD has for the method at this place.

    It is empty if TorchJD has none: the weights that a way at the layer needs are not to be had from every aggregator.

    Raises:
        ImportError: the method needs a package that is not installed.
    """
    make = partial(AGGREGATORS[method], num_tasks)
    example = make()
    has_weights = isinstance(example, WeightedAggregator)
    has_gramian = isinstance(example, GramianWeightedAggregator)
    found: dict[str, Callable[[], TorchJD]] = {}
    for name, chunk in CHUNKS.items():
        if place == "features":
            found[f"mtl_backward, {name}"] = partial(OfFeatures, make_step, num_tasks, make, chunk)
            found[f"jac, {name}"] = partial(JacobianOfFeatures, make_step, num_tasks, make, chunk)
        elif place == "parameters":
            found[f"mtl_backward, {name}"] = partial(OfTrunk, make_step, num_tasks, make, chunk, sum_gramians=False)
            if has_gramian:
                found[f"mtl_backward, {name}, Gramians summed"] = partial(
                    OfTrunk, make_step, num_tasks, make, chunk, sum_gramians=True
                )
        elif has_weights:
            found[f"mtl_backward, {name}"] = partial(OfLayer, make_step, num_tasks, make, chunk)
    if has_gramian and place != "features":
        found["autogram"] = partial(OfGramian, make_step, num_tasks, make, of_layer=place == "layer")
    return found
