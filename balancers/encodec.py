"""EnCodec's balancer: give each loss a fixed share of the gradient at the model's output."""

import torch
from torch import Tensor

from .engine import GradientBalancer, Range, Read, Result, State, option, register, state

EPSILON = 1e-12
"""Added to an average norm before it divides a share; the official code's."""


@register
class EnCodecBalancer(GradientBalancer):
    r"""Give each loss a fixed share of the gradient at the model's output, whatever the loss's scale.

    All losses depend on the model by its output :math:`y` alone. Let :math:`n_i` be the mean over the samples in
    :math:`y` of the norm of each sample's gradient of :math:`L_i`. The method averages the norms over steps, in which a
    step counts :math:`\beta` times less with every later one, and divides the shares :math:`s_i` by these averages:

    .. math:: c_i \leftarrow \beta c_i + 1, \quad
        \bar n_i \leftarrow \bar n_i + \frac{n_i - \bar n_i}{c_i}, \quad
        w_i = R\, \frac{s_i}{\sum_j s_j} \frac{1}{\bar n_i + 10^{-12}}

    :math:`c_i` starts at 0. The average includes this step, so the first step gives each loss exactly its share of
    :math:`R`. A task without a loss takes no part in the step: the others have all of :math:`R`, and its average stays.
    A task whose gradients have all been zero has the weight 0.

    Fork the output, and give each loss its own alias. A loss of something else, such as a quantiser's commitment, is
    added to what the balancer returns.

    Args:
        shares: :math:`s_i`, 0 or more (``weights`` in audiocraft): one number for all tasks, one per task, or a dict by
            task name. Only their ratios count. Where all tasks of a step have the share 0, they have the weight 0.
        total_norm: :math:`R`, positive: the sum of the average norms of all weighted gradients.
        beta: :math:`\beta`, 0 to 1 (``ema_decay`` in audiocraft). 0 uses this step's norms alone, and 1 is the plain
            mean over all steps.
        per_batch_item: whether :math:`n_i` is the mean over samples, as above. All tensors of features then have the
            samples as their first dimension. Otherwise :math:`n_i` is the norm of the gradient of all samples together.
        fork, wrt, options: see `GradientBalancer`. ``wrt`` is None: the output is what goes through the fork.

    Raises:
        ValueError: a share is negative or not finite, the number or the names of the shares are not those of the tasks,
            ``total_norm`` or ``beta`` is out of range, or ``wrt`` is not None; in a step with ``per_batch_item``, two
            tensors of features have different numbers of samples.

    Example::

        balancer = EnCodecBalancer(fork, tasks=["l1", "adversarial"], shares={"l1": 1.0, "adversarial": 3.0})
        reconstructed, judged = fork(model(x))
        losses = {"l1": l1(reconstructed, x), "adversarial": adversarial(judged)}
        (balancer(losses) + commitment).backward()

    Source: Défossez, Copet, Synnaeve and Adi, "High Fidelity Neural Audio Compression", TMLR 2023, the loss balancer.
    The defaults are those of audiocraft's ``Balancer``, with these differences. There, networks behind the output, such
    as a discriminator, get no gradient; here they get those of the losses as they are. A loss that was seen before
    can't be left out of a step there. ``ema_decay=0`` is the plain mean there. On several processes audiocraft measures
    the gradients of each process's own loss, here as everywhere in this library they are those of the mean loss of all
    ranks, and weights are larger by the number of ranks. With ``balance_grads=False`` it is `StaticWeighting` of the
    shares.
    """

    name = "encodec"
    summary = "Give each loss a fixed share of the gradient at the model's output, by its average norm."
    reads = "gradients"
    compares_tasks = False
    use_when = "For generative models whose losses all judge one output, such as spectral and adversarial ones."
    undefined_for = {
        "layer": "it reads the gradients of the model's output, which the model passes through the fork",
        "parameters": "it reads the gradients of the model's output, which the model passes through a fork",
    }
    shares: list[float] = option(1.0, at_least=0, per_task=True)
    total_norm: float = option(1.0, above=0)
    beta: float = option(0.999, at_least=0, at_most=1, tune=Range(0.9, 0.9999))
    per_batch_item: bool = option(True)
    average_norms: Tensor = state()
    r""":math:`\bar n_i`, ``(T,)``."""
    counts: Tensor = state()
    """:math:`c_i`, ``(T,)``: the sum of the weights of all steps in the average."""

    def update(self, read: Read, state: State) -> Result:
        counts = self.beta * state["counts"] + 1
        averages = torch.lerp(state["average_norms"], self._norms(read), 1 / counts)
        parts = state["shares"] / state["shares"].sum()
        weights = self.total_norm * parts / (averages + EPSILON)
        weights = torch.where((averages > 0) & (state["shares"] > 0), weights, 0.0)
        return Result(weights, {"average_norms": averages, "counts": counts})

    def _norms(self, read: Read) -> Tensor:
        """Return :math:`n_i`, ``(T',)``, of the mean loss of all ranks, which each divide their own by their number."""
        squares = [gradient.unsqueeze(-1).flatten(2).square().sum(2) for gradient in read.gradients]  # (T', B) each
        if not self.per_batch_item:
            total = torch.stack([each.sum(1) for each in squares]).sum(0)
            return (read.mean(total) / self._ranks.size).sqrt()
        if len(samples := {each.shape[1] for each in squares}) > 1:
            raise ValueError(
                f"with per_batch_item all tensors that go through the fork need as many samples, but they have "
                f"{', '.join(map(str, sorted(samples)))}: pass per_batch_item=False"
            )
        return read.mean(torch.stack(squares).sum(0).sqrt().mean(1)) / self._ranks.size
