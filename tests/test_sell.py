"""Packed sell weights: how they lie, what their check finds, when convert takes the format."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from problems import TOLERANCE, dense_linear, sparse_weight
from scripted_times import script_times
from torch import Tensor, nn

from sparseprune import backends, convert
from sparseprune.formats import Sell, SellWeight, sell_check
from sparseprune.formats.sell import BEGIN, KEPT, MAX_TOKENS, SLICE_ROWS, WINDOW


def steps_of(packed: SellWeight) -> list[tuple[int, list[int | None]]]:
    """First column and columns, None for a hole, of every step."""
    columns = packed.columns.view(-1, SLICE_ROWS).tolist()
    return [
        (first * BEGIN, [c - KEPT if c >= KEPT else None for c in of])
        for first, of in zip(packed.windows.tolist(), columns, strict=True)
    ]


def test_the_layout_is_as_documented() -> None:
    packed = Sell().pack(torch.tensor([[1.0, 0, 5], [0, 2, 4], [3, 0, 0]]))
    rest = [None] * (SLICE_ROWS - 3)
    assert steps_of(packed) == [(0, [0, 1, 0, *rest]), (0, [2, 2, None, *rest])]
    assert packed.values.view(2, -1)[:, :3].tolist() == [[1, 2, 3], [5, 4, 0]]
    assert (packed.starts.tolist(), packed.nonzeros) == ([0, 2], 5)


def test_windows_begin_at_the_leftmost_row() -> None:
    """A row that lies ahead waits for the others."""
    weight = torch.zeros(20, 100)
    weight[0, [1, 33, 70]] = 1.0
    weight[1, [31, 99]] = 1.0
    weight[17, 99] = 1.0
    packed = Sell().pack(weight)
    found = [(first, of[0], of[1]) for first, of in steps_of(packed)]
    assert found[:4] == [(0, 1, 31), (32, 1, None), (64, 6, None), (96, None, 3)]
    assert packed.starts.tolist() == [0, 4, 5]
    assert torch.equal(packed.unpack(), weight)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize(("rows", "cols"), [(0, 5), (5, 0), (1, 1), (15, 31), (33, 300), (70, 64)])
def test_every_weight_comes_back(rows: int, cols: int, sparsity: float) -> None:
    weight = sparse_weight((rows, cols), 1 - sparsity, torch.Generator().manual_seed(rows + cols))
    packed = Sell().pack(weight)
    sell_check.check(packed)
    assert torch.equal(packed.unpack(), weight)
    assert packed.nonzeros == int((weight != 0).sum())


def test_more_slices_than_are_packed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = sparse_weight((130, 70), 0.2, torch.Generator().manual_seed(0))
    whole = Sell().pack(weight)
    monkeypatch.setattr("sparseprune.formats.sell.BATCH", 2)
    parts = Sell().pack(weight)
    for name, buffer in whole.named_buffers():
        assert torch.equal(getattr(parts, name), buffer), name


def uneven(rows: int = 70, cols: int = 200) -> Tensor:
    """A weight some of whose rows have most of the nonzeros."""
    chance = torch.Generator().manual_seed(2)
    share = torch.linspace(0.02, 0.6, rows)[torch.randperm(rows, generator=chance)]
    kept = torch.rand(rows, cols, generator=chance) < share[:, None]
    return torch.randn(rows, cols, generator=chance) * kept


def test_rows_of_unlike_counts_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = uneven()
    packed = Sell().pack(weight)
    sell_check.check(packed)
    counts = (weight != 0).sum(1)
    assert torch.equal(counts[packed.order.long()], counts.sort().values)
    assert torch.equal(packed.unpack(), weight)
    even = Sell().pack(sparse_weight((70, 200), 0.3, torch.Generator().manual_seed(0)))
    assert len(even.order) == 0
    monkeypatch.setattr("sparseprune.formats.sell._order", lambda counts, _: counts[:0].int())
    assert Sell().pack(weight).values.numel() > 1.3 * packed.values.numel()


@pytest.mark.parametrize("backend", backends.available())
@pytest.mark.parametrize("tokens", [1, 5, 11])
def test_sorted_rows_go_where_they_belong(backend: str, tokens: int) -> None:
    weight, bias = uneven(), torch.randn(70)
    x = torch.randn(tokens, 200)
    with backends.only(backend):
        y = Sell().pack(weight).linear(x, bias, (-1.0, 2.0))
    expected = dense_linear(x, weight, bias).clamp(-1, 2)
    torch.testing.assert_close(y.double(), expected, **TOLERANCE)


@pytest.mark.usefixtures("sparse_wins")
@pytest.mark.parametrize("tokens", [1, 6])
def test_sorted_rows_in_programs(tokens: int) -> None:
    """With what a kernel that clamps leaves undone, and residuals."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(200, 70), nn.Linear(70, 70)

        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.gelu(self.first(x))
            return torch.relu(self.second(x) + x)

    model = Model().eval()
    model.first.weight.data, model.second.weight.data = uneven(), uneven(70, 70)
    x = torch.randn(tokens, 200)
    fast = convert(model, x, format="sell")
    assert len(fast.first.weight.order) == len(fast.second.weight.order) == 70
    torch.testing.assert_close(fast(x), model(x), **TOLERANCE)


def test_holes_of_random_weights() -> None:
    """Those that the estimate of costs counts on, and the documents name."""
    for sparsity, holes in {0.5: 0.07, 0.9: 0.36, 0.95: 0.5}.items():
        chance = torch.Generator().manual_seed(1)
        kept = torch.rand(256, 1024, generator=chance) >= sparsity
        packed = Sell().pack(kept.float())
        assert 1 - packed.nonzeros / packed.values.numel() == pytest.approx(holes, abs=0.03)


