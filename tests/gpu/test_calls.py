"""How kernels are called on a device: streams, graphs, other devices, bad input, convert."""

from __future__ import annotations

import copy

import pytest
import torch
from on_device import DEVICE, DTYPES, EVERY, assert_close, backends_of, magnitudes_linear
from problems import dense_linear, fitting, sparse_weight
from torch import Tensor, nn

from sparseprune import backends, convert, load, prune, save
from sparseprune.formats import Csr, Format, PackedWeight

every_format = pytest.mark.parametrize("fmt", EVERY, ids=lambda f: f.name)
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="a matter of CUDA alone")


def packed_layer(fmt: Format, device: torch.device) -> tuple[PackedWeight, Tensor, Tensor]:
    """A packed weight of 160 x 192 with its input and the float64 result."""
    g = torch.Generator().manual_seed(7)
    weight = fitting(fmt, sparse_weight((160, 192), 0.3, g))
    x = torch.randn(5, 192, generator=g)
    return fmt.settled(weight).pack(weight.to(device)), x.to(device), dense_linear(x, weight, None)


@on_cuda
@every_format
def test_on_a_stream_of_its_own(fmt: Format) -> None:
    packed, x, expected = packed_layer(fmt, DEVICE)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = torch.zeros_like(x)
        torch.cuda._sleep(20_000_000)  # a kernel on another stream would read the zeros
        late.copy_(x)
        y = packed.linear(late, None)
    stream.synchronize()
    torch.testing.assert_close(y.double().cpu(), expected, rtol=1e-4, atol=1e-4)


@on_cuda
@every_format
def test_captured_in_a_graph(fmt: Format) -> None:
    packed, x, expected = packed_layer(fmt, DEVICE)
    if packed.namespace == backends.REFERENCE.namespace:
        pytest.skip("the reference is not meant for graphs")
    held = torch.zeros_like(x)
    packed.linear(held, None)  # what is measured or loaded at the first call
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = packed.linear(held, None)
    held.copy_(x)
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(y.double().cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@every_format
def test_on_the_second_device(fmt: Format) -> None:
    packed, x, expected = packed_layer(fmt, torch.device("cuda", 1))
    assert torch.cuda.current_device() == 0
    y = packed.linear(x, None)
    assert y.device.index == 1
    torch.testing.assert_close(y.double().cpu(), expected, rtol=1e-4, atol=1e-4)


@every_format
def test_bad_input_is_an_error_and_leaves_the_device_well(fmt: Format) -> None:
    packed, x, expected = packed_layer(fmt, DEVICE)
    for backend in backends_of(fmt.settled(packed.unpack())):
        packed.use(backend)
        for bad in (x[:, :-1], x.double(), x.long()):
            with pytest.raises((RuntimeError, ValueError), match="_linear: x must"):
                packed.linear(bad, None)
        with pytest.raises((RuntimeError, ValueError), match="_linear: bias must"):
            packed.linear(x, torch.zeros(159, device=DEVICE))
        if DEVICE.type == "cuda":
            with pytest.raises((RuntimeError, ValueError), match="device"):
                packed.linear(x.cpu(), None)
        y = packed.linear(x, None)
        torch.testing.assert_close(y.double().cpu(), expected, rtol=1e-4, atol=1e-4)


def network() -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(16, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 10),
    )  # fmt: skip
    return model.eval()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pattern", ["unstructured", "block(16,16)"])
@pytest.mark.parametrize("keep_dense", ["auto", "never"])
def test_convert(dtype: torch.dtype, pattern: str, keep_dense: str) -> None:
    model = network()
    prune(model, sparsity=0.8, pattern=pattern, scope="local")
    model, x = model.to(DEVICE, dtype), torch.randn(4, 16, 12, 12).to(DEVICE, dtype)
    fast = convert(model, x, keep_dense=keep_dense)
    with torch.inference_mode():
        expected, got = model(x).double(), fast(x).double()
    scale = float(expected.abs().max())
    assert float((got - expected).abs().max()) <= {torch.float32: 2e-3}.get(dtype, 4e-2) * scale
    for row in fast.report.rows:
        assert row.kernel != "dense" or row.reason, "dense with a reason, or packed"
        assert row.dense_ms is None or row.dense_ms > 0


def test_there_and_back_again(tmp_path: object) -> None:
    model = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
    prune(model, sparsity=0.8, scope="local")
    x = torch.randn(3, 96)
    expected = model(x)
    fast = convert(copy.deepcopy(model).to(DEVICE), x.to(DEVICE), keep_dense="never")
    torch.testing.assert_close(fast(x.to(DEVICE)).cpu(), expected, rtol=1e-3, atol=1e-4)
    if DEVICE.type == "cuda":
        with pytest.warns(UserWarning, match="moved from cuda to cpu"):
            fast.cpu()
        torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-5)
        with pytest.warns(UserWarning, match="moved from cpu to cuda"):
            fast.cuda()
        torch.testing.assert_close(fast(x.cuda()).cpu(), expected, rtol=1e-3, atol=1e-4)
    path = str(tmp_path) + "/model"
    pytest.importorskip("safetensors")
    save(fast, path)
    torch.testing.assert_close(load(path)(x), expected, rtol=1e-4, atol=1e-5)


def test_gradients() -> None:
    g = torch.Generator().manual_seed(3)
    weight, x = sparse_weight((48, 64), 0.3, g), torch.randn(5, 64, generator=g)
    packed = Csr("rows").pack(weight.to(DEVICE))
    leaf = x.to(DEVICE).requires_grad_()
    packed.linear(leaf, None).sum().backward()
    scale = magnitudes_linear(torch.ones(5, 48), weight.t().contiguous(), None)
    assert leaf.grad is not None
    assert_close(leaf.grad, weight.double().sum(0).expand(5, 64), scale)
