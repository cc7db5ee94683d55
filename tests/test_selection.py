"""Selection: which weights are prunable, by which names, and which are refused."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from prune_models import small
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

from sparseprune.prune import prune
from sparseprune.selection import aliases, prunable_weights


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.encoder = nn.Linear(8, 20)
        self.decoder = nn.Linear(8, 20)
        self.decoder.weight = self.encoder.weight = self.embedding.weight


def test_selection_names_and_order() -> None:
    assert list(prunable_weights(small())) == ["0.weight", "3.weight", "4.weight"]
    assert list(prunable_weights(nn.Linear(2, 2))) == ["weight"]


@pytest.mark.parametrize(
    "ignore",
    [("3",), "3", ("3.weight",), ("re:3",), ("re:.*3\\.wei",), (nn.Linear, "4")],
    ids=str,
)
def test_ignore_forms(ignore: object) -> None:
    left = prunable_weights(small(), ignore)
    assert "0.weight" in left and "3.weight" not in left


def test_ignore_container_and_type_cover_what_is_below() -> None:
    model = nn.ModuleDict({"a": small(), "ab": nn.Linear(2, 2), "m": nn.MultiheadAttention(4, 2)})
    assert list(prunable_weights(model, ["a", nn.MultiheadAttention])) == ["ab.weight"]


def test_attention_out_projection_is_pruned() -> None:
    """Trap 7: out_proj is a Linear subclass whose forward never runs."""
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    assert list(prune(attention, 0.5)) == ["out_proj.weight"]
    x = torch.randn(1, 3, 8)
    before = attention(x, x, x)[0]
    attention.out_proj.weight.data.zero_()
    assert not torch.equal(before, attention(x, x, x)[0])


def test_tied_weight_has_one_mask_and_counts_once() -> None:
    """Trap 5."""
    model = Tied()
    masks = prune(model, 0.5)
    assert list(masks) == ["encoder.weight"]
    assert masks["encoder.weight"].numel() == 160
    assert model.decoder.weight is model.embedding.weight
    assert torch.equal(model.decoder.weight != 0, masks["encoder.weight"])
    names = ["embedding.weight", "encoder.weight", "decoder.weight"]
    assert aliases(model)["decoder.weight"] == names


@pytest.mark.parametrize("name", ["embedding", "decoder.weight", "encoder"])
def test_any_alias_of_a_tied_weight_names_it(name: str) -> None:
    assert prunable_weights(Tied(), [name]) == {}
    assert list(prune(Tied(), {name: 0.5})) == ["encoder.weight"]


def test_shared_module_once() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert list(prune(model, 0.5)) == ["0.weight"]
    assert prunable_weights(model, ["2"]) == {}


def hooked(kind: str) -> nn.Module:
    model = small()
    if kind == "weight_norm":
        parametrizations.weight_norm(model[3])
    elif kind == "old_weight_norm":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nn.utils.weight_norm(model[3])
    elif kind == "old_spectral_norm":
        nn.utils.spectral_norm(model[3])
    else:
        torch_prune.l1_unstructured(model[3], "weight", 0.5)
    return model


@pytest.mark.parametrize(
    ("kind", "way_out"),
    [
        ("weight_norm", "remove_parametrizations"),
        ("old_weight_norm", "remove_weight_norm"),
        ("old_spectral_norm", "remove_spectral_norm"),
        ("torch_prune", "Masks.from_model"),
    ],
)
def test_computed_weights_are_refused_with_the_way_out(kind: str, way_out: str) -> None:
    """Trap 15: a score of the computed weight would be written to a tensor that is recomputed."""
    model = hooked(kind)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"weight '3.weight' must be a plain.*{way_out}"):
        prune(model, 0.5)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert list(prune(model, 0.5, ignore=["3"])) == ["0.weight", "4.weight"]
    assert list(prune(model, 0.5, ignore=["3.weight"])) == ["0.weight", "4.weight"]
