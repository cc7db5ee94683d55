"""Single layers of real sizes: dense torch and every layout on every backend, by sparsity."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from sparseprune import backends
from sparseprune.formats import FORMATS, Format
from sparseprune.nn import SPARSE
from sparseprune.profile import profile
from sparseprune.prune import prune

pytestmark = pytest.mark.benchmark(min_rounds=5, max_time=0.05, warmup=True, warmup_iterations=3)


@dataclass(frozen=True)
class Problem:
    """A layer and the input that it gets in a real network."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return self.name

    def build(self, sparsity: float) -> tuple[nn.Module, Tensor]:
        """The pruned dense layer and its input, the same ones at every call."""
        torch.manual_seed(0)
        layer = self.make().eval()
        prune(layer, sparsity, scope="local")
        return layer, torch.randn(self.shape)


def conv(title: str, channels: int, side: int) -> Problem:
    """A 3x3 convolution that keeps channels and image size, batch 1."""

    def make() -> nn.Module:
        return nn.Conv2d(channels, channels, 3, padding=1)

    return Problem(f"conv3x3 {channels}x{side}x{side} {title}", make, (1, channels, side, side))


PROBLEMS = (
    *(
        Problem(f"linear 1024x1024 rows={rows}", lambda: nn.Linear(1024, 1024), (rows, 1024))
        for rows in (1, 8, 32, 128)
    ),
    conv("resnet stage 1", 64, 56),
    conv("resnet stage 2", 128, 28),
    conv("resnet stage 3", 256, 14),
    conv("resnet stage 4", 512, 7),
)
SPARSITIES = (0.8, 0.9, 0.95)
BACKENDS = [name for name in backends.available() if name != "reference"]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_dense(problem: Problem, compare: Callable[..., None]) -> None:
    layer, x = problem.build(0.0)
    macs = profile(layer, x, latency=False).macs
    with torch.inference_mode():
        expected = copy.deepcopy(layer).double()(x.double())
    weights = layer.get_parameter("weight").numel()
    compare(lambda: layer(x), expected, macs, macs, layout="dense", sparsity=0.0, nonzeros=weights)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", FORMATS, ids=lambda layout: layout.name)
@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_packed(
    problem: Problem, sparsity: float, layout: Format, backend: str, compare: Callable[..., None]
) -> None:
    dense, x = problem.build(sparsity)
    twin = SPARSE[type(dense)]
    if twin.kind not in layout.serves:
        pytest.skip(f"{layout.name} has no {twin.kind}")
    reason = layout.refuses(*twin.dense_weight(dense))  # type: ignore[arg-type]
    if reason is not None:
        pytest.skip(reason)
    with torch.inference_mode():
        expected = dense(x)
    with backends.only(backend):
        packed = twin.from_dense(dense, layout)  # type: ignore[arg-type]
        cost = profile(packed, x, latency=False)
        facts = {"layout": layout.name, "sparsity": sparsity, "nonzeros": packed.weight.nonzeros}
        compare(
            lambda: packed(x), expected, cost.macs, cost.executed_macs, backend=backend, **facts
        )
