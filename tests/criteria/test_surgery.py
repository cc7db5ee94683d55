"""OBS, L-OBS and SparseGPT: scores, survivors, and a slow direct reading of the papers."""

from __future__ import annotations

import copy

import pytest
import torch
from hand import half_square, images
from prune_models import same_bits
from torch import Tensor, nn

import sparseprune as sp
from sparseprune.criteria import LOBS, OBS, SparseGPT, weight_scores
from sparseprune.patterns import Unstructured


def regression(seed: int = 0) -> tuple[nn.Linear, list[tuple[Tensor, Tensor]]]:
    """A linear layer at the least-squares minimum of its data."""
    torch.manual_seed(seed)
    model = nn.Linear(6, 1, bias=False).double()
    x = torch.randn(40, 6).double() @ torch.randn(6, 6).double()
    y = torch.randn(40, 1).double()
    model.weight.data = torch.linalg.lstsq(x, y).solution.T
    return model, [(x[:25], y[:25]), (x[25:], y[25:])]


def best_without(x: Tensor, z: Tensor, kept: Tensor) -> Tensor:
    """The least-squares weights of z on the kept columns of x, zero elsewhere."""
    w = torch.zeros(x.shape[1], dtype=x.dtype)
    w[kept] = torch.linalg.lstsq(x[:, kept], z).solution.reshape(-1)
    return w


def test_obs_score_is_the_rise_and_the_update_the_optimum() -> None:
    model, data = regression()
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    (score,) = weight_scores(model, OBS(damping=1e-12), data, half_square).values()
    base = float(half_square(model(x).detach(), y))
    for i in range(6):
        kept = torch.arange(6) != i
        rise = float(half_square(x @ best_without(x, y, kept)[:, None], y)) - base
        assert float(score[0, i]) == pytest.approx(rise, rel=1e-6)
    masks = sp.prune(model, 0.5, OBS(damping=1e-12), data=data, loss=half_square)
    kept = masks["weight"][0]
    assert int(kept.sum()) == 3
    assert torch.allclose(model.weight[0], best_without(x, y, kept), atol=1e-9)


def test_obs_of_two_weights_by_hand() -> None:
    """H = [[2, 1], [1, 2]]: H^-1_ii = 2/3, score 3/4 w^2; without w_0, w_1 gains w_0 / 2."""
    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data = torch.tensor([[1.0, 2.0]]).double()

    def loss(output: Tensor, batch: Tensor) -> Tensor:
        d = model.weight[0] - torch.tensor([1.0, 2.0]).double()
        return d @ torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double() @ d / 2 + 0 * output.sum()

    data = [torch.ones(1, 2).double()]
    (score,) = weight_scores(model, OBS(damping=1e-12), data, loss).values()
    assert score.tolist() == [pytest.approx([0.75, 3.0])]
    sp.prune(model, 0.5, OBS(damping=1e-12), data=data, loss=loss)
    assert model.weight.tolist() == [pytest.approx([0.0, 2.5])]


def test_obs_refuses_large_weights_before_anything_changes() -> None:
    model, data = regression()
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=r"'weight' must be at most 5 entries, got 6 entries"):
        sp.prune(model, 0.5, OBS(limit=5), data=data, loss=half_square)
    assert same_bits(model, before)


@pytest.mark.parametrize("scope", ["global", "local"])
def test_lobs_survivors_are_the_least_squares_fit(scope: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 4).double()
    before = model.weight.detach().clone()
    data = [torch.randn(30, 6).double() @ torch.randn(6, 6).double() for _ in range(2)]
    x = torch.cat(data)
    masks = sp.prune(model, 0.5, LOBS(damping=0), scope, data=data)
    for row in range(4):
        best = best_without(x, x @ before[row], masks["weight"][row])
        assert torch.allclose(model.weight[row], best, atol=1e-9)


def test_lobs_score_is_half_the_mean_squared_change() -> None:
    model = nn.Linear(5, 2).double()
    x = torch.randn(30, 5).double()
    (score,) = weight_scores(model, LOBS(damping=0), [x]).values()
    w = model.weight.detach()
    for row in range(2):
        for j in range(5):
            kept = torch.arange(5) != j
            change = x @ (best_without(x, x @ w[row], kept) - w[row])
            assert float(score[row, j]) == pytest.approx(float(change.square().mean() / 2))


