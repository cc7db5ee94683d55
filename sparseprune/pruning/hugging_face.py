"""The Pruner as a callback of Hugging Face's Trainer (needs transformers)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from sparseprune.errors import bad
from sparseprune.pruning.pruner import Pruner

FILE = "sparseprune_pruner.pt"
"""The pruner's state in every checkpoint folder of the Trainer."""


class PrunerCallback(TrainerCallback):  # type: ignore[misc]
    """Prunes while a transformers.Trainer trains.

    ::

        callback = PrunerCallback(sp.Pruner(0.9, Schedule(100, 1000, 50)))
        trainer = Trainer(model, args, train_dataset=data, callbacks=[callback])
        trainer.train()
        callback.masks

    One step of the schedule is one step of the optimizer (Trainer's global step), whatever the
    gradient accumulation. The pruner's state is saved into every checkpoint folder and read back
    by `train(resume_from_checkpoint=True)`. FSDP and DeepSpeed, which shard weights, are refused.

    Attributes:
        masks: of the finished training; those of the last step while it runs.
    """

    def __init__(self, pruner: Pruner) -> None:
        self.pruner = pruner

    @property
    def masks(self) -> Any:
        return self.pruner.masks

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Prepares the pruner, or goes on with the state beside the checkpoint resumed from.

        Raises ValueError for sharded weights, or a checkpoint without a state of the pruner.
        """
        if getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
            way_out = "train with DistributedDataParallel, or prune the whole model beforehand"
            got = "FSDP or DeepSpeed"
            raise bad("PrunerCallback", "the Trainer", "one of whole weights", got, way_out)
        optimizer = more["optimizer"]
        optimizer = getattr(optimizer, "optimizer", optimizer)  # inside accelerate's
        self.pruner.prepare(more["model"], optimizer)
        if state.global_step:
            self.pruner.load_state_dict(_read(_folder(args, state) / FILE))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """After the optimizer's step, while the gradients are still there."""
        self.pruner.step()

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Beside the checkpoint that Trainer has just written."""
        if state.is_world_process_zero:
            torch.save(self.pruner.state_dict(), _folder(args, state) / FILE)

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Ends the pruning; the model keeps its zeros."""
        self.pruner.finalize()


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        way_out = "resume from a checkpoint that was written with this callback"
        raise bad("PrunerCallback", "the checkpoint", "one with masks", f"no {path}", way_out)
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state
