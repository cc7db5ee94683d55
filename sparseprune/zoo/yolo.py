"""YOLOv5s (Jocher et al., 2020): a detector whose maps are joined from three scales."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparseprune.zoo.init import he_
from sparseprune.zoo.mobilenet import conv_bn


def _conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Module:
    return conv_bn(inputs, outputs, kernel, stride, nn.SiLU())


class C3(nn.Module):
    """Half of the channels through `depth` pairs of 1x1 and 3x3, the others past them."""

    def __init__(self, inputs: int, outputs: int, depth: int, adds_input: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.cv1, self.cv2 = _conv(inputs, half), _conv(inputs, half)
        self.cv3 = _conv(2 * half, outputs)
        pairs = (nn.Sequential(_conv(half, half), _conv(half, half, 3)) for _ in range(depth))
        self.m = nn.ModuleList(pairs)
        self.adds_input = adds_input

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H, W]"""
        y = self.cv1(x)
        for pair in self.m:
            y = y + pair(y) if self.adds_input else pair(y)
        z: Tensor = self.cv3(torch.cat((y, self.cv2(x)), 1))
        return z


class SPPF(nn.Module):
    """Maxima of ever larger windows, side by side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = _conv(inputs, inputs // 2), _conv(2 * inputs, outputs)
        self.m = nn.MaxPool2d(5, stride=1, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H, W]"""
        x = self.cv1(x)
        y = self.m(x)
        z = self.m(y)
        out: Tensor = self.cv2(torch.cat((x, y, z, self.m(z)), 1))
        return out


class YOLOv5(nn.Module):
    """Backbone, a way up and a way down between its three scales, a 1x1 head on each."""

    def __init__(self, width: int = 32, classes: int = 80, anchors: int = 3) -> None:
        super().__init__()
        c = [width << i for i in range(5)]
        step: Callable[[int, int], nn.Module] = lambda i, o: _conv(i, o, 3, 2)  # noqa: E731
        self.stem = nn.Sequential(
            nn.Conv2d(3, c[0], 6, 2, 2, bias=False), nn.BatchNorm2d(c[0]), nn.SiLU()
        )
        self.down2 = nn.Sequential(step(c[0], c[1]), C3(c[1], c[1], 1))
        self.down3 = nn.Sequential(step(c[1], c[2]), C3(c[2], c[2], 2))
        self.down4 = nn.Sequential(step(c[2], c[3]), C3(c[3], c[3], 3))
        self.down5 = nn.Sequential(step(c[3], c[4]), C3(c[4], c[4], 1), SPPF(c[4], c[4]))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.narrow5, self.up4 = _conv(c[4], c[3]), C3(c[4], c[3], 1, False)
        self.narrow4, self.up3 = _conv(c[3], c[2]), C3(c[3], c[2], 1, False)
        self.step3, self.out4 = step(c[2], c[2]), C3(c[3], c[3], 1, False)
        self.step4, self.out5 = step(c[3], c[3]), C3(c[4], c[4], 1, False)
        outputs = anchors * (classes + 5)
        self.heads = nn.ModuleList(nn.Conv2d(channels, outputs, 1) for channels in c[2:])

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, anchors * (classes + 5), positions of all three scales], raw"""
        x3 = self.down3(self.down2(self.stem(x)))
        x4 = self.down4(x3)
        top = self.narrow5(self.down5(x4))
        middle = self.narrow4(self.up4(torch.cat((self.up(top), x4), 1)))
        small = self.up3(torch.cat((self.up(middle), x3), 1))
        medium = self.out4(torch.cat((self.step3(small), middle), 1))
        large = self.out5(torch.cat((self.step4(medium), top), 1))
        maps = zip(self.heads, (small, medium, large), strict=True)
        return torch.cat([head(y).flatten(2) for head, y in maps], 2)


def yolov5s(classes: int = 80) -> nn.Module:
    """YOLOv5s without the decoding of boxes, at any size that 32 divides."""
    return he_(YOLOv5(classes=classes))
