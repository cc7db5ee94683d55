"""Models of every kind that convert() meets, and their inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import TOLERANCE, sparse_weight
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

from sparseprune.selection import PRUNABLE

Model = tuple[nn.Module, Any]
as_convert_is_tested = [
    pytest.mark.usefixtures("quick_timer"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]
"""The pytestmark of every file that converts these models."""


def prune_(model: nn.Module, density: float = 0.2) -> nn.Module:
    """Exact zeros in every Linear and convolution."""
    generator = torch.Generator().manual_seed(11)
    for module in model.modules():
        if isinstance(module, PRUNABLE) and module.weight.is_leaf:
            weight = sparse_weight(tuple(module.weight.shape), density, generator) * 0.3
            module.weight.data = weight.to(module.weight.dtype)
    return model


def call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        y = model(**inputs)
        mask = inputs.get("src_key_padding_mask")  # what lies under it, torch leaves open
        return y if mask is None else y[~mask]
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


class Mlp(nn.Module):
    """Named children, a container in a container, and a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(24, 32)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(2))
        self.heads = nn.ModuleDict({"a": nn.Linear(32, 4), "b": nn.Linear(32, 3, bias=False)})

    def forward(self, x: Tensor, scale: float = 1.0, *, both: bool = True) -> dict[str, Tensor]:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x) * scale
        return {name: head(x) for name, head in self.heads.items() if both or name == "a"}


class ByKeyword(nn.Module):
    """Layers called with keywords, an unbatched image, and no positional argument at all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(4, 5)

    def forward(self, *, image: Tensor) -> Tensor:
        return self.linear(input=self.conv(input=image).mean((-1, -2)))


class Twice(nn.Module):
    """One layer called twice, under two names, and a third layer with the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.again = self.first
        self.tied = nn.Linear(16, 16)
        self.tied.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(self.again(self.first(x)))


class Tokens(nn.Module):
    """Integer inputs, and an output layer tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.middle = nn.Linear(16, 16)
        self.out = nn.Linear(16, 50, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.middle(self.embedding(ids)))


class Remembers(nn.Module):
    """Layers, and a function that changes what the model holds.

    Args:
        remember: called with the model and the output of the layers.
    """

    def __init__(self, remember: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(20, 30), nn.Linear(30, 10)
        self.register_buffer("mean", torch.zeros(10))
        self.hidden: Tensor | None = None
        self.calls, self.seen = 0, list[Tensor]()
        self.remember = remember

    def forward(self, x: Tensor) -> Tensor:
        return self.remember(self, self.second(self.first(x).relu()))


def rebinds_a_buffer(m: Remembers, y: Tensor) -> Tensor:
    m.mean = 0.9 * m.mean + y.detach().mean(0)
    return y - m.mean


def adds_to_a_buffer(m: Remembers, y: Tensor) -> Tensor:
    m.mean += 1
    return y - m.mean


def writes_a_buffer(m: Remembers, y: Tensor) -> Tensor:
    m.mean.mul_(0.9).add_(y.detach().mean(0))
    return y - m.mean


def carries_a_tensor(m: Remembers, y: Tensor) -> Tensor:
    m.hidden = y.detach() if m.hidden is None else 0.5 * m.hidden + y.detach()
    return m.hidden


def counts_calls(m: Remembers, y: Tensor) -> Tensor:
    m.calls += 1
    return y * m.calls


def fills_a_list(m: Remembers, y: Tensor) -> Tensor:
    m.seen.append(y.detach())
    return sum(m.seen)  # type: ignore[return-value]


def hooks_itself(m: Remembers, y: Tensor) -> Tensor:
    """As transformers does: once, as a mark on the model says."""
    if not hasattr(m, "hooked"):
        m.first.register_forward_hook(lambda module, args, output: output + 1)
        m.hooked = True
    return y


MEMORIES = (
    rebinds_a_buffer, adds_to_a_buffer, writes_a_buffer, carries_a_tensor, counts_calls,
    fills_a_list, hooks_itself,
)  # fmt: skip
"""Everything that a forward may leave in its model for the next call."""


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding="same", padding_mode="reflect"),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),
        nn.Conv2d(8, 12, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(12, 5),
    )


def convnet_of(dims: int) -> nn.Module:
    """A convolutional network of 1 or 3 dimensions."""
    conv, norm, pool = {
        1: (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d),
        3: (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d),
    }[dims]
    return nn.Sequential(
        conv(3, 8, 3, padding="same", padding_mode="replicate"),
        norm(8),
        nn.ReLU(),
        pool(2),
        conv(8, 8, 3, stride=2, padding=1, groups=2, bias=False),
        nn.ReLU6(),
        conv(8, 8, 3, padding=2, dilation=2, groups=8),
        conv(8, 4, 1),
        nn.Flatten(),
        nn.LazyLinear(5),
    )


def torch_pruned() -> nn.Module:
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))
    for layer in (model[0], model[2]):
        torch_prune.l1_unstructured(layer, "weight", 0.8)
    torch_prune.random_unstructured(model[0], "weight", 0.5)  # a container of two methods
    torch_prune.l1_unstructured(model[0], "bias", 0.5)
    return model


def normed(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(norm(nn.Linear(20, 30)), nn.ReLU(), norm(nn.Linear(30, 10)))


def encoder(layers: int = 0, **options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, **options)
    return nn.TransformerEncoder(layer, layers) if layers else layer


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(16, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        return self.attention(x, x, x, need_weights=False)[0]


def padded_sequence() -> dict[str, Tensor]:
    """A batch of which one sequence ends early: torch's encoder then makes nested tensors."""
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[1, 4:] = True
    return {"src": torch.randn(2, 7, 16), "src_key_padding_mask": mask}


