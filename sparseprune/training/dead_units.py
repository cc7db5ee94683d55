"""Dead units: after weight pruning, what no longer reads anything, or that nothing reads, goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from sparseprune.criteria.bn_scale import NORMS
from sparseprune.errors import bad
from sparseprune.masks import Masks
from sparseprune.modes import evaluating
from sparseprune.patterns.groups import as_boxes
from sparseprune.selection import PRUNABLE, prunable_weights

UNITWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Identity,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, *NORMS
)  # fmt: skip
"""Act on each unit by itself: in eval mode a call shows what becomes of a constant."""

MEAN_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
POOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    *MEAN_POOLS, nn.Flatten
)  # fmt: skip
"""Leave a constant map as it is, but for what `_spoils` says."""


@dataclass
class Link:
    """A layer of the chain, and what its output goes through before the next layer reads it."""

    name: str
    layer: nn.Linear | nn.Conv2d
    after: list[nn.Module] = field(default_factory=list)


@torch.no_grad()
def remove_dead_units(model: nn.Module) -> Masks:
    """Zeroes all weights around units without live inputs or outputs, in place; returns the masks.

    (Han et al., 2015, arXiv:1506.02626, section 3.5, dead neurons.) A unit is a row of a Linear
    layer or a filter of a convolution. One whose weights are all zero is the constant
    c = f(bias), f all that follows up to the next layer; w * c goes into the next layer's bias
    (of a convolution without one: out of the running mean of the batch norm behind it), and the
    weights w that read it become zero. One that nothing reads loses its own weights. Repeated
    through the chain, inputs and outputs of which stay.

    In eval mode the model's output is the same, but for rounding. Where a constant cannot be
    folded it stays as it is: c other than 0 into zero padding, through a mean over padding, or
    into a layer with nowhere to add it.

    model: an nn.Sequential, nested or not, of Linear, Conv1d to 3d, batch norm, elementwise
    nonlinearities, dropout, pooling and Flatten. Anything else is a ValueError before any change.
    Masks attached before are not told: attach the returned ones in their place.
    """
    links = _chain(model)
    pairs = list(pairwise(links))
    with evaluating(model):
        for link, reader in pairs:
            _fold_constants(link, reader)
    for link, reader in reversed(pairs):
        link.layer.weight[~_is_read(link, reader)] = 0
    return Masks.from_model(model)


def _fold_constants(link: Link, reader: Link) -> None:
    """Cuts what reads units without inputs, and adds what they gave to what is behind."""
    units = link.layer.weight.shape[0]
    dead = ~link.layer.weight.flatten(1).any(1)
    constant = torch.where(dead, _constants(link), 0).double()
    into = _offset_of(reader)
    if _bends(link, reader) or into is None:
        dead &= constant == 0
        constant = torch.zeros_like(constant)
    repeat = _inputs(reader.layer) // units  # places of a map, flattened
    groups = getattr(reader.layer, "groups", 1)
    boxes = as_boxes(reader.layer.weight, groups)  # [groups, out, in, kernel]
    by_input = constant.repeat_interleave(repeat).reshape(groups, 1, -1)
    if into is not None:
        offset, sign = into
        offset.add_((boxes.double().sum(-1) * by_input).sum(-1).flatten().to(offset), alpha=sign)
    cut = dead.repeat_interleave(repeat).reshape(groups, 1, -1, 1).expand(boxes.shape)
    reader.layer.weight.masked_fill_(cut.reshape(reader.layer.weight.shape), 0)


def _is_read(link: Link, reader: Link) -> Tensor:
    """Whether a weight other than zero reads each unit of `link`: [units]."""
    boxes = as_boxes(reader.layer.weight, getattr(reader.layer, "groups", 1))
    live = (boxes != 0).any(3).any(1)  # [groups, in]
    return live.reshape(link.layer.weight.shape[0], -1).any(1)


def _constants(link: Link) -> Tensor:
    """f(bias) of every unit, what the next layer reads of one without inputs: [units]."""
    weight, bias = link.layer.weight, link.layer.bias
    value = weight.new_zeros(weight.shape[0]) if bias is None else bias.clone()  # for in-place
    value = value.reshape(1, -1, *[1] * (weight.dim() - 2))
    for module in link.after:
        if not isinstance(module, POOLS):
            value = module(value)
    return value.flatten()


def _bends(link: Link, reader: Link) -> bool:
    """Whether a constant other than zero does not reach all of the next layer as a constant."""
    padding = getattr(reader.layer, "padding", "valid")
    zeros = getattr(reader.layer, "padding_mode", "zeros") == "zeros"
    padded = padding == "same" or (padding != "valid" and any(padding))
    return (zeros and padded) or any(map(_spoils, link.after))


def _spoils(module: nn.Module) -> bool:
    if isinstance(module, NORMS):
        return module.running_mean is None  # statistics of the batch, also in eval mode
    if not isinstance(module, MEAN_POOLS):
        return False
    padding = module.padding if isinstance(module.padding, tuple) else (module.padding,)
    return any(padding) or getattr(module, "divisor_override", None) is not None


def _offset_of(reader: Link) -> tuple[Tensor, int] | None:
    """What to add a constant to, and with which sign: the bias, or a running mean behind."""
    if reader.layer.bias is not None:
        return reader.layer.bias, 1
    behind = reader.after[0] if reader.after else None
    mean = behind.running_mean if isinstance(behind, NORMS) else None
    return None if mean is None else (mean, -1)


def _chain(model: nn.Module) -> list[Link]:
    """The layers in order, or an error for what is no chain of known modules."""
    operation, way_out = "remove_dead_units", "pass the part of the model that is such a chain"
    if not isinstance(model, nn.Sequential):
        got = type(model).__name__
        raise bad(operation, "model", "an nn.Sequential of layers", got, way_out)
    links: list[Link] = []
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Sequential):
            continue
        if isinstance(module, PRUNABLE):
            links.append(Link(f"{path}.weight", module))  # type: ignore[arg-type]
        elif not isinstance(module, (*UNITWISE, *POOLS)):
            got = f"{type(module).__name__} at {path!r}"
            raise bad(operation, "model", "made of layers and unitwise modules", got, way_out)
        elif links:
            links[-1].after.append(module)
    names = prunable_weights(model, operation=operation)  # also refuses computed weights
    if len(names) != len(links) or not links:
        got = f"{len(links)} layers with {len(names)} weights"
        raise bad(operation, "model", "one with layers, each with its own weight", got, way_out)
    for link, reader in pairwise(links):
        _check_pair(link, reader)
    return links


def _check_pair(link: Link, reader: Link) -> None:
    """An error unless the second layer reads the units of the first, one by one or flattened."""
    flattens = [module for module in link.after if isinstance(module, nn.Flatten)]
    from_conv, to_conv = (not isinstance(end.layer, nn.Linear) for end in (link, reader))
    units, inputs = link.layer.weight.shape[0], _inputs(reader.layer)
    if from_conv and not to_conv:
        fits = bool(flattens) and inputs % units == 0
    else:
        fits = from_conv == to_conv and inputs == units and not (to_conv and flattens)
    if not fits or any((f.start_dim, f.end_dim) != (1, -1) for f in flattens):
        expected = f"one where {reader.name!r} reads the {units} units of {link.name!r}"
        got = f"{inputs} inputs, {len(flattens)} nn.Flatten between"
        way_out = "between a convolution and a Linear layer put nn.Flatten()"
        raise bad("remove_dead_units", "model", expected, got, way_out)


def _inputs(layer: nn.Linear | nn.Conv2d) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
