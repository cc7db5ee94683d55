"""Every pattern against the layers one by one, and what became of it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from program_calls import (
    ACTIVATION_CALLS,
    CHANNEL_CALLS,
    FLATTEN_CALLS,
    NOTHING_CALLS,
    SUM_CALLS,
    UPSAMPLE_CALLS,
)
from program_models import (
    PATTERNS,
    Lambda,
    arguments,
    assert_close,
    conv,
    image,
    planned,
    programs,
    sparsify,
    words,
)
from torch import Tensor, nn

from sparseprune.program.planned import plan, unplan
from sparseprune.program.steps import Csr, Input

every_pattern = pytest.mark.parametrize("name", PATTERNS)


@every_pattern
def test_pattern_is_eager(name: str) -> None:
    model, inputs = PATTERNS[name]()
    sparsify(model)
    expected = model(*deepcopy(arguments(inputs)))
    planned(model, inputs)
    with torch.no_grad():
        assert_close(model(*deepcopy(arguments(inputs))), expected)
        bigger = [torch.cat([x, x * 0.5, x[:1]]) for x in arguments(inputs)]
        got = model(*deepcopy(bigger))
        assert_close(got, unplan(model)(*bigger))


WORDS = {
    "act_twice": ["csr add csr"],
    "dropout": ["csr csr"],
    "contiguous": ["csr csr"],
    "adds_itself": ["csr add csr"],
    "downsampled": ["csr csr csr"],
    "preactivation": ["csr depthwise csr depthwise csr"],
    "separable": ["depthwise csr depthwise csr"],
    "squeeze_excite": ["csr mean csr csr scale csr"],
    "inception": ["csr csr pool cat cat csr"],
    "conv1d": ["csr depthwise pool csr flatten csr"],
    "packed_conv1d": ["csr csr csr"],
    "packed_conv3d": ["csr csr csr"],
    **{f"flat_{name}": ["csr pool flatten csr"] for name in FLATTEN_CALLS},
    **{f"nothing_{name}": ["csr csr"] for name in NOTHING_CALLS},
    **{f"pad_{name}": ["csr csr csr"] for name in ("sides", "module", "constant")},
    **{f"sum_{name}": ["csr add add csr"] for name in SUM_CALLS},
    **{f"act_{name}": ["csr csr"] for name in ACTIVATION_CALLS if name != "twice"},
    **{f"upsample_{name}": ["csr upsample csr"] for name in UPSAMPLE_CALLS},
    **{
        f"channels_{name}": ["csr channels csr"]
        for name in CHANNEL_CALLS
        if name.startswith("shuffle")
    },
    "channels_chunk": ["csr channels channels cat csr"],
    "channels_split_sizes": ["csr channels channels channels cat cat csr"],
    "channels_slices": ["csr channels channels channels cat cat csr"],
    "adaptive_flat": ["csr adaptive flatten csr"],
    "mean_dims": ["csr mean flatten csr"],
    "two_inputs": ["csr csr csr"],
    "unsupported_middle": ["csr", "csr csr"],
    "in_place": ["csr csr mean csr scale csr"],
    "in_place_input": ["csr csr"],
    "shared": ["csr csr csr csr"],
    "attention": ["csr norm csr csr"],
}


@pytest.mark.parametrize("name", WORDS)
def test_steps_are_joined(name: str) -> None:
    model, inputs = PATTERNS[name]()
    found = words(planned(sparsify(model), inputs))
    assert found == WORDS[name]


def test_clamps_of_sparse_layers_are_kept() -> None:
    model = sparsify(nn.Sequential(conv(), conv()))
    model[0].clamp = (0.0, 6.0)
    x = image()
    expected = model(x)
    steps = programs(planned(model, x))[0]
    assert [s.activation.high for s in steps if isinstance(s, Csr)] == [6.0, float("inf")]
    assert_close(model(x), expected)


def test_padding_of_every_kind() -> None:
    model = nn.Sequential(
        conv(padding_mode="reflect"),
        nn.Conv2d(6, 6, 4, padding="same"),
        nn.Conv2d(6, 6, (3, 2), padding=(2, 0), padding_mode="circular", dilation=2),
        nn.Conv2d(6, 6, 3, padding=(1, 2), padding_mode="replicate", groups=2),
    )
    x = image()
    expected = sparsify(model)(x)
    assert_close(planned(model, x)(x), expected)


def test_dense_convolutions_run_inside() -> None:
    model = nn.Sequential(conv(6, 6), nn.ReLU(), conv(6, 4), conv(4, 8, groups=2))
    sparsify(model, keep=("0", "3"))
    x = image()
    expected = model(x)
    program = next(m for m in planned(model, x).children() if hasattr(m, "text"))
    assert program.sources[0] == ".conv_0" and "2.weight" in program.sources
    assert_close(model(x), expected)
    model[0].weight.data.mul_(2)
    model.load_state_dict({**model.state_dict(), "0.weight": torch.randn(6, 6, 3, 3)})
    got = model(x)
    assert_close(got, unplan(model)(x))


def test_a_value_may_enter_twice() -> None:
    """The same input as an image and as tokens."""
    model = Lambda(lambda m, x: F.relu(m.a(x)) + F.relu(m.b(x)), a=conv(), b=nn.Linear(8, 8))
    x = image(6, 8, 8)
    expected = sparsify(model)(x)
    assert plan(model, x) is None
    assert_close(model(x), expected)
    kinds = [{s.kind for s in steps if isinstance(s, Input)} for steps in programs(model)]
    assert kinds and all(len(k) for k in kinds)


class Counting(nn.Module):
    """A buffer that every call replaces, as `self.count += 1` does while torch.fx traces."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.b(self.a(x))


