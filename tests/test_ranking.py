"""Ranking: exact counts, deterministic ties, no concatenation of scores (trap 17), the floor."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prune_models import DTYPES, kept, small, unequal

from sparseprune.patterns import Unstructured, ranking
from sparseprune.patterns.ranking import lowest
from sparseprune.prune import prune


def reference(scores: list[torch.Tensor], count: int) -> list[torch.Tensor]:
    """Stable sort by (score, position)."""
    flat = torch.cat([s.double().flatten() for s in scores])
    marks = torch.zeros(flat.numel(), dtype=torch.bool)
    marks[flat.sort(stable=True).indices[:count]] = True
    parts = marks.split([s.numel() for s in scores])
    return [part.view(s.shape) for part, s in zip(parts, scores, strict=True)]


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_lowest_is_the_stable_sort(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    shapes = data.draw(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=1))
    values = st.one_of(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf]),
        st.floats(-60000, 60000, width=16),
        st.floats(allow_nan=False, width=32),
    )
    scores = [
        torch.tensor(data.draw(st.lists(values, min_size=n, max_size=n)), dtype=torch.float64)
        .to(dtype)
        .view(shape)
        for shape in shapes
        for n in [math.prod(shape)]
    ]
    count = data.draw(st.integers(0, sum(s.numel() for s in scores)))
    for got, expected in zip(lowest(scores, count), reference(scores, count), strict=True):
        assert torch.equal(got, expected)


def test_lowest_streams_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [torch.randn(7, 11).round(decimals=1), torch.randn(50), torch.randn(3, 4).double()]
    whole = lowest(scores, 70)
    monkeypatch.setattr(ranking, "CHUNK", 8)
    assert all(map(torch.equal, lowest(scores, 70), whole))
    assert all(map(torch.equal, whole, reference(scores, 70)))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    sparsity=st.floats(0, 1, exclude_max=True),
    levels=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_unstructured_removes_exactly_round(
    shape: list[int], sparsity: float, levels: int, seed: int
) -> None:
    score = torch.randint(levels, shape, generator=torch.Generator().manual_seed(seed)).float()
    mask = Unstructured().mask(score, sparsity)
    assert (~mask).sum() == round(sparsity * score.numel())
    assert mask.all() or not mask.any() or score[~mask].max() <= score[mask].min()
    assert torch.equal(mask, Unstructured().mask(score.clone(), sparsity))


def test_all_scores_tie() -> None:
    mask = Unstructured().mask(torch.ones(2, 5), 0.3)
    assert mask.tolist() == [[False] * 3 + [True] * 2, [True] * 5]


@settings(max_examples=40, deadline=None)
@given(sparsity=st.floats(0, 0.9), seed=st.integers(0, 99))
def test_global_total_is_exact(sparsity: float, seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masks = prune(small(seed), sparsity)
    total = sum(mask.numel() for mask in masks.values())
    assert total - kept(masks) == round(sparsity * total)
    assert all(mask.any() for mask in masks.values())


def test_layers_of_different_dtype_rank_exactly_together() -> None:
    fine = 1.0009765625  # rounds to 1.0 in bfloat16
    scores = [torch.tensor([fine, 3.0]), torch.tensor([1.0], dtype=torch.bfloat16)]
    assert [mark.tolist() for mark in lowest(scores, 1)] == [[False, False], [True]]
    assert [mark.tolist() for mark in lowest(scores, 2)] == [[True, False], [True]]


# --- the floor: a global ranking empties no layer (trap 8)


def test_global_floor_keeps_every_layer_and_says_so() -> None:
    model = unequal()
    with pytest.warns(UserWarning, match=r"3\.weight \(0 -> 15\)") as record:
        masks = prune(model, 0.7)
    assert record[0].filename == __file__
    assert masks["3.weight"].sum() == round(0.1 * 0.3 * 512) == 15
    assert masks["3.weight"].sum() == (model[3].weight != 0).sum()
    total = sum(mask.numel() for mask in masks.values())
    assert total - kept(masks) == round(0.7 * total)  # the others gave more


def test_global_floor_keeps_the_best_of_the_layer() -> None:
    best = unequal()[3].weight.abs().flatten().topk(15).indices.sort().values
    with pytest.warns(UserWarning):
        masks = prune(unequal(), 0.7)
    assert torch.equal(masks["3.weight"].flatten().nonzero().flatten(), best)


def test_global_extreme_sparsity_leaves_one_weight_per_layer() -> None:
    with pytest.warns(UserWarning):
        masks = prune(small(), 0.9999)
    assert [int(mask.sum()) for mask in masks.values()] == [1, 1, 1]


def test_no_warning_without_need() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune(small(), 0.5)


def test_local_emptied_layer_is_named() -> None:
    with pytest.warns(UserWarning, match=r"no weight is left in 4\.weight") as record:
        prune(small(), {"4": 0.999})
    assert record[0].filename == __file__
