"""Sparse layers as drop-in modules: same outputs, state_dict, copies, moves, clear errors."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from problems import TOLERANCE, sparse_weight
from torch import Tensor, nn

from sparseprune.formats import FORMATS, Bitmask, Csr, Format
from sparseprune.nn import SPARSE, SparseConv1d, SparseConv2d, SparseConv3d, SparseLinear

every_format = pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
every_conv_format = pytest.mark.parametrize(
    "fmt", [f for f in FORMATS if "Conv2d" in f.serves], ids=lambda f: f.name
)


def prune(layer: nn.Module, density: float = 0.3) -> nn.Module:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    weight.data = sparse_weight(tuple(weight.shape), density, torch.Generator().manual_seed(7))
    return layer.eval()


def linear(bias: bool = True) -> nn.Linear:
    return prune(nn.Linear(30, 20, bias))  # type: ignore[return-value]


CONVS = {
    "plain": {"kernel_size": 3},
    "no_bias": {"kernel_size": 3, "bias": False},
    "pair": {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)},
    "same": {"kernel_size": 3, "padding": "same"},
    "same_uneven": {"kernel_size": (4, 2), "padding": "same"},
    "same_dilated": {"kernel_size": (2, 3), "padding": "same", "dilation": (3, 2)},
    "valid": {"kernel_size": 3, "padding": "valid"},
    "groups": {"kernel_size": 3, "groups": 2},
    "depthwise": {"kernel_size": 3, "groups": 8, "padding": 1},
    "groups_of_two_rows": {"kernel_size": 1, "groups": 4},
    **{
        f"{mode}_{padding}": {"kernel_size": 3, "padding_mode": mode, "padding": padding}
        for mode in ("zeros", "reflect", "replicate", "circular")
        for padding in (1, (2, 1), "same")
    },
    "circular_same_uneven": {"kernel_size": 4, "padding_mode": "circular", "padding": "same"},
}


def conv(kind: str) -> nn.Conv2d:
    return prune(nn.Conv2d(8, 8, **CONVS[kind]))  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(30,), (4, 30), (0, 30), (2, 3, 5, 30)])
@every_format
def test_linear_drops_in(fmt: Format, shape: tuple[int, ...], bias: bool) -> None:
    dense, x = linear(bias), torch.randn(shape)
    sparse = SparseLinear.from_dense(dense, fmt)
    torch.testing.assert_close(sparse(x), dense(x), **TOLERANCE)
    assert (sparse.in_features, sparse.out_features) == (30, 20)
    assert f"in_features=30, out_features=20, bias={bias}" in repr(sparse)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("kind", CONVS)
@pytest.mark.parametrize("shape", [(2, 8, 9, 11), (8, 9, 11), (0, 8, 9, 11)], ids=str)
def test_conv2d_drops_in(kind: str, shape: tuple[int, ...]) -> None:
    dense, x = conv(kind), torch.randn(shape)
    sparse = SparseConv2d.from_dense(dense)
    if shape[0] == 0 and dense.padding_mode in ("reflect", "replicate", "circular"):
        try:
            dense(x)
        except RuntimeError:
            pytest.skip("torch cannot pad an empty batch so either")
    torch.testing.assert_close(sparse(x), dense(x), **TOLERANCE)
    assert (sparse.in_channels, sparse.out_channels) == (8, 8)
    assert f"groups={dense.groups}" in repr(sparse)


@every_conv_format
def test_conv2d_takes_channels_last(fmt: Format) -> None:
    dense = conv("plain").to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 9, 11).to(memory_format=torch.channels_last)
    torch.testing.assert_close(SparseConv2d.from_dense(dense, fmt)(x), dense(x), **TOLERANCE)


def test_a_pruned_weight_ignores_nan() -> None:
    dense = nn.Linear(2, 1)
    dense.weight.data = torch.tensor([[0.0, 1.0]])
    x = torch.tensor([[torch.nan, 2.0]])
    assert dense(x).isnan().all()
    assert torch.equal(SparseLinear.from_dense(dense)(x), 2 + dense.bias.detach()[None])


def test_from_dense_copies() -> None:
    dense = linear()
    sparse = SparseLinear.from_dense(dense)
    before = sparse(torch.ones(1, 30))
    with torch.no_grad():
        dense.weight.zero_()
        dense.bias.zero_()
    assert torch.equal(sparse(torch.ones(1, 30)), before)


def test_from_dense_can_share_a_packed_weight() -> None:
    dense = linear()
    weight = Csr("rows").pack(dense.weight)
    sparse = SparseLinear.from_dense(dense, weight=weight)
    assert sparse.weight is weight
    torch.testing.assert_close(sparse(torch.ones(1, 30)), dense(torch.ones(1, 30)), **TOLERANCE)


def pairs(fmt: Format) -> list[tuple[nn.Module, nn.Module, Tensor]]:
    """Dense layer, its sparse twin, an input."""
    dense_linear, dense_conv = linear(), conv("plain")
    found: list[tuple[nn.Module, nn.Module, Tensor]] = [
        (dense_linear, SparseLinear.from_dense(dense_linear, fmt), torch.randn(7, 30))
    ]
    if "Conv2d" in fmt.serves:
        sparse = SparseConv2d.from_dense(dense_conv, fmt)
        found.append((dense_conv, sparse, torch.randn(2, 8, 9, 11)))
    if "Conv1d" in fmt.serves:
        one, three = prune(nn.Conv1d(8, 8, 3)), prune(nn.Conv3d(8, 8, 2))
        found.append((one, SparseConv1d.from_dense(one, fmt), torch.randn(2, 8, 9)))  # type: ignore[arg-type]
        found.append((three, SparseConv3d.from_dense(three, fmt), torch.randn(2, 8, 3, 4, 5)))  # type: ignore[arg-type]
    return found


@every_format
def test_state_dict_round_trip(fmt: Format) -> None:
    for _, sparse, x in pairs(fmt):
        expected = sparse(x)
        file = io.BytesIO()
        torch.save(sparse.state_dict(), file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
        assert set(state) == {"bias", *(f"weight.{n}" for n, _ in sparse.weight.named_buffers())}
        other = copy.deepcopy(sparse)
        for tensor in (*other.buffers(), *other.parameters()):
            tensor.data.zero_()
        other.load_state_dict(state)
        assert torch.equal(other(x), expected)


@every_format
def test_deepcopy_and_torch_save(fmt: Format) -> None:
    for _, sparse, x in pairs(fmt):
        file = io.BytesIO()
        torch.save(sparse, file)
        file.seek(0)
        for twin in (copy.deepcopy(sparse), torch.load(file, weights_only=False)):
            assert torch.equal(twin(x), sparse(x))
            mine = {t.data_ptr() for t in sparse.buffers() if t.numel()}
            assert mine.isdisjoint(t.data_ptr() for t in twin.buffers() if t.numel())


@every_format
def test_moves_that_change_nothing(fmt: Format) -> None:
    for _, sparse, x in pairs(fmt):
        expected = sparse(x)
        moved = sparse.to("cpu").float().eval().train().requires_grad_(False)
        assert torch.equal(moved(x), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_another_dtype_is_refused_clearly_where_it_is_not_held(dtype: torch.dtype) -> None:
    for _, sparse, x in pairs(Csr("rows")) + pairs(Bitmask()):
        other = copy.deepcopy(sparse).to(dtype)
        if isinstance(sparse, SparseLinear) and dtype != torch.float64:
            y = other(x.to(dtype))
            torch.testing.assert_close(y.float(), sparse(x), rtol=0.02, atol=0.05)
        else:
            with pytest.raises(RuntimeError, match=r"(x|inputs(\[0\])?) must be float32"):
                other(x.to(dtype))
        made = r"(bias|values) must be as made by (Csr|Bitmask)\.pack|run: .* must be float32"
        with pytest.raises(RuntimeError, match=made + r"|x must be b?float16, the dtype of the w"):
            other(x)
        torch.testing.assert_close(other.float()(x), sparse(x), rtol=0.02, atol=0.05)


@pytest.mark.filterwarnings("ignore:sparseprune runs its Python reference")
def test_meta_device_computes_shapes() -> None:
    for _, sparse, x in pairs(Csr("groups")) + pairs(Bitmask()):
        assert copy.deepcopy(sparse).to("meta")(x.to("meta")).shape == sparse(x).shape


def test_trained_bias_gets_a_gradient() -> None:
    for dense, sparse, x in pairs(Csr("groups")) + pairs(Bitmask()):
        sparse.bias.requires_grad_()
        sparse(x).square().sum().backward()
        dense(x).square().sum().backward()
        torch.testing.assert_close(sparse.bias.grad, dense.bias.grad, rtol=1e-3, atol=1e-2)


def test_conv_format_falls_to_rows_only_where_groups_demand_it() -> None:
    assert SparseConv2d.from_dense(conv("plain")).weight.name == "csr/groups"
    assert SparseConv2d.from_dense(conv("groups_of_two_rows")).weight.name == "csr/rows"
    with pytest.raises(ValueError, match="outputs per group divisible by 4, got 2"):
        SparseConv2d.from_dense(conv("groups_of_two_rows"), Csr("groups"))
    with pytest.raises(ValueError, match="format must be one that serves Conv2d, got bitmask"):
        SparseConv2d.from_dense(conv("plain"), Bitmask())


def test_wrong_layers_are_named() -> None:
    with pytest.raises(ValueError, match=r"SparseLinear.from_dense: linear must be .* got Conv2d"):
        SparseLinear.from_dense(conv("plain"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"SparseConv2d.from_dense: conv must be .* got Linear"):
        SparseConv2d.from_dense(linear())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="csr holds float32, the weight is float64"):
        SparseLinear.from_dense(linear().double())


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(RuntimeError, match="csr_linear: x must have 30 features"):
        SparseLinear.from_dense(linear())(torch.randn(2, 29))
    with pytest.raises(RuntimeError, match="csr_conv2d: x must have 8 channels"):
        SparseConv2d.from_dense(conv("plain"))(torch.randn(2, 7, 9, 9))
    with pytest.raises(RuntimeError, match=r"csr_conv2d: x must be \[batch, channels"):
        SparseConv2d.from_dense(conv("plain"))(torch.randn(9, 9))


def test_inputs_may_come_by_keyword() -> None:
    for _, sparse, x in pairs(Csr("rows")) + pairs(Bitmask()):
        assert torch.equal(sparse(input=x), sparse(x))


def test_every_sparse_layer_has_a_dense_one() -> None:
    assert set(SPARSE.values()) == {SparseLinear, SparseConv1d, SparseConv2d, SparseConv3d}
    assert all(sparse.kind in dense.__name__ + "Linear" for dense, sparse in SPARSE.items())
    assert all(issubclass(dense, nn.Module) for dense in SPARSE)
