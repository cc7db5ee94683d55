"""Normalisation and attention in programs: against float64, and found in many spellings."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from program_models import assert_close, planned, programs, sparsify, words
from program_texts import run_everywhere
from torch import Tensor, nn

import sparseprune as sp
from sparseprune import zoo
from sparseprune.io import load, save
from sparseprune.program.planned import plan
from sparseprune.program.steps import Input, Output, Step
from sparseprune.program.steps_sequences import Attention, Norm
from sparseprune.program.text import to_text

HEADS, HEAD = 3, 8
WIDTH = HEADS * HEAD


def attended(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    q, k, v = (x.double().unflatten(-1, (HEADS, HEAD)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) * scale
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        scores = scores.masked_fill(~seen, -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


SIZES = [(0, 3, 3), (1, 1, 1), (2, 7, 3), (3, 17, 130), (1, 64, 65), (5, 50, 50), (2, 197, 197)]


@pytest.mark.parametrize(("batch", "length", "keys"), SIZES)
@pytest.mark.parametrize("causal", [0, 1])
def test_attention_is_float64(batch: int, length: int, keys: int, causal: int) -> None:
    generator = torch.Generator().manual_seed(length)
    q = torch.randn(batch, length, WIDTH + 5, generator=generator)
    kv = torch.randn(batch, keys, 2 * WIDTH + 1, generator=generator)
    steps: list[Step] = [
        Input(0, "tokens", WIDTH + 5, 0),
        Input(1, "tokens", 2 * WIDTH + 1, 0),
        Attention(2, 0, 1, 1, -1, (5, WIDTH + 1, 0), (HEAD,) * 3, HEADS, HEAD, 1, causal, 0.4),
        Output(2),
    ]
    expected = attended(q[..., 5:], kv[..., WIDTH + 1 :], kv[..., :WIDTH], bool(causal), 0.4)
    for (out,) in run_everywhere(steps, [q, kv], []):
        torch.testing.assert_close(out, expected.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("batch", "length", "keys"), SIZES)
@pytest.mark.parametrize("causal", [0, 1])
def test_masked_attention_is_float64(batch: int, length: int, keys: int, causal: int) -> None:
    """Numbers and -inf; a query that sees no key gives zeros."""
    generator = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(batch, n, WIDTH, generator=generator) for n in (length, keys, keys))
    mask = torch.randn(batch, 1, length, keys, generator=generator)
    mask[torch.rand(mask.shape, generator=generator) < 0.4] = -torch.inf
    mask[:, :, -1] = -torch.inf
    mask[: batch // 2, :, 0, :] = -torch.inf
    steps: list[Step] = [
        Input(0, "tokens", WIDTH, 0),
        Input(1, "tokens", WIDTH, 0),
        Input(2, "tokens", WIDTH, 0),
        Input(3, "tokens", 0, 0),
        Attention(4, 0, 1, 2, 3, (0, 0, 0), (HEAD,) * 3, HEADS, HEAD, 1, causal, 0.4),
        Output(4),
    ]
    heads_of = [x.double().unflatten(-1, (HEADS, HEAD)).transpose(1, 2) for x in (q, k, v)]
    scores = heads_of[0] @ heads_of[1].transpose(-1, -2) * 0.4 + mask
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        scores = scores.masked_fill(~seen, -math.inf)
    expected = (scores.softmax(-1).nan_to_num(0) @ heads_of[2]).transpose(1, 2).flatten(2)
    for (out,) in run_everywhere(steps, [q, k, v, mask], []):
        torch.testing.assert_close(out, expected.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(5,), (0, 5), (3, 70), (2, 9, 33), (1, 130, 96)])
@pytest.mark.parametrize("centred", [0, 1])
@pytest.mark.parametrize("has_bias", [0, 1])
def test_norm_is_float64(shape: tuple[int, ...], centred: int, has_bias: int) -> None:
    x, channels = torch.randn(shape) * 3 + centred, shape[-1]
    weight, bias = torch.randn(channels), torch.randn(channels)
    steps: list[Step] = [
        Input(0, "tokens", channels, 0),
        Norm(1, 0, 0, channels, has_bias, centred, 1e-3),
        Output(1),
    ]
    apart = x.double() - (x.double().mean(-1, keepdim=True) if centred else 0)
    expected = apart / (apart.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight
    expected = expected + bias if has_bias else expected
    for (out,) in run_everywhere(steps, [x], [weight, bias][: 1 + has_bias]):
        torch.testing.assert_close(out, expected.float(), rtol=1e-5, atol=1e-5)


def test_threads_change_nothing() -> None:
    """Sequences shared out, or worked on by all threads one after the other."""
    steps: list[Step] = [
        Input(0, "tokens", 3 * WIDTH, 0),
        Attention(1, 0, 0, 0, -1, (0, WIDTH, 2 * WIDTH), (HEAD,) * 3, HEADS, HEAD, 1, 0, 0.3),
        Output(1),
    ]
    before = torch.get_num_threads()
    try:
        for batch, length in itertools.product((1, 2, 3, 5, 9), (3, 50, 64, 130)):
            x = torch.randn(batch, length, 3 * WIDTH)
            outputs = []
            for threads in (1, 2, 3, 5):
                torch.set_num_threads(threads)
                outputs += torch.ops.sparseprune.run([x], [], to_text(steps))
            assert all(torch.equal(out, outputs[0]) for out in outputs), (batch, length)
    finally:
        torch.set_num_threads(before)


# What models write


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, HEAD)).transpose(1, 2)


def bert(x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mixed = F.scaled_dot_product_attention(heads(q), heads(k), heads(v))
    return mixed.transpose(1, 2).flatten(2)


def transformers(x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    n, t = x.shape[0], x.shape[1]
    q, k, v = (y.view(n, t, HEADS, HEAD).permute(0, 2, 1, 3) for y in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0.0, scale=0.2)
    return mixed.transpose(1, 2).contiguous().reshape(n, t, -1)


def causal(x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (y.view(x.size(0), -1, HEADS, HEAD).transpose(1, 2) for y in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return mixed.transpose(1, 2).contiguous().view(x.size(0), x.size(1), WIDTH)


def spelled(x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, n, c = x.shape
    q, k, v = (y.reshape(b, n, HEADS, c // HEADS).transpose(1, 2) for y in (q, k, v))
    weights = (q @ k.transpose(-2, -1) / math.sqrt(HEAD)).softmax(dim=-1)
    return torch.matmul(weights, v).transpose(1, 2).reshape(b, n, c)


def scaled_twice(x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = map(heads, (q, k, v))
    weights = torch.softmax((q * 0.5) @ (k * 0.5).transpose(2, 3), dim=3)
    return (weights @ v).transpose(1, 2).flatten(2)


def with_dropout(x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As transformers' eager attention does."""
    q, k, v = heads(q), heads(k), heads(v)
    weights = torch.matmul(q, k.transpose(2, 3)) * 0.3
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(torch.float32)
    weights = F.dropout(weights, p=0.1, training=False)
    return torch.matmul(weights, v).transpose(1, 2).contiguous().flatten(2)


