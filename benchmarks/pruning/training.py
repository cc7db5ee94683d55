"""The networks, how they are trained, and what is measured of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseprune import Masks, zoo
from sparseprune.demo.train import accuracy
from sparseprune.training.method import Method

from .images import Images

MLP, CONV, VGG = "LeNet-300-100", "LeNet-5", "small VGG"
BATCH = 64

adam: Callable[..., Optimizer] = partial(torch.optim.Adam, lr=2e-3, fused=True)


def sgd(network: str) -> Callable[..., Optimizer]:
    """With momentum; LeNet-5, without ReLU behind its convolutions, diverges at the MLP's rate."""
    return partial(torch.optim.SGD, lr=0.05 if network == MLP else 0.02, momentum=0.9)


def _mlp(channels: int, side: int) -> nn.Module:
    return zoo.build("lenet_300_100", inputs=channels * side * side)


def _conv(channels: int, side: int) -> nn.Module:
    """LeNet-5, with 3x3 kernels for small images and three input channels for colour."""
    model = zoo.build("lenet_5", image=side, **({"kernel": 3, "padding": 1} if side < 16 else {}))
    first = model.conv1
    if isinstance(first, nn.Conv2d) and channels != first.in_channels:
        model.conv1 = nn.Conv2d(channels, first.out_channels, first.kernel_size[0])
    return model


def _vgg(channels: int, side: int) -> nn.Module:
    """Two times two convolutions of 3x3 with batch norm and ReLU, pooling, one linear layer."""
    layers: list[nn.Module] = []
    for width in (16, 32):
        for _ in range(2):
            conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * (side // 4) ** 2, 10))


NETWORKS = {MLP: _mlp, CONV: _conv, VGG: _vgg}


@dataclass(frozen=True)
class Task:
    """Images, and for how many epochs a network is trained on them."""

    images: Images
    epochs: int
    device: str = "cpu"

    def build(self, network: str, seed: int) -> nn.Module:
        """One of `NETWORKS` for these images, initialised by `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return NETWORKS[network](*self.images.shape).to(self.device)

    @property
    def steps(self) -> int:
        """Of the optimizer, in one training."""
        return self.epochs * math.ceil(len(self.images.x_train) / BATCH)

    def part(self, share: float) -> Task:
        """The same with `share` of the epochs, at least one."""
        return replace(self, epochs=max(1, round(share * self.epochs)))

    def fit(
        self,
        model: nn.Module,
        seed: int,
        *,
        optimizer: Callable[..., Optimizer] = adam,
        masks: Masks | None = None,
        methods: Sequence[Method] = (),
        after_epoch: Callable[[], object] = lambda: None,
    ) -> None:
        """Minimises cross-entropy and the methods' penalties, with a cosine learning rate.

        masks: kept zero throughout. methods: prepared, and finalized at the end.
        """
        own = optimizer(model.parameters())
        for method in methods:
            method.prepare(model, own)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(own, T_max=self.epochs)
        order = torch.Generator().manual_seed(seed)
        with masks.attach(model, own) if masks is not None else nullcontext():
            for _ in range(self.epochs):
                model.train()
                for x, y in self.batches(order):
                    own.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    torch.autograd.backward(sum((m.penalty() for m in methods), loss))
                    own.step()
                cosine.step()
                after_epoch()
        for method in methods:
            method.finalize()

    def batches(self, order: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """All training images once, shuffled."""
        shuffled = torch.randperm(len(self.images.x_train), generator=order).to(self.device)
        for rows in shuffled.split(BATCH):
            yield self.images.x_train[rows], self.images.y_train[rows]

    def sample(self, per_class: int, seed: int) -> list[tuple[Tensor, Tensor]]:
        """One batch of training images, as many of each class."""
        order = torch.Generator().manual_seed(seed)
        shuffled = torch.randperm(len(self.images.y_train), generator=order).to(self.device)
        labels = self.images.y_train[shuffled]
        rows = torch.cat([shuffled[labels == c][:per_class] for c in labels.unique()])
        return [(self.images.x_train[rows], self.images.y_train[rows])]

    def error(self, model: nn.Module) -> float:
        """Percent of the test images that get the wrong label."""
        return 100 - accuracy(model, self.images.x_test, self.images.y_test)
