"""The model of cost, monotonous and right about the obvious; convert() with nothing else."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from convert_models import MODELS, assert_same, call, convnet, every_model, prune_
from scripted_times import script_times
from torch import nn

from sparseprune import convert
from sparseprune.choose import MARGIN
from sparseprune.costs import COSTS, ISAS, Work, dense_ns, packed_ns
from sparseprune.formats import FORMATS
from sparseprune.program.planned import Planned

LEVELS = [*ISAS, "scalar"]
every_format = pytest.mark.parametrize("name", COSTS)
every_level = pytest.mark.parametrize("isa", LEVELS)


@pytest.fixture(autouse=True)
def _same_dense_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")


def work(sparsity: float, tokens: int, width: int = 1024, kind: str = "Linear") -> Work:
    return Work(kind, width, width, round((1 - sparsity) * width * width), tokens)


def cheapest(case: Work, isa: str) -> str:
    """What convert would choose."""
    names = [
        f.name
        for f in FORMATS
        if case.kind in f.serves
        and f.stem not in ("block", "nm")
        and (f.stem not in ("bitmask", "sell") or case.tokens <= 8)
    ]
    best = min(names, key=lambda name: packed_ns(name, case, isa))
    return best if packed_ns(best, case, isa) <= MARGIN * dense_ns(case) else "dense"


def test_every_format_has_a_cost() -> None:
    assert set(COSTS) == {f.name for f in FORMATS}
    assert packed_ns("unknown", work(0.9, 1), "avx512") == math.inf
    assert packed_ns("csr/rows", work(0.9, 1), "reference") == math.inf


@every_format
@every_level
def test_more_work_never_costs_less(name: str, isa: str) -> None:
    def cost(**change: int) -> float:
        return packed_ns(name, dataclasses.replace(work(0.9, 32), **change), isa)

    for field, values in {
        "nonzeros": range(0, 1024 * 1024, 65536),
        "tokens": [*range(5, 64), 128, 1000, 5000],
        "rows": range(64, 4096, 64),
    }.items():
        costs = [cost(**{field: value}) for value in values]
        assert costs == sorted(costs) and costs[0] < costs[-1]


@every_format
@every_level
def test_few_tokens_cost_more_with_each(name: str, isa: str) -> None:
    costs = [packed_ns(name, work(0.9, tokens), isa) for tokens in range(1, 5)]
    assert costs == sorted(costs) and costs[0] > 0


@pytest.mark.parametrize("kind", ["Linear", "Conv2d"])
@pytest.mark.parametrize("tokens", [128, 3136])
@every_level
def test_many_tokens(isa: str, tokens: int, kind: str) -> None:
    assert cheapest(work(0.95, tokens, kind=kind), isa) == "csr/sorted"


@pytest.mark.parametrize("tokens", [64, 128, 3136])
@pytest.mark.parametrize("isa", ["avx2", "scalar"])
def test_slower_kernels_leave_half_of_the_weights_dense(isa: str, tokens: int) -> None:
    assert cheapest(work(0.5, tokens), isa) == cheapest(work(0.0, tokens), isa) == "dense"


def test_half_of_the_weights() -> None:
    assert cheapest(work(0.5, 128), "avx512") == "csr/groups"
    assert cheapest(work(0.5, 4), "avx512") == "bitmask"


@every_level
@pytest.mark.parametrize("sparsity", [0.8, 0.9, 0.95])
def test_one_token(isa: str, sparsity: float) -> None:
    assert cheapest(work(sparsity, 1), isa) == ("sell" if isa == "avx512" else "csr/rows")


@every_level
def test_channels_of_their_own_stay_dense(isa: str) -> None:
    depthwise = Work("Conv2d", 128, 9, 128 * 3, 56 * 56, groups=128)
    assert cheapest(depthwise, isa) == "dense"


# convert() without timing


def test_nothing_is_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_fallback: None
) -> None:
    calls = script_times(monkeypatch, lambda name: 1.0)
    monkeypatch.setenv("SPARSEPRUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("SPARSEPRUNE_TUNE", "0")
    wide = [nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)]
    model, x = prune_(nn.Sequential(*wide), 0.1), torch.randn(128, 256)
    first, again = convert(model, x), convert(model, x)
    assert not calls and not list(tmp_path.iterdir())
    assert first.report == again.report
    assert first.report.dense_ms is first.report.sparse_ms is first.report.speedup is None
    assert "nothing was timed (SPARSEPRUNE_TUNE=0)" in first.report.notes[0]
    assert isinstance(first, Planned), "programs are preferred"
    assert all("in a program" in row.kernel for row in first.report.rows)
    assert all(row.dense_ms is row.sparse_ms is None for row in first.report.rows)
    torch.testing.assert_close(first(x), model(x))


@every_model
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_every_kind_of_layer_has_a_cost(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEPRUNE_TUNE", "0")
    model, inputs = MODELS[name]()
    expected = call(prune_(model).eval(), inputs)
    assert_same(call(convert(model, inputs), inputs), expected)


def test_dense_stays_where_the_model_of_cost_says_so(
    monkeypatch: pytest.MonkeyPatch, no_fallback: None
) -> None:
    calls = script_times(monkeypatch, lambda name: 1.0)
    monkeypatch.setenv("SPARSEPRUNE_TUNE", "0")
    x = torch.randn(128, 256)
    full = convert(prune_(nn.Sequential(nn.Linear(256, 256)), 1), x)
    assert full.report.rows[0].reason == "no zeros" and type(full[0]) is nn.Linear
    slow = convert(prune_(nn.Sequential(nn.Linear(256, 256)), 0.1), x, backend="reference")
    assert "0.00x estimated" in slow.report.rows[0].reason and type(slow[0]) is nn.Linear
    forced = convert(prune_(convnet()), torch.randn(2, 3, 13, 15), keep_dense="never")
    assert all(row.kernel != "dense" for row in forced.report.rows if row.kind == "Linear")
    assert not calls