def test_it_serves_no_convolution() -> None:
    packed = Sell().pack(torch.eye(4))
    with pytest.raises(ValueError, match=r"SellWeight\.conv2d.*pack it with Csr"):
        packed.conv2d(torch.zeros(1, 4, 2, 2), None, (1, 1), (1, 1), (0, 0), (1, 1), 1)
    with pytest.raises(ValueError, match="a convolution of 1 groups"):
        sell_check.check_groups(packed, 1)


# --- what the check of a loaded weight finds


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_slices_are_looked_at_in_batches(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sell_check, "BATCH", batch)
    weight = sparse_weight((130, 70), 0.2, torch.Generator().manual_seed(0))
    weight[32:64] = 0.0
    packed = Sell().pack(weight)
    batches = list(sell_check._batches(packed.starts))
    assert batches[0][0] == 0 and batches[-1][1] == len(packed.starts) - 1
    assert all(one[1] == two[0] for one, two in itertools.pairwise(batches))
    steps = [int(packed.starts[last] - packed.starts[first]) for first, last in batches]
    several = [n for n, (first, last) in zip(steps, batches, strict=True) if last > first + 1]
    assert max(several, default=0) <= batch
    sell_check.check(packed)


def test_random_corruption_is_refused_or_harmless() -> None:
    chance = torch.Generator().manual_seed(0)
    for rows, cols in [(3, 17), (16, 9), (40, 100), (130, 250)]:
        dense = torch.randn(rows, cols, generator=chance)
        weight = Sell().pack(dense * (torch.rand(rows, cols, generator=chance) < 0.3))
        for buffer in ("columns", "windows", "starts"):
            for _ in range(30):
                changed = copy.deepcopy(weight)
                flat: Tensor = getattr(changed, buffer)
                place = int(torch.randint(len(flat), (), generator=chance))
                flat[place] = int(torch.randint(256, (), generator=chance))
                try:
                    sell_check.check(changed)
                except ValueError:
                    continue
                x = torch.randn(2, cols, generator=chance)  # other columns, which are there
                y = changed.linear(x, None).double()
                torch.testing.assert_close(y, dense_linear(x, changed.unpack(), None), **TOLERANCE)


CORRUPT = {
    "starts that do not rise": ("starts", 1, 11),
    "windows past 40 columns": ("windows", 0, 3),
    "holes with columns": ("columns", SLICE_ROWS - 1, 1),
    "columns past a window": ("columns", 0, KEPT + WINDOW),
    "columns past 40": ("columns", 5 * SLICE_ROWS - SLICE_ROWS, KEPT + 9),
    "values in rows past 20": ("columns", -1, KEPT),
    "columns of a row that do not rise": ("columns", SLICE_ROWS, KEPT),
}
ORDERS = {"twice": [0, *range(19)], "past": [*range(1, 21)], "before": [-1, *range(1, 20)]}


@pytest.mark.parametrize("batch", [1, 6, sell_check.BATCH])
@pytest.mark.parametrize("reason", CORRUPT)
def test_what_is_wrong_is_said(reason: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sell_check, "BATCH", batch)
    weight = torch.zeros(20, 40)
    weight[:, [0, 3, 7, 20, 39]] = 1.0
    packed = Sell().pack(weight)
    assert packed.windows.tolist() == [0, 0, 0, 1, 2] * 2
    name, place, value = CORRUPT[reason]
    getattr(packed, name)[place] = value
    with pytest.raises(ValueError, match=f"sell_check: packed weight.*{reason}"):
        sell_check.check(packed)


@pytest.mark.parametrize("name", ORDERS)
def test_orders_that_leave_out_rows_are_refused(name: str) -> None:
    packed = Sell().pack(torch.eye(20))
    packed.order = torch.tensor(ORDERS[name], dtype=torch.int32)
    with pytest.raises(ValueError, match="each of 20 rows once"):
        sell_check.check(packed)


# --- when convert takes it


def test_convert_times_it_for_few_rows_of_input_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def ms(name: str) -> float:
        seen.append(name)
        return 0.1 if name in ("sell", "layers", "programs") else 1.0

    def converted(tokens: int) -> nn.Module:
        seen.clear()
        dense = nn.Linear(20, 12)
        dense.weight.data = sparse_weight((12, 20), 0.2, torch.Generator().manual_seed(1))
        return convert(nn.Sequential(dense), torch.randn(tokens, 20))

    script_times(monkeypatch, ms)
    monkeypatch.setattr(backends, "current_isa", lambda: "avx512")
    assert converted(MAX_TOKENS)[0].weight.name == "sell"
    converted(MAX_TOKENS + 1)
    assert "sell" not in seen and "csr/rows" in seen
    monkeypatch.setattr(backends, "current_isa", lambda: "avx2")
    converted(1)
    assert "sell" not in seen, "no permutation picks from a window there"


@pytest.mark.usefixtures("sparse_wins")
@pytest.mark.parametrize("tokens", [1, 100])
def test_convert_takes_it_by_name(tokens: int) -> None:
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20), nn.GELU()).eval()
    for layer in (model[0], model[2]):
        layer.weight.data *= torch.rand_like(layer.weight) < 0.2
    x = torch.randn(tokens, 40)
    fast = convert(model, x, format="sell")
    assert fast[0].weight.name == fast[2].weight.name == "sell"
    torch.testing.assert_close(fast(x), model(x), **TOLERANCE)
