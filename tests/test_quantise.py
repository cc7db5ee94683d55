"""quantise: the nearest grid point, zeros exact, errors before anything changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseprune import Masks, prune
from sparseprune.quantise import quantise_, quantised

SHAPES = [(7, 5), (4, 3, 3, 3), (6,), (1, 1), (0, 4), (3, 0)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("per_output", [True, False])
def test_the_nearest_point_of_a_grid_with_zero(
    shape: tuple[int, ...], bits: int, symmetric: bool, per_output: bool
) -> None:
    torch.manual_seed(0)
    w = torch.randn(shape, dtype=torch.float64).float()
    w[torch.rand(shape) < 0.5] = 0
    q = quantised(w, bits, symmetric, per_output)
    low, high = (-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    back = q.dequantised()
    assert ((q.values >= low) & (q.values <= high)).all()
    assert not back[w == 0].any()
    slack = 0.5 if symmetric else 1.0  # the zero point is rounded as well
    assert (((w - back).abs() / q.scale) <= slack + 1e-4).all()
    grids = q.scale.numel()
    assert grids == (shape[0] if per_output and len(shape) > 1 else 1)


def test_by_hand() -> None:
    w = torch.tensor([[0.0, 1.27, -0.5, 0.004], [0.0, 0.0, 0.0, 0.0]])
    q = quantised(w)
    assert q.values.tolist() == [[0, 127, -50, 0], [0, 0, 0, 0]]
    assert q.scale.flatten().tolist() == pytest.approx([0.01, 1.0])
    lopsided = quantised(torch.tensor([[-1.0, 0.0, 2.0]]), bits=2, symmetric=False)
    assert lopsided.values.tolist() == [[0, 1, 3]]
    assert lopsided.zero_point.item() == 1
    assert lopsided.dequantised().tolist() == [[-1.0, 0.0, 2.0]]


def test_it_agrees_with_torch() -> None:
    w = torch.randn(6, 10)
    q = quantised(w)
    scale, zero = q.scale.flatten(), torch.zeros(6, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(w, scale, zero, 0, -127, 127)
    torch.testing.assert_close(q.dequantised(), expected)


def test_a_model_keeps_its_masks_and_its_dtype() -> None:
    shared = nn.Linear(8, 8)
    model = nn.Sequential(nn.Conv1d(8, 8, 3), shared, nn.ReLU(), shared).to(torch.bfloat16)
    masks = prune(model, 0.6)
    found = quantise_(model, bits=4)
    assert set(found) == {"0.weight", "1.weight"}
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    after = Masks.from_model(model)
    assert not any((after[name] & ~masks[name]).any() for name in masks)
    assert torch.equal(model[0].weight, found["0.weight"].dequantised().bfloat16())
    kept = quantise_(nn.Sequential(nn.Linear(3, 3)), ignore="0")
    assert kept == {}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(2, 2), 9), ValueError, "bits must be 2 to 8, got 9"),
        ((torch.ones(2, 2), 1), ValueError, "bits must be a whole number of at least 2"),
        ((torch.ones(2, 2).int(),), TypeError, "weight must be a floating point tensor"),
        ((torch.tensor([1.0, float("nan")]),), ValueError, "weight must be finite"),
    ],
)
def test_bad_arguments(arguments: tuple[object, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        quantised(*arguments)  # type: ignore[arg-type]


def test_nothing_changes_on_an_error() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with torch.no_grad():
        model[1].weight[0, 0] = float("inf")
    before = model[0].weight.clone()
    with pytest.raises(ValueError, match="finite"):
        quantise_(model)
    assert torch.equal(model[0].weight, before)
