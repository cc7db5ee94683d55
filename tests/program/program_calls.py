"""Every way to write what a program can do between two layers."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATION_CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu_module": nn.ReLU(),
    "relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, -0.3, 0.4),
    "hardtanh_module": nn.Hardtanh(-0.3, 0.4),
    "leaky": lambda x: F.leaky_relu(x, 0.1),
    "leaky_module": nn.LeakyReLU(0.3),
    "elu": nn.ELU(0.7),
    "elu_functional": lambda x: F.elu(x, 1.3),
    "celu": nn.CELU(),
    "celu_functional": F.celu,
    "selu": nn.SELU(),
    "selu_functional": torch.selu,
    "mish": nn.Mish(),
    "mish_functional": F.mish,
    "silu": nn.SiLU(),
    "gelu": F.gelu,
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "hardswish": F.hardswish,
    "hardsigmoid": nn.Hardsigmoid(),
    "sigmoid": torch.sigmoid,
    "sigmoid_method": lambda x: x.sigmoid(),
    "tanh_in_place": lambda x: x.tanh_(),
    "clamp": lambda x: torch.clamp(x, max=0.2),
    "clamp_method": lambda x: x.clamp(min=-0.1, max=0.2),
    "twice": lambda x: F.relu(F.relu6(x)),
    "clamp_min": lambda x: torch.clamp_min(x, 0.1),
    "clamp_min_method": lambda x: x.clamp_min(0.1),
    "clip": lambda x: x.clip(-0.1, 0.2),
    "relu_in_place": lambda x: F.relu(x, inplace=True),
    "relu_in_place_by_position": lambda x: F.relu(x, True),
    "relu_": lambda x: F.relu_(x),
    "relu_method": lambda x: x.relu(),
    "torch_relu": torch.relu,
}
POOL_CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": nn.MaxPool2d(2),
    "max_ceil": nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "max_dilated": nn.MaxPool2d(2, 1, dilation=(2, 3)),
    "max_functional": lambda x: F.max_pool2d(x, (3, 2), stride=2, padding=(1, 0)),
    "avg": nn.AvgPool2d(3, 2, 1),
    "avg_not_counted": nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "avg_ceil": lambda x: F.avg_pool2d(x, 2, 2, 1, True),
    "avg_cut_off": nn.AvgPool2d(12, ceil_mode=True),
    "max_cut_off": nn.MaxPool2d((10, 3), ceil_mode=True),
    "mean": nn.AdaptiveAvgPool2d(1),
    "adaptive": nn.AdaptiveAvgPool2d((4, 3)),
    "adaptive_same": nn.AdaptiveAvgPool2d((9, 8)),
    "adaptive_more": lambda x: F.adaptive_avg_pool2d(x, 11),
    "adaptive_kept": nn.AdaptiveAvgPool2d((None, 4)),
    "mean_keepdim": lambda x: x.mean(dim=(-1, -2), keepdim=True),
}
FLATTEN_CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": lambda x: x.flatten(1),
    "torch_flatten": lambda x: torch.flatten(x, start_dim=1),
    "module": nn.Flatten(),
    "view": lambda x: x.view(x.size(0), -1),
    "view_shape": lambda x: x.view(x.shape[0], -1),
    "reshape": lambda x: x.reshape((x.size()[0], -1)),
    "view_features": lambda x: x.view(-1, 24),
    "view_both": lambda x: x.view(x.size(0), 24),
    "view_product": lambda x: x.view(x.shape[0], x.shape[1] * x.shape[2] * x.shape[3]),
    "view_divided": lambda x: x.view(x.size(0), x.numel() // x.size(0)),
    "view_of_one": lambda x: x.view(-1, x[0].numel()),
    "torch_reshape": lambda x: torch.reshape(x, (x.shape[0], -1)),
}
NOTHING_CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": nn.Identity(),
    "dropout": nn.Dropout(0.5),
    "f_dropout": lambda x: F.dropout(x, training=False),
    "f_dropout2d": lambda x: F.dropout2d(x, 0.5, False),
    "f_alpha_dropout": lambda x: F.alpha_dropout(x, 0.5),
    "torch_dropout": lambda x: torch.dropout(x, 0.5, False),
    "to_memory_format": lambda x: x.to(memory_format=torch.channels_last),
    "to_dtype": lambda x: x.to(torch.float32),
    "float": lambda x: x.float(),
    "detach": lambda x: x.detach(),
    "clone": lambda x: x.clone(),
    "sum_of_one": lambda x: sum([x]),
}
PAD_CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "sides": lambda x: F.pad(x, (0, 1, 2, 0)),
    "module": nn.ZeroPad2d((1, 2, 0, 3)),
    "constant": nn.ConstantPad2d(1, 0.0),
    "channels_too": lambda x: F.pad(x, (0, 1, 2, 0, 1, 2))[:, 1:7],
}
SUM_CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch_add": lambda x: torch.add(x, F.relu(x)),
    "method": lambda x: x.add(F.relu(x)),
    "iadd": lambda x: operator.iadd(F.relu(x), x),
    "sum": lambda x: sum([x, F.relu(x)]),
}


def _dealt(x: Tensor, turn: Callable[[Tensor], Tensor]) -> Tensor:
    n, c, h, w = x.size()
    return turn(x.view(n, 3, c // 3, h, w)).reshape(n, c, h, w)


def _turned(parts: Sequence[Tensor], count: int) -> Tensor:
    return torch.cat([parts[i] for i in reversed(range(count))], 1)


CHANNEL_CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "chunk": lambda x: _turned(x.chunk(2, 1), 2),
    "torch_chunk": lambda x: _turned(torch.chunk(x, chunks=3, dim=-3), 3),
    "chunk_uneven": lambda x: _turned(x.chunk(4, dim=1), 3),
    "split": lambda x: _turned(x.split(4, 1), 2),
    "split_names": lambda x: _turned(x.split(split_size=4, dim=1), 2),
    "split_sizes": lambda x: _turned(torch.split(x, [1, 3, 2], dim=1), 3),
    "slices": lambda x: torch.cat((x[:, 4:], x[:, :-4], x[:, 2:4]), 1),
    "narrow": lambda x: torch.cat((x.narrow(1, 2, 4), torch.narrow(x, 1, 0, 2)), 1),
    "all": lambda x: x[:, :],
    "shuffle_module": nn.ChannelShuffle(2),
    "shuffle_function": lambda x: F.channel_shuffle(x, 3),
    "shuffle_views": lambda x: _dealt(x, lambda y: y.transpose(1, 2).contiguous()),
    "shuffle_axes": lambda x: _dealt(x, lambda y: torch.transpose(y, 2, 1)),
    "shuffle_permuted": lambda x: _dealt(x, lambda y: y.permute(0, 2, 1, 3, 4)),
}
UPSAMPLE_CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "module": nn.Upsample(scale_factor=2),
    "older": nn.UpsamplingNearest2d(scale_factor=(3, 1)),
    "function": lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"),
    "exact": lambda x: F.interpolate(x, None, (5, 4), "nearest-exact"),
}
