"""Small networks, one for every pattern that programs know, and how they are made sparse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from problems import sparse_weight
from program_calls import (
    ACTIVATION_CALLS,
    CHANNEL_CALLS,
    FLATTEN_CALLS,
    NOTHING_CALLS,
    PAD_CALLS,
    POOL_CALLS,
    SUM_CALLS,
    UPSAMPLE_CALLS,
)
from torch import Tensor, nn

from sparseprune.nn import SPARSE
from sparseprune.program.planned import plan
from sparseprune.program.program import Program
from sparseprune.program.steps import Step
from sparseprune.program.text import from_text

Made = tuple[nn.Module, Any]


def sparsify(model: nn.Module, density: float = 0.4, keep: tuple[str, ...] = ()) -> nn.Module:
    """Layers packed, but for depthwise ones; statistics as after training; in place."""
    generator = torch.Generator().manual_seed(7)
    twins: dict[nn.Module, nn.Module] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.3, generator=generator)
        depthwise = getattr(module, "groups", 1) == getattr(module, "in_channels", 0)
        if (
            type(module) not in SPARSE
            or depthwise
            or name in keep
            or hasattr(module, "stays_dense")
        ):
            continue
        if module not in twins:
            shape = tuple(module.weight.shape)
            scale = (density * max(1, module.weight[0].numel())) ** -0.5
            module.weight.data = sparse_weight(shape, density, generator) * scale
            twins[module] = SPARSE[type(module)].from_dense(module)
        model.set_submodule(name, twins[module])
    return model.eval()


def arguments(inputs: Any) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)


def planned(model: nn.Module, inputs: Any) -> nn.Module:
    reason = plan(model, inputs)
    assert reason is None, reason
    return model


def programs(model: nn.Module) -> list[list[Step]]:
    return [from_text(m.text) for m in model.modules() if isinstance(m, Program)]


def words(model: nn.Module) -> list[str]:
    """The steps of every program, without inputs and outputs."""
    return [
        " ".join(s.word for s in steps if s.word not in ("input", "output"))
        for steps in programs(model)
    ]


def assert_close(got: Any, expected: Any) -> None:
    """Within 1e-4 of the largest output."""
    largest = float(_first(expected).detach().abs().max())
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * max(1e-3, largest))


def _first(outputs: Any) -> Tensor:
    if isinstance(outputs, dict):
        outputs = tuple(outputs.values())
    return outputs[0] if isinstance(outputs, (tuple, list)) else outputs


class Lambda(nn.Module):
    """Layers by name, and a forward from a function of them and the inputs."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


