"""DenseNet-121 (Huang et al., 2017): every layer reads all before it.

Parameter names are torchvision's, so its checkpoints load.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from sparseprune.zoo.init import he_

GROWTH, BOTTLENECK = 32, 4
"""Channels that a layer adds, and how many times as many its 1x1 convolution gives."""


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1, norm, ReLU, 3x3; its channels are put behind those that it reads."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        width = BOTTLENECK * GROWTH
        self.norm1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, GROWTH, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, inputs + 32, H, W]"""
        y = self.conv1(self.relu1(self.norm1(x)))
        return torch.cat([x, self.conv2(self.relu2(self.norm2(y)))], 1)


class DenseNet(nn.Module):
    """Stem, then blocks of `depths` layers; between them channels and sizes are halved."""

    def __init__(self, depths: tuple[int, ...] = (6, 12, 24, 16), num_classes: int = 1000) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv0"] = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        layers["norm0"], layers["relu0"] = nn.BatchNorm2d(64), nn.ReLU()
        layers["pool0"] = nn.MaxPool2d(3, stride=2, padding=1)
        channels = 64
        for i, depth in enumerate(depths, 1):
            block: OrderedDict[str, nn.Module] = OrderedDict()
            for j in range(1, depth + 1):
                block[f"denselayer{j}"] = DenseLayer(channels)
                channels += GROWTH
            layers[f"denseblock{i}"] = nn.Sequential(block)
            if i < len(depths):
                layers[f"transition{i}"] = _transition(channels)
                channels //= 2
        layers["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(layers)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, num_classes]"""
        x = self.avgpool(self.relu(self.features(x)))
        y: Tensor = self.classifier(x.flatten(1))
        return y


def _transition(channels: int) -> nn.Sequential:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["norm"], parts["relu"] = nn.BatchNorm2d(channels), nn.ReLU()
    parts["conv"] = nn.Conv2d(channels, channels // 2, 1, bias=False)
    parts["pool"] = nn.AvgPool2d(2, stride=2)
    return nn.Sequential(parts)


def densenet121(num_classes: int = 1000) -> nn.Module:
    """DenseNet-121 for ImageNet at 224x224."""
    return he_(DenseNet(num_classes=num_classes))
