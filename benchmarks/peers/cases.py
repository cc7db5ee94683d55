"""What is timed: networks, their inputs, and the random masks that prune them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparseprune import zoo
from sparseprune.bench import stem_and_classifier
from sparseprune.prune import prune
from sparseprune.selection import prunable_weights
from sparseprune.zoo.init import he_

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Case:
    """One row of the comparison.

    Attributes:
        title: names it in tables and on the command line.
        build: makes the dense network.
        shape: of the input.
        vocab: set where inputs are token numbers below it.
    """

    title: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    vocab: int | None = None

    def pruned(self, sparsity: float) -> tuple[nn.Module, Tensor]:
        """The network in eval mode, every pruned layer at `sparsity`, and its input.

        The same ones at every call. `stem_and_classifier` and depthwise convolutions stay dense.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, x = self.build().eval(), self._input()
            prune_at_random(model, sparsity)
            tell_apart(model)
        calibrate(model, x)
        return model, x

    def _input(self) -> Tensor:
        if self.vocab is not None:
            return torch.randint(self.vocab, self.shape)
        return torch.randn(self.shape)


def prune_at_random(model: nn.Module, sparsity: float) -> None:
    """Exact zeros at random places, the same share in every pruned layer.

    The weights that stay grow by 1 / sqrt(density), so that signals keep their size and a wrong
    early layer shows in the output.
    """
    kept = (*stem_and_classifier(model), *depthwise(model))
    weights = prunable_weights(model, ignore=kept, operation="peers")
    prune(model, sparsity, criterion=torch.rand_like, scope="local", ignore=kept)
    with torch.no_grad():
        for weight in weights.values():
            weight /= (1 - sparsity) ** 0.5


def depthwise(model: nn.Module) -> tuple[str, ...]:
    """Names of grouped convolutions: at 95 % most of their channels would have no weight left."""
    found = (n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1)
    return tuple(found)


def tell_apart(model: nn.Module) -> None:
    """Biases and layer norms that are all zeros or ones get noise, as training would give them.

    A bias that is forgotten then shows in the output, and exporters do not share equal ones.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.LayerNorm):
            for vector in (layer.weight, layer.bias):
                if vector is not None and vector.dim() == 1 and bool((vector == vector[0]).all()):
                    vector.data += 0.02 * torch.randn_like(vector)


def calibrate(model: nn.Module, x: Tensor) -> None:
    """Gives every BatchNorm the mean and variance that it meets on `x`.

    As after training: signals keep their size, and no two folded biases are the same.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    if norms:
        with torch.no_grad():
            model(x)
    model.eval()


def conv_stack(channels: int, kernel: int, depth: int = 4) -> nn.Module:
    """`depth` times a convolution that keeps channels and image size, and a ReLU."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(channels, channels, kernel, padding=kernel // 2), nn.ReLU()]
    return he_(nn.Sequential(*layers))


def _mlp(rows: int) -> Case:
    title = f"4 x Linear 1024 + ReLU, {rows} row{'s' if rows > 1 else ''}"
    return Case(title, lambda: zoo.build("mlp"), (rows, 1024))


def _conv(kernel: int, channels: int, side: int, batch: int) -> Case:
    title = f"4 x conv {kernel}x{kernel} + ReLU, {channels} ch, {side}x{side}, b{batch}"
    return Case(title, lambda: conv_stack(channels, kernel), (batch, channels, side, side))


def _network(title: str, name: str, batch: int) -> Case:
    return Case(
        f"{title}, b{batch}", lambda: zoo.build(name), (batch, *zoo.entry(name).input_shape)
    )


def _transformer(title: str, name: str, tokens: int, batch: int) -> Case:
    title, vocab = f"{title}, {tokens} tokens, b{batch}", zoo.entry(name).vocab
    return Case(title, lambda: zoo.build(name), (batch, tokens), vocab)


CASES = (
    *(_mlp(rows) for rows in (128, 32, 1)),
    Case("Linear 4096x4096, 1 row", lambda: he_(nn.Linear(4096, 4096)), (1, 4096)),
    _conv(3, 256, 14, batch=1),
    _conv(3, 256, 14, batch=16),
    _conv(3, 64, 56, batch=1),
    _conv(1, 512, 14, batch=1),
    _network("MobileNetV1", "mobilenet_v1", 1),
    _network("MobileNetV1", "mobilenet_v1", 16),
    _network("ResNet-50", "resnet50", 1),
    _network("ResNet-50", "resnet50", 16),
    _network("VGG-16", "vgg16", 1),
    _network("ResNeXt-50", "resnext50", 1),
    _network("DenseNet-121", "densenet121", 1),
    _network("EfficientNet-B0", "efficientnet_b0", 1),
    _network("ShuffleNetV2", "shufflenet_v2", 1),
    _network("YOLOv5s", "yolov5s", 1),
    _network("ViT-S/16", "vit_s16", 1),
    _transformer("BERT-base", "bert_base", 128, 1),
    _transformer("BERT-base", "bert_base", 384, 1),
    _transformer("BERT-base", "bert_base", 128, 16),
    _transformer("GPT-2", "gpt2", 128, 1),
)