def test_lobs_on_a_grouped_convolution() -> None:
    model, data = images()
    model.double()
    doubled = [(x.double(), y) for x, y in data]
    before = model[4].weight.detach().clone()
    with torch.no_grad():
        h = model.eval()[:4](torch.cat([x for x, _ in doubled]))
    masks = sp.prune(model, {"4": 0.5}, LOBS(damping=1e-9), data=doubled)
    for filter_ in range(6):
        part = h.chunk(2, 1)[filter_ // 3]
        x = torch.nn.functional.unfold(part, 3).transpose(1, 2).flatten(0, 1)
        kept = masks["4.weight"][filter_].flatten()
        best = best_without(x, x @ before[filter_].flatten(), kept)
        assert torch.allclose(model[4].weight[filter_].flatten(), best, atol=1e-5)


def test_singular_data_are_refused_without_damping_and_change_nothing() -> None:
    model = nn.Linear(6, 2)
    before = model.weight.detach().clone()
    with pytest.raises(ValueError, match="the Hessian must be positive definite"):
        sp.prune(model, 0.5, LOBS(damping=0), data=[torch.randn(2, 6)])
    assert torch.equal(model.weight, before)
    sp.prune(model, 0.5, "lobs", data=[torch.randn(2, 6)])


@pytest.mark.parametrize("name", ["lobs", "sparsegpt"])
def test_a_dead_channel_goes_first_and_moves_nothing(name: str) -> None:
    """A depthwise convolution whose second input is always zero: its Hessian is zero."""
    model = nn.Conv1d(2, 2, 2, groups=2, bias=False)
    x = torch.randn(8, 2, 5)
    x[:, 1] = 0
    masks = sp.prune(model, 0.5, name, data=[x])
    assert masks["weight"].flatten(1).tolist() == [[True, True], [False, False]]


# --- SparseGPT


def direct_sparsegpt(
    weight: Tensor, x: Tensor, sparsity: float, block: int, damping: float
) -> Tensor:
    """Algorithm 1 without its tricks: the inverse of the remaining Hessian, column by column."""
    w = weight.clone()
    hessian = x.T @ x / len(x)
    hessian += damping * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=x.dtype)
    columns = w.shape[1]
    kept = torch.ones_like(w, dtype=torch.bool)
    for j in range(columns):
        if j % block == 0:
            stop = min(j + block, columns)
            # [H_j:^-1]_jj of the columns from each j on
            d = [float(torch.linalg.inv(hessian[k:, k:])[0, 0]) for k in range(j, stop)]
            score = w[:, j:stop].square() / torch.tensor(d, dtype=x.dtype)
            lowest = score.flatten().argsort(stable=True)[: round(sparsity * score.numel())]
            marks = torch.ones(score.numel(), dtype=torch.bool)
            marks[lowest] = False
            kept[:, j:stop] = marks.view(score.shape)
        inverse = torch.linalg.inv(hessian[j:, j:])
        gone = ~kept[:, j]
        w[gone, j:] -= torch.outer(w[gone, j] / inverse[0, 0], inverse[0])
        w[gone, j] = 0
    return w


@pytest.mark.parametrize("block", [3, 4, 128])
def test_sparsegpt_is_the_direct_algorithm(block: int) -> None:
    torch.manual_seed(0)
    model = nn.Linear(10, 5).double()
    before = model.weight.detach().clone()
    data = [torch.randn(20, 10).double() @ torch.randn(10, 10).double() for _ in range(2)]
    sp.prune(model, 0.5, SparseGPT(block=block), "local", data=data)
    expected = direct_sparsegpt(before, torch.cat(data), 0.5, block, 0.01)
    assert torch.allclose(model.weight, expected, atol=1e-9)


def test_sparsegpt_chooses_n_of_m_from_updated_weights() -> None:
    """Legal, and better for the output than the same pattern by magnitude or by Wanda."""
    torch.manual_seed(0)
    x = torch.randn(200, 16) @ torch.randn(16, 16)
    errors = {}
    for name in ("sparsegpt", "wanda", "magnitude"):
        torch.manual_seed(1)
        model = nn.Linear(16, 8)
        before = model(x)
        masks = sp.prune(model, 0.5, name, "local", "2:4", data=[x])
        assert (masks["weight"].unflatten(1, (-1, 4)).sum(-1) == 2).all()
        assert not model.weight[~masks["weight"]].any()
        errors[name] = float((model(x) - before).detach().norm())
    assert errors["sparsegpt"] < errors["wanda"] < errors["magnitude"]


def test_sparsegpt_by_global_scores_and_on_convolutions() -> None:
    model, data = images()
    masks = sp.prune(model, 0.5, "sparsegpt", data=data)
    assert masks.sparsity() == pytest.approx(0.5, abs=0.01)
    assert all(not model.get_parameter(n)[~m].any() for n, m in masks.items())


def test_updates_are_all_or_nothing() -> None:
    """The second layer's update fails after the first's is known: neither is written."""

    def failing(weight: Tensor) -> Tensor:
        return weight.abs()

    calls: list[int] = []

    def update(weight: Tensor, mask: Tensor, stats: object) -> Tensor:
        calls.append(1)
        return weight * 2 if len(calls) == 1 else weight * float("nan")

    failing.update = update  # type: ignore[attr-defined]
    model, _ = images()
    with pytest.raises(ValueError, match=r"update of '4\.weight' must be finite"):
        sp.prune(model, 0.5, failing)
    assert same_bits(model, images()[0])

    class Wrong(Unstructured):
        def mask(self, score: Tensor, sparsity: float, groups: int = 1) -> Tensor:
            return torch.ones(2, dtype=torch.bool)

    calls.clear()
    failing.update = lambda weight, mask, stats: weight  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="must be of the parameter's shape"):
        sp.prune(model, 0.5, failing, "local", Wrong())
    assert same_bits(model, images()[0])
