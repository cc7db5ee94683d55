"""What convert() packs and what stays dense, with reasons, at scripted times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_models import Mlp, as_convert_is_tested, prune_
from problems import sparse_weight
from scripted_times import script_times
from torch import Tensor, nn

from sparseprune import backends, choose, convert, load, save
from sparseprune.nn import SparseLinear
from sparseprune.program.planned import Planned
from sparseprune.prune import prune

pytestmark = as_convert_is_tested


def decide(
    monkeypatch: pytest.MonkeyPatch, ms: Callable[[str], float], density: float = 0.2
) -> nn.Module:
    script_times(monkeypatch, ms)
    return convert(prune_(nn.Sequential(nn.Linear(20, 12)), density), torch.randn(6, 20))


TIMES = {
    "csr/groups": 0.6,
    "csr/rows": 0.5,
    "csr/sorted": 0.7,
    "bitmask": 0.8,
    "sell": 0.9,
    "dense": 1.0,
    "layers": 0.5,
    "programs": 0.6,
}


def test_the_fastest_format_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    for fastest in ("csr/groups", "csr/rows"):
        fast = decide(monkeypatch, {**TIMES, fastest: 0.4}.__getitem__)
        row = fast.report.rows[0]
        assert row.kernel.startswith(f"{fastest} ")
        assert fast[0].weight.name == fastest
        assert (row.dense_ms, row.sparse_ms, row.reason) == (1.0, 0.4, "")
        assert row.packed_bytes == fast[0].weight.nbytes
        assert fast.report.speedup == 2.0


@pytest.mark.parametrize(
    ("share", "packed"), [(choose.MARGIN - 0.01, True), (choose.MARGIN + 0.01, False), (1.0, False)]
)
def test_dense_stays_without_a_margin(
    monkeypatch: pytest.MonkeyPatch, share: float, packed: bool
) -> None:
    """Trap 14: dense where sparse is not faster, and the row says why."""
    fast = decide(monkeypatch, lambda name: 1.0 if name == "dense" else share)
    row = fast.report.rows[0]
    assert isinstance(fast[0], SparseLinear) is packed
    if not packed:
        assert row.kernel == "dense"
        assert row.packed_bytes == row.dense_bytes
        assert row.reason.endswith(f": {1 / share:.2f}x)") and "not 11% faster" in row.reason
        assert fast.report.speedup == 1.0


def test_a_near_tie_of_the_whole_model_goes_back_to_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = decide(monkeypatch, {**TIMES, "layers": 0.98, "programs": 2.0}.__getitem__)
    assert type(fast[0]) is nn.Linear
    fast = decide(monkeypatch, {**TIMES, "layers": 0.96, "programs": 2.0}.__getitem__)
    assert isinstance(fast[0], SparseLinear)


def test_a_slower_whole_model_goes_back_to_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = decide(monkeypatch, {**TIMES, "layers": 1.1, "programs": 2.0}.__getitem__)
    row = fast.report.rows[0]
    assert type(fast[0]) is nn.Linear
    assert row.kernel == "dense"
    assert row.packed_bytes == row.dense_bytes
    assert row.reason == "the whole model was not faster with packed layers"
    assert fast.report.sparse_ms == fast.report.dense_ms == 1.0
    assert "1.100 ms" in fast.report.notes[0]


def test_a_slower_whole_model_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = iter([1.1, 0.9])
    times = {**TIMES, "programs": 2.0}
    fast = decide(monkeypatch, lambda name: next(whole) if name == "layers" else times[name])
    assert isinstance(fast[0], SparseLinear)
    assert fast.report.sparse_ms == 0.9


needs_programs = pytest.mark.skipif(
    backends.CPU.missing is not None, reason="programs run compiled kernels alone"
)


@needs_programs
@pytest.mark.parametrize("faster", ["layers", "programs"])
def test_the_fastest_form_of_the_whole_model_stays(
    monkeypatch: pytest.MonkeyPatch, faster: str
) -> None:
    times = {**TIMES, "layers": 0.5, "programs": 0.5, faster: 0.3}
    script_times(monkeypatch, times.__getitem__)
    model = prune_(nn.Sequential(nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 5)), 0.2)
    fast = convert(model, torch.randn(6, 20))
    assert isinstance(fast, Planned) is (faster == "programs")
    assert fast.report.sparse_ms == 0.3
    assert all(("program" in row.kernel) is isinstance(fast, Planned) for row in fast.report.rows)


@needs_programs
def test_layers_slower_than_dense_may_still_join_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    times = dict.fromkeys(TIMES, 1.1) | {"dense": 1.0, "programs": 0.5}
    script_times(monkeypatch, times.__getitem__)
    model = prune_(nn.Sequential(nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 5)), 0.2)
    fast = convert(model, torch.randn(6, 20))
    assert isinstance(fast[0], SparseLinear) and isinstance(fast, Planned)
    assert all(row.kernel != "dense" and not row.reason for row in fast.report.rows)


def test_a_slower_whole_model_stays_packed_with_keep_dense_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script_times(monkeypatch, lambda name: 1.0 if name == "dense" else 9.0)
    fast = convert(nn.Linear(20, 12), torch.randn(6, 20), keep_dense="never")
    assert isinstance(fast, SparseLinear)
    assert fast.report.speedup == pytest.approx(1 / 9)


def test_too_few_zeros_are_not_even_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    few = decide(monkeypatch, lambda name: TIMES[name], density=0.95).report.rows[0]
    assert "below 30% does not repay an index" in few.reason
    assert (few.kernel, few.dense_ms) == ("dense", None)
    none = decide(monkeypatch, lambda name: TIMES[name], density=1).report.rows[0]
    assert (none.reason, none.pattern) == ("no zeros", "dense")


def test_a_wrong_packed_layer_never_takes_over(
    monkeypatch: pytest.MonkeyPatch, sparse_wins: list[dict[str, float]]
) -> None:
    right = SparseLinear.forward
    monkeypatch.setattr(SparseLinear, "forward", lambda self, x: right(self, x) * 1.01)
    fast = convert(prune_(nn.Sequential(nn.Linear(20, 12))), torch.randn(6, 20))
    assert type(fast[0]) is nn.Linear
    assert "its output differs from dense by" in fast.report.rows[0].reason


# Layers that stay dense, with reasons


class MyLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def test_other_dtypes_stay_dense() -> None:
    model = prune_(nn.Sequential(nn.Linear(20, 12).double()))
    x = torch.randn(6, 20, dtype=torch.float64)
    fast = convert(model, x, format="csr", keep_dense="never")
    assert fast.report.rows[0].reason.startswith("csr holds float32, the weight is float64")
    assert torch.equal(fast(x), model.eval()(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("stem", ["csr", "bitmask", "sell"])
def test_half_is_packed_where_it_is_asked_for(
    dtype: torch.dtype, stem: str, tmp_path: Path
) -> None:
    """Layer by layer: programs are float32."""
    model = prune_(nn.Sequential(nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 8)).to(dtype))
    x = torch.randn(6, 20, dtype=dtype)
    fast = convert(model, x, format=stem, keep_dense="never")
    assert not isinstance(fast, Planned)
    assert all(row.kernel.startswith(stem) for row in fast.report.rows)
    tolerance = choose.TOLERANCE[dtype]
    torch.testing.assert_close(fast(x), model.eval()(x), rtol=tolerance, atol=tolerance)
    save(fast, tmp_path / "half")
    assert torch.equal(load(tmp_path / "half")(x), fast(x))
    assert "is not meant for it" in convert(model, x, format="auto").report.rows[0].reason


def test_half_convolutions_stay_dense_with_a_reason() -> None:
    model = prune_(nn.Sequential(nn.Conv2d(4, 8, 3)).bfloat16())
    fast = convert(model, torch.randn(1, 4, 6, 6).bfloat16(), format="csr", keep_dense="never")
    assert type(fast[0]) is nn.Conv2d
    assert "x must be float32" in fast.report.rows[0].reason


def test_a_layer_that_is_not_called_stays_dense() -> None:
    model = prune_(Mlp())
    fast = convert(model, {"x": torch.randn(6, 24), "both": False}, keep_dense="never")
    rows = {r.name: r for r in fast.report.rows}
    assert "not called" in rows["heads.b"].reason
    assert type(fast.heads["b"]) is nn.Linear


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.ConvTranspose1d(8, 8, 3), torch.randn(2, 8, 20)),
        (nn.ConvTranspose3d(8, 8, 1), torch.randn(2, 8, 3, 3, 3)),
        (nn.ConvTranspose2d(8, 8, 3), torch.randn(2, 8, 5, 5)),
        (nn.LSTM(8, 8), torch.randn(2, 3, 8)),
        (MyLinear(8, 8), torch.randn(2, 8)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_unsupported_layers_are_named(layer: nn.Module, x: Tensor) -> None:
    model = nn.ModuleDict({"odd": layer, "linear": nn.Linear(8, 8)})
    weights = [p for p in layer.parameters() if p.dim() > 1]
    for weight in weights:
        weight.data = sparse_weight(tuple(weight.shape), 0.3, torch.Generator().manual_seed(2))

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, x: Tensor, y: Tensor) -> tuple[Any, Tensor]:
            return self.parts["odd"](x), self.parts["linear"](y)

    inputs = (x, torch.randn(2, 8))
    fast = convert(Both(), inputs, keep_dense="never")
    rows = [r for r in fast.report.rows if r.name.startswith("parts.odd")]
    assert len(rows) == len(weights)
    assert all(type(layer).__name__ in r.reason and r.kernel == "dense" for r in rows)
    assert all(0.6 < r.sparsity < 0.8 for r in rows)
    assert type(fast.parts["odd"]) is type(layer)


def test_a_weight_read_past_its_layer_keeps_the_model_dense() -> None:
    class Peeks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) @ self.linear.weight

    model = Peeks().eval()
    prune(model, 0.8)
    x = torch.randn(3, 16)
    fast = convert(model, x, keep_dense="never")
    assert "does not run with packed layers" in fast.report.rows[0].reason
    assert torch.equal(fast(x), model(x))
