"""Packed weights in files made to harm: no kernel leaves its memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from io_problems import refused
from torch import Tensor, nn

from sparseprune.formats import Bitmask, Csr, Format, Sell, SellWeight, csr_check
from sparseprune.io import load, save
from sparseprune.nn import SparseConv2d, SparseLinear


def weight_file(path: Path, fmt: Format) -> Tensor:
    """A sparse layer of 135 x 300 in a file, and its dense weight."""
    torch.manual_seed(0)
    linear = nn.Linear(300, 135)
    with torch.no_grad():
        linear.weight *= torch.rand(135, 300) < 0.2
    save(nn.Sequential(SparseLinear.from_dense(linear, fmt)), path)
    return linear.weight.detach()


def poke(name: str, index: Any, value: int) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def change(_: object, tensors: dict[str, Tensor]) -> None:
        tensor = tensors[f"0.weight.{name}"]
        signed = tensor.to(torch.int64)
        signed[index] = value
        tensors[f"0.weight.{name}"] = signed.to(tensor.dtype)

    return change


def spec_of(**sizes: Any) -> Callable[[dict[str, Any], object], object]:
    return lambda m, _: m["modules"]["0.weight"]["arguments"].update(sizes)


def cast(name: str, dtype: torch.dtype) -> Callable[[object, dict[str, Tensor]], object]:
    full = f"0.weight.{name}"
    return lambda _, tensors: tensors.update({full: tensors[full].to(dtype)})


def cut(name: str) -> Callable[[object, dict[str, Tensor]], object]:
    full = f"0.weight.{name}"
    return lambda _, tensors: tensors.update({full: tensors[full][:-1].clone()})


@pytest.mark.parametrize("layout", ["rows", "groups", "sorted"])
def test_corrupt_packed_weights_never_reach_a_kernel(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    dense = weight_file(path, Csr(layout))
    loaded: Any = load(path)
    assert torch.equal(loaded[0].weight.unpack(), dense)
    changes = [
        poke("columns", -1, 60_000 if layout == "rows" else 250),
        poke("columns", 0, 300 if layout == "rows" else 200),
        poke("starts", -1, 2**30),
        poke("starts", 0, -5),
        poke("starts", 3, 2**30),
        poke("starts", 3, -7),
        *(cut(name) for name in ("values", "columns", "starts")),
        *(cast(name, torch.float64) for name in ("values", "columns", "starts")),
        cast("columns", torch.int16),
        spec_of(rows=136),
        spec_of(rows=10**6),
        spec_of(rows=-1),
        spec_of(rows=True),
        spec_of(rows="135"),
        spec_of(cols=2),
        spec_of(cols=2**40),
        spec_of(block=0 if layout != "rows" else 16),
        spec_of(block=255),
        spec_of(block=1),
        spec_of(layout="rows" if layout != "rows" else "groups"),
        spec_of(layout="sorted" if layout != "sorted" else "groups"),
        spec_of(layout="other"),
        spec_of(layout=None),
        spec_of(values=1),
    ]
    if layout != "rows":
        changes += [poke("counts", (0, 0, 0), 255), poke("counts", (-1, -1, 1), 9), cut("counts")]
    for change in changes:
        refused(path, change, "load: file")


def test_corrupt_bitmask_never_reaches_a_kernel(tmp_path: Path) -> None:
    path = tmp_path / "file"
    dense = weight_file(path, Bitmask())
    loaded: Any = load(path)
    assert torch.equal(loaded[0].weight.unpack(), dense)
    for change in (
        poke("masks", (0, 0), 255),
        poke("masks", (-1, -1, 0), 0xFF),
        poke("masks", (-1, 0, 7), 1),  # rows past the last
        poke("starts", -1, 2**30),
        poke("starts", 0, -5),
        poke("starts", 1, 2**30),
        poke("starts", 1, -7),
        *(cut(name) for name in ("values", "masks", "starts")),
        *(cast(name, torch.float64) for name in ("values", "masks", "starts")),
        spec_of(rows=136),
        spec_of(rows=200),
        spec_of(rows=-1),
        spec_of(rows=True),
        spec_of(cols=299),
        spec_of(cols=2**40),
        spec_of(layout="rows"),
        spec_of(values=1),
    ):
        refused(path, change, "load: file")


def test_corrupt_slices_never_reach_a_kernel(tmp_path: Path) -> None:
    path = tmp_path / "file"
    torch.manual_seed(0)
    linear = nn.Linear(300, 135)
    with torch.no_grad():  # uneven rows, which are sorted
        linear.weight *= torch.rand(135, 300) < torch.linspace(0.05, 0.5, 135)[:, None]
    save(nn.Sequential(SparseLinear.from_dense(linear, Sell())), path)
    loaded: Any = load(path)
    assert torch.equal(loaded[0].weight.unpack(), linear.weight.detach())
    parts = SellWeight.parts
    for change in (
        poke("columns", 0, 0xFF),
        poke("columns", -1, 0x80),  # a lane past the last row
        poke("windows", 0, 19),
        poke("windows", -1, 2**16 - 1),
        poke("starts", -1, 2**30),
        poke("starts", 0, -5),
        poke("starts", 1, 2**30),
        poke("starts", 1, -7),
        poke("order", 0, 135),
        poke("order", 0, -1),
        poke("order", 0, int(loaded[0].weight.order[1])),
        *(cut(name) for name in parts),
        *(cast(name, torch.float64) for name in parts),
        spec_of(rows=136),
        spec_of(rows=200),
        spec_of(rows=-1),
        spec_of(rows=True),
        spec_of(cols=200),
        spec_of(cols=2**40),
        spec_of(layout="rows"),
        spec_of(values=1),
    ):
        refused(path, change, "load: file")


def test_a_convolution_with_a_bitmask_is_refused(tmp_path: Path) -> None:
    path, packed_ = tmp_path / "file", Bitmask().pack(torch.randn(8, 4))
    save(nn.Sequential(SparseConv2d.from_dense(nn.Conv2d(4, 8, 1))), path)

    def change(manifest: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        manifest["modules"]["0.weight"] = {
            "type": "sparseprune.bitmask",
            "arguments": packed_.spec(),
        }
        manifest["tensors"]["0.weight.masks"] = dict(manifest["tensors"]["0.weight.values"])
        for name in ("columns", "counts"):
            del manifest["tensors"][f"0.weight.{name}"], tensors[f"0.weight.{name}"]
        tensors.update({f"0.weight.{n}": b.clone() for n, b in packed_.named_buffers()})

    refused(path, change, "a convolution of 1 groups")


def test_values_past_the_last_row_are_refused(tmp_path: Path) -> None:
    """135 rows fill the last group of four but for one row, which a pattern must not name."""
    weight = Csr("groups").pack(torch.eye(135, 300))
    csr_check.check(weight)
    weight.counts[0, -1] = weight.counts[0, -1].roll(4)
    with pytest.raises(ValueError, match="csr_check"):
        csr_check.check(weight)


def wrong_numbers(change: Callable[[Tensor], None]) -> str:
    """What the check says of numbered groups of 128 rows whose counts [groups, 19] were changed."""
    weight = Csr("groups").pack(torch.eye(128, 8))
    csr_check.check(weight)
    change(weight.counts[0])
    with pytest.raises(ValueError, match="csr_check: packed weight must be") as refusal:
        csr_check.check(weight)
    return str(refusal.value)


def test_numbers_that_a_kernel_would_leave_its_memory_with_are_refused() -> None:
    def twice(groups: Tensor) -> None:
        groups[3, 1] = groups[4, 1]

    def of_another_segment(groups: Tensor) -> None:
        groups[3, 1] += 64

    def unlike_starts(groups: Tensor) -> None:
        groups[0, 4] += 1

    assert "rows that do not each occur once" in wrong_numbers(twice)
    assert "a row outside its segment of 64" in wrong_numbers(of_another_segment)
    assert "starts that contradict counts" in wrong_numbers(unlike_starts)


def test_numbered_groups_of_broken_segments_are_refused() -> None:
    weight = Csr("groups").pack(torch.zeros(128, 8))
    weight.rows = 124
    weight.counts, weight.starts = weight.counts[:, :31].contiguous(), weight.starts[:32]
    with pytest.raises(ValueError, match="60 rows past their last segment"):
        csr_check.check(weight)


def test_segments_stay_in_one_group_of_a_convolution() -> None:
    weight = Csr("groups").pack(torch.eye(128, 8))
    csr_check.check_groups(weight, 2)
    with pytest.raises(ValueError, match="divisible by 4 groups, each by 64"):
        csr_check.check_groups(weight, 4)
    csr_check.check_groups(Csr("groups").pack(torch.eye(128, 8), 4), 4)


def wrong_pairs(change: Callable[[Tensor], None]) -> str:
    """What the check says of 5 rows in sorted pairs whose counts were changed."""
    weight = torch.zeros(5, 8)
    weight[0, :3], weight[1, 1:4], weight[2, 5:8], weight[3, 4:7] = 1.0, 2.0, 3.0, 4.0
    packed = Csr("sorted").pack(weight)
    assert packed.counts.tolist() == [[[1, 0, 2, 1, 1], [3, 2, 2, 1, 1], [4, 4, 0, 0, 0]]]
    csr_check.check(packed)
    change(packed.counts[0])
    with pytest.raises(ValueError, match="csr_check: packed weight must be") as refusal:
        csr_check.check(packed)
    return str(refusal.value)


def test_pairs_that_a_kernel_would_leave_its_memory_with_are_refused() -> None:
    def more_first(pairs: Tensor) -> None:
        pairs[0, 3], pairs[0, 4] = 2, 0

    def with_company(pairs: Tensor) -> None:
        pairs[1, 3:] -= 1
        pairs[2, 3:] += 1

    def twice(pairs: Tensor) -> None:
        pairs[0, 1] = 2

    def outside(pairs: Tensor) -> None:
        pairs[0, 0] = 128

    def unlike_starts(pairs: Tensor) -> None:
        pairs[0, 2] += 1

    assert "a first row of a pair with more columns than the second" in wrong_pairs(more_first)
    assert "a last row that is not alone" in wrong_pairs(with_company)
    assert "rows that do not each occur once" in wrong_pairs(twice)
    assert "rows that do not each occur once" in wrong_pairs(outside)
    assert "starts that contradict counts" in wrong_pairs(unlike_starts)


def test_random_packed_weights_pass_the_check_or_are_refused() -> None:
    chance = torch.Generator().manual_seed(0)
    for rows, cols in [(0, 5), (5, 0), (1, 1), (3, 17), (130, 250), (7, 700), (128, 90)]:
        for layout in ("rows", "groups", "sorted"):
            dense = torch.randn(rows, cols, generator=chance)
            weight = Csr(layout).pack(dense * (torch.rand(rows, cols, generator=chance) < 0.3))
            csr_check.check(weight)
            for _ in range(20):
                changed = copy.deepcopy(weight)
                buffer = list(changed.buffers())[int(torch.randint(1, 4, (), generator=chance))]
                if not buffer.numel():
                    continue
                place = int(torch.randint(buffer.numel(), (), generator=chance))
                top = 2**31 if buffer.dtype == torch.int32 else 256
                buffer.view(-1)[place] = int(torch.randint(top, (), generator=chance))
                try:
                    csr_check.check(changed)
                except ValueError:
                    continue
                row, column = changed.unpack().nonzero().unbind(-1)
                assert not len(row) or (int(row.max()) < rows and int(column.max()) < cols)


@pytest.mark.parametrize(
    "arguments",
    [{"groups": 3}, {"groups": 0}, {"stride": {"tuple": [0, 1]}}, {"kernel_size": {"tuple": [3]}},
     {"padding": {"tuple": [-1, 0, 0, 0]}}, {"padding_mode": "os"}, {"dilation": [1, 1]},
     {"extra": 1}, {"kernel_size": {"tuple": [7, 1]}}],
    ids=str,
)  # fmt: skip
def test_impossible_convolutions_are_refused(arguments: dict[str, Any], tmp_path: Path) -> None:
    conv = SparseConv2d.from_dense(nn.Conv2d(4, 8, 3))
    save(nn.Sequential(conv), tmp_path / "file")
    refused(tmp_path / "file", lambda m, _: m["modules"]["0"]["arguments"].update(arguments))
