"""profile() counts what is published, leaves models as they were, and sees through every form."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

import sparseprune as sp
from sparseprune import zoo
from sparseprune.profile import Profile, profile

pytestmark = pytest.mark.filterwarnings("ignore:sparseprune runs its Python reference")

# GMACs of convolutions, linear layers and attention at the published input size, batch 1.
PUBLISHED = {
    "vgg16": 15.47,
    "resnet50": 4.09,
    "resnet18": 1.81,
    "alexnet": 0.71,
    "mobilenet_v1": 0.569,
    "mobilenet_v2": 0.30,
    "bert_base": 11.2,
    "vit_b16": 17.56,
    "vit_s16": 4.6,
}


def on_meta(name: str) -> Profile:
    with torch.device("meta"):
        model = zoo.build(name)
    return profile(model, zoo.example_inputs(name).to("meta"), latency=False)


def counted(model: nn.Module, *inputs: Tensor) -> Any:
    return profile(model, inputs, latency=False)


@pytest.mark.parametrize("name", PUBLISHED)
def test_macs_are_as_published(name: str) -> None:
    found = on_meta(name)
    assert found.macs / 1e9 == pytest.approx(PUBLISHED[name], rel=0.008)
    assert found.parameters == zoo.MODELS[name].parameters
    assert found.dense_bytes == 4 * found.parameters
    assert not found.not_counted


def test_shares_of_convolutions_and_linear_layers() -> None:
    vgg, alexnet = on_meta("vgg16").shares(), on_meta("alexnet").shares()
    assert (round(vgg["conv"], 2), round(vgg["linear"], 2)) == (0.99, 0.01)
    # 89 / 11 is published for AlexNet; the count by layers gives 92 / 8
    assert (round(alexnet["conv"], 2), round(alexnet["linear"], 2)) == (0.92, 0.08)
    assert alexnet["conv"] == pytest.approx(0.89, abs=0.03)
    assert sum(on_meta("gpt_tiny").shares().values()) == pytest.approx(1)


def naive_conv_macs(conv: Any, out: Tensor) -> int:
    taps = conv.weight[0, 0].numel()
    return out.numel() * conv.in_channels // conv.groups * taps


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_convolutions_of_any_dimension(dimensions: int, groups: int) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    conv = kind(4, 8, 3, stride=2, padding=1, groups=groups)
    x = torch.randn(2, 4, *(9, 7, 5)[:dimensions])
    assert counted(conv, x).macs == naive_conv_macs(conv, conv(x))
    assert counted(conv, x[0]).macs * 2 == counted(conv, x).macs  # without a batch


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_transposed_convolutions(dimensions: int) -> None:
    kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    conv = kinds[dimensions - 1](4, 6, 3, stride=2, groups=2)
    x = torch.randn(2, 4, *(9, 7, 5)[:dimensions])
    assert counted(conv, x).macs == x.numel() * 3 * 3**dimensions


@pytest.mark.parametrize("shape", [(10,), (3, 10), (2, 5, 10), (0, 10)])
def test_linear_with_any_leading_dimensions(shape: tuple[int, ...]) -> None:
    found = counted(nn.Linear(10, 7), torch.randn(shape))
    assert found.macs == torch.Size(shape[:-1]).numel() * 70
    assert (found.parameters, found.rows[0].parameters) == (77, 77)


def test_bytes_and_intensity_by_hand() -> None:
    (row,) = (found := counted(nn.Linear(10, 7, bias=False), torch.randn(3, 10))).rows
    assert row.activation_bytes == found.activation_bytes == 4 * (30 + 21)
    assert row.stored_bytes == row.dense_bytes == 280
    assert row.intensity == found.intensity == 2 * 210 / (204 + 280)


def test_zeros_count_only_as_executed_in_a_dense_layer() -> None:
    layer = nn.Linear(10, 10, bias=False)
    sp.prune(layer, 0.7)
    found = counted(layer, torch.randn(2, 10))
    assert (found.macs, found.nonzero_macs, found.executed_macs) == (200, 60, 200)
    assert (found.parameters, found.nonzeros) == (100, 30)
    assert found.sparsity == pytest.approx(0.7)


@pytest.mark.parametrize("name", ["lenet_5_digits", "mlp"])
def test_converted_model_executes_its_nonzeros(name: str) -> None:
    model, x = zoo.build(name), zoo.example_inputs(name, 2)
    sp.prune(model, 0.9, scope="local")
    before = profile(model, x, latency=False)
    found = profile(sp.convert(model, x, keep_dense="never"), x, latency=False)
    assert (found.macs, found.nonzero_macs) == (before.macs, before.nonzero_macs)
    assert found.executed_macs == found.nonzero_macs < before.executed_macs / 4
    assert (found.parameters, found.nonzeros) == (before.parameters, before.nonzeros)
    assert found.dense_bytes == before.dense_bytes == 4 * found.parameters
    assert found.nonzeros * 4 < found.stored_bytes < found.dense_bytes
    assert all(row.runs.startswith(("csr/", "bitmask", "sell")) for row in found.rows)
    assert found.shares() == before.shares()


def test_torch_prune_is_seen_before_and_after_remove() -> None:
    layer = nn.Linear(10, 10)
    torch_prune.l1_unstructured(layer, "weight", amount=0.8)
    found = counted(layer, torch.randn(1, 10))
    assert (found.nonzero_macs, found.parameters, found.nonzeros) == (20, 110, 30)
    assert found.stored_bytes == 440 + 400  # the mask is kept as floats
    torch_prune.remove(layer, "weight")
    assert counted(layer, torch.randn(1, 10)).nonzero_macs == 20
    assert counted(layer, torch.randn(1, 10)).stored_bytes == 440


def test_parametrized_weights_count_as_themselves() -> None:
    layer = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    found = counted(layer, torch.randn(1, 3, 5, 5))
    assert (found.macs, found.parameters) == (9 * 108, 112)
    assert found.rows[0].kind == "Conv2d"
    assert found.stored_bytes == 4 * (112 + 4)


def test_weight_that_is_a_buffer() -> None:
    layer = nn.Linear(8, 4, bias=False)
    weight = layer.weight.detach()
    del layer.weight
    layer.register_buffer("weight", weight)
    found = counted(layer, torch.randn(1, 8))
    assert (found.macs, found.parameters, found.stored_bytes) == (32, 32, 128)


def test_shared_module_is_one_row_with_all_its_calls() -> None:
    layer = nn.Linear(8, 8)
    found = profile(nn.Sequential(layer, nn.ReLU(), layer, layer), torch.randn(2, 8))
    (row,) = found.rows
    assert (row.name, row.calls, row.macs) == ("0", 3, 3 * 2 * 64)
    assert row.moved_bytes == row.activation_bytes + 3 * row.stored_bytes
    assert found.parameters == 72
    assert row.latency_ms is not None and row.latency_ms > 0


def test_tied_weights_count_once() -> None:
    first, second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    second.weight = first.weight
    found = counted(nn.Sequential(first, second), torch.randn(1, 8))
    assert [row.tied_to for row in found.rows] == ["", "0.weight"]
    assert (found.parameters, found.macs) == (64, 128)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention(device: str, need_weights: bool) -> None:
    attention = nn.MultiheadAttention(16, 4, batch_first=True, device=device)
    x = torch.randn(2, 5, 16, device=device)
    inputs = {"query": x, "key": x, "value": x, "need_weights": need_weights}
    found = profile(attention, inputs, latency=False)
    assert found.macs == 2 * 5 * 16 * 16 * 4 + 2 * (2 * 5 * 5 * 16)
    assert found.rows[0].kind == "MultiheadAttention"
    assert found.rows[0].parameters == found.parameters == 4 * 16 * 17


def test_zeros_inside_attention() -> None:
    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        attention.in_proj_weight[:16] = 0
    x = torch.randn(1, 5, 16)
    found = profile(attention, (x, x, x), latency=False)
    assert found.macs - found.nonzero_macs == 5 * 16 * 16


def test_functional_products_and_hidden_ones() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.eye(6))
            self.rnn = nn.LSTM(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.rnn(F.linear(x, self.weight) @ x.T)[0]
            return out

    found = counted(Odd(), torch.randn(6, 6))
    (row,) = found.rows
    assert (row.macs, row.nonzero_macs, row.executed_macs) == (432, 36 + 216, 432)
    assert found.not_counted == ["rnn (LSTM)"]
    assert "MACs not counted: rnn (LSTM)" in str(found)


def test_layer_that_is_not_called_is_said_so() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Module())
    model[1].spare = nn.Linear(4, 4)
    model[1].forward = lambda x: x
    found = profile(model, torch.randn(1, 4))
    assert [(row.runs, row.macs) for row in found.rows] == [("dense", 16), ("not called", 0)]


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("on purpose")


@pytest.mark.parametrize("fails", [False, True])
def test_model_is_left_as_it_was(fails: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    model[1].eval()
    if fails:
        model.append(Fails())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    if fails:
        with pytest.raises(RuntimeError, match="on purpose"):
            profile(model, torch.randn(2, 3, 8, 8))
    else:
        profile(model, torch.randn(2, 3, 8, 8))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert all(parameter.grad is None for parameter in model.parameters())


def test_latency_of_model_and_layers() -> None:
    model, x = zoo.build("lenet_300_100"), zoo.example_inputs("lenet_300_100", 64)
    found = profile(model, x)
    times = [row.latency_ms for row in found.rows]
    assert found.latency_ms is not None and found.latency_ms > 0
    assert all(ms is not None and 0 < ms < 100 * found.latency_ms for ms in times)


def test_dict_and_table() -> None:
    found = on_meta("resnet20")
    data = json.loads(json.dumps(found.to_dict()))
    assert data["macs"] == found.macs == sum(row["macs"] for row in data["rows"])
    assert data["shares"]["conv"] > 0.99 and data["rows"][0]["intensity"] > 0
    printed = str(found)
    assert "40.6 M" in printed and "layer3.2.conv2" in printed and "2 FLOP" in printed
    assert "every weight counts as nonzero" in printed


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"profile: model must be a torch.nn.Module, got str"):
        profile("resnet50", torch.randn(1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="profile: latency must be False"):
        profile(nn.Linear(2, 2, device="meta"), torch.randn(1, 2, device="meta"))