def keep(m: Any, x: Tensor) -> Tensor:
    m.seen = x
    return x


def count(m: Any, x: Tensor) -> Tensor:
    m.calls = getattr(m, "calls", 0) + 1
    return x


SHIFT = torch.ones(1)
REFUSED = {
    "alone": (nn.Sequential(nn.Linear(6, 6)), torch.randn(2, 6), "no sparse layer stands"),
    "branch": (
        Lambda(lambda m, x: m.a(x) if x.sum() > 0 else x, a=nn.Linear(6, 6)),
        torch.randn(2, 6),
        "the forward depends on the values in a tensor, at test_program_lower.py:",
    ),
    "sets_a_buffer": (Counting(), torch.randn(2, 6), "sets 'count'"),
    "keeps_a_tensor": (
        Lambda(lambda m, x: m.b(keep(m, m.a(x))), a=nn.Linear(6, 6), b=nn.Linear(6, 6)),
        torch.randn(2, 6),
        "sets 'seen'",
    ),
    "counts_its_calls": (
        Lambda(lambda m, x: m.b(m.a(count(m, x))), a=nn.Linear(6, 6), b=nn.Linear(6, 6)),
        torch.randn(2, 6),
        "sets 'calls'",
    ),
    "random": (
        Lambda(lambda m, x: m.b(m.a(x)) + torch.rand(1), a=nn.Linear(6, 6), b=nn.Linear(6, 6)),
        torch.randn(2, 6),
        "random",
    ),
    "constant": (
        Lambda(lambda m, x: m.b(m.a(x)) + SHIFT, a=nn.Linear(6, 6), b=nn.Linear(6, 6)),
        torch.randn(2, 6),
        "neither parameter nor buffer",
    ),
    "batch_baked_in": (
        Lambda(
            lambda m, x: m.b(m.a(x)) * len(x.tolist()) if isinstance(x, torch.Tensor) else m.b(x),
            a=nn.Linear(6, 6),
            b=nn.Linear(6, 6),
        ),
        torch.randn(2, 6),
        "",
    ),
    "set": (
        Lambda(lambda m, xs: m.b(m.a(next(iter(xs)))), a=nn.Linear(6, 6), b=nn.Linear(6, 6)),
        ({torch.randn(2, 6)},),
        "an argument is a set",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_models_stay_as_they_were(name: str) -> None:
    model, inputs, message = REFUSED[name]
    sparsify(model)
    before, kind = set(dict(model.named_modules())), type(model)
    reason = plan(model, inputs)
    assert reason is not None and message in reason
    assert set(dict(model.named_modules())) == before and type(model) is kind


def test_training_mode_and_hooks_are_refused() -> None:
    model = sparsify(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)))
    x = torch.randn(2, 6)
    assert "training" in str(plan(model.train(), x))
    model.eval()[1].register_forward_hook(lambda *_: None)
    assert "hooks" in str(plan(model, x))


def test_channels_chosen_of_dealt_ones_are_one_step() -> None:
    """As in ShuffleNet: nothing is dealt twice."""

    def forward(m: Any, x: Tensor) -> Tensor:
        left, right = F.channel_shuffle(m.a(x), 2).chunk(2, 1)
        return m.b(torch.cat((right, left), 1))

    model, x = Lambda(forward, a=conv(), b=conv()), image()
    expected = sparsify(model)(x)
    planned(model, x)
    assert words(model) == ["csr channels channels cat csr"]
    assert_close(model(x), expected)


def test_outside_of_programs_chunks_take_any_channels() -> None:
    def forward(m: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        left, right = F.relu(y).chunk(2, 1)
        return m.b(F.relu(m.a(x))), torch.cumsum(left, 1) * right.flip(1)

    model, x = Lambda(forward, a=conv(), b=conv()), image()
    sparsify(model)
    layers = deepcopy(model)
    planned(model, (x, image(4)))
    for channels in (4, 10):
        y = image(channels)
        for got, expected in zip(model(x, y), layers(x, y), strict=True):
            assert_close(got, expected)


def test_sizes_that_a_forward_asks_for_are_no_factors() -> None:
    """How much larger the image becomes follows from another one."""

    def forward(m: Any, x: Tensor) -> Tensor:
        small = m.b(F.max_pool2d(m.a(x), 2))
        return m.c(F.relu(F.interpolate(small, size=x.shape[2:]))) + x

    model = Lambda(forward, a=conv(), b=conv(), c=conv())
    sparsify(model)
    layers = deepcopy(model)
    planned(model, image(6, 8, 8))
    for size in ((8, 8), (9, 11)):
        x = image(6, *size)
        assert_close(model(x), layers(x))
