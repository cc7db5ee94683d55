"""filter, channel, kernel, row and block: whole groups, the lowest means, ties, the floor."""

from __future__ import annotations

import warnings

import pytest
import torch
from pattern_cases import LAYERS, mean, members
from torch import nn

from sparseprune import prune
from sparseprune.patterns import PATTERNS, Block, Pattern, Slices, resolve

GROUPED = ["filter", "channel", "kernel", "row", "block(2,4)", "block(1,3)", "block(4,1)"]
GROUPED += ["block(2,2,taps)", "block(2,4,taps)"]


def nearest(sizes: list[int], wanted: int) -> int:
    """How many of these, taken in order, sum up nearest to `wanted`; of two as near, fewer."""
    sums = [sum(sizes[:count]) for count in range(len(sizes) + 1)]
    return min(range(len(sums)), key=lambda count: abs(sums[count] - wanted))


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.75])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("pattern", GROUPED)
def test_the_lowest_groups_go_whole(pattern: str, kind: str, sparsity: float) -> None:
    layer = LAYERS[kind]()
    score = torch.randint(6, layer.weight.shape).float()  # many ties
    groups = getattr(layer, "groups", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mask = resolve(pattern).mask(score, sparsity, groups)
    parts = members(pattern, layer)
    order = sorted(parts, key=lambda key: (mean(score, parts[key]), key))
    count = nearest([len(parts[key]) for key in order], round(sparsity * score.numel()))
    gone = set(order[: min(count, len(order) - 1)])
    for key, indices in parts.items():
        assert {bool(mask[index]) for index in indices} == {key not in gone}


def test_by_hand() -> None:
    score = torch.tensor([[[[1.0, 2.0]], [[0.0, 9.0]]], [[[3.0, 0.0]], [[4.0, 1.0]]]])
    kept = {name: PATTERNS[name]().mask(score, 0.5).flatten().tolist() for name in PATTERNS}
    assert kept["filter"] == [True] * 4 + [False] * 4  # means 3 and 2
    assert kept["channel"] == [False, False, True, True] * 2  # 1.5 and 3.5
    assert kept["kernel"] == [False, False, True, True, False, False, True, True]
    assert kept["row"] == [False, False, True, True] * 2  # 2, 1, 2, 5: of the tie the later stays
    assert kept["unstructured"] == [False, True, False, True, True, False, True, False]


def test_row_tie_goes_by_position() -> None:
    mask = PATTERNS["row"]().mask(torch.ones(3, 4), 0.5)
    assert mask.tolist() == [[False, False, True, True]] * 3


def test_block_edges_are_smaller_blocks() -> None:
    score = torch.tensor([[1.0, 1.0, 9.0], [1.0, 1.0, 9.0], [9.0, 9.0, 0.0]])
    assert (~Block(2, 2).mask(score, 1 / 9)).nonzero().tolist() == [[2, 2]]  # mean 0, one weight
    assert int((~Block(2, 2).mask(score, 5 / 9)).sum()) == 5
    assert Block(9, 9).mask(score, 0.4).all()  # nothing is nearer to 3.6 of 9 than all of them


def test_blocks_of_one_weight_are_unstructured() -> None:
    score = torch.randint(4, (5, 7)).float()
    expected = resolve("unstructured").mask(score, 0.4)
    assert torch.equal(Block(1, 1).mask(score, 0.4), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_means_do_not_overflow_or_round(dtype: torch.dtype) -> None:
    score = torch.full((2, 4096), 30000.0, dtype=dtype)  # the sum leaves float16
    score[1, 0] = 30100.0 if dtype != torch.bfloat16 else 31000.0
    assert Slices("filter", (2, 3)).mask(score, 0.5).all(1).tolist() == [False, True]


def test_infinite_scores() -> None:
    score = torch.ones(3, 2)
    score[0] = torch.tensor([torch.inf, -torch.inf])  # a member that must stay decides
    score[1, 0] = -torch.inf
    assert PATTERNS["filter"]().mask(score, 1 / 3)[:, 0].tolist() == [True, False, True]
    assert PATTERNS["filter"]().mask(score, 2 / 3)[:, 0].tolist() == [True, False, False]


# --- many layers


def test_global_is_one_threshold_on_means() -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Linear(10, 12))
    masks = prune(model, 0.4, pattern="filter")
    fresh = torch.manual_seed(0) and nn.Sequential(nn.Conv2d(2, 6, 3), nn.Linear(10, 12))
    means = [fresh[i].weight.detach().abs().flatten(1).mean(1) for i in range(2)]
    kept = [masks[f"{i}.weight"].flatten(1).all(1) for i in range(2)]
    assert torch.cat(means)[torch.cat(kept)].min() > torch.cat(means)[~torch.cat(kept)].max()
    gone = sum(int((~mask).sum()) for mask in masks.values())
    assert abs(gone - 0.4 * 228) <= 9  # half a filter


def test_mean_not_sum_ranks_groups_of_different_sizes() -> None:
    """Six weights of 0.5 sum up to more than two of 1, but are worth less each."""
    pattern = PATTERNS["filter"]()
    scores = {"wide": torch.full((2, 6), 0.5), "narrow": torch.full((2, 2), 1.0)}
    masks = pattern.masks(scores, 6 / 16)
    assert masks["wide"][:, 0].tolist() == [False, True] and masks["narrow"].all()


@pytest.mark.parametrize("pattern", GROUPED)
def test_global_floor_keeps_a_group_of_every_layer_and_says_so(pattern: str) -> None:
    """Trap 8."""
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=4))
    model[1].weight.data.mul_(1e-6)
    with pytest.warns(UserWarning, match=r"too little of 1\.weight \(0 -> ") as record:
        masks = prune(model, 0.8, pattern=pattern)
    assert record[0].filename == __file__
    assert all(mask.any() for mask in masks.values())
    assert masks.sparsity() == pytest.approx(0.8, abs=0.08)  # half of the largest group


