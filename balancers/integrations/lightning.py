"""A Lightning callback that writes what balancers show to the trainer's loggers.

It needs the package ``lightning``. Nothing else in a Lightning project needs this module: a balancer is a part of the
``LightningModule``, whose ``training_step`` returns the balancer's loss.
"""

from typing import Any, cast

from ..engine.classes.base import LossBalancer

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities.types import STEP_OUTPUT
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "lightning":
        raise
    raise ImportError(
        "balancers.integrations.lightning needs the package lightning: pip install lightning. With pytorch_lightning "
        "alone, let your module's on_train_batch_end call self.log_dict(self.balancer.scalars())"
    ) from error


class LogWeights(Callback):
    """Log the weights, losses and measurements of each balancer in a ``LightningModule``.

    The names are those of `LossBalancer.scalars`, with the balancer's attribute before them, as in
    ``balancer/weight/depth``. The trainer's ``log_every_n_steps`` says how many steps of the optimiser lie between two
    entries. Each entry waits for the device once, for each balancer; the other steps do not wait. A balancer inside
    another one, such as its ``weighting``, is not logged.

    A callback serves the package that it was imported from: this one is for ``lightning``, not ``pytorch_lightning``.

    Raises:
        ValueError: when training starts, no attribute of the module is a balancer.

    Example::

        trainer = Trainer(max_epochs=10, log_every_n_steps=50, callbacks=[LogWeights()])
        trainer.fit(module, loader)
    """

    def __init__(self) -> None:
        self._balancers: dict[str, LossBalancer] = {}
        self._step = 0
        """The last step of the optimiser that was looked at."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._balancers = balancers_of(pl_module)
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        every = max(1, cast(Any, trainer).log_every_n_steps)  # which Lightning sets, but does not declare
        before, self._step = self._step, trainer.global_step
        if self._step // every == before // every or not trainer.loggers:
            return
        found = {
            f"{name}/{key}": value
            for name, balancer in self._balancers.items()
            for key, value in balancer.scalars().items()
        }
        for logger in trainer.loggers:
            logger.log_metrics(found, step=self._step)


def balancers_of(module: LightningModule) -> dict[str, LossBalancer]:
    """Return the outermost balancers in a module, by their names in it.

    Raises:
        ValueError: there is none.
    """
    found: dict[str, LossBalancer] = {}
    for name, each in module.named_modules():
        if isinstance(each, LossBalancer) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = each
    if not found:
        raise ValueError(
            f"LogWeights found no balancer in {type(module).__name__}: make the balancer an attribute of the module, "
            f"as in self.balancer = GradNorm(...), which also puts it into checkpoints"
        )
    return found