def by_hand(x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As minGPT does, with one mask for all sequences."""
    b, t, c = x.size()
    q, k, v = (y.view(b, t, HEADS, c // HEADS).transpose(1, 2) for y in (q, k, v))
    seen = torch.ones(80, 80).tril().view(1, 1, 80, 80)[:, :, :t, :t]
    weights = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(HEAD))
    weights = F.softmax(weights.masked_fill(seen == 0, float("-inf")), dim=-1)
    return (weights @ v).transpose(1, 2).contiguous().view(b, t, c)


def one_head(x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(torch.bmm(q * WIDTH**-0.5, k.permute(0, 2, 1)), -1) @ v


SPELLINGS: dict[str, Callable[..., Tensor]] = {
    f.__name__: f
    for f in (
        bert,
        transformers,
        causal,
        spelled,
        scaled_twice,
        with_dropout,
        one_head,
        by_hand,
    )
}


class Block(nn.Module):
    """A layer of a transformer, its attention as a function of x, queries, keys and values."""

    def __init__(self, attend: Callable[..., Tensor], norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.attend = attend
        self.norm_1, self.norm_2 = norm(WIDTH), norm(WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.o = nn.Linear(WIDTH, WIDTH)
        self.up, self.down, self.act = nn.Linear(WIDTH, 40), nn.Linear(40, WIDTH), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_1(x)
        x = x + self.o(self.attend(y, self.q(y), self.k(y), self.v(y)))
        return x + self.down(self.act(self.up(self.norm_2(x))))


class Fused(nn.Module):
    """One layer makes queries, keys and values; how they are taken apart is given."""

    def __init__(self, apart: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.apart, self.norm = apart, nn.LayerNorm(WIDTH)
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.apart(self.qkv(self.norm(x)))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.o(mixed.transpose(1, 2).flatten(2))


def timm(y: Tensor) -> Any:
    return y.reshape(y.shape[0], y.shape[1], 3, HEADS, HEAD).permute(2, 0, 3, 1, 4).unbind(0)


def indexed(y: Tensor) -> Any:
    y = y.reshape(y.shape[0], y.shape[1], 3, HEADS, HEAD).permute(2, 0, 3, 1, 4)
    return y[0], y[1], y[2]


def chunked(y: Tensor) -> Any:
    q, k, v = y.chunk(3, dim=-1)
    return heads(q), heads(k), heads(v)


APART: dict[str, Callable[[Tensor], Any]] = {
    "timm": timm,
    "indexed": indexed,
    "chunk": chunked,
    "split": lambda y: [heads(torch.split(y, WIDTH, dim=2)[i]) for i in range(3)],
    "gpt": lambda y: y.unflatten(-1, (3, HEADS, -1)).transpose(1, 3).unbind(2),
    "alternating": lambda y: y.unflatten(-1, (HEADS, 3 * HEAD)).transpose(1, 2).chunk(3, dim=-1),
    "bloom": lambda y: y.unflatten(-1, (HEADS, 3, HEAD)).permute(3, 0, 2, 1, 4).unbind(0),
    "sliced": lambda y: [heads(y[..., i : i + WIDTH]) for i in range(0, 3 * WIDTH, WIDTH)],
}


def check(model: nn.Module, expected_words: str) -> None:
    """One program, right for other batches and lengths than those of the example."""
    dense = sparsify(model)
    expected = {(n, t): torch.randn(n, t, WIDTH) for n, t in ((2, 5), (1, 70), (3, 17))}
    outputs = {size: dense(x) for size, x in expected.items()}
    planned(model, expected[2, 5])
    assert words(model) == [expected_words]
    with torch.no_grad():
        for size, x in expected.items():
            assert_close(model(x), outputs[size])


@pytest.mark.parametrize("name", SPELLINGS)
def test_attention_is_found(name: str) -> None:
    check(Block(SPELLINGS[name]), "norm csr csr csr attention csr norm csr csr")


@pytest.mark.parametrize("name", APART)
def test_fused_layers_are_read_in_place(name: str) -> None:
    check(Fused(APART[name]), "norm csr attention csr")


class Masked(nn.Module):
    """Two blocks with one mask, of flags or of numbers, which the model is given or makes."""

    def __init__(self, numbers: bool, spelled_out: bool, rows: bool = False) -> None:
        super().__init__()
        self.numbers, self.spelled_out, self.rows = numbers, spelled_out, rows
        self.a, self.b = Fused(timm), Fused(timm)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        n, t = x.shape[0], x.shape[1]
        mask = seen[:, None, None, :]
        mask = mask if self.rows else mask.expand(n, 1, t, t)
        if self.numbers:
            mask = (1 - mask.float()) * -1e4
        for block in (self.a, self.b):
            q, k, v = block.apart(block.qkv(block.norm(x)))
            if self.spelled_out:
                scores = q @ k.transpose(-2, -1) * 0.3
                scores = scores + mask if self.numbers else scores.masked_fill(mask == 0, -1e9)
                mixed = scores.softmax(-1) @ v
            else:
                mixed = F.scaled_dot_product_attention(q, k, v, mask)
            x = x + block.o(mixed.transpose(1, 2).flatten(2))
        return x


@pytest.mark.parametrize(("numbers", "spelled_out"), [(0, 0), (1, 0), (1, 1), (0, 1)])
@pytest.mark.parametrize("rows", [False, True])
def test_masks_are_read_by_programs(
    numbers: bool, spelled_out: bool, rows: bool, tmp_path: Path
) -> None:
    model = sparsify(Masked(numbers, spelled_out, rows))

    def given(n: int, t: int) -> tuple[Tensor, Tensor]:
        return torch.randn(n, t, WIDTH), torch.rand(n, t) > 0.3

    calls = [given(2, 5), given(1, 70), given(5, 33)]
    expected = [model(*call) for call in calls]
    planned(model, calls[0])
    assert words(model) == ["norm csr attention csr norm csr attention csr"]
    save(model, tmp_path / "file")
    loaded = load(tmp_path / "file", Masked(numbers, spelled_out, rows))
    with torch.no_grad():
        for call, wanted in zip(calls, expected, strict=True):
            assert_close(model(*call), wanted)
            assert torch.equal(loaded(*call), model(*call))


def test_root_mean_square() -> None:
    model = Block(bert, nn.RMSNorm)
    check(model, "norm csr csr csr attention csr norm csr csr")
    assert {s.centred for s in programs(model)[0] if isinstance(s, Norm)} == {0}


def of_fixed_length(x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (y.view(-1, 5, HEADS, HEAD).transpose(1, 2) for y in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def mixed_heads(x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (y.unflatten(-1, (HEAD, HEADS)).permute(0, 3, 1, 2) for y in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def masked_heads(x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A mask of its own for every head."""
    q, k, v = heads(q), heads(k), heads(v)
    mask = (q @ k.transpose(-2, -1)) > -1
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


def seen(x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Somebody else reads the weights."""
    q, k, v = map(heads, (q, k, v))
    weights = (q @ k.transpose(-2, -1)).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2) + weights.sum()


def over_heads(x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = map(heads, (q, k, v))
    return ((q @ k.transpose(-2, -1)).softmax(1) @ v).transpose(1, 2).flatten(2)


def rounded(x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = torch.div(heads(q), 0.5, rounding_mode="floor"), heads(k), heads(v)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def weighted(x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A mask that is added twice."""
    q, k, v = map(heads, (q, k, v))
    scores = torch.add(q @ k.transpose(-2, -1), x.mean(-1)[:, None, None, :], alpha=2)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


OTHER = [of_fixed_length, mixed_heads, masked_heads, seen, over_heads, rounded, weighted]


@pytest.mark.parametrize("attend", OTHER)
def test_other_attention_stays(attend: Callable[..., Tensor]) -> None:
    """What is no attention of whole heads over whole sequences is left to torch."""
    model, x = sparsify(Block(attend)), torch.randn(2, 5, WIDTH)
    expected = model(x)
    assert plan(model, x) is None  # whose outputs are compared
    assert not any("attention" in line for line in words(model))
    assert_close(model(x), expected)


def test_file_of_a_transformer(tmp_path: Path) -> None:
    model, x = sparsify(nn.Sequential(Block(causal), Fused(timm))), torch.randn(2, 9, WIDTH)
    planned(model, x)
    save(model, tmp_path / "file")
    loaded = load(tmp_path / "file")
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
        assert torch.equal(copy.deepcopy(loaded)(x), model(x))


def test_zoo_is_one_program() -> None:
    torch.manual_seed(0)
    model = zoo.build("gpt_tiny", width=64, heads=4, depth=2, vocab=50).eval()
    x = torch.randint(0, 50, (2, 30))
    for layer in (m for m in model.blocks.modules() if isinstance(m, nn.Linear)):
        layer.weight.data *= torch.rand_like(layer.weight) < 0.1
    fast = sp.convert(model, x)
    expected = model(x)
    assert [line.split().count("attention") for line in words(fast)] == [2]
    with torch.no_grad():
        assert_close(fast(x), expected)