def conv(inputs: int = 6, outputs: int = 6, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **{"padding": kernel // 2, **options})


def image(channels: int = 6, *sizes: int) -> Tensor:
    return torch.randn(2, channels, *(sizes or (9, 8)))


def module(function: Callable[[Tensor], Tensor]) -> nn.Module:
    if isinstance(function, nn.Module):
        return function
    return Lambda(lambda m, x: function(x))


def two_convs(between: Callable[[Tensor], Tensor]) -> Made:
    return Lambda(lambda m, x: m.b(m.f(m.a(x))), a=conv(), b=conv(), f=module(between)), image()


def then_linear(between: Callable[[Tensor], Tensor], features: int = 6) -> Made:
    layers = {"a": conv(), "b": nn.Linear(features, 4), "f": module(between)}
    return Lambda(lambda m, x: m.b(m.f(m.a(x))), **layers), image()


def squeeze_excite() -> Made:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        gate = torch.sigmoid(m.expand(F.silu(m.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return m.b(gate * x)

    return Lambda(forward, a=conv(), squeeze=conv(6, 3, 1), expand=conv(3, 6, 1), b=conv()), image()


def inception() -> Made:
    def forward(m: Any, x: Tensor) -> Tensor:
        towers = [m.one(x), F.relu(m.three(x)), m.pool(x)]
        return m.last(torch.cat(towers, 1))

    layers = {"one": conv(6, 4, 1), "three": conv(6, 3), "pool": nn.MaxPool2d(3, 1, 1)}
    return Lambda(forward, **layers, last=conv(13, 5)), image()


def preactivation() -> Made:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        y = m.a(F.relu(m.n1(x)))
        return x + m.b(F.relu(m.n2(y)))

    norms = {"n1": nn.BatchNorm2d(6), "n2": nn.BatchNorm2d(6)}
    return Lambda(forward, stem=conv(), a=conv(), b=conv(), **norms), image()


def downsampled() -> Made:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.b(F.relu(m.a(x)))
        return F.relu(y + m.short(x), inplace=True)

    layers = {"a": conv(stride=2), "b": conv(), "short": conv(6, 6, 1, stride=2)}
    return Lambda(forward, **layers), image()


def separable() -> Made:
    return nn.Sequential(
        nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),
        nn.Hardswish(),
        conv(6, 8, 1),
        nn.Conv2d(8, 16, 3, stride=2, groups=8),
        nn.ReLU6(),
        conv(16, 5, 1),
    ), image()


def dense_net(dims: int) -> Made:
    """A dense convolutional network of 1 or 3 dimensions in front of sparse linear layers."""
    make = {1: nn.Conv1d, 3: nn.Conv3d}[dims]
    pool = {1: nn.MaxPool1d, 3: nn.AvgPool3d}[dims]
    norm = {1: nn.BatchNorm1d, 3: nn.BatchNorm3d}[dims]
    model = nn.Sequential(
        make(3, 8, 3, padding="same"),
        norm(8),
        nn.LeakyReLU(0.2),
        pool(2),
        make(8, 8, 3, padding=1, dilation=1, groups=2, padding_mode="replicate"),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(8 * 4**dims, 10),
        nn.Tanh(),
    )
    model[0].stays_dense = model[4].stays_dense = True
    return model, torch.randn(2, 3, *(8,) * dims)


def convolutions(dims: int) -> Made:
    """Convolutions of 1 or 3 dimensions, to be packed."""
    make = {1: nn.Conv1d, 3: nn.Conv3d}[dims]
    return nn.Sequential(
        make(3, 8, 4, padding="same", padding_mode="reflect"),
        nn.ReLU(),
        make(8, 8, 3, stride=2, padding=1, groups=2),
        nn.SiLU(),
        make(8, 5, 2, dilation=2, bias=False),
    ), torch.randn(2, 3, *(8, 9, 7)[:dims])


def two_inputs() -> Made:
    def forward(m: Any, x: Tensor, y: Tensor) -> Tensor:
        return m.c(torch.add(m.a(x), m.b(y)).relu())

    return Lambda(forward, a=nn.Linear(8, 6), b=nn.Linear(5, 6), c=nn.Linear(6, 3)), (
        torch.randn(4, 7, 8),
        torch.randn(4, 7, 5),
    )


def two_outputs() -> Made:
    def forward(m: Any, x: Tensor) -> dict[str, Tensor]:
        y = F.relu(m.a(x))
        return {"features": y, "head": m.c(m.b(y))}

    return Lambda(forward, a=nn.Linear(8, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 3)), (
        torch.randn(4, 8)
    )


def unsupported_middle() -> Made:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = torch.cumsum(F.relu(m.a(x)), -1)
        return m.c(F.relu(m.b(x))) + x

    return Lambda(forward, a=nn.Linear(8, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 6)), (
        torch.randn(4, 8)
    )


def in_place() -> Made:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x).relu_()
        z = m.b(y)
        z += y
        return m.c(z.mul_(m.gate(z)))

    gate = nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), conv(6, 6, 1), nn.Sigmoid())
    return Lambda(forward, a=conv(), b=conv(), c=conv(), gate=gate), image()


def in_place_watched() -> Made:
    """Changed memory that others read: before, after, and through a view."""

    def forward(m: Any, x: Tensor) -> tuple[Tensor, ...]:
        y = m.a(x)
        before = m.b(y)
        flat = y.flatten(1)
        y.relu_()
        return before, flat, m.c(y), m.c(m.b(y))

    return Lambda(forward, a=conv(), b=conv(), c=conv()), image()


def in_place_input() -> Made:
    return nn.Sequential(nn.ReLU(inplace=True), conv(), nn.ReLU(inplace=True), conv()), image()


def shared() -> Made:
    """One layer called twice, in two places of the tree, and a tied bias."""
    layer = nn.Linear(6, 6)
    other = nn.Linear(6, 6)
    other.bias = layer.bias
    return nn.Sequential(layer, nn.ReLU(), other, nn.ReLU(), layer, layer), torch.randn(3, 6)


def dropped() -> Made:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.b(F.dropout(m.identity(m.drop(m.a(x))), 0.5, m.training))

    layers = {"drop": nn.Dropout(0.5), "identity": nn.Identity()}
    return Lambda(forward, a=conv(), b=conv(), **layers), image()


def by_size(how: Callable[[Tensor], Tensor]) -> Made:
    layers = {"a": conv(), "b": nn.Linear(24, 4), "f": module(how)}
    return Lambda(lambda m, x: m.b(m.f(F.max_pool2d(m.a(x), 4))), **layers), image()


def adds_itself() -> Made:
    return two_convs(lambda x: x + x)


def attention() -> Made:
    """Regions around what no program does, on tokens."""

    def forward(m: Any, x: Tensor) -> Tensor:
        q = m.q(x)
        mixed = torch.softmax(q @ q.transpose(1, 2), 1) @ m.v(x)
        x = m.norm(x + m.o(mixed))
        return x + m.down(F.gelu(m.up(x), approximate="tanh"))

    layers = {name: nn.Linear(6, 6) for name in ("q", "v", "o")}
    return Lambda(
        forward, **layers, norm=nn.LayerNorm(6), up=nn.Linear(6, 12), down=nn.Linear(12, 6)
    ), torch.randn(2, 5, 6)


PATTERNS: dict[str, Callable[[], Made]] = {
    **{f"act_{k}": lambda f=f: two_convs(f) for k, f in ACTIVATION_CALLS.items()},
    **{f"pool_{k}": lambda f=f: two_convs(f) for k, f in POOL_CALLS.items()},
    **{f"nothing_{k}": lambda f=f: two_convs(f) for k, f in NOTHING_CALLS.items()},
    **{f"pad_{k}": lambda f=f: two_convs(f) for k, f in PAD_CALLS.items()},
    **{f"sum_{k}": lambda f=f: two_convs(f) for k, f in SUM_CALLS.items()},
    **{f"channels_{k}": lambda f=f: two_convs(f) for k, f in CHANNEL_CALLS.items()},
    **{f"upsample_{k}": lambda f=f: two_convs(f) for k, f in UPSAMPLE_CALLS.items()},
    **{f"flat_{k}": lambda f=f: by_size(f) for k, f in FLATTEN_CALLS.items()},
    "adaptive_flat": lambda: then_linear(lambda x: F.adaptive_avg_pool2d(x, 7).flatten(1), 294),
    "mean_dims": lambda: then_linear(lambda x: x.mean([2, 3])),
    "torch_mean": lambda: then_linear(lambda x: torch.mean(x, (-1, 2))),
    "dropout": dropped,
    "contiguous": lambda: two_convs(lambda x: x.contiguous()),
    "adds_itself": adds_itself,
    "downsampled": downsampled,
    "preactivation": preactivation,
    "separable": separable,
    "squeeze_excite": squeeze_excite,
    "inception": inception,
    "conv1d": lambda: dense_net(1),
    "conv3d": lambda: dense_net(3),
    "packed_conv1d": lambda: convolutions(1),
    "packed_conv3d": lambda: convolutions(3),
    "two_inputs": two_inputs,
    "two_outputs": two_outputs,
    "unsupported_middle": unsupported_middle,
    "in_place": in_place,
    "in_place_watched": in_place_watched,
    "in_place_input": in_place_input,
    "shared": shared,
    "attention": attention,
}
