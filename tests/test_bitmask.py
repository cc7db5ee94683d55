"""Packed bitmask weights: what their check finds, and when convert takes the format."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from problems import TOLERANCE, dense_linear, sparse_weight
from scripted_times import script_times
from torch import nn

from sparseprune import backends, convert, info, profile
from sparseprune.formats import Bitmask, bitmask_check
from sparseprune.formats.bitmask import MAX_TOKENS as MOST
from sparseprune.formats.bitmask import MAX_TOKENS_HALF as MOST_HALF
from sparseprune.nn import SparseConv2d, SparseLinear

MAX_TOKENS = MOST["cpu"]


def test_random_weights_pass_the_check_or_are_refused() -> None:
    chance = torch.Generator().manual_seed(0)
    for rows, cols in [(0, 5), (5, 0), (1, 1), (3, 17), (64, 9), (130, 250)]:
        dense = torch.randn(rows, cols, generator=chance)
        weight = Bitmask().pack(dense * (torch.rand(rows, cols, generator=chance) < 0.3))
        bitmask_check.check(weight)
        for buffer in ("masks", "starts"):
            for _ in range(20):
                changed = copy.deepcopy(weight)
                flat = getattr(changed, buffer).view(-1)
                if not len(flat):
                    continue
                place = int(torch.randint(len(flat), (), generator=chance))
                value = int(torch.randint(256, (), generator=chance))
                if int(flat[place]) == value:
                    continue
                flat[place] = value
                try:
                    bitmask_check.check(changed)
                except ValueError:
                    continue
                x = torch.randn(2, cols, generator=chance)  # as many bits, elsewhere: harmless
                y = changed.linear(x, None).double()
                torch.testing.assert_close(y, dense_linear(x, changed.unpack(), None), **TOLERANCE)


def test_values_past_the_last_row_are_refused() -> None:
    weight = Bitmask().pack(torch.eye(70))
    weight.masks[1, 69] = weight.masks[1, 69].roll(1)  # row 69 becomes 77
    with pytest.raises(ValueError, match=r"bitmask_check: .* rows past 70"):
        bitmask_check.check(weight)
    with pytest.raises(ValueError, match="a convolution of 1 groups"):
        bitmask_check.check_groups(weight, 1)


# --- what convert, info, profile and backends make of it


def converted(tokens: int, layer: nn.Module | None = None, **options: Any) -> nn.Module:
    """A layer of 20 x 12, 80 % sparse, as convert returns it."""
    dense = layer or nn.Linear(20, 12)
    dense.weight.data = sparse_weight(  # type: ignore[union-attr]
        tuple(dense.weight.shape),
        0.2,
        torch.Generator().manual_seed(1),  # type: ignore[union-attr, arg-type]
    )
    x = torch.randn(tokens, 20) if layer is None else torch.randn(1, 4, 6, 6)
    return convert(nn.Sequential(dense), x, **options)


def test_convert_times_it_for_few_rows_of_input_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def ms(name: str) -> float:
        seen.append(name)
        return 0.1 if name in ("bitmask", "layers", "programs") else 1.0

    script_times(monkeypatch, ms)
    fast = converted(MAX_TOKENS)
    assert fast.report.rows[0].kernel.startswith("bitmask")
    assert isinstance(fast[0], SparseLinear) and fast[0].weight.name == "bitmask"
    seen.clear()
    converted(MAX_TOKENS + 1)
    assert "bitmask" not in seen and "csr/rows" in seen


@pytest.mark.usefixtures("sparse_wins")
def test_convert_takes_it_by_name_for_any_number_of_rows() -> None:
    fast = converted(100, format="bitmask")
    assert fast[0].weight.name == "bitmask"
    counted = profile(fast, torch.randn(100, 20)).rows[0]
    assert (counted.runs, counted.executed_macs) == ("bitmask", 100 * fast[0].weight.nonzeros)


@pytest.mark.usefixtures("sparse_wins")
def test_convert_keeps_convolutions_from_it() -> None:
    fast = converted(1, nn.Conv2d(4, 8, 3))
    assert isinstance(fast[0], SparseConv2d) and fast[0].weight.stem == "csr"
    alone = converted(1, nn.Conv2d(4, 8, 3), format="bitmask", keep_dense="never")
    assert type(alone[0]) is nn.Conv2d
    assert alone.report.rows[0].reason == "bitmask serves Linear alone"


def test_without_kernels_for_a_device_the_reference_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = torch.device("cuda")
    here = tuple(replace(b, missing=None) if b.name == "cuda" else b for b in backends.BACKENDS)
    monkeypatch.setattr(backends, "BACKENDS", here)
    monkeypatch.setattr(backends, "_told", False)
    with pytest.warns(UserWarning, match="reference on cuda.*cuda: has no bitmask kernels"):
        chosen = backends.choose(cuda, "auto", "bitmask")
    assert chosen is backends.REFERENCE
    with pytest.raises(ValueError, match="got 'cuda'; has no bitmask kernels"):
        backends.choose(cuda, "cuda", "bitmask")
    assert not backends.serves("cuda", cuda, "bitmask")
    rows = {r.backend: r for r in info().rows if r.format == "bitmask"}
    assert not rows["cuda"].available and rows["cuda"].reason == "has no bitmask kernels"
    assert not Bitmask().worth(torch.empty(4, 4, device="meta"), 1)


@pytest.mark.parametrize(
    ("dtype", "most"),
    [(torch.float32, MOST["cuda"]), (torch.float16, 128), (torch.bfloat16, MOST_HALF["cuda"])],
    ids=str,
)
def test_it_is_meant_for_more_rows_on_cuda_and_there_for_half(
    dtype: torch.dtype, most: int
) -> None:
    class Elsewhere:
        device = torch.device("cuda")

    weight: Any = Elsewhere()
    weight.dtype = dtype
    assert Bitmask().worth(weight, most) and not Bitmask().worth(weight, most + 1)
    assert not Bitmask().worth(torch.zeros(4, 4).half(), 1), "widened for every call"
    assert Bitmask().worth(torch.zeros(4, 4), MAX_TOKENS)
