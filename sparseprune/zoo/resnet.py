"""ResNets (He et al., 2015): 18 and 50 for ImageNet, 20 and 32 for CIFAR; ResNeXt-50 (Xie et al.,
2017).

Parameter names of the ImageNet forms are torchvision's, so its checkpoints load.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sparseprune.zoo.init import he_


def conv3x3(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """3x3 convolution that keeps the image size at stride 1."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, groups=groups, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """1x1 convolution."""
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, width, H/stride, W/stride]"""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        kept = x if self.downsample is None else self.downsample(x)
        z: Tensor = self.relu(y + kept)
        return z


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the 3x3 has the stride (v1.5)."""

    expansion = 4
    groups, inner = 1, 1
    """Of the 3x3 convolution, and how many times as wide it is."""

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        outputs, inside = width * self.expansion, width * self.inner
        self.conv1 = conv1x1(inputs, inside)
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv2 = conv3x3(inside, inside, stride, self.groups)
        self.bn2 = nn.BatchNorm2d(inside)
        self.conv3 = conv1x1(inside, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, 4 width, H/stride, W/stride]"""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        kept = x if self.downsample is None else self.downsample(x)
        z: Tensor = self.relu(y + kept)
        return z


class NextBottleneck(Bottleneck):
    """32 groups of 4 channels per 64 of width."""

    groups, inner = 32, 2


class ResNet(nn.Module):
    """ImageNet form: 7x7 stem, four stages of `depths` blocks."""

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        depths: tuple[int, int, int, int],
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        wide = block.expansion
        self.layer1 = self._stage(block, 64, 64, depths[0], 1)
        self.layer2 = self._stage(block, 64 * wide, 128, depths[1], 2)
        self.layer3 = self._stage(block, 128 * wide, 256, depths[2], 2)
        self.layer4 = self._stage(block, 256 * wide, 512, depths[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512 * wide, num_classes)

    @staticmethod
    def _stage(
        block: type[BasicBlock | Bottleneck], inputs: int, width: int, depth: int, stride: int
    ) -> nn.Sequential:
        outputs = width * block.expansion
        shortcut = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
        first = block(inputs, width, stride, shortcut)
        return nn.Sequential(first, *(block(outputs, width, 1, None) for _ in range(depth - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, num_classes]"""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        y: Tensor = self.fc(self.avgpool(x).flatten(1))
        return y


class PadShortcut(nn.Module):
    """Every second pixel, new channels filled with zeros: a shortcut without parameters."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C + extra, H/2, W/2]"""
        before = self.extra // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.extra - before))


class CifarResNet(nn.Module):
    """CIFAR form: 3x3 stem, three stages of 16, 32 and 64 channels, depth = 6 n + 2."""

    def __init__(self, depth: int = 20, num_classes: int = 10) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"CifarResNet: depth must be 6 n + 2 with n >= 1, got {depth}")
        blocks = (depth - 2) // 6
        self.conv1 = conv3x3(3, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(16, 16, blocks)
        self.layer2 = self._stage(16, 32, blocks)
        self.layer3 = self._stage(32, 64, blocks)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.linear = nn.Linear(64, num_classes)

    @staticmethod
    def _stage(inputs: int, width: int, blocks: int) -> nn.Sequential:
        if inputs == width:
            first = BasicBlock(inputs, width, 1, None)
        else:
            first = BasicBlock(inputs, width, 2, PadShortcut(width - inputs))
        return nn.Sequential(first, *(BasicBlock(width, width, 1, None) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 32, 32] -> [N, num_classes]"""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        y: Tensor = self.linear(self.avgpool(x).flatten(1))
        return y


def resnet18(num_classes: int = 1000) -> nn.Module:
    """ResNet-18 for ImageNet."""
    return he_(ResNet(BasicBlock, (2, 2, 2, 2), num_classes))


def resnet50(num_classes: int = 1000) -> nn.Module:
    """ResNet-50 for ImageNet."""
    return he_(ResNet(Bottleneck, (3, 4, 6, 3), num_classes))


def resnext50(num_classes: int = 1000) -> nn.Module:
    """ResNeXt-50 32x4d for ImageNet at 224x224."""
    return he_(ResNet(NextBottleneck, (3, 4, 6, 3), num_classes))


def resnet20(num_classes: int = 10) -> nn.Module:
    """ResNet-20 for CIFAR."""
    return he_(CifarResNet(20, num_classes))


def resnet32(num_classes: int = 10) -> nn.Module:
    """ResNet-32 for CIFAR."""
    return he_(CifarResNet(32, num_classes))
