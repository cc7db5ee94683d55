"""The steps on the tokens of sequences, and of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparseprune.program.steps import Step, Triple


@dataclass(frozen=True)
class Norm(Step):
    """out = (x - mean) / sqrt(variance + epsilon) * weight + bias, over the channels of tokens.

    Layer normalisation (Ba et al., 2016); with centred 0 the mean is taken to be 0: RMSNorm (Zhang
    and Sennrich, 2019). Tensors: weight [channels] and, where has_bias, bias [channels], float32.
    """

    word: ClassVar[str] = "norm"
    out: int
    x: int
    tensors: int
    channels: int
    has_bias: int
    centred: int
    epsilon: float


@dataclass(frozen=True)
class Rotary(Step):
    """Heads turned by the angles of their tokens: rotary embeddings (Su et al., RoFormer, 2021).

    out_c = x_c cos_c - x_d sin_c and out_d = x_d cos_d + x_c sin_d, for channels c and d of a head.

    Args:
        out: tokens [..., heads * head].
        x: tokens [..., channels].
        cos, sin: tokens [..., turned], as many as x.
        first, stride: channel of the first head in x, and channels from one to the next.
        heads, head: how many, and channels of each.
        turned: the first channels of a head, an even number; others stay as they are.
        pairs: 1 turns channels 2 i and 2 i + 1 together, 0 i and i + turned / 2.
    """

    word: ClassVar[str] = "rotary"
    out: int
    x: int
    cos: int
    sin: int
    first: int
    stride: int
    heads: int
    head: int
    turned: int
    pairs: int


@dataclass(frozen=True)
class Attention(Step):
    """out = softmax(scale q k^T + mask) v for every head of every sequence (Vaswani et al., 2017).

    A query all of whose scores are -inf gives zeros.

    Args:
        out: tokens [..., queries, heads * head].
        x, key, value: tokens [..., queries, channels], [..., keys, channels] twice; the leading
            dimensions count sequences and are the same.
        mask: tokens [..., queries, keys], or -1.
        first, strides: channel of the first head in x, key and value, and channels from one head
            to the next.
        heads, head: how many, and channels of each.
        group: so many heads of queries, one after the other, share a head of keys and values
            (Ainslie et al., GQA, 2023).
        causal: 1 lets query i see the keys 0 to i alone.
        scale: of the products of queries and keys.
    """

    word: ClassVar[str] = "attention"
    out: int
    x: int
    key: int
    value: int
    mask: int
    first: Triple
    strides: Triple
    heads: int
    head: int
    group: int
    causal: int
    scale: float


def end_of_heads(first: int, stride: int, heads: int, head: int) -> int:
    """The channel behind the last of so many heads."""
    return first + (heads - 1) * stride + head


@dataclass(frozen=True)
class Pixels(Step):
    """An image [N, C, *sizes] of `dims` (1 or 2) sizes as tokens [N, *sizes, C]."""

    word: ClassVar[str] = "pixels"
    out: int
    x: int
    dims: int


@dataclass(frozen=True)
class Picture(Step):
    """Tokens that were pixels as an image again."""

    word: ClassVar[str] = "picture"
    out: int
    x: int
    dims: int
