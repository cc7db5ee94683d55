"""Vision transformer: ViT-B/16 (Dosovitskiy et al., 2020), ViT-S/16 (DeiT-S; Touvron et al., 2020).

Parameter names are timm's, so its checkpoints load.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseprune.zoo.init import bert_


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V over `heads` heads, Q, K and V from one linear layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"vit.Attention: width {width} does not divide into {heads} heads")
        self.heads, self.head_width = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] -> [N, T, width]"""
        batch, tokens, width = x.shape
        split = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.head_width)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        y: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return y


class Mlp(nn.Module):
    """Two linear layers, GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] -> [N, T, width]"""
        y: Tensor = self.fc2(self.act(self.fc1(x)))
        return y


class Block(nn.Module):
    """Attention and feed-forward, each on normalised input and added to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] -> [N, T, width]"""
        x = x + self.attn(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class PatchEmbed(nn.Module):
    """Every patch of the image becomes a token."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, H/patch * W/patch, width]"""
        y: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return y


class ViT(nn.Module):
    """Patches behind a class token, transformer blocks, a classifier of that token."""

    def __init__(
        self,
        width: int,
        depth: int = 12,
        heads: int = 12,
        image: int = 224,
        patch: int = 16,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        if image % patch:
            raise ValueError(f"ViT: image of {image} does not divide into patches of {patch}")
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, (image // patch) ** 2 + 1, width))
        self.patch_embed = PatchEmbed(width, patch)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, image, image] -> [N, num_classes]"""
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        y: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return y


def vit_b16(
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    image: int = 224,
    patch: int = 16,
    num_classes: int = 1000,
) -> nn.Module:
    """ViT-B/16 for ImageNet at 224x224."""
    return bert_(ViT(width, depth, heads, image, patch, num_classes))


def vit_s16(
    width: int = 384,
    depth: int = 12,
    heads: int = 6,
    image: int = 224,
    patch: int = 16,
    num_classes: int = 1000,
) -> nn.Module:
    """ViT-S/16, also known as DeiT-S, for ImageNet at 224x224."""
    return bert_(ViT(width, depth, heads, image, patch, num_classes))
