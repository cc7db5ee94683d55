"""Rotary embeddings, shared heads, gates and norms of decoders: in float64, and however written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from program_models import assert_close, planned, programs, sparsify, words
from program_texts import run_everywhere
from torch import Tensor, nn

from sparseprune.io import load, save
from sparseprune.program.planned import plan
from sparseprune.program.steps import Input, Multiply, Output, Step
from sparseprune.program.steps_sequences import Attention, Norm, Rotary

HEADS, SHARED, HEAD = 4, 2, 8
WIDTH = HEADS * HEAD


def turned_in_float64(x: Tensor, cos: Tensor, sin: Tensor, pairs: bool) -> Tensor:
    """The first channels of heads [..., heads, head], plane by plane."""
    y, count = x.double().clone(), cos.shape[-1]
    for i in range(count // 2):
        a, b = (2 * i, 2 * i + 1) if pairs else (i, i + count // 2)
        for out, other, sign in ((a, b, -1), (b, a, 1)):
            c, s = (t[..., out].double().unsqueeze(-1) for t in (cos, sin))
            y[..., out] = x[..., out] * c + sign * x[..., other] * s
    return y


@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (3, 70), (0, 5), (1, 197)])
@pytest.mark.parametrize(("turned", "pairs"), [(8, 0), (8, 1), (6, 0), (2, 1)])
def test_rotary_is_float64(shape: tuple[int, int], turned: int, pairs: int) -> None:
    stride = HEAD + 2
    x = torch.randn(*shape, 3 + HEADS * stride)
    cos, sin = torch.randn(*shape, turned), torch.randn(*shape, turned)
    steps: list[Step] = [
        Input(0, "tokens", x.shape[-1], 0),
        Input(1, "tokens", turned, 0),
        Input(2, "tokens", turned, 0),
        Rotary(3, 0, 1, 2, 2, stride, HEADS, HEAD, turned, pairs),
        Output(3),
    ]
    heads = x[..., 2 : 2 + HEADS * stride].unflatten(-1, (HEADS, stride))[..., :HEAD]
    expected = turned_in_float64(heads, cos, sin, bool(pairs)).flatten(-2)
    for (out,) in run_everywhere(steps, [x, cos, sin], []):
        torch.testing.assert_close(out, expected.float(), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 17), (3, 70)])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_shared_heads_are_float64(batch: int, length: int, group: int) -> None:
    width = HEADS // group * HEAD
    q = torch.randn(batch, length, WIDTH)
    kv = torch.randn(batch, length, 2 * width)
    steps: list[Step] = [
        Input(0, "tokens", WIDTH, 0),
        Input(1, "tokens", 2 * width, 0),
        Attention(2, 0, 1, 1, -1, (0, 0, width), (HEAD,) * 3, HEADS, HEAD, group, 1, 0.4),
        Output(2),
    ]
    k, v = (t.double().unflatten(-1, (-1, HEAD)).transpose(1, 2) for t in kv.split(width, -1))
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q.double().unflatten(-1, (HEADS, HEAD)).transpose(1, 2) @ k.mT * 0.4
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    expected = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v
    for (out,) in run_everywhere(steps, [q, kv], []):
        torch.testing.assert_close(
            out, expected.transpose(1, 2).flatten(2).float(), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("tokens", (5,)), ("tokens", (2, 9, 33)), ("tokens", (0, 3)), ("image", (2, 3, 7, 9))],
)
def test_multiply_is_exact(kind: str, shape: tuple[int, ...]) -> None:
    x, y = torch.randn(shape), torch.randn(shape)
    channels, dims = (shape[1], 2) if kind == "image" else (shape[-1], 0)
    steps: list[Step] = [
        Input(0, kind, channels, dims), Input(1, kind, channels, dims), Multiply(2, 0, 1), Output(2)
    ]  # fmt: skip
    for (out,) in run_everywhere(steps, [x, y], []):
        assert torch.equal(out, x * y)


# What models write


def angles(length: int, width: int = HEAD) -> tuple[Tensor, Tensor]:
    """[T, width], the same for both halves."""
    turns = torch.arange(length)[:, None] / 10 ** torch.linspace(0, 3, width // 2)
    return torch.cat([turns, turns], -1).cos(), torch.cat([turns, turns], -1).sin()


def half(x: Tensor) -> Tensor:
    return torch.cat([-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]], dim=-1)


def chunked(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), -1)


def stacked(x: Tensor) -> Tensor:
    """As GPT-J: neighbours turn."""
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def llama(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos[None].unsqueeze(1), sin[None].unsqueeze(1)
    return (q * cos) + (half(q) * sin)


def broadcast(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Angles without dimensions for sequences and heads, everything the other way round."""
    return sin * chunked(q) + cos * q