def built(model: nn.Module, x: Tensor) -> Model:
    """A model with the layers that its first input gives a size."""
    model.eval()(x)
    return model.train(), x


MODELS: dict[str, Callable[[], Model]] = {
    "sequential": lambda: (
        nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10)),
        torch.randn(6, 20),
    ),
    "root_is_a_layer": lambda: (nn.Linear(20, 12), torch.randn(6, 20)),
    "root_is_a_conv": lambda: (nn.Conv2d(4, 8, 3), torch.randn(1, 4, 9, 9)),
    "nested": lambda: (Mlp(), torch.randn(6, 24)),
    "tuple": lambda: (Mlp(), (torch.randn(6, 24), 0.5)),
    "keywords": lambda: (Mlp(), {"x": torch.randn(6, 24), "scale": 2.0, "both": False}),
    "by_keyword": lambda: (ByKeyword(), {"image": torch.randn(3, 8, 9)}),
    "shared_and_tied": lambda: (Twice(), torch.randn(6, 16)),
    "integers": lambda: (Tokens(), torch.randint(0, 50, (2, 9))),
    "convnet": lambda: (convnet(), torch.randn(2, 3, 13, 15)),
    "root_is_a_conv1d": lambda: (nn.Conv1d(4, 8, 3), torch.randn(4, 9)),
    "convnet_1d": lambda: built(convnet_of(1), torch.randn(2, 3, 21)),
    "convnet_3d": lambda: built(convnet_of(3), torch.randn(2, 3, 8, 9, 7)),
    "torch_pruned": lambda: (torch_pruned(), torch.randn(4, 20)),
    "weight_norm": lambda: (normed(parametrizations.weight_norm), torch.randn(4, 20)),
    "spectral_norm": lambda: (normed(parametrizations.spectral_norm), torch.randn(4, 20)),
    "attention": lambda: (Attention(), torch.randn(2, 7, 16)),
    "encoder_layer": lambda: (encoder(), torch.randn(2, 7, 16)),
    "encoder_layer_gelu": lambda: (
        encoder(activation="gelu", norm_first=True),
        torch.randn(2, 7, 16),
    ),
    "encoder": lambda: (encoder(2), torch.randn(2, 7, 16)),
    "encoder_padded": lambda: (encoder(2), padded_sequence()),
    "batch_0": lambda: (nn.Sequential(nn.Linear(20, 30)), torch.randn(0, 20)),
}

every_model = pytest.mark.parametrize("name", MODELS)


def assert_same(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, **TOLERANCE)
