"""The zoo's networks have their published sizes and can be traced and built by name."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from sparseprune import zoo
from sparseprune.zoo.vit import Attention

# Small enough to run on any machine in a second each.
SMALL = (
    "lenet_300_100",
    "lenet_5",
    "lenet_5_digits",
    "mlp",
    "vgg16_cifar",
    "vgg16_features",
    "resnet18",
    "resnet20",
    "resnet32",
    "mobilenet_v1",
    "mobilenet_v2",
    "shufflenet_v2",
    "efficientnet_b0",
    "vit_s16",
    "gpt_tiny",
)
OUTPUT_SHAPES = {
    "mlp": (2, 1024),
    "vgg16_features": (2, 512, 1, 1),
    "gpt_tiny": (2, 64, 1000),
    "bert_base": (2, 768),
    "gpt2": (2, 128, 50257),
    **dict.fromkeys(("alexnet", "vgg16", "resnet18", "resnet50"), (2, 1000)),
    **dict.fromkeys(("mobilenet_v1", "mobilenet_v2", "shufflenet_v2"), (2, 1000)),
    **dict.fromkeys(("resnext50", "densenet121", "efficientnet_b0"), (2, 1000)),
    **dict.fromkeys(("vit_b16", "vit_s16"), (2, 1000)),
    "yolov5s": (2, 255, 40 * 40 + 20 * 20 + 10 * 10),
}


@pytest.mark.parametrize("name", zoo.MODELS)
def test_parameters_are_as_published(name: str) -> None:
    with torch.device("meta"):
        model = zoo.build(name)
    assert zoo.parameter_count(model) == zoo.MODELS[name].parameters


@pytest.mark.parametrize("name", zoo.MODELS)
def test_output_shape_and_trace(name: str) -> None:
    with torch.device("meta"):
        model = zoo.build(name).eval()
    traced = fx.symbolic_trace(model)
    y = traced(zoo.example_inputs(name, batch=2).to("meta"))
    assert tuple(y.shape) == OUTPUT_SHAPES.get(name, (2, 10))


@pytest.mark.parametrize("name", SMALL)
def test_eval_is_deterministic_finite_and_traceable(name: str) -> None:
    torch.manual_seed(0)
    model = zoo.build(name).eval()
    x = zoo.example_inputs(name)
    with torch.no_grad():
        y = model(x)
        assert y.isfinite().all()
        assert torch.equal(y, model(x))
        torch.testing.assert_close(fx.symbolic_trace(model)(x), y)


@pytest.mark.parametrize("name", ["resnet20", "gpt_tiny", "lenet_5", "mobilenet_v2", "vit_s16"])
def test_dynamo_captures_one_graph(name: str) -> None:
    torch._dynamo.reset()
    model = zoo.build(name).eval()
    x = zoo.example_inputs(name)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("name", ["bert_base", "gpt2"])
def test_transformers_shrink_by_option(name: str) -> None:
    model = zoo.build(name, width=32, depth=2, heads=4, vocab=50, context=16).eval()
    tokens = torch.randint(50, (2, 16))
    with torch.no_grad():
        assert model(tokens).isfinite().all()
        shorter = model(tokens[:, :8])
    assert shorter.isfinite().all()


@pytest.mark.parametrize("name", ["vit_b16", "vit_s16"])
def test_vision_transformers_shrink_by_option(name: str) -> None:
    options = {"width": 32, "depth": 2, "heads": 4, "image": 32, "patch": 8, "num_classes": 5}
    model, x = zoo.build(name, **options).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        y = model(x)
        assert tuple(y.shape) == (2, 5) and y.isfinite().all()
        assert not torch.allclose(model(x.flip(-1)), y, atol=1e-4)  # it sees where a patch is


def test_attention_of_vit_is_torchs() -> None:
    attention, expected = Attention(32, 4), nn.MultiheadAttention(32, 4, batch_first=True)
    expected.in_proj_weight, expected.in_proj_bias = attention.qkv.weight, attention.qkv.bias
    expected.out_proj.load_state_dict(attention.proj.state_dict())
    x = torch.randn(2, 5, 32)
    torch.testing.assert_close(attention(x), expected(x, x, x, need_weights=False)[0])


def test_vit_refuses_images_that_patches_do_not_fill() -> None:
    with pytest.raises(ValueError, match="image of 224 does not divide into patches of 15"):
        zoo.build("vit_s16", patch=15)


def test_gpt_does_not_look_ahead() -> None:
    model = zoo.build("gpt_tiny").eval()
    tokens = torch.arange(8)[None]
    changed = tokens.clone()
    changed[0, -1] = 99
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[:, :-1], model(changed)[:, :-1])


def test_deep_networks_keep_their_signal() -> None:
    torch.manual_seed(0)
    model = zoo.build("vgg16_features").eval()
    with torch.no_grad():
        y = model(zoo.example_inputs("vgg16_features"))
    assert 0.1 < float(y.std()) < 10


def test_unknown_name_is_answered_with_near_ones() -> None:
    with pytest.raises(ValueError, match="did you mean resnet50"):
        zoo.build("ResNet-50x")
    with pytest.raises(ValueError, match="known: alexnet"):
        zoo.example_inputs("zzz")


def test_examples_are_the_same_at_every_call() -> None:
    assert torch.equal(zoo.example_inputs("mlp", 3), zoo.example_inputs("mlp", 3))
    tokens = zoo.example_inputs("gpt_tiny", 2)
    assert tokens.dtype == torch.int64 and int(tokens.max()) < 1000


def test_lenet_5_refuses_images_that_vanish() -> None:
    with pytest.raises(ValueError, match="kernel=3, padding=1"):
        zoo.build("lenet_5", image=8)


def test_cifar_resnet_refuses_other_depths() -> None:
    from sparseprune.zoo.resnet import CifarResNet

    with pytest.raises(ValueError, match="6 n \\+ 2"):
        CifarResNet(21)
