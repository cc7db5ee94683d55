"""Packed convolutions of 1 and 3 dimensions: dense ones in float64, convert, files, errors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conv_problems import LAYERS, SIZES, dense, every_case, every_dims, every_layout, silent
from io_problems import refused
from problems import TOLERANCE
from torch import nn

import sparseprune
from sparseprune import backends
from sparseprune.formats import Bitmask, Csr
from sparseprune.nn import SparseConv, SparseConv1d, SparseConv2d, SparseConv3d
from sparseprune.program.steps import Csr as Step
from sparseprune.program.text import from_text


@silent
@pytest.mark.parametrize("backend", backends.available())
@every_layout
@every_case
def test_outputs_are_dense_ones(dims: int, name: str, layout: str, backend: str) -> None:
    layer = dense(dims, name)
    if Csr(layout).refuses(layer.weight.flatten(1), layer.groups):
        pytest.skip("the format refuses")
    x = torch.randn(2, 8, *SIZES[dims])
    expected = copy.deepcopy(layer).double()(x.double())
    with backends.only(backend):
        sparse = LAYERS[dims][1].from_dense(layer, Csr(layout))
        for given, wanted in ((x, expected), (x[1], expected[1]), (x[:0], expected[:0])):
            torch.testing.assert_close(sparse(given).double(), wanted, **TOLERANCE)


@pytest.mark.parametrize(
    "x",
    [
        lambda x: torch.stack([x, x.new_full(x.shape, torch.nan)], -1)[..., 0],
        lambda x: x.transpose(1, -1).contiguous().transpose(1, -1),
        lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    ],
    ids=["noncontiguous", "transposed", "offset"],
)
@every_dims
def test_any_memory_will_do(dims: int, x: Any) -> None:
    layer, given = dense(dims, "stride_2"), x(torch.randn(2, 8, *SIZES[dims]))
    torch.testing.assert_close(LAYERS[dims][1].from_dense(layer)(given), layer(given), **TOLERANCE)


@every_dims
def test_a_pruned_weight_ignores_nan(dims: int) -> None:
    layer = LAYERS[dims][0](2, 1, 1).requires_grad_(False)
    layer.weight.data = torch.tensor([0.0, 1.0]).view(1, 2, *(1,) * dims)
    x = torch.full((1, 2, *SIZES[dims]), 2.0)
    x[:, 0] = torch.nan
    sparse = LAYERS[dims][1].from_dense(layer)
    expected = torch.full_like(x[:, :1], 2.0) + layer.bias.view(1, 1, *(1,) * dims)
    torch.testing.assert_close(sparse(x), expected)
    torch.testing.assert_close(sparse(x.requires_grad_()), expected)


# The module


@every_dims
def test_attributes_and_repr(dims: int) -> None:
    sparse = LAYERS[dims][1].from_dense(dense(dims, "groups"))
    assert isinstance(sparse, SparseConv)
    assert (sparse.in_channels, sparse.out_channels, sparse.groups) == (8, 8, 2)
    assert sparse.kernel_size == (3,) * dims and sparse.padding == (0, 0) * dims
    assert f"8, 8, kernel_size={sparse.kernel_size}" in repr(sparse)
    numbers = LAYERS[dims][1](sparse.weight, sparse.bias, 3, groups=2)
    assert repr(numbers) == repr(sparse)
    assert set(sparse.state_dict()) == {
        "bias", *(f"weight.{n}" for n in ("values", "columns", "counts", "starts"))
    }  # fmt: skip


@every_dims
def test_a_clamp_given_later_is_computed(dims: int) -> None:
    layer, x = dense(dims, "plain"), torch.randn(2, 8, *SIZES[dims])
    sparse = LAYERS[dims][1].from_dense(layer)
    sparse.clamp = (0.0, 0.5)
    assert "clamp=(0.0, 0.5)" in repr(sparse)
    torch.testing.assert_close(sparse(x), layer(x).clamp(0.0, 0.5), **TOLERANCE)


def test_padding_lists_the_last_dimension_first() -> None:
    layer = nn.Conv3d(8, 8, (2, 3, 4), padding="same")
    sparse: Any = SparseConv3d.from_dense(layer)
    assert sparse.padding == (1, 2, 1, 1, 0, 1)
    step = from_text(sparse._text)[1]
    assert isinstance(step, Step)
    assert (step.window.before, step.window.after) == ((0, 1, 1), (1, 1, 2))
    x = torch.randn(2, 8, *SIZES[3])
    torch.testing.assert_close(sparse(x), layer(x), **TOLERANCE)


@every_dims
def test_uneven_padding(dims: int) -> None:
    layer = dense(dims, "plain")
    sides = (2, 0, 1, 3, 0, 1)[: 2 * dims]
    sparse = LAYERS[dims][1](Csr().pack(layer.weight.flatten(1)), layer.bias, 3, padding=sides)
    x = torch.randn(2, 8, *SIZES[dims])
    torch.testing.assert_close(sparse(x), layer(F.pad(x, sides)), **TOLERANCE)


def test_wrong_layers_and_formats_are_named() -> None:
    with pytest.raises(ValueError, match=r"SparseConv1d.from_dense: conv must be .* got Conv2d"):
        SparseConv1d.from_dense(nn.Conv2d(8, 8, 3))
    with pytest.raises(ValueError, match=r"SparseConv3d.from_dense: conv must be .*Transpose3d"):
        SparseConv3d.from_dense(nn.ConvTranspose3d(8, 8, 3))
    with pytest.raises(ValueError, match="format must be one that serves Conv1d, got bitmask"):
        SparseConv1d.from_dense(dense(1, "plain"), Bitmask())


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 7, 9), "8 .*channels"),
        ((2, 2, 8, 9), "inputs"),
        ((9,), "inputs"),
        ((2, 8, 2), "as large as"),
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", backends.available())
def test_wrong_inputs_are_named(shape: tuple[int, ...], message: str, backend: str) -> None:
    with backends.only(backend):
        sparse = SparseConv1d.from_dense(dense(1, "plain"))
        for x in (torch.randn(shape), torch.randn(shape, requires_grad=True)):
            with pytest.raises((RuntimeError, ValueError), match=f"run: .*({message})"):
                sparse(x)


# What uses them


@pytest.mark.usefixtures("quick_timer")
@every_dims
def test_convert_reports_profiles_and_saves(dims: int, tmp_path: Path) -> None:
    kind, cls = LAYERS[dims]
    norm = {1: nn.BatchNorm1d, 3: nn.BatchNorm3d}[dims]
    model = nn.Sequential(
        kind(3, 8, 3, padding=1), norm(8), nn.ReLU(), kind(8, 8, 3, groups=8), kind(8, 12, 1)
    ).eval()
    masks = sparseprune.prune(model, 0.8)
    assert len(masks) == 3
    x = torch.randn(2, 3, *SIZES[dims])
    fast = sparseprune.convert(model, x, keep_dense="never")
    expected = model(x)
    torch.testing.assert_close(fast(x), expected, **TOLERANCE)
    rows = fast.report.rows
    assert [r.kind for r in rows] == [kind.__name__] * 3
    assert any("csr/" in r.kernel for r in rows) and not any("no sparse kernel" in r.reason
                                                             for r in rows)  # fmt: skip
    assert any(type(m) is cls for m in fast.modules())
    before, after = (sparseprune.profile(m, x) for m in (model, fast))
    assert after.nonzero_macs == before.nonzero_macs
    assert after.executed_macs < before.executed_macs
    sparseprune.save(fast, tmp_path / "file")
    with torch.no_grad():
        assert torch.equal(sparseprune.load(tmp_path / "file")(x), fast(x))


@every_dims
def test_loads_onto_a_dense_model(dims: int, tmp_path: Path) -> None:
    layer, x = dense(dims, "reflect"), torch.randn(2, 8, *SIZES[dims])
    sparse = LAYERS[dims][1].from_dense(layer)
    sparse.clamp = (0.0, 6.0)
    sparseprune.save(nn.Sequential(sparse), tmp_path / "file")
    model = nn.Sequential(copy.deepcopy(layer))
    for given in (None, model):
        loaded: Any = sparseprune.load(tmp_path / "file", given)
        assert type(loaded[0]) is type(sparse) and loaded[0].clamp == (0.0, 6.0)
        assert repr(loaded[0]) == repr(sparse)
        assert torch.equal(loaded(x), sparse(x))
    wrong = nn.Sequential(LAYERS[4 - dims][0](8, 8, 4))
    with pytest.raises(ValueError, match="must be of the given model"):
        sparseprune.load(tmp_path / "file", wrong)


def test_conv2d_keeps_its_own_op() -> None:
    layer = SparseConv2d.from_dense(nn.Conv2d(4, 8, 3, padding=1))
    program = torch.export.export(layer, (torch.randn(1, 4, 5, 5),), strict=False)
    targets = {str(n.target) for n in program.graph.nodes}
    assert "sparseprune.csr_conv2d.default" in targets or backends.CPU.missing


@pytest.mark.parametrize(
    "arguments",
    [{"groups": 3}, {"groups": 0}, {"stride": {"tuple": [0]}}, {"kernel_size": {"tuple": [3, 3]}},
     {"padding": {"tuple": [-1, 0]}}, {"padding": {"tuple": [0, 2**31]}}, {"padding": 1},
     {"padding_mode": "zeros 1"}, {"dilation": {"tuple": [2**63]}}, {"stride": {"tuple": [True]}},
     {"kernel_size": {"tuple": [7]}}, {"clamp": {"tuple": ["0", "1"]}}],
    ids=str,
)  # fmt: skip
@every_dims
def test_impossible_ones_in_a_file_are_refused(
    arguments: dict[str, Any], dims: int, tmp_path: Path
) -> None:
    if dims == 3:
        arguments = {
            name: {"tuple": value["tuple"] * 3} if isinstance(value, dict) and name != "clamp"
            else value for name, value in arguments.items()
        }  # fmt: skip
    sparse = LAYERS[dims][1].from_dense(dense(dims, "plain"))
    sparseprune.save(nn.Sequential(sparse), tmp_path / "file")
    refused(tmp_path / "file", lambda m, _: m["modules"]["0"]["arguments"].update(arguments))


@pytest.mark.parametrize("mode", ["reflect", "circular"])
@pytest.mark.parametrize("backend", backends.available())
def test_images_smaller_than_their_padding_are_refused(mode: str, backend: str) -> None:
    with backends.only(backend):
        conv = nn.Conv1d(4, 4, 5, padding=4, padding_mode=mode)
        layer = SparseConv1d.from_dense(conv)
        with pytest.raises((ValueError, RuntimeError), match="run"):
            layer(torch.randn(1, 4, 3))