@pytest.mark.parametrize("pattern", ["filter", "channel"])
def test_local_keeps_the_best_group_and_says_so(pattern: str) -> None:
    model = nn.Linear(3, 3)
    with pytest.warns(UserWarning, match=f"every {pattern} of the weight 3 x 3") as record:
        masks = prune(model, 0.95, scope="local", pattern=pattern)
    assert record[0].filename == __file__
    assert int(masks["weight"].sum()) == 3


def test_channel_of_a_depthwise_convolution_is_its_filter() -> None:
    """Each input is read by its own filter; without the groups, one channel would be the layer."""
    model = nn.Conv2d(8, 8, 3, groups=8)
    weight = model.weight.detach().clone()
    by_channel = prune(model, 0.5, pattern="channel")
    model.weight.data = weight
    assert prune(model, 0.5, pattern="filter") == by_channel
    assert by_channel.sparsity() == 0.5


@pytest.mark.parametrize("pattern", GROUPED)
@pytest.mark.parametrize("scope", ["global", "local"])
def test_pruning_again_extends_the_masks(pattern: str, scope: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 6, 3, groups=2), nn.Linear(9, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = prune(model, 0.3, scope=scope, pattern=pattern)
        second = prune(model, 0.6, scope=scope, pattern=pattern)
    for name in first:
        assert not (second[name] & ~first[name]).any()


def test_masks_do_not_depend_on_memory_format() -> None:
    score = torch.rand(8, 4, 3, 3)
    for pattern in map(resolve, GROUPED):
        other = pattern.mask(score.to(memory_format=torch.channels_last), 0.5)
        assert torch.equal(pattern.mask(score, 0.5), other)


def test_a_layer_without_weights() -> None:
    scores = {"empty": torch.empty(0, 4), "full": torch.rand(4, 4)}
    for pattern in map(resolve, [*GROUPED, "2:4", "2:2:4", "unstructured"]):
        masks = pattern.masks(scores, 0.5)
        assert masks["empty"].shape == (0, 4) and masks["full"].any()
        assert pattern.mask(scores["empty"], 0.5).shape == (0, 4)


# --- names and bad input


@pytest.mark.parametrize("name", [*GROUPED, "unstructured", "2:4", "1:4", "4:8", "32:2:8"])
def test_names_read_back(name: str) -> None:
    pattern = resolve(name)
    assert isinstance(pattern, Pattern)
    assert pattern.name == name and resolve(pattern.name) == pattern == resolve(pattern)
    assert hash(pattern) == hash(resolve(name))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("4:2", r"NM: n must be below m, 2, got 4; pass n:m with n weights kept of every m"),
        ("4:4", r"NM: n must be below m, 4, got 4"),
        ("0:4", r"NM: n must be a whole number of at least 1, got 0"),
        ("0:2:4", r"VNM: v must be a whole number of at least 1, got 0"),
        ("8:2:3", r"VNM: columns must be at most m, 3, got 4"),
        ("8:5:8", r"VNM: columns must be a whole number of at least 5, got 4"),
        ("block(0,4)", r"Block: rows must be a whole number of at least 1, got 0"),
        ("block(4)", r"prune: pattern must be a known name or a Pattern, got 'block\(4\)'"),
        ("filtre", r"got 'filtre'; did you mean 'filter'\? known: .*2:4, 64:2:8, block"),
        ("n:m", r"got 'n:m'"),
    ],
)
def test_bad_names(pattern: str, message: str) -> None:
    model = nn.Linear(8, 8)
    before = model.weight.detach().clone()
    with pytest.raises(ValueError, match=message):
        prune(model, 0.5, pattern=pattern)
    assert torch.equal(model.weight, before)


def test_bad_types_and_shapes() -> None:
    with pytest.raises(TypeError, match=r"Block: columns must be a whole number.*got 2\.0"):
        Block(2, 2.0)
    with pytest.raises(ValueError, match=r"score must be of a Linear or convolution.*\(4,\)"):
        PATTERNS["filter"]().mask(torch.ones(4), 0.5)
