"""LeNet-300-100 and LeNet-5 (LeCun et al., 1998), the networks of Han et al. (2015)."""

from __future__ import annotations

from torch import Tensor, nn

from sparseprune.zoo.init import he_


class LeNet300100(nn.Module):
    """Two hidden layers of 300 and 100 units; takes images [N, ...] or rows [N, inputs]."""

    def __init__(self, inputs: int = 784, classes: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, classes)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[N, ...] -> [N, classes]"""
        x = x.flatten(1)
        x = self.relu(self.fc1(x))
        x = self.relu(self.fc2(x))
        y: Tensor = self.fc3(x)
        return y


class LeNet5(nn.Module):
    """Two convolutions with max pooling, one hidden layer; Caffe's form by default.

    Defaults are 20-50-500 for images of 28x28. Small images need `kernel=3, padding=1`, otherwise
    nothing is left of them after the second pooling.
    """

    def __init__(
        self,
        image: int = 28,
        channels: tuple[int, int] = (20, 50),
        hidden: int = 500,
        kernel: int = 5,
        padding: int = 0,
        classes: int = 10,
    ) -> None:
        super().__init__()
        first, second = channels
        side = image
        for _ in channels:
            side = (side + 2 * padding - kernel + 1) // 2
        if side < 1:
            raise ValueError(
                f"LeNet5: images of {image}x{image} vanish with kernel={kernel}, "
                f"padding={padding}; try kernel=3, padding=1"
            )
        self.conv1 = nn.Conv2d(1, first, kernel, padding=padding)
        self.conv2 = nn.Conv2d(first, second, kernel, padding=padding)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(second * side * side, hidden)
        self.fc2 = nn.Linear(hidden, classes)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, image, image] -> [N, classes]"""
        x = self.pool(self.conv1(x))
        x = self.pool(self.conv2(x))
        x = self.relu(self.fc1(x.flatten(1)))
        y: Tensor = self.fc2(x)
        return y


def lenet_300_100(inputs: int = 784, classes: int = 10) -> nn.Module:
    """LeNet-300-100; `inputs=64` for the 8x8 digits."""
    return he_(LeNet300100(inputs, classes))


def lenet_5(
    image: int = 28,
    channels: tuple[int, int] = (20, 50),
    hidden: int = 500,
    kernel: int = 5,
    padding: int = 0,
    classes: int = 10,
) -> nn.Module:
    """LeNet-5 as in Caffe: 20-50-500, 431,080 parameters at 28x28."""
    return he_(LeNet5(image, channels, hidden, kernel, padding, classes))


def lenet_5_digits(classes: int = 10) -> nn.Module:
    """LeNet-5 for the 8x8 digits: same widths, 3x3 kernels with padding."""
    return lenet_5(image=8, kernel=3, padding=1, classes=classes)
