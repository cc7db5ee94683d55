"""The images of the pruning experiments: MNIST and CIFAR-10 from files, and what is refused."""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
sys.path.insert(0, str(Path(__file__).parent.parent))  # benchmarks is not installed

from benchmarks.pruning import images


def _idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}i", 0, 8, array.ndim, *array.shape) + array.tobytes()


def _write_mnist(folder: Path, zipped: bool) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    pixels = random.integers(0, 256, (12, 28, 28), dtype=np.uint8)
    labels = random.integers(0, 10, 12, dtype=np.uint8)
    for stem, array in (("images-idx3", pixels), ("labels-idx1", labels)):
        for part, rows in (("train", slice(0, 8)), ("t10k", slice(8, 12))):
            raw = _idx(array[rows])
            path = folder / f"{part}-{stem}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(raw) if zipped else raw)
    return pixels, labels


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_is_read_from_idx_files(tmp_path: Path, zipped: bool) -> None:
    pixels, labels = _write_mnist(tmp_path / "MNIST" / "raw", zipped)
    found = images.load(str(tmp_path))
    assert found.name == "MNIST" and found.shape == (1, 28)
    assert found.y_train.tolist() == labels[:8].tolist()
    assert found.y_test.tolist() == labels[8:].tolist()
    expected = (pixels.astype(float) - pixels[:8].mean()) / pixels[:8].std()
    joined = torch.cat([found.x_train, found.x_test])[:, 0].double().numpy()
    np.testing.assert_allclose(joined, expected, atol=1e-5)


def _write_cifar(folder: Path) -> np.ndarray:
    records = np.random.default_rng(0).integers(0, 256, (12, 3073), dtype=np.uint8)
    records[:, 0] %= 10
    for i, name in enumerate(images.CIFAR):
        (folder / name).write_bytes(records[2 * i : 2 * i + 2].tobytes())
    return records


def test_cifar_is_read_from_binary_batches(tmp_path: Path) -> None:
    records = _write_cifar(tmp_path)
    found = images.load(str(tmp_path))
    assert found.name == "CIFAR-10" and found.shape == (3, 32) and len(found.x_train) == 10
    assert found.y_train.tolist() == records[:10, 0].tolist()
    red = records[3, 1 : 1 + 1024].reshape(32, 32).astype(float)
    train = records[:10, 1:].astype(float)
    expected = (red - train.mean()) / train.std()
    np.testing.assert_allclose(found.x_train[3, 0].double().numpy(), expected, atol=1e-5)


def _break(folder: Path, how: str) -> None:
    if how == "empty":
        return
    if how == "pickles":
        (folder / "data_batch_1").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
        return
    if how == "short batch":
        _write_cifar(folder)
        (folder / "data_batch_2.bin").write_bytes(b"\0" * 3000)
        return
    _write_mnist(folder / "raw", zipped=False)
    labels, pixels = (folder / "raw" / f"train-{s}-ubyte" for s in ("labels-idx1", "images-idx3"))
    if how == "no labels":
        labels.unlink()
    elif how == "not idx":
        pixels.write_bytes(b"PNG")
    elif how == "cut off":
        pixels.write_bytes(pixels.read_bytes()[:-1])
    elif how == "cut header":
        pixels.write_bytes(pixels.read_bytes()[:9])
    elif how == "swapped":
        labels.write_bytes(pixels.read_bytes())
    elif how == "too few labels":
        labels.write_bytes(_idx(np.zeros(3, np.uint8)))
    elif how == "label 10":
        labels.write_bytes(_idx(np.full(8, 10, np.uint8)))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("empty", "four IDX files of MNIST"),
        ("pickles", "cifar-10-binary.tar.gz"),
        ("short batch", "multiple of 3,073 bytes"),
        ("no labels", "train-labels"),
        ("not idx", "an IDX file of bytes"),
        ("cut off", "bytes, got"),
        ("cut header", "bytes, got"),
        ("swapped", "an array of 1 dimensions"),
        ("too few labels", "8 labels from 0 to 9"),
        ("label 10", "8 labels from 0 to 9"),
    ],
)
def test_folders_that_do_not_fit_are_refused(tmp_path: Path, how: str, said: str) -> None:
    _break(tmp_path, how)
    with pytest.raises(ValueError, match="images: ") as error:
        images.load(str(tmp_path))
    assert said in str(error.value)
