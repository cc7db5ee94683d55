"""ShuffleNetV2 1.0 (Ma et al., 2018): half of the channels pass, then all are dealt.

Parameter names are torchvision's, so its checkpoints load.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparseprune.zoo.init import he_

STAGES = ((116, 4), (232, 8), (464, 4))
"""(channels, blocks) of each stage."""


def _pointwise(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def _depthwise(channels: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


def shuffle(x: Tensor) -> Tensor:
    """[N, C, H, W], its two halves dealt in turn."""
    n, channels, height, width = x.size()
    x = x.view(n, 2, channels // 2, height, width)
    return x.transpose(1, 2).contiguous().view(n, channels, height, width)


class Block(nn.Module):
    """1x1, depthwise 3x3, 1x1 on half of the channels; with a stride on all, twice."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.stride = stride
        self.branch1 = nn.Sequential()
        if stride > 1:
            self.branch1 = nn.Sequential(*_depthwise(inputs, stride), *_pointwise(inputs, half))
        self.branch2 = nn.Sequential(
            *_pointwise(inputs if stride > 1 else half, half),
            *_depthwise(half, stride),
            *_pointwise(half, half),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H/stride, W/stride]"""
        if self.stride > 1:
            return shuffle(torch.cat((self.branch1(x), self.branch2(x)), 1))
        left, right = x.chunk(2, dim=1)
        return shuffle(torch.cat((left, self.branch2(right)), 1))


class ShuffleNetV2(nn.Module):
    """A 3x3 stem, three stages, a 1x1 convolution to 1024 channels."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        stem = nn.Conv2d(3, 24, 3, stride=2, padding=1, bias=False)
        self.conv1 = nn.Sequential(stem, nn.BatchNorm2d(24), nn.ReLU())
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels, stages = 24, []
        for outputs, blocks in STAGES:
            first = Block(channels, outputs, 2)
            rest = (Block(outputs, outputs, 1) for _ in range(blocks - 1))
            stages.append(nn.Sequential(first, *rest))
            channels = outputs
        self.stage2, self.stage3, self.stage4 = stages
        self.conv5 = nn.Sequential(*_pointwise(channels, 1024))
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, num_classes]"""
        x = self.stage4(self.stage3(self.stage2(self.maxpool(self.conv1(x)))))
        y: Tensor = self.fc(self.conv5(x).mean((2, 3)))
        return y


def shufflenet_v2(num_classes: int = 1000) -> nn.Module:
    """ShuffleNetV2 1.0 for ImageNet at 224x224."""
    return he_(ShuffleNetV2(num_classes))
