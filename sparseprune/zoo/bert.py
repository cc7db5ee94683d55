"""BERT's encoder (Devlin et al., 2018): embeddings, post-norm transformer layers, pooler.

BERT-base has 109,482,240 parameters: 23,837,184 in the embeddings, 85,054,464 in the twelve layers
and 590,592 in the pooler (the last two together are the "85.6M" often quoted).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sparseprune.zoo.init import bert_


class SelfAttention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V over `heads` heads, then a linear layer. No padding mask."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"SelfAttention: width {width} does not divide into {heads} heads")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def _split(self, x: Tensor) -> Tensor:
        """[N, T, width] -> [N, heads, T, width / heads]"""
        x = x.unflatten(-1, (self.heads, -1))
        return x.transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] -> [N, T, width]"""
        query, key, value = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(query, key, value)
        y: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return y


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each added to its input and then normalised."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.intermediate = nn.Linear(width, hidden)
        self.output = nn.Linear(hidden, width)
        self.output_norm = nn.LayerNorm(width, eps=1e-12)
        self.gelu = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] -> [N, T, width]"""
        x = self.attention_norm(x + self.attention(x))
        y: Tensor = self.output_norm(x + self.output(self.gelu(self.intermediate(x))))
        return y


class Bert(nn.Module):
    """Tokens -> one vector per sequence. All tokens are of segment 0 and none is padding."""

    def __init__(
        self,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        hidden: int = 3072,
        vocab: int = 30522,
        context: int = 512,
    ) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab, width)
        self.position_embeddings = nn.Embedding(context, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.Sequential(*(EncoderLayer(width, heads, hidden) for _ in range(depth)))
        self.pooler = nn.Linear(width, width)
        self.tanh = nn.Tanh()

    def forward(self, input_ids: Tensor) -> Tensor:
        """[N, T] int64 -> [N, width]"""
        x = self.word_embeddings(input_ids)
        x = x + self.position_embeddings.weight[: input_ids.shape[1]]
        x = self.layers(self.norm(x + self.token_type_embeddings.weight[0]))
        y: Tensor = self.tanh(self.pooler(x[:, 0]))
        return y


def bert_base(
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    hidden: int = 3072,
    vocab: int = 30522,
    context: int = 512,
) -> nn.Module:
    """BERT-base, uncased vocabulary, with embeddings and pooler."""
    return bert_(Bert(width, depth, heads, hidden, vocab, context))
