"""MobileNet V1 (Howard et al., 2017) and V2 (Sandler et al., 2018).

Parameter names of V2 are torchvision's, so its checkpoints load.
"""

from __future__ import annotations

from torch import Tensor, nn

from sparseprune.zoo.init import he_

# (output channels, stride) of each depthwise-separable pair of V1.
V1_PLAN = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)
# (expansion, output channels, repetitions, first stride) of each stage of V2.
V2_PLAN = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def conv_bn(
    inputs: int, outputs: int, kernel: int, stride: int, activation: nn.Module, groups: int = 1
) -> nn.Sequential:
    """Convolution, batch normalisation, activation; keeps the image size at stride 1."""
    conv = nn.Conv2d(
        inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), activation)


class MobileNetV1(nn.Module):
    """A 3x3 stem and thirteen pairs of depthwise 3x3 and pointwise 1x1 convolutions."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        layers = [conv_bn(3, 32, 3, 2, nn.ReLU())]
        channels = 32
        for outputs, stride in V1_PLAN:
            layers.append(conv_bn(channels, channels, 3, stride, nn.ReLU(), groups=channels))
            layers.append(conv_bn(channels, outputs, 1, 1, nn.ReLU()))
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, num_classes]"""
        x = self.avgpool(self.features(x))
        y: Tensor = self.classifier(x.flatten(1))
        return y


class InvertedResidual(nn.Module):
    """Expand 1x1, filter depthwise 3x3, project 1x1 without activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv_bn(inputs, hidden, 1, 1, nn.ReLU6()))
        layers.append(conv_bn(hidden, hidden, 3, stride, nn.ReLU6(), groups=hidden))
        layers += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H/stride, W/stride]"""
        y: Tensor = self.conv(x)
        return x + y if self.adds_input else y


class MobileNetV2(nn.Module):
    """A 3x3 stem, seventeen inverted residuals, a 1x1 convolution to 1280 channels."""

    def __init__(self, num_classes: int = 1000, dropout: float = 0.2) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn(3, 32, 3, 2, nn.ReLU6())]
        channels = 32
        for expansion, outputs, repetitions, first_stride in V2_PLAN:
            for i in range(repetitions):
                stride = first_stride if i == 0 else 1
                layers.append(InvertedResidual(channels, outputs, stride, expansion))
                channels = outputs
        layers.append(conv_bn(channels, 1280, 1, 1, nn.ReLU6()))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(1280, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, num_classes]"""
        x = self.avgpool(self.features(x))
        y: Tensor = self.classifier(x.flatten(1))
        return y


def mobilenet_v1(num_classes: int = 1000) -> nn.Module:
    """MobileNet 1.0 for ImageNet at 224x224."""
    return he_(MobileNetV1(num_classes))


def mobilenet_v2(num_classes: int = 1000, dropout: float = 0.2) -> nn.Module:
    """MobileNetV2 1.0 for ImageNet at 224x224."""
    return he_(MobileNetV2(num_classes, dropout))
