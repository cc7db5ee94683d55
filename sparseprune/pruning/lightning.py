"""The Pruner as a callback of Lightning's Trainer (needs lightning or pytorch_lightning)."""

from __future__ import annotations

from typing import Any

try:
    from lightning.pytorch import Callback
except ImportError:  # the same package under its older name
    from pytorch_lightning import Callback

from sparseprune.errors import bad
from sparseprune.pruning.pruner import Pruner


class PrunerCallback(Callback):  # type: ignore[misc]
    """Prunes while a Lightning Trainer trains.

    ::

        callback = PrunerCallback(sp.Pruner(0.9, Schedule(100, 1000, 50)))
        Trainer(callbacks=[callback]).fit(module, data)
        callback.masks

    One step of the schedule is one step of the optimizer (Trainer's global step), whatever
    `accumulate_grad_batches`. The pruner's state is part of Lightning's checkpoints. One optimizer
    is supported; modules with several, and strategies that shard weights, are refused.

    Attributes:
        masks: of the finished training; those of the last step while it runs.
    """

    def __init__(self, pruner: Pruner) -> None:
        self.pruner = pruner
        self._loaded: dict[str, Any] | None = None
        self._seen = 0

    @property
    def masks(self) -> Any:
        return self.pruner.masks

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Prepares the pruner, or goes on with the state of the checkpoint.

        Raises ValueError for a module with several optimizers.
        """
        if len(trainer.optimizers) != 1:
            way_out = "use a Pruner for each in training_step"
            got = len(trainer.optimizers)
            raise bad("PrunerCallback", "the module", "one with one optimizer", got, way_out)
        self.pruner.prepare(pl_module, trainer.optimizers[0])
        if self._loaded is not None:
            self.pruner.load_state_dict(self._loaded)
        self._loaded, self._seen = None, trainer.global_step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """After the optimizer's step, if this batch made one; its gradients are still there."""
        if trainer.global_step > self._seen:
            self._seen = trainer.global_step
            self.pruner.step()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Ends the pruning; the module keeps its zeros."""
        self.pruner.finalize()

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoints."""
        return self.pruner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training starts: Lightning restores callbacks before there is an optimizer."""
        self._loaded = state_dict
