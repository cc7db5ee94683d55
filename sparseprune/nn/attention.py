"""nn.MultiheadAttention with its four projections as layers of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseprune.errors import bad
from sparseprune.nn.linear import SparseLinear

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


def linear_of(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A linear layer with copies of these tensors."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone())
    return linear


class MultiheadAttention(nn.Module):
    """Called as nn.MultiheadAttention is, with the same outputs; each projection can be packed.

    torch's own layer keeps the weights of its inputs as bare parameters, and multiplies past its
    ``out_proj``, so neither can be replaced there.

    Args:
        q_proj, k_proj, v_proj: [..., features] -> [..., embed_dim], nn.Linear or SparseLinear.
        out_proj: of what is attended to.
        num_heads: of equal parts of embed_dim.
        dropout: of the attention weights, in training mode.
        batch_first: inputs are [batch, length, features], else [length, batch, features].
    """

    # torch's encoder layers ask for these; without them they leave their fused path.
    in_proj_weight = in_proj_bias = bias_k = bias_v = None
    _qkv_same_embed_dim = False

    def __init__(
        self,
        q_proj: nn.Linear | SparseLinear,
        k_proj: nn.Linear | SparseLinear,
        v_proj: nn.Linear | SparseLinear,
        out_proj: nn.Linear | SparseLinear,
        num_heads: int,
        dropout: float = 0.0,
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = q_proj, k_proj, v_proj, out_proj
        self.num_heads, self.dropout, self.batch_first = num_heads, dropout, batch_first
        sizes = {q_proj.out_features, k_proj.out_features, v_proj.out_features}
        if len(sizes | {out_proj.in_features}) > 1 or num_heads < 1 or max(sizes) % num_heads:
            raise bad("MultiheadAttention", "projections", f"of one size that {num_heads} divides",
                      [p.out_features for p in (q_proj, k_proj, v_proj)],
                      "take them from one nn.MultiheadAttention")  # fmt: skip

    @property
    def embed_dim(self) -> int:
        """Features of the outputs."""
        return self.out_proj.out_features

    @staticmethod
    def refuses(attention: nn.MultiheadAttention) -> str | None:
        """Why this attention must stay as it is, or None."""
        if attention.bias_k is not None:
            return "nn.MultiheadAttention with add_bias_kv has no sparse form"
        if attention.add_zero_attn:
            return "nn.MultiheadAttention with add_zero_attn has no sparse form"
        return None

    @classmethod
    def from_dense(cls, attention: nn.MultiheadAttention) -> MultiheadAttention:
        """The same attention with copies of its weights in layers.

        Raises:
            ValueError: one that adds keys and values of its own.
        """
        if (reason := cls.refuses(attention)) is not None:
            raise bad("MultiheadAttention.from_dense", "attention", "one without keys of its own",
                      reason, "leave it as it is")  # fmt: skip
        if attention._qkv_same_embed_dim:
            weights = attention.in_proj_weight.chunk(3)
        else:
            weights = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        bias = attention.in_proj_bias
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        q, k, v = map(linear_of, weights, biases)
        out = linear_of(attention.out_proj.weight, attention.out_proj.bias)
        made = cls(q, k, v, out, attention.num_heads, attention.dropout, attention.batch_first)
        return made.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As nn.MultiheadAttention.forward; is_causal only says what attn_mask is."""
        if is_causal and attn_mask is None:
            raise bad("MultiheadAttention", "attn_mask", "given with is_causal", None,
                      "pass nn.Transformer.generate_square_subsequent_mask(length)")  # fmt: skip
        batched = query.dim() == 3
        q = self._heads(self.q_proj(query), batched)
        k, v = self._heads(self.k_proj(key), batched), self._heads(self.v_proj(value), batched)
        mask = self._mask(attn_mask, key_padding_mask, q.dtype)
        dropped = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            weights = F.dropout(weights, dropped) if dropped else weights
            mixed = weights @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropped)
        y = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return y if self.batch_first else y.transpose(0, 1), weights

    def _heads(self, x: Tensor, batched: bool) -> Tensor:
        """[batch, heads, length, features of a head]"""
        x = x.unflatten(-1, (self.num_heads, -1))
        if not batched:
            x = x.unsqueeze(0)
        elif not self.batch_first:
            x = x.transpose(0, 1)
        return x.transpose(1, 2)

    def _mask(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, dtype: torch.dtype
    ) -> Tensor | None:
        """What is added to the scores [batch, heads, length, keys], or None."""
        mask = None
        if attn_mask is not None:
            mask = _added(attn_mask, dtype)
            mask = mask.unflatten(0, (-1, self.num_heads)) if mask.dim() == 3 else mask
        if key_padding_mask is not None:
            padding = _added(key_padding_mask, dtype)
            padding = padding.reshape(-1, 1, 1, padding.shape[-1])
            mask = padding if mask is None else mask + padding
        return mask

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, num_heads={self.num_heads}, batch_first={self.batch_first}"


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of True where nothing may be seen as what is added there."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)
