"""Networks people prune, in plain PyTorch with random weights, under their published names.

    model = zoo.build("vgg16_cifar")
    x = zoo.example_inputs("vgg16_cifar", batch=8)

Every model can be traced by torch.fx and compiled as one graph.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparseprune.zoo.alexnet import alexnet
from sparseprune.zoo.bert import bert_base
from sparseprune.zoo.densenet import densenet121
from sparseprune.zoo.efficientnet import efficientnet_b0
from sparseprune.zoo.gpt import gpt2, gpt_tiny
from sparseprune.zoo.lenet import lenet_5, lenet_5_digits, lenet_300_100
from sparseprune.zoo.mlp import mlp
from sparseprune.zoo.mobilenet import mobilenet_v1, mobilenet_v2
from sparseprune.zoo.resnet import resnet18, resnet20, resnet32, resnet50, resnext50
from sparseprune.zoo.shufflenet import shufflenet_v2
from sparseprune.zoo.vgg import vgg16, vgg16_cifar, vgg16_features
from sparseprune.zoo.vit import vit_b16, vit_s16
from sparseprune.zoo.yolo import yolov5s

__all__ = ["MODELS", "Entry", "build", "example_inputs", "parameter_count"]


@dataclass(frozen=True)
class Entry:
    """One model: how to build it and what is known about it with its default arguments."""

    builder: Callable[..., nn.Module]
    parameters: int  # biases and normalisation included, tied tensors once
    input_shape: tuple[int, ...]  # of one example, without the batch
    source: str  # where the parameter count is published
    vocab: int | None = None  # set where inputs are token numbers below it


MODELS: dict[str, Entry] = {
    "lenet_300_100": Entry(lenet_300_100, 266_610, (1, 28, 28), "Han 2015: 267K"),
    "lenet_5": Entry(lenet_5, 431_080, (1, 28, 28), "Han 2015: 431K"),
    "lenet_5_digits": Entry(lenet_5_digits, 114_760, (1, 8, 8), "this library"),
    "mlp": Entry(mlp, 4_198_400, (1024,), "this library"),
    "alexnet": Entry(alexnet, 61_100_840, (3, 224, 224), "torchvision; Han 2015: 61M"),
    "vgg16": Entry(vgg16, 138_357_544, (3, 224, 224), "torchvision; Han 2015: 138M"),
    "vgg16_cifar": Entry(vgg16_cifar, 14_728_266, (3, 32, 32), "kuangliu/pytorch-cifar"),
    "vgg16_features": Entry(vgg16_features, 14_714_688, (3, 32, 32), "torchvision"),
    "resnet18": Entry(resnet18, 11_689_512, (3, 224, 224), "torchvision"),
    "resnet20": Entry(resnet20, 269_722, (3, 32, 32), "He 2015: 0.27M"),
    "resnet32": Entry(resnet32, 464_154, (3, 32, 32), "He 2015: 0.46M"),
    "resnet50": Entry(resnet50, 25_557_032, (3, 224, 224), "torchvision"),
    "mobilenet_v1": Entry(mobilenet_v1, 4_231_976, (3, 224, 224), "Keras; Howard 2017: 4.2M"),
    "mobilenet_v2": Entry(mobilenet_v2, 3_504_872, (3, 224, 224), "torchvision"),
    "resnext50": Entry(resnext50, 25_028_904, (3, 224, 224), "torchvision: resnext50_32x4d"),
    "densenet121": Entry(densenet121, 7_978_856, (3, 224, 224), "torchvision"),
    "shufflenet_v2": Entry(shufflenet_v2, 2_278_604, (3, 224, 224), "torchvision: x1_0"),
    "efficientnet_b0": Entry(efficientnet_b0, 5_288_548, (3, 224, 224), "torchvision"),
    "yolov5s": Entry(yolov5s, 7_235_389, (3, 320, 320), "Ultralytics: 7.2M"),
    "vit_b16": Entry(vit_b16, 86_567_656, (3, 224, 224), "torchvision: vit_b_16"),
    "vit_s16": Entry(vit_s16, 22_050_664, (3, 224, 224), "timm: deit_small_patch16_224"),
    "bert_base": Entry(bert_base, 109_482_240, (128,), "Hugging Face BertModel", vocab=30522),
    "gpt2": Entry(gpt2, 124_439_808, (128,), "Hugging Face GPT2LMHeadModel", vocab=50257),
    "gpt_tiny": Entry(gpt_tiny, 3_448_320, (64,), "this library", vocab=1000),
}


def entry(name: str) -> Entry:
    """The registered model of that name; an unknown name is answered with near ones."""
    if name in MODELS:
        return MODELS[name]
    near = difflib.get_close_matches(name.lower().replace("-", "_"), MODELS, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(MODELS))}"
    raise ValueError(f"zoo: no model named {name!r}; {hint}")


def build(name: str, **options: Any) -> nn.Module:
    """A new model in training mode; `options` go to its builder (see its signature)."""
    return entry(name).builder(**options)


def example_inputs(name: str, batch: int = 1) -> Tensor:
    """Random inputs of the model's default shape, the same ones at every call."""
    found = entry(name)
    generator = torch.Generator().manual_seed(0)
    shape = (batch, *found.input_shape)
    if found.vocab is not None:
        return torch.randint(found.vocab, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def parameter_count(model: nn.Module) -> int:
    """sum of numel over distinct parameters: weights, biases and normalisation."""
    return sum(parameter.numel() for parameter in model.parameters())
