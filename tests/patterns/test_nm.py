"""N:M and V:N:M: legal by construction, the highest scores, ties, edges, sparsity beyond N:M."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pattern_cases import LAYERS
from torch import nn

from sparseprune import prune
from sparseprune.patterns import NM, VNM, resolve


def lines(mask: torch.Tensor, axis: str, groups: int) -> torch.Tensor:
    """The mask as rows along which groups of m lie, by index arithmetic of its own."""
    if axis == "input":
        return mask.reshape(mask.shape[0], -1)
    if axis == "channel":
        return mask.reshape(*mask.shape[:2], -1).transpose(1, 2).reshape(-1, mask.shape[1])
    parts = mask.flatten(1).chunk(groups)  # no group of m reaches across groups
    return torch.cat([part.T for part in parts])


def best(score: list[float], n: int) -> list[bool]:
    """The n highest stay; of equals the later."""
    order = sorted(range(len(score)), key=lambda i: (score[i], i), reverse=True)
    return [i in order[:n] for i in range(len(score))]


@pytest.mark.parametrize("axis", ["input", "channel", "output"])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 3), (3, 4), (1, 8)])
def test_every_m_keep_the_n_highest(kind: str, axis: str, n: int, m: int) -> None:
    layer = LAYERS[kind]()
    groups = getattr(layer, "groups", 1)
    score = torch.randint(5, layer.weight.shape).float()
    mask = NM(n, m, axis).mask(score, 1 - n / m, groups)
    for kept, values in zip(
        lines(mask, axis, groups).tolist(), lines(score, axis, groups).tolist(), strict=True
    ):
        for start in range(0, len(kept), m):
            assert kept[start : start + m] == best(values[start : start + m], n)


def test_two_of_four_by_hand() -> None:
    score = torch.tensor([[1.0, 4.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0, 5.0, 5.0, 7.0]])
    mask = resolve("2:4").mask(score, 0.5)
    assert mask.int().tolist() == [[0, 1, 0, 1, 0, 0, 1, 1, 0, 1, 1]]


def test_n_is_the_number_kept() -> None:
    model = nn.Linear(16, 4)
    assert prune(model, 0.75, pattern="1:4").sparsity() == 0.75
    assert ((model.weight.view(4, 4, 4) != 0).sum(-1) == 1).all()


def brute_force_vnm(score: torch.Tensor, v: int, n: int, m: int, columns: int) -> torch.Tensor:
    mask = torch.zeros(score.shape, dtype=torch.bool)
    for top, left in itertools.product(range(0, score.shape[0], v), range(0, score.shape[1], m)):
        block = score[top : top + v, left : left + m]
        shared = best(block.double().sum(0).tolist(), columns)
        places = [i for i, chosen in enumerate(shared) if chosen]
        for row in range(block.shape[0]):
            for place, kept in zip(
                places, best([float(block[row, i]) for i in places], n), strict=True
            ):
                mask[top + row, left + place] = kept
    return mask


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_vnm_is_brute_force(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 3))
    columns = data.draw(st.integers(n, 5))
    m = data.draw(st.integers(max(columns, n + 1), 9))
    v, rows, wide = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 21)))
    score = torch.randint(data.draw(st.sampled_from([3, 1000])), (rows, wide)).float()
    mask = VNM(v, n, m, columns).mask(score, 1 - n / m)
    assert torch.equal(mask, brute_force_vnm(score, v, n, m, columns))


@pytest.mark.parametrize("kind", ["conv2d", "grouped", "depthwise"])
def test_vnm_of_convolutions_stays_inside_groups(kind: str) -> None:
    layer = LAYERS[kind]()
    score = torch.rand(layer.weight.shape)
    parts = score.flatten(1).chunk(layer.groups)
    expected = torch.cat([brute_force_vnm(part, 4, 2, 8, 4) for part in parts])
    assert torch.equal(resolve("4:2:8").mask(score, 0.75, layer.groups).flatten(1), expected)


def test_vnm_leaves_two_of_four_for_tensor_cores() -> None:
    mask = resolve("8:2:16").mask(torch.rand(32, 64), 0.875)
    assert ((mask.view(32, 4, 16)).sum(-1) == 2).all()
    assert (mask.view(4, 8, 4, 16).any(1).sum(-1) <= 4).all()


# --- sparsity


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "8:2:4"])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_more_than_the_pattern_is_legal_and_exact(pattern: str, scope: str) -> None:
    model = nn.Sequential(nn.Linear(32, 16), nn.Conv2d(16, 8, 3), nn.Linear(8, 8))
    sizes = [module.weight.numel() for module in model]
    fixed = prune(model, 0.5, pattern=pattern, scope=scope)
    masks = prune(model, 0.8, pattern=pattern, scope=scope)
    assert all(not (masks[name] & ~fixed[name]).any() for name in masks)
    gone = [int((~mask).sum()) for mask in masks.values()]
    assert scope == "global" or gone == [round(0.8 * size) for size in sizes]
    assert scope == "local" or sum(gone) == round(0.8 * sum(sizes))


def test_global_beyond_the_pattern_keeps_a_floor() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    model[0].weight.data.mul_(1e-6)
    with pytest.warns(UserWarning, match=r"0\.weight \(0 -> 20\)"):
        masks = prune(model, 0.8, pattern="2:4")
    assert masks["0.weight"].sum() == 20 and masks.sparsity() == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize("sparsity", [0.0, 0.3])
def test_less_than_the_pattern_is_refused(sparsity: float) -> None:
    model = nn.Linear(8, 8)
    before = model.weight.detach().clone()
    message = r"prune: sparsity must be at least 0\.5 with pattern '2:4', got 0.*; pass 0\.5, or"
    with pytest.raises(ValueError, match=message):
        prune(model, sparsity, pattern="2:4")
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("sparsity", [2 / 3, 0.667, 0.6665])
def test_a_rounded_sparsity_means_the_pattern(sparsity: float) -> None:
    model = nn.Linear(9, 8)
    assert prune(model, sparsity, pattern="1:3").sparsity() == pytest.approx(2 / 3)


def test_edges_keep_as_if_padded() -> None:
    """Trap 11, sizes: a last group of 1 or 2 keeps all of it under 2:4, and no more is removed."""
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(6, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks = prune(model, 0.5, pattern="2:4")
    assert masks["0.weight"].sum(1).tolist() == [3] * 4 and masks["0.weight"][:, 4].all()
    assert masks["1.weight"].sum(1).tolist() == [4] * 4


def test_bad_axis() -> None:
    with pytest.raises(ValueError, match=r"NM: axis must be 'input' or 'channel' or 'output'"):
        NM(2, 4, "rows")
