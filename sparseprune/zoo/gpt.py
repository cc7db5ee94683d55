"""GPT-2 (Radford et al., 2019): pre-norm decoder blocks, output tied to the token embedding."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sparseprune.zoo.init import bert_


class Block(nn.Module):
    """Causal attention and feed-forward, each on normalised input and added to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"gpt.Block: width {width} does not divide into {heads} heads")
        self.heads = heads
        self.ln_1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width)
        self.fc = nn.Linear(width, 4 * width)
        self.gelu = nn.GELU(approximate="tanh")
        self.out = nn.Linear(4 * width, width)

    def _attend(self, x: Tensor) -> Tensor:
        """[N, T, width] -> [N, T, width]; token t sees tokens 0..t."""
        split = self.qkv(x).unflatten(-1, (3, self.heads, -1)).transpose(1, 3)
        query, key, value = split.unbind(2)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        y: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return y

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] -> [N, T, width]"""
        x = x + self._attend(self.ln_1(x))
        y: Tensor = x + self.out(self.gelu(self.fc(self.ln_2(x))))
        return y


class GPT(nn.Module):
    """Tokens -> logits of the next token at every position."""

    def __init__(
        self,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        vocab: int = 50257,
        context: int = 1024,
    ) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocab, width)
        self.wpe = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocab, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """[N, T] int64 -> [N, T, vocab]"""
        x = self.wte(input_ids) + self.wpe.weight[: input_ids.shape[1]]
        y: Tensor = self.lm_head(self.ln_f(self.blocks(x)))
        return y


def gpt2(
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    vocab: int = 50257,
    context: int = 1024,
) -> nn.Module:
    """GPT-2 small; the tied output layer is counted once."""
    return bert_(GPT(width, depth, heads, vocab, context))


def gpt_tiny(
    width: int = 256,
    depth: int = 4,
    heads: int = 4,
    vocab: int = 1000,
    context: int = 128,
) -> nn.Module:
    """A GPT small enough for tests and examples."""
    return bert_(GPT(width, depth, heads, vocab, context))
