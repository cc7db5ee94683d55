"""The callback in Lightning's Trainer where it is installed, else in a stub of its loop."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from masked_training import batch, holds, net
from torch import nn

from sparseprune.pruning import Pruner
from sparseprune.schedules import Schedule, rigl

try:
    import pytorch_lightning as pl
except ImportError:
    pl = None
    stub: Any = types.ModuleType("pytorch_lightning")
    stub.Callback = object
    sys.modules["pytorch_lightning"] = stub

from sparseprune.pruning.lightning import PrunerCallback

if pl is None:
    del sys.modules["pytorch_lightning"]  # no other test takes the stub for the package


class StubTrainer:
    """Lightning's loop as far as the callback sees it: every second batch makes a step."""

    def __init__(self, callback: Any, module: nn.Module) -> None:
        self.callback, self.module, self.global_step = callback, module, 0
        self.optimizers = [torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)]

    def fit(self, batches: range) -> None:
        self.callback.on_train_start(self, self.module)
        for index in batches:
            x, y = batch(index)
            if index % 2 == 0:
                self.optimizers[0].zero_grad()
            nn.functional.cross_entropy(self.module(x), y).backward()
            if index % 2:
                self.optimizers[0].step()
                self.global_step += 1
            self.callback.on_train_batch_end(self, self.module, None, (x, y), index)
        self.callback.on_train_end(self, self.module)


@pytest.mark.parametrize("regrowth", [None, rigl(9, 2)], ids=["gradual", "rigl"])
def test_steps_are_those_of_the_optimizer(regrowth: Any) -> None:
    model = net()
    callback = PrunerCallback(Pruner(0.8, Schedule(0, 6, 2), regrowth=regrowth))
    StubTrainer(callback, model).fit(range(20))
    assert callback.pruner.steps == 10
    assert callback.masks.sparsity() == pytest.approx(0.8, abs=0.004)
    assert holds(callback.masks, model)


def test_state_loaded_before_there_is_an_optimizer() -> None:
    first = PrunerCallback(Pruner(0.8))
    StubTrainer(first, net()).fit(range(6))
    state = first.state_dict()
    callback = PrunerCallback(Pruner(0.8))
    callback.load_state_dict(state)
    trainer = StubTrainer(callback, net(3))
    trainer.global_step = 3
    trainer.fit(range(6, 10))
    assert callback.masks == first.masks and callback.pruner.steps == 5


def test_several_optimizers_are_refused() -> None:
    callback = PrunerCallback(Pruner(0.8))
    trainer = StubTrainer(callback, net())
    trainer.optimizers *= 2
    with pytest.raises(ValueError, match="the module must be one with one optimizer, got 2"):
        trainer.fit(range(2))


@pytest.mark.skipif(pl is None, reason="lightning is not installed")
def test_in_lightning_itself(tmp_path: Path) -> None:
    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def training_step(self, parts: list[torch.Tensor], _: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(parts[0]), parts[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 0.01, weight_decay=0.1)

    def fit(steps: int, path: Path | None = None, batches: int = 1) -> tuple[Module, Any]:
        callback = PrunerCallback(Pruner(0.8, Schedule(0, 6, 2), regrowth=rigl(9, 3)))
        trainer = pl.Trainer(
            max_steps=steps, callbacks=[callback], accumulate_grad_batches=batches,
            accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        module = Module()
        # every batch is the same: on a resume Lightning does not go on where the loader was
        data = torch.utils.data.DataLoader([tuple(t[0] for t in batch(0))] * 20, 2)
        trainer.fit(module, data, ckpt_path=path)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return module, callback

    for batches in (2, 1):
        whole, callback = fit(10, batches=batches)
        assert callback.pruner.steps == 10 and holds(callback.masks, whole)
        assert callback.masks.sparsity() == pytest.approx(0.8, abs=0.004)
    with pytest.warns(UserWarning, match="finalize: step 5 of 6"):
        fit(5)
    resumed, again = fit(10, tmp_path / "5.ckpt")
    assert again.pruner.steps == 10 and holds(again.masks, resumed)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])
