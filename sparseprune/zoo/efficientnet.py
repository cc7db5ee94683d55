"""EfficientNet-B0 (Tan and Le, 2019).

Parameter names are torchvision's, so its checkpoints load. Its stochastic depth, which does nothing
in eval mode, is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparseprune.zoo.init import he_
from sparseprune.zoo.mobilenet import conv_bn

B0_PLAN = (
    *((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3)),
    *((6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)),
)
"""(expansion, output channels, repetitions, first stride, kernel) of each stage."""


class SqueezeExcitation(nn.Module):
    """Every channel times a gate that two 1x1 convolutions compute from all means."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.activation = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]"""
        gate: Tensor = self.fc2(self.activation(self.fc1(self.avgpool(x))))
        return torch.sigmoid(gate) * x


class MBConv(nn.Module):
    """Expand 1x1, filter depthwise, squeeze and excite, project 1x1 without activation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv_bn(inputs, hidden, 1, 1, nn.SiLU()))
        layers.append(conv_bn(hidden, hidden, kernel, stride, nn.SiLU(), groups=hidden))
        layers.append(SqueezeExcitation(hidden, max(1, inputs // 4)))
        layers.append(conv_bn(hidden, outputs, 1, 1, nn.Identity()))
        self.block = nn.Sequential(*layers)
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H/stride, W/stride]"""
        y: Tensor = self.block(x)
        return x + y if self.adds_input else y


class EfficientNet(nn.Module):
    """A 3x3 stem, sixteen blocks, a 1x1 convolution to 1280 channels."""

    def __init__(self, num_classes: int = 1000, dropout: float = 0.2) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn(3, 32, 3, 2, nn.SiLU())]
        channels = 32
        for expansion, outputs, repetitions, stride, kernel in B0_PLAN:
            first = MBConv(channels, outputs, kernel, stride, expansion)
            rest = (MBConv(outputs, outputs, kernel, 1, expansion) for _ in range(repetitions - 1))
            layers.append(nn.Sequential(first, *rest))
            channels = outputs
        layers.append(conv_bn(channels, 1280, 1, 1, nn.SiLU()))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(1280, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, num_classes]"""
        y: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return y


def efficientnet_b0(num_classes: int = 1000, dropout: float = 0.2) -> nn.Module:
    """EfficientNet-B0 for ImageNet at 224x224."""
    return he_(EfficientNet(num_classes, dropout))
