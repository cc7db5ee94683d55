"""MultiheadAttention against torch's own, in float64; and files that lie about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from equivalent_problems import close, in_double, zeroed
from io_problems import refused
from torch import Tensor, nn

from sparseprune.equivalents import equivalent
from sparseprune.io import load, save
from sparseprune.nn import MultiheadAttention, SparseLinear

LENGTH, KEYS, FEATURES, HEADS = 5, 7, 16, 4


OPTIONS: dict[str, dict[str, Any]] = {
    "batch_first": {"batch_first": True},
    "length_first": {},
    "no_bias": {"batch_first": True, "bias": False},
    "other_sizes": {"batch_first": True, "kdim": 6, "vdim": 9},
    "one_head": {"num_heads": 1, "dropout": 0.5},
}
CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_weights": {"need_weights": False},
    "weights_of_heads": {"average_attn_weights": False},
    "float_mask": {"attn_mask": torch.randn(LENGTH, KEYS)},
    "bool_mask": {"attn_mask": torch.rand(LENGTH, KEYS) < 0.3, "need_weights": False},
    "mask_of_heads": {"attn_mask": torch.randn(2 * HEADS, LENGTH, KEYS)},
    "padding": {"key_padding_mask": torch.tensor([[False] * KEYS, [False] * 4 + [True] * 3])},
    "both": {
        "attn_mask": torch.randn(LENGTH, KEYS),
        "key_padding_mask": torch.tensor([[0.0] * KEYS, [0.0] * 4 + [-torch.inf] * 3]),
        "need_weights": False,
    },
}


def inputs(attention: nn.MultiheadAttention) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of a batch of two."""
    sizes = (LENGTH, FEATURES), (KEYS, attention.kdim), (KEYS, attention.vdim)
    made = [torch.randn(2, *size) for size in sizes]
    return tuple(x if attention.batch_first else x.transpose(0, 1) for x in made)  # type: ignore[return-value]


def attend(**options: Any) -> nn.MultiheadAttention:
    return zeroed(nn.MultiheadAttention(FEATURES, **{"num_heads": HEADS, **options}))  # type: ignore[return-value]


def packed(attention: nn.MultiheadAttention) -> MultiheadAttention:
    """With every projection sparse."""
    made = MultiheadAttention.from_dense(attention)
    for name, projection in list(made.named_children()):
        setattr(made, name, SparseLinear.from_dense(projection))  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("options", OPTIONS)
def test_attention_is_torchs(options: str, call: str) -> None:
    attention, asked = attend(**OPTIONS[options]), CALLS[call]
    if call == "mask_of_heads":
        asked = {"attn_mask": asked["attn_mask"][: 2 * attention.num_heads]}
    given = inputs(attention)
    expected = in_double(attention, *given, **asked)
    for form in (MultiheadAttention.from_dense(attention), packed(attention)):
        with torch.no_grad():
            close(form(*given, **asked), expected)


@pytest.mark.parametrize("need_weights", [False, True])
def test_attention_of_one_sequence(need_weights: bool) -> None:
    attention = attend()
    given = [x[:, 0] for x in inputs(attention)]
    padding = torch.tensor([False] * 6 + [True])
    asked = {"key_padding_mask": padding, "need_weights": need_weights}
    expected = in_double(attention, *given, **asked)
    with torch.no_grad():
        close(packed(attention)(*given, **asked), expected)


def test_attention_to_the_past() -> None:
    attention, x = attend(batch_first=True), torch.randn(2, LENGTH, FEATURES)
    mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
    asked = {"attn_mask": mask, "is_causal": True, "need_weights": False}
    expected = in_double(attention, x, x, x, **asked)
    with torch.no_grad():
        close(packed(attention)(x, x, x, **asked), expected)
    with pytest.raises(ValueError, match="attn_mask must be given with is_causal, got None"):
        packed(attention)(x, x, x, is_causal=True)


def test_dropout_and_gradients() -> None:
    attention = attend(batch_first=True, dropout=0.5)
    made, x = packed(attention), torch.randn(2, LENGTH, FEATURES, requires_grad=True)
    for weights in (True, False):
        made.train()
        first, second = (made(x, x, x, need_weights=weights)[0] for _ in range(2))
        assert not torch.equal(first, second)
    (grad,) = torch.autograd.grad(made.eval()(x, x, x)[0].square().sum(), x)
    (expected,) = torch.autograd.grad(attention(x, x, x)[0].square().sum(), x)
    torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_attention_with_keys_of_its_own_stays(option: str) -> None:
    attention = attend(**{option: True})
    assert equivalent(attention) is None
    with pytest.raises(ValueError, match=f"from_dense: attention must be .* {option} has no"):
        MultiheadAttention.from_dense(attention)


def test_projections_must_fit() -> None:
    made = MultiheadAttention.from_dense(attend())
    with pytest.raises(ValueError, match="projections must be of one size that 3 divides"):
        MultiheadAttention(made.q_proj, made.k_proj, made.v_proj, made.out_proj, 3)


ATTACKS: dict[str, Callable[[dict[str, Any]], object]] = {
    "heads": lambda m: m["modules"][""]["arguments"].update(num_heads=3),
    "no heads": lambda m: m["modules"][""]["arguments"].update(num_heads=0),
    "heads of a flag": lambda m: m["modules"][""]["arguments"].update(num_heads=True),
    "dropout": lambda m: m["modules"][""]["arguments"].update(dropout=2.0),
    "argument": lambda m: m["modules"][""]["arguments"].pop("batch_first"),
    "more": lambda m: m["modules"][""]["arguments"].update(forward=1),
    "another layer": lambda m: m["modules"].update(
        q_proj={"type": "torch.nn.Identity", "arguments": {}}
    ),
    "a layer less": lambda m: m["modules"].pop("v_proj"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_attention_outside_the_rules(attack: str, tmp_path: Path) -> None:
    attention = packed(attend(kdim=6))
    save(attention, tmp_path / "file")
    loaded, given = load(tmp_path / "file"), (torch.randn(2, 3, FEATURES), torch.randn(2, 3, 6))
    with torch.no_grad():
        got = loaded(given[0], given[1], given[0])
        assert torch.equal(got[0], attention(given[0], given[1], given[0])[0])
    refused(tmp_path / "file", lambda manifest, _: ATTACKS[attack](manifest))
