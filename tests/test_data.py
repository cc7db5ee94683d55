"""The digits are complete, standardised and split the same way each time."""

from __future__ import annotations

import pytest
import torch

from sparseprune.data import digits

pytest.importorskip("sklearn")


def test_shapes_and_scale() -> None:
    x_train, y_train, x_test, y_test = digits()
    assert x_train.shape == (1257, 1, 8, 8) and x_test.shape == (540, 1, 8, 8)
    assert y_train.shape == (1257,) and y_test.shape == (540,)
    assert x_train.dtype == torch.float32 and y_train.dtype == torch.int64
    assert abs(float(x_train.mean())) < 1e-5 and abs(float(x_train.std()) - 1) < 1e-5


def test_the_split_is_fixed_by_its_seed() -> None:
    assert all(torch.equal(a, b) for a, b in zip(digits(0), digits(0), strict=True))
    assert not torch.equal(digits(0).x_test, digits(1).x_test)


def test_every_class_has_its_share() -> None:
    data = digits()
    share = data.y_test.bincount() / (data.y_test.bincount() + data.y_train.bincount())
    assert share.shape == (10,)
    assert float((share - 0.3).abs().max()) < 0.01
