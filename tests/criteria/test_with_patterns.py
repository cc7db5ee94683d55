"""Criteria and patterns together: every pair, both scopes, and updates under legal masks."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from prune_models import same_bits
from torch import Tensor, nn
from torch.nn import functional as F

import sparseprune as sp
from sparseprune.criteria import CRITERIA, Trajectory, class_score
from sparseprune.patterns import PATTERNS, resolve
from sparseprune.selection import convolution_groups

FORMS = {"2:4": 0.5, "1:2": 0.6, "2:2:8": 0.75, "block(2,2)": 0.5}
SPARSITY = {**dict.fromkeys(PATTERNS, 0.5), **FORMS}
"""Pattern -> a sparsity that it can have."""

IGNORE = {"apoz": ["5"], "maxout": ["5"], "bn_scale": ["3", "5"]}
"""Layers that have no nonlinearity, or no batch norm, to score."""


def grouped() -> tuple[nn.Sequential, list[tuple[Tensor, Tensor]]]:
    """A grouped convolution with batch norm, a linear layer and the classes; two batches."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 4, 2, groups=2), nn.BatchNorm2d(4), nn.Sequential(nn.ReLU(), nn.Flatten()),
        nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 3),
    )  # fmt: skip
    return model, [(torch.randn(n, 4, 3, 3), torch.arange(n) % 3) for n in (4, 3)]


def legal(masks: sp.Masks, model: nn.Module, pattern: str) -> bool:
    """A legal mask is its own best mask."""
    rule, groups = resolve(pattern), convolution_groups(model)
    least = getattr(rule, "least_sparsity", 0.0)
    return all(
        torch.equal(
            rule.mask(m.float(), max(least, 1 - m.float().mean().item()), groups.get(n, 1)), m
        )
        for n, m in masks.items()
    )


@pytest.mark.filterwarnings("ignore:prune")  # floors: the layers are tiny
@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_prunes_in_every_pattern_and_scope(name: str) -> None:
    model, data = grouped()
    loss = class_score if name == "grad_cam" else F.cross_entropy
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    with Trajectory(model, optimizer) as trajectory:
        F.cross_entropy(model(data[0][0]), data[0][1]).backward()
        optimizer.step()
    given = trajectory if name in ("movement", "insensitive") else data
    for (pattern, share), scope in product(SPARSITY.items(), ("global", "local")):
        pruned = copy.deepcopy(model)
        masks = sp.prune(pruned, share, name, scope, pattern, IGNORE.get(name, ()), given, loss)
        assert len(masks) == 3 - len(IGNORE.get(name, ())) and legal(masks, pruned, pattern)
        assert sp.Masks.from_model(pruned, IGNORE.get(name, ())) == masks
        assert masks.sparsity() == pytest.approx(share, abs=0.12), (pattern, scope)
        changed = {n for n, p in pruned.named_parameters() if n not in masks}
        assert all(torch.equal(pruned.get_parameter(n), model.get_parameter(n)) for n in changed)


@pytest.mark.parametrize("pattern", ["2:4", "2:2:8"])
@pytest.mark.parametrize("name", ["taylor", "wanda", "sparsegpt", "oracle", "filter_l1"])
def test_a_sparsity_that_the_pattern_refuses_changes_nothing(name: str, pattern: str) -> None:
    model, data = grouped()
    before = copy.deepcopy(model)
    for scope in ("global", "local"):
        with pytest.raises(ValueError, match="sparsity must be at least"):
            sp.prune(model, 0.3, name, scope, pattern, data=data, loss=F.cross_entropy)
    assert same_bits(model, before)


LAYERS = {
    "linear": (lambda: nn.Linear(16, 8), (16,)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1), (4, 5, 5)),
    "grouped": (lambda: nn.Conv2d(6, 8, 3, groups=2), (6, 5, 5)),
    "depthwise": (lambda: nn.Conv1d(4, 8, 4, groups=4), (4, 9)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", ["sparsegpt", "lobs"])
@pytest.mark.parametrize("pattern", ["2:4", "unstructured", "block(2,1)"])
def test_updated_survivors_keep_the_output(kind: str, name: str, pattern: str) -> None:
    """Nearer to the dense layer's output than the same pattern by magnitude, masks legal."""
    make, shape = LAYERS[kind]
    torch.manual_seed(1)
    layer, x = make(), torch.randn(60, *shape)
    x = x + 0.7 * x.roll(1, -1) + 0.7 * x.roll(1, 1)  # inputs that can stand in for each other
    dense = layer(x).detach()
    error = {}
    for criterion in (name, "magnitude"):
        pruned = copy.deepcopy(layer)
        masks = sp.prune(pruned, 0.5, criterion, "local", pattern, data=[x])
        assert legal(masks, pruned, pattern) and sp.Masks.from_model(pruned) == masks
        error[criterion] = float((pruned(x) - dense).detach().norm())
        bare = copy.deepcopy(layer)
        masks.apply_(bare)
        error[f"{criterion}, not updated"] = float((bare(x) - dense).detach().norm())
    assert error[name] < min(error["magnitude"], error[f"{name}, not updated"])


@pytest.mark.filterwarnings("ignore:prune. the global")
@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("name", ["sparsegpt", "lobs", "obs", "taylor"])
def test_pruning_again_extends_the_masks(name: str, scope: str) -> None:
    """Updates of earlier columns give no zero back."""
    model, data = grouped()
    earlier = sp.prune(model, 0.4, name, scope, data=data, loss=F.cross_entropy)
    later = sp.prune(model, 0.7, name, scope, data=data, loss=F.cross_entropy)
    assert all(not (later[n] & ~earlier[n]).any() for n in later)
    assert sp.Masks.from_model(model) == later


def test_an_update_too_large_for_the_weight_is_refused() -> None:
    layer = nn.Linear(2, 1, bias=False).half()
    layer.weight.data = torch.tensor([[60000.0, 1.0]]).half()
    before = layer.weight.detach().clone()

    def doubling(weight: Tensor) -> Tensor:
        return weight.abs()

    doubling.update = lambda weight, mask, stats: weight.double() * 2  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"update of 'weight' must be finite"):
        sp.prune(layer, 0.5, doubling)
    assert torch.equal(layer.weight, before)
