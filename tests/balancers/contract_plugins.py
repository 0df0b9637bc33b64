"""Methods as a plugin would bring them, one of each kind: none is registered, and the engine knows none of them."""

import torch
from torch import Tensor

from balancers import GradientBalancer, LossBalancer, Read, Result, State, option, state


class InverseRoots(LossBalancer):
    """Weighs only: by the inverse roots of this step's losses, scaled to sum to 1."""

    name = "plugin-weighs"
    summary = "Weigh each task by the inverse root of its loss."
    needs_positive_losses = True

    def weigh(self, losses: Tensor) -> Tensor:
        return torch.softmax(-losses.log() / 2, -1)


class NormSeeker(GradientBalancer):
    """Reads norms and keeps state: lets the weights drift until all weighted norms are 1."""

    name = "plugin-norms"
    summary = "Move all weighted gradient norms towards 1."
    rate: float = option(0.1, above=0)
    log_weights: Tensor = state()

    def weigh(self, state: State) -> Tensor:
        return state["log_weights"].exp()

    def update(self, read: Read, state: State) -> Result:
        weighted = state["log_weights"] + read.norms.log()
        new = {"log_weights": state["log_weights"] - self.rate * weighted}
        return Result(state=new, statistics={"weighted_norms": weighted.exp()})


class MeanProducts(GradientBalancer):
    """Reads the Gramian and keeps state: averages the inner products, and weighs by what each task has with all."""

    name = "plugin-gramian"
    summary = "Weigh each task by its mean agreement with all."
    reads = "gramian"
    default_wrt = "layer"
    products: Tensor = state(shape="TT")

    def update(self, read: Read, state: State) -> Result:
        products = torch.lerp(state["products"], read.gramian, 0.25)
        return Result(torch.softmax(products.mean(1) / products.diagonal().mean(), 0), {"products": products})


class TrackedNorms(GradientBalancer):
    """Tracks gradients, parameter by parameter: averages them, and weighs by the inverse norms of these averages."""

    name = "plugin-tracked"
    summary = "Bring the averaged gradients to one norm."
    reads = "gradients"
    default_wrt = "parameters"
    undefined_for = {"features": "the averages would mix different samples"}
    tracks = "averages"

    def track(self, gradient: Tensor, tracked: Tensor, state: State) -> tuple[Tensor, Tensor]:
        average = torch.lerp(tracked, gradient, 0.25)
        return average, average.flatten(1).square().sum(1)

    def update(self, read: Read) -> Result:
        inverse = read.tracked.rsqrt()
        return Result(inverse / inverse.sum())


class SecondShares(LossBalancer):
    """Looks ahead and weighs by the losses too: averages the losses of a second batch, and weighs by the ratios."""

    name = "plugin-ahead"
    summary = "Weigh each task by how its loss compares with that of other batches."
    reads = "second batch"
    when = "forward"
    needs_second_batch = True
    needs_positive_losses = True
    averages: Tensor = state(1.0)

    def update(self, read: Read, state: State) -> Result:
        return Result(state={"averages": torch.lerp(state["averages"], read.second_losses, 0.25)})

    def weigh(self, losses: Tensor, state: State) -> Tensor:
        return torch.softmax((losses / state["averages"]).log(), -1)


PLUGINS: tuple[type[LossBalancer], ...] = (InverseRoots, NormSeeker, MeanProducts, TrackedNorms, SecondShares)

OWN: list[type[LossBalancer]] = []
"""The methods of the file that ``--method`` names: if there are any, the contract is tested for them alone."""
