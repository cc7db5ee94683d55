"""The callback in a real transformers.Trainer; skipped where that, or accelerate, is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from masked_training import holds

from sparseprune import Masks, prune
from sparseprune.pruning import Pruner
from sparseprune.schedules import Schedule, rigl

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from sparseprune.pruning.hugging_face import FILE, PrunerCallback  # noqa: E402


def model() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=8, num_labels=2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


DATA = [{"input_ids": [i % 16] * 4, "labels": i % 2} for i in range(64)]


def trainer(folder: Path, pruner: Pruner, **more: Any) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, report_to=[], use_cpu=True,
        disable_tqdm=True, seed=1, logging_strategy="no",
        **{"max_steps": 8, "save_strategy": "no", **more},
    )  # fmt: skip
    return transformers.Trainer(
        model(), arguments, train_dataset=DATA, callbacks=[PrunerCallback(pruner)]
    )


def pruner(**more: Any) -> Pruner:
    return Pruner(0.8, **{"schedule": Schedule(0, 6, 2), "ignore": "classifier", **more})


def test_it_prunes_while_the_trainer_trains(tmp_path: Path) -> None:
    """Steps are those of the optimizer, not of the two batches that each accumulates."""
    mine = pruner()
    run = trainer(tmp_path, mine, gradient_accumulation_steps=2, weight_decay=0.1)
    run.train()
    assert mine.steps == 8 and mine.masks.sparsity() == pytest.approx(0.8, abs=1e-3)
    assert holds(mine.masks, run.model)
    assert Masks.from_model(run.model, ignore="classifier") == mine.masks


def test_gradients_are_there_for_regrowth(tmp_path: Path) -> None:
    mine = pruner(schedule=Schedule(), regrowth=rigl(end=7, frequency=2))
    run = trainer(tmp_path, mine)
    run.train()
    assert holds(mine.masks, run.model)
    assert mine.masks != prune(model(), 0.8, ignore="classifier")  # weights have moved


def test_resume_from_a_checkpoint_is_bit_equal(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", pruner(), save_strategy="steps", save_steps=3)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    assert (checkpoint / FILE).exists()
    mine = pruner()
    again = trainer(tmp_path / "whole", mine)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert mine.steps == 8
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


def test_a_checkpoint_without_masks_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, pruner(), save_strategy="steps", save_steps=3).train()
    (tmp_path / "checkpoint-3" / FILE).unlink()
    with pytest.raises(ValueError, match="PrunerCallback: the checkpoint must be one with masks"):
        trainer(tmp_path, pruner()).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
