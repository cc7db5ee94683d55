"""Packing loses nothing, lies as documented, and refuses with a reason."""

from __future__ import annotations

import pytest
import torch
from problems import (
    LINEAR,
    TESTED,
    LinearProblem,
    fitting,
    sparse_weight,
    stored,
)
from torch import Tensor

from sparseprune.formats import (
    WEIGHTS,
    Bitmask,
    Csr,
    Format,
    Sell,
)

EXACT = ("csr", "bitmask", "sell")
"""Formats that store no zero."""

every_format = pytest.mark.parametrize("fmt", TESTED, ids=lambda f: f.name)


@pytest.mark.parametrize("problem", LINEAR, ids=str)
@every_format
def test_pack_unpack_is_identity(fmt: Format, problem: LinearProblem) -> None:
    _, weight, _ = problem.tensors()
    weight = fitting(fmt, weight)
    packed = fmt.pack(weight)
    assert torch.equal(packed.unpack(), weight)
    assert packed.nonzeros >= int(stored(packed).sum()) >= int(weight.count_nonzero())
    if fmt.stem in EXACT:
        assert packed.nonzeros == int(weight.count_nonzero())
    assert packed.shape == weight.shape
    assert packed.nbytes == sum(b.nbytes for b in packed.buffers())
    assert fmt.name in packed.name in repr(packed)


@every_format
def test_pack_keeps_every_nonzero(fmt: Format) -> None:
    odd = [0.0, -0.0, 1e-45, -1e-40, 3e38, 0.0, torch.inf, -0.0, -torch.inf, torch.nan]
    weight = torch.tensor([odd])
    packed = fmt.pack(weight)
    assert packed.nonzeros == 6 or fmt.stem not in EXACT
    torch.testing.assert_close(packed.unpack(), weight, rtol=0, atol=0, equal_nan=True)


@every_format
def test_pack_of_a_view_owns_its_memory(fmt: Format) -> None:
    weight = fitting(fmt, torch.randn(30, 12)).t().contiguous()
    packed = fmt.pack(weight.t())
    expected = weight.t().clone()
    weight.zero_()
    assert torch.equal(packed.unpack(), expected)


@every_format
def test_spec_and_buffers_rebuild_the_weight(fmt: Format) -> None:
    weight = fitting(fmt, sparse_weight((9, 40), 0.3, torch.Generator().manual_seed(1)))
    packed = fmt.pack(weight)
    again = WEIGHTS[packed.stem](**packed.spec(), **dict(packed.named_buffers())).use()
    assert torch.equal(again.unpack(), weight)
    x = torch.randn(3, 40)
    assert torch.equal(again.linear(x, None), packed.linear(x, None))


def test_rows_layout_is_as_documented() -> None:
    packed = Csr("rows").pack(torch.tensor([[1.0, 0, 2, 0], [0, 0, 0, 3]]))
    assert [b.tolist() for b in packed.buffers()] == [[1, 2, 3], [0, 2, 3], [], [0, 2, 3]]


def test_groups_layout_is_as_documented() -> None:
    weight = torch.tensor([[1.0, 0, 5, 0], [0, 2, 0, 0], [0, 3, 6, 4], [0.0] * 4])
    packed = Csr("groups").pack(weight)
    values, columns, counts, starts = (b.tolist() for b in packed.buffers())
    # pattern 1: column 0; pattern 4: column 3; pattern 5: column 2; pattern 6: column 1
    assert columns == [0, 3, 2, 1]
    assert values == [1, 4, 5, 6, 2, 3]
    assert torch.tensor(counts).flatten().tolist() == [1, 0, 0, 1, 1, 1, *[0] * 9]
    assert starts == [[0, 0], [6, 4]]


def test_groups_of_whole_segments_have_rows_that_share_columns() -> None:
    weight = torch.zeros(128, 32)
    of = torch.arange(128) * 7 % 16  # four rows of every segment share their two columns
    weight[torch.arange(128), 2 * of] = weight[torch.arange(128), 2 * of + 1] = 1.0
    packed = Csr("groups", 32).pack(weight)
    numbers, counts = packed.counts[0, :, :4].long(), packed.counts[0, :, 4:]
    assert numbers.view(2, 64).sort(-1).values.tolist() == [list(range(64))] * 2
    rows = numbers + torch.arange(32)[:, None] // 16 * 64
    assert (of[rows] == of[rows[:, :1]]).all()
    assert counts.tolist() == [[*[0] * 14, 2]] * 32


def test_groups_of_whole_segments_load_fewer_columns() -> None:
    weight = sparse_weight((128, 256), 0.3, torch.Generator().manual_seed(3))
    numbered, in_order = (Csr("groups").pack(weight, groups) for groups in (2, 4))
    assert (numbered.counts.shape[-1], in_order.counts.shape[-1]) == (19, 15)
    assert numbered.columns.numel() < 0.95 * in_order.columns.numel()
    for packed in (numbered, in_order):
        assert torch.equal(packed.unpack(), weight)


def test_bitmask_layout_is_as_documented() -> None:
    packed = Bitmask().pack(torch.tensor([[1.0, 0, 5], [0, 3, 0], [2, 4, 0]]))
    values, masks, starts = (b.tolist() for b in packed.buffers())
    assert values == [1, 2, 3, 4, 5]
    assert masks == [[[0b101, *[0] * 7], [0b110, *[0] * 7], [0b001, *[0] * 7]]]
    assert starts == [0, 5]


