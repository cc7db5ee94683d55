"""The largest Hessian eigenvalues on the kept weights, against the full matrix."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
from prune_models import same_bits
from torch import nn

from sparseprune import Masks
from sparseprune.training.lottery import top_eigenvalues


def problem() -> tuple[nn.Sequential, Masks, list[tuple[torch.Tensor, torch.Tensor]]]:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 2)).double()
    masks = Masks({"0.weight": torch.rand(5, 3) < 0.6, "3.weight": torch.rand(2, 5) < 0.7})
    data = [(torch.randn(n, 3).double(), torch.randint(2, (n,))) for n in (4, 7)]  # unequal batches
    return model, masks, data


def full(
    model: nn.Module, masks: Masks, data: list[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """Eigenvalues of the whole Hessian of the mean loss, restricted to the kept entries."""
    names = list(masks)

    def loss(*weights: torch.Tensor) -> torch.Tensor:
        values = dict(zip(names, weights, strict=True))
        outputs = torch.func.functional_call(model, values, torch.cat([x for x, _ in data]))
        return nn.functional.cross_entropy(outputs, torch.cat([y for _, y in data]))

    weights = tuple(model.get_parameter(name).detach() for name in names)
    blocks = torch.autograd.functional.hessian(loss, weights)
    rows = [
        torch.cat([blocks[i][j].reshape(a.numel(), -1) for j in range(len(names))], 1)
        for i, a in enumerate(weights)
    ]
    kept = torch.cat([masks[name].reshape(-1) for name in names])
    return torch.linalg.eigvalsh(torch.cat(rows)[kept][:, kept]).flip(0)


@pytest.mark.parametrize("count", [1, 4])
def test_eigenvalues_are_those_of_the_restricted_matrix(count: int) -> None:
    model, masks, data = problem()
    found = top_eigenvalues(model, masks, data, nn.functional.cross_entropy, count, tolerance=1e-9)
    exact = full(model.eval(), masks, data)
    assert torch.allclose(found, exact[:count], rtol=1e-6)
    everything = Masks({name: torch.ones_like(mask) for name, mask in masks.items()})
    assert not torch.allclose(full(model, everything, data)[:count], exact[:count], rtol=1e-3)


def test_leaves_the_model_as_it_was_and_repeats() -> None:
    model, masks, data = problem()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    arguments: Any = (model, masks, data, nn.functional.cross_entropy, 3)
    assert torch.equal(top_eigenvalues(*arguments), top_eigenvalues(*arguments))
    assert model.training and all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    other = problem()[0]
    other.load_state_dict(before)
    assert same_bits(model, other)


def test_frozen_weights_and_float32() -> None:
    model, masks, data = problem()
    exact = full(model.eval(), masks, data)[:2]
    single = model.float().requires_grad_(False)
    data32 = [(x.float(), y) for x, y in data]
    found = top_eigenvalues(single, masks, data32, nn.functional.cross_entropy, 2)
    assert found.dtype == torch.float64
    assert torch.allclose(found, exact, rtol=1e-3)
    assert not any(p.requires_grad for p in model.parameters())


def test_what_cannot_be_done_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model, masks, data = problem()
    loss = nn.functional.cross_entropy
    kept = sum(int(mask.sum()) for mask in masks.values())
    with pytest.raises(ValueError, match=f"keep {kept} weights"):
        top_eigenvalues(model, masks, data, loss, count=kept)
    with pytest.raises(ValueError, match=r"'9\.weight'"):
        top_eigenvalues(model, {"9.weight": masks["0.weight"]}, data, loss)
    with pytest.raises(ValueError, match="shape"):
        top_eigenvalues(model, {"0.weight": masks["3.weight"]}, data, loss, 1)
    with pytest.raises(ValueError, match="an iterator"):
        top_eigenvalues(model, masks, iter(data), loss, 1)
    plain = builtins.__import__

    def without_scipy(name: str, *more: Any) -> Any:
        if name.startswith("scipy"):
            raise ImportError(name)
        return plain(name, *more)

    monkeypatch.setattr(builtins, "__import__", without_scipy)
    with pytest.raises(ImportError, match="needs scipy"):
        top_eigenvalues(model, masks, data, loss, 1)
