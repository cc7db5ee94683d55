"""Files of masks: whole, small, repeatable, and refused when damaged."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_training import net
from safetensors.numpy import save_file

from sparseprune.masks import Masks
from sparseprune.prune import prune


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=4),
    seed=st.integers(0, 999),
)
def test_save_and_load(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = Masks(
        {f"z{-i}.weight": torch.rand(s, generator=generator) < 0.3 for i, s in enumerate(shapes)}
    )
    path = tmp_path_factory.mktemp("masks") / "masks.safetensors"
    masks.save(path)
    loaded = Masks.load(path)
    assert loaded == masks and list(loaded) == list(masks)
    assert [m.shape for m in loaded.values()] == [m.shape for m in masks.values()]


def test_a_file_is_one_bit_per_weight_and_repeatable(tmp_path: Path) -> None:
    masks = Masks({"w": torch.rand(1000, 80) < 0.5})
    masks.save(str(tmp_path / "a"))
    masks.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert 10_000 < (tmp_path / "a").stat().st_size < 10_300
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "masks.safetensors"
    prune(net(), 0.5).save(path)
    return path


def unreadable(path: Path) -> None:
    with pytest.raises(ValueError, match=rf"Masks\.load: file {str(path)!r} must be whole, by"):
        Masks.load(path)


def test_truncated_anywhere(saved: Path) -> None:
    content = saved.read_bytes()
    for size in [0, 1, 7, 8, 9, 100, *range(len(content) - 20, len(content))]:
        saved.write_bytes(content[:size])
        unreadable(saved)


def test_every_flipped_bit_of_the_masks_is_noticed(saved: Path) -> None:
    content = saved.read_bytes()
    for place in range(len(content) - 17, len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            saved.write_bytes(damaged)
            unreadable(saved)


def test_changed_shape_is_noticed(saved: Path) -> None:
    content = saved.read_bytes()
    assert b"[8, 6]" in content
    saved.write_bytes(content.replace(b"[8, 6]", b"[6, 8]"))
    unreadable(saved)


@pytest.mark.parametrize(
    "content", [b"", b"not a mask file", pickle.dumps({"w": 1}), bytes(4096)], ids=len
)
def test_foreign_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(content)
    unreadable(path)


def test_foreign_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    for metadata in (None, {"format": "pt"}, {"sparseprune.masks.v1": "[]"[:1]}):
        save_file({"w": np.zeros(3, np.uint8)}, path, metadata)
        unreadable(path)


def test_missing_file_stays_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Masks.load(tmp_path / "none")


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_interrupted_save_leaves_the_old_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    before = saved.read_bytes()
    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="disk full"):
        prune(net(), 0.9, scope="local").save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]
