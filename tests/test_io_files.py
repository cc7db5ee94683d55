"""Files that are not what load() should be given, and saves that do not finish."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from io_problems import Residual, image, packed, run, sequential
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sparseprune.files import replacing
from sparseprune.io import load, save
from sparseprune.masks import Masks
from sparseprune.prune import prune


@pytest.fixture
def traced(tmp_path: Path) -> Path:
    save(Residual(), tmp_path / "file")
    return tmp_path / "file"


def test_save_refuses_what_it_cannot_store(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"save: model must be an nn.Module, got dict"):
        save({}, tmp_path / "file")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="save: path must be a file, got the folder"):
        save(sequential(), tmp_path)
    with pytest.raises(FileNotFoundError, match="create it first"):
        save(sequential(), tmp_path / "none" / "file")
    with torch.device("meta"):
        empty = sequential()
    with pytest.raises(ValueError, match=r"tensor '0\.weight' must be one with values"):
        save(empty, tmp_path / "file")
    with pytest.raises(ValueError, match=r"tensor '0\.weight' must be one with values"):
        save(nn.Sequential(nn.LazyLinear(3)), tmp_path / "file")
    sparse = nn.Sequential(nn.Linear(2, 2))
    sparse.register_buffer("odd", torch.eye(3).to_sparse())
    with pytest.raises(ValueError, match=r"tensor 'odd' must be a dense one, got torch.sparse_coo"):
        save(sparse, tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_interrupted_save_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    save(sequential(), path)
    link.symlink_to(path)
    old = path.read_bytes()

    def stop(tensors: Any, filename: Path, metadata: Any) -> None:
        Path(filename).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("safetensors.torch.save_file", stop)
        save(sequential(), path)
    with monkeypatch.context() as patched, pytest.raises(OSError, match="full"):
        patched.setattr("os.fsync", lambda number: (_ for _ in ()).throw(OSError("disk full")))
        save(sequential(), path)
    assert path.read_bytes() == old and sorted(tmp_path.iterdir()) == [path, link]
    save(sequential(), link)
    assert link.is_symlink() and path.read_bytes() != old
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_bytes(bytes([1 // 0]))
    assert sorted(tmp_path.iterdir()) == [path, link]


def test_load_names_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError, match=r"load: no file .*file"):
        load(path)
    with pytest.raises(ValueError, match="got a folder"):
        load(tmp_path)
    torch.save(sequential(), path)
    with pytest.raises(ValueError, match=r"pickle of torch.save"):
        load(path)
    path.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(ValueError, match="pickle"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="safetensors cannot read"):
        load(path)
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"another program, without a manifest.*load_file"):
        load(path)
    Masks({"weight": torch.ones(2, dtype=torch.bool)}).save(path)
    with pytest.raises(ValueError, match=r"got masks; read them with sparseprune.Masks.load"):
        load(path)


def test_every_truncation_and_flipped_byte_is_an_error(tmp_path: Path) -> None:
    path, x = tmp_path / "file", image(2, 6)
    prune(model := sequential(), sparsity=0.5)
    save(packed(model, x), path)
    whole = path.read_bytes()
    step = max(1, len(whole) // 150)
    for end in (*range(64), *range(64, len(whole), step), len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="load: file"):
            load(path)
    chance = random.Random(0)
    for place in (*range(40), *(chance.randrange(len(whole)) for _ in range(400))):
        damaged = bytearray(whole)
        damaged[place] ^= chance.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            loaded = load(path)
        except ValueError as error:
            assert str(error).startswith("load: file")
        else:  # a byte of padding
            path.write_bytes(whole)
            assert torch.equal(run(loaded, x), run(load(path), x))


def test_versions(traced: Path) -> None:
    with safe_open(traced, "pt") as file:
        metadata, tensors = file.metadata(), {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    save_file(tensors, traced, {**metadata, "sparseprune.model": "2"})
    with pytest.raises(ValueError, match="format version '2', not 1; upgrade sparseprune"):
        load(traced)
    save_file(tensors, traced, {**metadata, "sparseprune.model": "one"})
    with pytest.raises(ValueError, match="format version 'one'"):
        load(traced)
    assert json.loads(metadata["manifest"])["torch"] == torch.__version__
    assert json.loads(metadata["manifest"])["sparsity"]["fc"] == 0
