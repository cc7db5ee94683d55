"""The shared machinery: what it accepts, what it refuses, and that it leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from hand import HALVES, X3, close, half_square, images, net
from prune_models import same_bits
from torch import Tensor, nn
from torch.nn import functional as F

import sparseprune as sp
from sparseprune.criteria import CRITERIA, Trajectory, class_score, measured, weight_scores
from sparseprune.criteria.statistics.gradients import Gradient
from sparseprune.zoo import gpt

IGNORE = {"apoz": ["7"], "maxout": ["7"], "bn_scale": ["4", "7"]}
RECORDED = ("movement", "insensitive")


def trained() -> tuple[nn.Module, list[tuple[Tensor, Tensor]], Trajectory]:
    model, data = images()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with Trajectory(model, optimizer) as trajectory:
        for x, y in data:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model, data, trajectory


def state_of(model: nn.Module) -> dict[str, object]:
    """Everything a measurement might leave behind."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = list(model.modules())
    return {
        "training": [m.training for m in modules],
        "hooks": [len(getattr(m, name)) for m in modules for name in hooks],
        "patched": ["forward" in vars(m) for m in modules],
        "frozen": [p.requires_grad for p in model.parameters()],
        "grads": [id(p.grad) for p in model.parameters()],
        "random": torch.get_rng_state().tolist(),
        "grad mode": torch.is_grad_enabled(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
    }


def unusual() -> tuple[nn.Module, list[tuple[Tensor, Tensor]], Trajectory]:
    """A model in training mode with one layer in eval mode, one frozen, and old gradients."""
    model, data, trajectory = trained()
    model.train()
    model[1].eval()
    model[4].weight.requires_grad_(False)
    return model, data, trajectory


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_leaves_no_trace_and_is_deterministic(name: str) -> None:
    model, data, trajectory = unusual()
    before, bits = state_of(model), copy.deepcopy(model)
    given = trajectory if name in RECORDED else data
    loss = class_score if name == "grad_cam" else F.cross_entropy
    scores = weight_scores(model, name, given, loss, IGNORE.get(name, ()))
    assert state_of(model) == before and same_bits(model, bits)
    again = weight_scores(model, name, given, loss, IGNORE.get(name, ()))
    assert list(scores) == [f"{i}.weight" for i in (0, 4, 7) if str(i) not in IGNORE.get(name, ())]
    for key, score in scores.items():
        assert score.shape == model.get_parameter(key).shape and not score.requires_grad
        assert torch.equal(score, again[key]) and score.isfinite().all()


@pytest.mark.parametrize("name", ["taylor", "wanda", "oracle", "obd", "taylor_activation"])
def test_a_failure_half_way_leaves_no_trace(name: str) -> None:
    model, data, _ = unusual()
    before, bits = state_of(model), copy.deepcopy(model)

    def broken() -> Iterator[object]:
        yield data[0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        sp.prune(model, 0.5, name, data=broken, loss=F.cross_entropy)
    assert state_of(model) == before and same_bits(model, bits)


def test_buffers_that_eval_mode_changes_are_put_back() -> None:
    class Counting(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)

    model = Counting()
    weight_scores(model, "wanda", [torch.ones(1, 2)])
    assert model.calls.item() == 0


# --- tied, frozen, mixed precision, big


def test_attention_reads_its_output_weight_past_the_module() -> None:
    """Trap 7: what cannot be measured is refused; gradients reach it all the same."""
    layer, data = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), [torch.randn(2, 5, 8)]
    with pytest.raises(ValueError, match=r"'self_attn\.out_proj\.weight' must be called"):
        weight_scores(layer, "wanda", data)
    scores = weight_scores(layer, "taylor", data, lambda out, _: out.square()[..., 0].sum())
    assert scores["self_attn.out_proj.weight"].all()


def test_tied_weights_are_scored_once_with_every_use() -> None:
    layer = nn.Linear(2, 2, bias=False)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    tied[2].weight = tied[0].weight
    tied[0].weight.data = layer.weight.detach().clone()

    def loss(output: Tensor, _: object) -> Tensor:
        return output.square().mean()

    weight = layer.weight
    slope = torch.autograd.grad(model(X3).square().mean(), weight)[0]
    inputs = torch.cat([X3, F.relu(layer(X3))]).detach()
    for either in (model, tied):
        scores = weight_scores(either, "taylor", [X3], loss)
        assert list(scores) == ["0.weight"] and close(scores["0.weight"], (weight * slope).abs())
        (wanda,) = weight_scores(either, "wanda", [X3]).values()
        assert close(wanda, (weight.abs() * inputs.square().sum(0).sqrt()).detach())


def test_an_embedding_tied_to_the_output_counts_in_the_gradient() -> None:
    torch.manual_seed(0)
    model = gpt.gpt_tiny(width=8, depth=1, heads=2, vocab=11, context=6).eval()
    ids = torch.randint(11, (2, 6))

    def loss(output: Tensor, batch: Tensor) -> Tensor:
        return F.cross_entropy(output[:, :-1].flatten(0, 1), batch[:, 1:].flatten())

    slope = torch.autograd.grad(loss(model(ids), ids), model.lm_head.weight)[0]
    for criterion in ("taylor", "obd", "wanda", "sparsegpt", "obd_gauss_newton"):
        scores = weight_scores(model, criterion, [ids], loss)
        assert len(scores) == 5
        if criterion == "taylor":
            (name,) = (n for n in scores if "blocks" not in n)
            assert close(scores[name], (slope * model.lm_head.weight).detach().abs())


def test_autocast_is_respected_and_scores_are_float32() -> None:
    seen: list[torch.dtype] = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        seen.append(output.dtype)
        return half_square(output.float(), target)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = {n: weight_scores(net(), n, HALVES, loss) for n in ("taylor", "wanda", "lobs")}
    assert set(seen) == {torch.bfloat16}
    for name, scores in mixed.items():
        exact = weight_scores(net(), name, HALVES, half_square)
        for key, score in scores.items():
            assert score.dtype in (torch.float32, torch.float64)
            assert close(score, exact[key], 0.05)


@pytest.mark.parametrize("name", ["taylor", "wanda", "sparsegpt", "taylor_activation", "synflow"])
def test_half_precision_models(name: str) -> None:
    model = net(torch.bfloat16)
    data = [(x.bfloat16(), t.bfloat16()) for x, t in HALVES]
    exact = weight_scores(net(), name, HALVES, half_square)
    for key, score in weight_scores(model, name, data, half_square).items():
        assert score.dtype in (torch.float32, torch.float64) and close(score, exact[key], 0.1)
    sp.prune(model, 0.5, name, data=data, loss=half_square)
    assert model[0].weight.dtype == torch.bfloat16


def test_inside_no_grad_and_inference_mode() -> None:
    expected = weight_scores(net(), "taylor", HALVES, half_square)["0.weight"]
    model = net()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = weight_scores(model, "taylor", HALVES, half_square)["0.weight"]
        assert close(found, expected)


def test_scoring_is_in_eval_mode() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 1))
    one = weight_scores(model.train(), "taylor", HALVES, half_square)
    same = weight_scores(model.eval(), "taylor", HALVES, half_square)
    assert all(torch.equal(one[n], same[n]) for n in one)


def test_a_criterion_of_the_user_with_needs() -> None:
    @measured(Gradient)
    def mine(weight: Tensor, stats: dict[str, Tensor]) -> Tensor:
        return -stats["gradient"].abs()

    expected = weight_scores(net(), "gradient", HALVES, half_square)
    found = weight_scores(net(), mine, HALVES, half_square)
    assert all(torch.equal(found[n], -expected[n]) for n in found)
    masks = sp.prune(net(), 0.5, mine, "local", data=HALVES, loss=half_square)
    assert masks.sparsity() == 0.5


def test_second_derivatives_through_attention() -> None:
    """The fused attention kernels have none: the plain one is used."""
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    scores: Callable[..., dict[str, Tensor]] = weight_scores
    data = [torch.randn(2, 5, 8)]
    found = scores(layer, "obd", data, lambda out, _: out.square().mean(), ignore="self_attn")
    assert set(found) == {"linear1.weight", "linear2.weight"}