def test_bitmask_units_follow_each_other() -> None:
    weight = torch.zeros(130, 2)
    weight[0, 1], weight[63, 0], weight[64, 1], weight[129, 0] = 1.0, 2.0, 3.0, 4.0
    packed = Bitmask().pack(weight)
    values, masks, starts = packed.buffers()
    assert (values.tolist(), starts.tolist()) == ([2, 1, 3, 4], [0, 2, 3, 4])
    assert masks.shape == (3, 2, 8)
    assert masks.nonzero().tolist() == [[0, 0, 7], [0, 1, 0], [1, 1, 0], [2, 0, 0]]
    assert masks[masks != 0].tolist() == [128, 1, 1, 2]


def test_bitmask_serves_no_convolution() -> None:
    packed = Bitmask().pack(torch.eye(4))
    with pytest.raises(ValueError, match="conv2d: weight must be of a format that serves Conv2d"):
        packed.conv2d(torch.ones(1, 4, 2, 2), None, (1, 1), (1, 1), (0, 0), (1, 1), 1)


def test_sorted_layout_is_as_documented() -> None:
    packed = Csr("sorted").pack(torch.tensor([[1.0, 0, 2, 3], [4, 5, 0, 0]]))
    values, columns, counts, starts = (b.tolist() for b in packed.buffers())
    # Row 1 has fewer columns for itself and comes first; both have column 0.
    assert (values, columns) == ([4, 1, 5, 2, 3], [0, 1, 2, 3])
    assert counts == [[[1, 0, 1, 1, 2]]]
    assert starts == [[0, 0], [5, 4]]


def test_sorted_layout_pairs_rows_that_share_columns() -> None:
    weight = torch.zeros(5, 6)
    weight[0, :3], weight[1, 3:], weight[2, 4] = 1.0, 2.0, 5.0
    weight[3, :3], weight[4, 3:] = 3.0, 4.0
    packed = Csr("sorted").pack(weight)
    values, columns, counts, starts = (b.tolist() for b in packed.buffers())
    # Rows 0 and 3, 1 and 4 have all columns in common; row 2 is left alone, and comes last.
    assert counts == [[[3, 0, 3, 0, 0], [4, 1, 3, 0, 0], [2, 2, 0, 0, 1]]]
    assert values == [3, 1, 3, 1, 3, 1, 4, 2, 4, 2, 4, 2, 5]
    assert columns == [0, 1, 2, 3, 4, 5, 4]
    assert starts == [[0, 0], [13, 7]]


def test_sorted_layout_pairs_within_segments_and_blocks() -> None:
    g = torch.Generator().manual_seed(3)
    weight = sparse_weight((300, 200), 0.3, g)
    packed = Csr("sorted", 64).pack(weight)
    counts = packed.counts.long()
    assert counts.shape == (4, 150, 5)
    for block, pairs in enumerate(counts):
        for number, (one, two, shared, less, more) in enumerate(pairs.tolist()):
            segment = number // 64
            columns = slice(64 * block, 64 * block + 64)
            a, b = (weight[128 * segment + row, columns] != 0 for row in (one, two))
            both = int((a & b).sum())
            assert both - 4 < shared <= both and (shared == both or less % 4 == 0)
            assert less <= more
            assert (shared + less, shared + more) == (int(a.sum()), int(b.sum()))
    order = [tuple(pair[2:]) for pair in counts[0, :64].tolist()]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("fmt", "weight", "groups", "reason"),
    [
        (Csr("rows"), torch.zeros(4, 4, dtype=torch.float64), 1, "weight is float64"),
        (Csr("groups"), torch.zeros(4, 4, dtype=torch.bfloat16), 1, "weight is bfloat16"),
        (Csr("rows"), torch.empty(1, 1 << 16 | 1, device="meta"), 1, "65537"),
        (Csr("groups"), torch.empty(1 << 16, 1 << 15, device="meta"), 1, "32 bits"),
        (Csr("groups"), torch.zeros(6, 4), 2, "divisible by 4, got 3"),
        (Bitmask(), torch.zeros(4, 4, 1), 1, "3 dimensions"),
        (Bitmask(), torch.zeros(4, 4, dtype=torch.float64), 1, "weight is float64"),
        (Bitmask(), torch.empty(1 << 16, 1 << 15, device="meta"), 1, "32 bits"),
        (Bitmask(), torch.zeros(6, 4), 2, "not the groups of a convolution"),
        (Sell(), torch.zeros(4, 4, 1), 1, "3 dimensions"),
        (Sell(), torch.zeros(4, 4, dtype=torch.float64), 1, "weight is float64"),
        (Sell(), torch.empty(1, (1 << 20) + 1, device="meta"), 1, "columns up to 1048576"),
        (Sell(), torch.empty(1 << 16, 1 << 15, device="meta"), 1, "steps in 32 bits"),
        (Sell(), torch.zeros(6, 4), 2, "not the groups of a convolution"),
    ],
)
def test_refuses_with_reason(fmt: Format, weight: Tensor, groups: int, reason: str) -> None:
    assert reason in (fmt.refuses(weight, groups) or "")
    with pytest.raises(ValueError, match=reason):
        fmt.pack(weight, groups)


def test_unknown_layout() -> None:
    with pytest.raises(ValueError, match=r"Csr: layout must be .*, got 'row'; did you mean 'rows'"):
        Csr("row")