def pairs(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.add(torch.mul(q, cos), stacked(q).mul(sin))


def in_part(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As GPT-NeoX: the first channels turn."""
    first, rest = q[..., :4], q[..., 4:]
    cos, sin = cos[:, :4], sin[:, :4]
    return torch.cat((first * cos + half(first) * sin, rest), dim=-1)


SPELLINGS: dict[str, Callable[..., Tensor]] = {
    f.__name__: f for f in (llama, broadcast, pairs, in_part)
}


def repeat(x: Tensor) -> Tensor:
    """As repeat_kv of transformers."""
    n, heads, t, head = x.shape
    x = x[:, :, None, :, :].expand(n, heads, HEADS // heads, t, head)
    return x.reshape(n, HEADS, t, head)


def with_gqa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, repeat(k), repeat(v), is_causal=True)


def interleaved(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    return torch.softmax(q @ k.transpose(2, 3) * 0.3, -1) @ v


MIXES: dict[str, Callable[..., Tensor]] = {f.__name__: f for f in (with_gqa, repeated, interleaved)}


class Root(nn.Module):
    """RMSNorm as models write it."""

    def __init__(self, scale: Callable[[Tensor, float], Tensor]) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.rand(WIDTH) + 0.5), scale

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * self.scale(x, 1e-6)


def of_transformers(x: Tensor, epsilon: float) -> Tensor:
    kept = x.dtype
    x = x.to(torch.float32)
    return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)).to(kept)


def of_llama(x: Tensor, epsilon: float) -> Tensor:
    x = x.float()
    return x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + epsilon)


def divided(x: Tensor, epsilon: float) -> Tensor:
    return x / torch.sqrt(torch.mean(x**2, dim=-1, keepdim=True) + epsilon)


NORMS: dict[str, Callable[..., Tensor]] = {
    f.__name__: f for f in (of_transformers, of_llama, divided)
}


class Decoder(nn.Module):
    """A layer as in LLaMA (Touvron et al., 2023)."""

    def __init__(
        self,
        turn: Callable[..., Tensor] = llama,
        mix: Callable[..., Tensor] = with_gqa,
        norm: Callable[..., Tensor] = of_transformers,
    ) -> None:
        super().__init__()
        self.turn, self.mix = turn, mix
        self.norm_1, self.norm_2 = Root(norm), Root(norm)
        self.q, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.k, self.v = nn.Linear(WIDTH, SHARED * HEAD), nn.Linear(WIDTH, SHARED * HEAD)
        self.gate, self.up = nn.Linear(WIDTH, 48, bias=False), nn.Linear(WIDTH, 48, bias=False)
        self.down = nn.Linear(48, WIDTH, bias=False)
        for name, table in zip(("cos", "sin"), angles(100), strict=True):
            self.register_buffer(name, table)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        y = self.norm_1(x)
        q, k, v = (f(y).view(n, t, -1, HEAD).transpose(1, 2) for f in (self.q, self.k, self.v))
        cos, sin = self.cos[:t], self.sin[:t]
        mixed = self.mix(self.turn(q, cos, sin), self.turn(k, cos, sin), v)
        x = x + self.o(mixed.transpose(1, 2).reshape(n, t, -1))
        y = self.norm_2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


ONE = "norm csr csr csr rotary rotary attention csr norm csr csr multiply csr"


def check(model: nn.Module) -> None:
    """One program, right for other batches and lengths than those of the example."""
    calls = [torch.randn(n, t, WIDTH) for n, t in ((2, 5), (1, 70), (3, 17))]
    dense = sparsify(model)
    expected = [dense(x) for x in calls]
    planned(model, calls[0])
    assert [sorted(line.split()) for line in words(model)] == [sorted(ONE.split())]
    with torch.no_grad():
        for x, wanted in zip(calls, expected, strict=True):
            assert_close(model(x), wanted)


@pytest.mark.parametrize("name", SPELLINGS)
def test_rotary_is_found(name: str) -> None:
    model = Decoder(SPELLINGS[name])
    check(model)
    found = [s for s in programs(model)[0] if isinstance(s, Rotary)]
    turned, paired = (4 if name == "in_part" else HEAD), int(name == "pairs")
    assert {(s.turned, s.pairs, s.head) for s in found} == {(turned, paired, HEAD)}
    assert sorted(s.heads for s in found) == [SHARED, HEADS]


@pytest.mark.parametrize("name", MIXES)
def test_shared_heads_are_found(name: str) -> None:
    model = Decoder(mix=MIXES[name])
    check(model)
    assert [s.group for s in programs(model)[0] if isinstance(s, Attention)] == [HEADS // SHARED]


@pytest.mark.parametrize("name", NORMS)
def test_norms_are_found(name: str) -> None:
    model = Decoder(norm=NORMS[name])
    check(model)
    found = [s for s in programs(model)[0] if isinstance(s, Norm)]
    assert [(s.centred, s.epsilon) for s in found] == [(0, pytest.approx(1e-6, rel=1e-5))] * 2


def test_files_keep_the_program(tmp_path: Path) -> None:
    model, x = sparsify(Decoder()), torch.randn(2, 9, WIDTH)
    planned(model, x)
    save(model, tmp_path / "file")
    loaded = load(tmp_path / "file", Decoder())
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def backwards(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the other way."""
    return q * cos + torch.cat([q[..., 4:], -q[..., :4]], -1) * sin


def by_head(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """An angle of its own for every head."""
    scale = torch.arange(1, q.shape[1] + 1).view(-1, 1, 1)
    return q * (cos * scale) + half(q) * (sin * scale)


def doubled(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return q * cos + half(q) * 2 * sin


def weighted(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.add(q * cos, half(q) * sin, alpha=2)


def joined_elsewhere(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """What turned comes last."""
    first, cos, sin = q[..., :4], cos[:, :4], sin[:, :4]
    return torch.cat((q[..., 4:], first * cos + half(first) * sin), dim=-1)


def seen(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """With a third term."""
    return q * cos + half(q) * sin + q


@pytest.mark.parametrize("turn", [backwards, by_head, doubled, weighted, joined_elsewhere, seen])
def test_what_turns_otherwise_stays(turn: Callable[..., Tensor]) -> None:
    model, x = sparsify(Decoder(turn)), torch.randn(2, 5, WIDTH)
    expected = model(x)
    assert plan(model, x) is None  # whose outputs are compared
    assert not any("rotary" in line or "attention" in line for line in words(model))
    assert_close(model(x), expected)


def unlike(x: Tensor, epsilon: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + epsilon)


def centred(x: Tensor, epsilon: float) -> Tensor:
    return x - x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)


@pytest.mark.parametrize("scale", [unlike, centred])
def test_other_norms_stay(scale: Callable[..., Tensor]) -> None:
    model, x = sparsify(Decoder(norm=scale)), torch.randn(2, 5, WIDTH)
    expected = model(x)
    assert plan(model, x) is None  # whose outputs are compared
    assert not any("norm" in line for line in words(model))
    assert_close(model(x), expected)


def shared_unevenly(q: Tensor, k: Tensor, v: Tensor) -> Any:
    """Heads in turn, not one after the other."""
    k, v = k.repeat(1, 2, 1, 1), v.repeat(1, 2, 1, 1)
    return F.scaled_dot_product_attention(q, k, v)


def test_heads_shared_in_turn_stay() -> None:
    model, x = sparsify(Decoder(mix=shared_unevenly)), torch.randn(2, 5, WIDTH)
    expected = model(x)
    assert plan(model, x) is None  # whose outputs are compared
    assert not any("attention" in line for line in words(model))
    assert_close(model(x), expected)
