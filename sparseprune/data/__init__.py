"""Data that comes with an installed package, so that nothing has to be downloaded."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Digits", "digits"]


class Digits(NamedTuple):
    """Images [N, 1, 8, 8] float32, standardised on the training part, and labels [N] int64."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


def digits(seed: int = 0, test_share: float = 0.3) -> Digits:
    """scikit-learn's 1,797 handwritten digits, split with equal shares of every class.

    `seed` fixes the split. Standardisation is one mean and one deviation for all pixels: a
    deviation per pixel would blow up the border, which is nearly always blank.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            "digits: the images come with scikit-learn; pip install 'sparseprune[demo]'"
        ) from error
    bunch = load_digits()
    parts = train_test_split(
        bunch.images, bunch.target, test_size=test_share, random_state=seed, stratify=bunch.target
    )
    x_train, x_test = (
        torch.as_tensor(part, dtype=torch.float32).unsqueeze(1) for part in parts[:2]
    )
    y_train, y_test = (torch.as_tensor(part, dtype=torch.int64) for part in parts[2:])
    mean, deviation = x_train.mean(), x_train.std()
    return Digits((x_train - mean) / deviation, y_train, (x_test - mean) / deviation, y_test)
