"""Images to learn from: digits that come with scikit-learn, or MNIST or CIFAR-10 in a folder."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparseprune.data import digits
from sparseprune.errors import bad

Bytes = NDArray[np.uint8]

MNIST = ("train-images", "train-labels", "t10k-images", "t10k-labels")
CIFAR = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
CIFAR_RECORD = 1 + 3 * 32 * 32
"""Bytes of one CIFAR-10 image: label, then red, green and blue planes."""


@dataclass(frozen=True)
class Images:
    """x [N, channels, side, side] float32, standardised on the training part; y [N] int64."""

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Channels, and pixels of a side."""
        return self.x_train.shape[1], self.x_train.shape[2]

    def to(self, device: str) -> Images:
        """The same images on `device`."""
        names = ("x_train", "y_train", "x_test", "y_test")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def describe(self) -> str:
        """Name, sizes and counts, in words."""
        channels, side = self.shape
        colour = " in colour" if channels == 3 else ""
        counts = f"{len(self.x_train):,} training and {len(self.x_test):,} test images"
        return f"{self.name}, {counts} of {side}x{side} pixels{colour}"


def load(source: str) -> Images:
    """`digits`, or what a folder holds: MNIST as IDX files (.gz too) or CIFAR-10's binary batches.

    Files may lie in folders below, as their archives and torchvision leave them. Raises ValueError
    for a folder with neither, with both in part, or with files of another size.
    """
    if source == "digits":
        return Images("digits", *digits())
    folder = Path(source)
    if not folder.is_dir():
        raise bad("images", "--data", "'digits' or a folder", repr(source), "check the path")
    if any(folder.rglob("train-images*")):
        return _mnist(folder)
    if any(folder.rglob("data_batch_1.bin")):
        return _cifar(folder)
    way_out = "put the four IDX files of MNIST there, or the .bin files of CIFAR-10"
    if any(folder.rglob("data_batch_1")):
        way_out = (
            "its data_batch_1 is a pickle, which could run any code when read: "
            "take cifar-10-binary.tar.gz, whose files end in .bin"
        )
    raise bad("images", "--data", "a folder of MNIST or CIFAR-10", repr(source), way_out)


def _mnist(folder: Path) -> Images:
    arrays = [_idx(_only(folder, f"{stem}[-.]idx*")) for stem in MNIST]
    for stem, array, dimensions in zip(MNIST, arrays, (3, 1, 3, 1), strict=True):
        if array.ndim != dimensions:
            expected = f"an array of {dimensions} dimensions"
            raise bad("images", stem, expected, array.shape, "take the original files")
    x_train, y_train, x_test, y_test = arrays
    return _standardised("MNIST", x_train[:, None], y_train, x_test[:, None], y_test)


def _idx(path: Path) -> Bytes:
    """An IDX file: 0, 0, type, dimensions, then each length as a big-endian int32, then bytes."""
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    way_out = "take the original file, as it is or as .gz"
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise bad("images", path.name, "an IDX file of bytes", f"{raw[:4]!r} ...", way_out)
    lengths = np.frombuffer(raw, ">i4", count=min(raw[3], (len(raw) - 4) // 4), offset=4)
    start, total = 4 + 4 * raw[3], int(np.prod(lengths, dtype=np.int64))
    if len(raw) != start + total:
        raise bad("images", path.name, f"{start + total:,} bytes", f"{len(raw):,}", way_out)
    return np.frombuffer(raw, np.uint8, offset=start).reshape(lengths)


def _cifar(folder: Path) -> Images:
    batches = []
    for name in CIFAR:
        raw = np.frombuffer(_only(folder, name).read_bytes(), np.uint8)
        if not raw.size or raw.size % CIFAR_RECORD:
            expected = f"a multiple of {CIFAR_RECORD:,} bytes"
            way_out = "take the files of cifar-10-binary.tar.gz"
            raise bad("images", name, expected, f"{raw.size:,}", way_out)
        batches.append(raw.reshape(-1, CIFAR_RECORD))
    train, test = np.concatenate(batches[:-1]), batches[-1]
    x_train, x_test = (part[:, 1:].reshape(-1, 3, 32, 32) for part in (train, test))
    return _standardised("CIFAR-10", x_train, train[:, 0], x_test, test[:, 0])


def _only(folder: Path, pattern: str) -> Path:
    """The first file of that name in the folder or below."""
    found = sorted(folder.rglob(pattern))
    if not found:
        raise bad("images", "--data", f"a folder with {pattern}", repr(str(folder)), "add it")
    return found[0]


def _standardised(name: str, x: Bytes, y: Bytes, x_test: Bytes, y_test: Bytes) -> Images:
    """One mean and one deviation of all training pixels, as for the digits."""
    for images, labels in ((x, y), (x_test, y_test)):
        if len(images) != len(labels) or labels.max(initial=0) > 9:
            expected = f"{len(images):,} labels from 0 to 9"
            raise bad("images", name, expected, f"{len(labels):,}", "take the original files")
    mean, deviation = float(x.mean()), float(x.std())
    parts = []
    for images, labels in ((x, y), (x_test, y_test)):
        pixels = torch.from_numpy((images.astype(np.float32) - mean) / deviation)
        parts += [pixels, torch.from_numpy(labels.astype(np.int64))]
    return Images(name, *parts)
