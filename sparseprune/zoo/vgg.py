"""VGG-16 (Simonyan & Zisserman, 2014): ImageNet form, CIFAR form, convolutions alone.

Parameter names of the ImageNet form are torchvision's, so its checkpoints load.
"""

from __future__ import annotations

from torch import Tensor, nn

from sparseprune.zoo.init import he_

# Output channels of each 3x3 convolution; "pool" halves the image.
PLAN: tuple[int | str, ...] = (
    *(64, 64, "pool"),
    *(128, 128, "pool"),
    *(256, 256, 256, "pool"),
    *(512, 512, 512, "pool"),
    *(512, 512, 512, "pool"),
)


def convolutions(batch_norm: bool = False) -> nn.Sequential:
    """The 13 convolutions of VGG-16 with their ReLUs and pools.

    [N, 3, H, W] -> [N, 512, H/32, W/32]
    """
    layers: list[nn.Module] = []
    channels = 3
    for step in PLAN:
        if isinstance(step, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers.append(nn.Conv2d(channels, step, 3, padding=1))
        if batch_norm:
            layers.append(nn.BatchNorm2d(step))
        layers.append(nn.ReLU())
        channels = step
    return nn.Sequential(*layers)


class VGG16(nn.Module):
    """Convolutions, pooling to 7x7, three linear layers."""

    def __init__(self, num_classes: int = 1000, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = convolutions()
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, num_classes]"""
        x = self.avgpool(self.features(x))
        y: Tensor = self.classifier(x.flatten(1))
        return y


class VGG16Cifar(nn.Module):
    """Convolutions with batch normalisation and one linear layer, for images of 32x32."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = convolutions(batch_norm=True)
        self.classifier = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 32, 32] -> [N, num_classes]"""
        y: Tensor = self.classifier(self.features(x).flatten(1))
        return y


def vgg16(num_classes: int = 1000, dropout: float = 0.5) -> nn.Module:
    """VGG-16 for ImageNet."""
    return he_(VGG16(num_classes, dropout))


def vgg16_cifar(num_classes: int = 10) -> nn.Module:
    """VGG-16 for CIFAR."""
    return he_(VGG16Cifar(num_classes))


def vgg16_features() -> nn.Module:
    """The 13 convolutions of VGG-16, without classifier."""
    return he_(convolutions())
