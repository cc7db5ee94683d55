"""Criteria of units and channels: by hand, against brute force, and what they refuse."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hand import DATA, all_signs, close, half_square, images, net  # noqa: F401
from torch import Tensor, nn
from torch.nn import functional as F

import sparseprune as sp
from sparseprune.criteria import (
    NISP,
    Entropy,
    Maxout,
    OBDActivation,
    TaylorActivation,
    class_score,
    pca_width,
    unit_scores,
)

R5, R10, R13 = 5**0.5, 10**0.5, 13**0.5


def output_sum(output: Tensor, _: object) -> Tensor:
    return output.mean()


BY_HAND = {
    "filter_l1": ([3, 4], [3], None),
    "filter_l2": ([R5, R10], [R5], None),
    "fpgm": ([R13, R13], [0], None),
    "similarity": ([R13, R13], [0], None),
    "mean_activation": ([3, 2], [-1], None),
    "taylor_activation": ([0.6, 0.8], [1], half_square),  # |h dL/dh| = (6, 8), normalised
    "skeletonization": ([6, -8], [-2], half_square),
    "grad_cam": ([1, 2], [1], output_sum),
    "nisp": ([1, 2], [1], None),
    "oracle": ([10.5, 0], [-1.5], half_square),  # y = -4, 3, 0 without unit: L = 12.5, 2, 0.5
    "reconstruction": ([R10, R5], [3, 4], None),  # |W1| columns, W2_i h_i
    "magnitude": ([3, 4], [3], None),
    "taylor": ([6, 16], [14], half_square),  # a weight criterion is summed over the unit
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    first, second, loss = BY_HAND[name]
    found = list(unit_scores(net(), name, DATA, loss).values())
    assert close(found[0], first) and close(found[1], second)


@pytest.mark.usefixtures("all_signs")
def test_obd_of_units_by_hand() -> None:
    """(W2_i h_i)^2 / 2, as L is half a square of the sum; and y^2 / 2."""
    first, second = unit_scores(net(), OBDActivation(probes=8), DATA, half_square).values()
    assert close(first, [4.5, 8]) and close(second, [0.5])


@pytest.mark.usefixtures("all_signs")
def test_obd_of_maps_is_the_second_derivative_of_the_gate() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)).double()
    x, y = torch.randn(5, 1, 3, 3).double(), torch.tensor([0, 1, 1, 0, 1])

    def gated(gate: Tensor) -> Tensor:
        h = model[1](model[0](x)) * gate.view(1, 3, 1, 1)
        return F.cross_entropy(model[2:](h), y)

    hessian = torch.func.hessian(gated)(torch.ones(3).double())
    rule, data = OBDActivation(probes=8), [(x[:2], y[:2]), (x[2:], y[2:])]
    (score,) = unit_scores(model, rule, data, F.cross_entropy, ignore="3").values()
    assert close(score, hessian.diagonal().clamp_min(0) / 2, 1e-9)


def test_taylor_of_maps_sample_by_sample() -> None:
    """|mean over the map|, then the mean over samples, on unequal batches; in-place ReLU."""
    model, data = images()
    model.eval()
    score = unit_scores(model, TaylorActivation(normalised=False), data, F.cross_entropy)
    total = torch.zeros(4)
    for x, y in data:
        for i in range(len(x)):
            h = F.relu(model[1](model[0](x[i : i + 1]))).detach().requires_grad_()
            slope = torch.autograd.grad(F.cross_entropy(model[3:](h), y[i : i + 1]), h)[0]
            total += (h * slope).detach().mean((0, 2, 3)).abs()
    assert close(score["0.weight"], total / 11, 1e-4)


def test_why_taylor_takes_the_absolute_value() -> None:
    """y ~ N(0, s^2): E(y) = 0, E|y| = s sqrt(2 / pi). (Molchanov et al.)"""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    model[0].weight.data.fill_(1)
    model[1].weight.data.fill_(3)
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(200_000, 1, generator=generator)]  # y = h dL/dh = 3 h
    rule = TaylorActivation(normalised=False)
    taylor = unit_scores(model, rule, data, output_sum)["0.weight"]
    signed = unit_scores(model, "skeletonization", data, output_sum)["0.weight"]
    assert float(taylor) == pytest.approx(3 * math.sqrt(2 / math.pi), rel=0.01)
    assert abs(float(signed)) < 0.03


def test_apoz_by_hand_and_its_refusal() -> None:
    data = [torch.tensor([[1.0, 1.0], [-1.0, 1.0]])]  # h = (3, 2), (1, 0)
    (score,) = unit_scores(net(), "apoz", data, ignore="2").values()
    assert close(score, [1, 0.5])
    with pytest.raises(ValueError, match=r"must be a ReLU, which has exact zeros.*'2\.weight'"):
        unit_scores(net(), "apoz", data)
    smooth = nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"got 'gelu' behind '0\.weight'"):
        unit_scores(smooth, "apoz", data)


class Functional(nn.Module):
    """The same network, written with functions, in place, and with a residual `+=`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.last = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.conv(x))
        h += x
        return self.last(F.dropout(F.relu(h, inplace=True), 0.5, self.training).mean((2, 3)))


def test_residual_in_place_leaves_the_activation_alone() -> None:
    """The unit ends before the residual is added, whatever is then written over it."""
    model = Functional()
    x = torch.randn(4, 2, 5, 5)
    with torch.no_grad():
        h = model.eval().norm(model.conv(x)).mean((0, 2, 3))
    data = [(x, torch.tensor([0, 1, 2, 0]))]
    assert close(unit_scores(model, "mean_activation", data)["conv.weight"], h, 1e-4)
    for name in ("taylor_activation", "obd_activation", "oracle"):
        assert unit_scores(model, name, data, F.cross_entropy)["conv.weight"].abs().sum() > 0


def test_entropy_by_hand() -> None:
    data = [torch.tensor([[1.0, 1.0], [-1.0, 1.0]]), torch.tensor([[1.0, 1.0]])]
    (score,) = unit_scores(net(), Entropy(bins=3), data, ignore="2").values()
    # h_0 = 3, 1, 3 and h_1 = 2, 0, 2 over [0, 3]: bins 2 1 2 and 2 0 2
    assert close(score, [math.log(3) - 2 / 3 * math.log(2)] * 2, 1e-9)
    flat = unit_scores(nn.Linear(2, 2), "entropy", [torch.ones(5, 2)])["weight"]
    assert (flat == 0).all()


def test_similarity_drops_one_of_each_pair() -> None:
    layer = nn.Linear(1, 5, bias=False)
    layer.weight.data = torch.tensor([[1.0], [1.1], [5.0], [5.2], [9.0]])
    score = unit_scores(layer, "similarity")["weight"]
    # (0, 1) at 0.1: 0 goes; (2, 3) at 0.2: 2 goes; 4 to 3: 3.8, 3 goes; 1 to 4: 7.9, 1 goes
    assert close(score[:4], [0.1, 7.9, 0.2, 3.8]) and score[4] > score[1]


def test_fpgm_is_not_the_smallest_norm() -> None:
    layer = nn.Linear(1, 3, bias=False)
    layer.weight.data = torch.tensor([[0.1], [5.0], [10.0]])
    assert unit_scores(layer, "fpgm")["weight"].argmin() == 1


def test_bn_scale_pairs_each_layer_with_its_own_norm() -> None:
    class Crossed(nn.Module):
        """Registered in another order than called."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1)
            self.norm_b, self.norm_a = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm_b(self.b(F.relu(self.norm_a(self.a(x)))))

    model = Crossed()
    model.norm_a.weight.data = torch.tensor([1.0, -2.0])
    model.norm_b.weight.data = torch.tensor([3.0, 0.0])
    scores = unit_scores(model, "bn_scale")
    assert scores["a.weight"].tolist() == [1, 2] and scores["b.weight"].tolist() == [3, 0]
    with pytest.raises(ValueError, match=r"a batch norm with weights follows, got 4\.weight, 7"):
        unit_scores(images()[0], "bn_scale")


def test_nisp_on_images_is_the_product_of_absolute_matrices() -> None:
    model, data = images()
    seed = torch.tensor([1.0, 2.0, 0.5])
    scores = unit_scores(model, NISP(seed), data)
    s = model[7].weight.detach().double().abs().T @ seed.double()  # [24]: 6 channels x 2 x 2
    assert close(scores["4.weight"], s.view(6, 4).sum(1), 1e-9)
    assert close(scores["7.weight"], seed)
    back = F.conv_transpose2d(
        s.view(1, 6, 2, 2), model[4].weight.detach().double().abs(), groups=2
    )  # importance of the pooled map; mean pooling hands on all of it
    assert close(scores["0.weight"], back.sum((0, 2, 3)), 1e-9)


def test_maxout_keeps_one_of_each_group() -> None:
    class Max(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.out = nn.Linear(1, 4, bias=False), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.wide(x).unflatten(1, (2, 2)).amax(2))

    model = Max()
    model.wide.weight.data = torch.tensor([[1.0], [-1.0], [2.0], [3.0]])
    data = [torch.tensor([[1.0], [2.0]]), torch.tensor([[-1.0]])]
    (score,) = unit_scores(model, "maxout", data, ignore="out").values()
    assert close(score, [2 / 3 + 1, 1 / 3, 1 / 3, 2 / 3 + 1])
    with pytest.raises(ValueError, match="with a multiple of k=3 units, got 4"):
        unit_scores(model, Maxout(3), data, ignore="out")


def test_reconstruction_is_the_error_of_each_channel() -> None:
    model, data = images()
    x = torch.cat([x for x, _ in data])
    with torch.no_grad():
        h = model.eval()[:4](x)
        for index, inputs in ((0, x), (4, h)):
            score = unit_scores(model, "reconstruction", data)[f"{index}.weight"]
            for c in range(inputs.shape[1]):
                without = inputs.clone()
                without[:, c] = 0
                change = model[index](inputs) - model[index](without)
                expected = change.square().sum(1).mean().sqrt()
                assert float(score[c]) == pytest.approx(float(expected), rel=1e-4)


def test_grad_cam_of_the_labels_own_class() -> None:
    model, data = images()
    model.eval()
    score = unit_scores(model, "grad_cam", data, class_score)["4.weight"]
    weight = model[7].weight.detach()  # behind ReLU and flatten: dy/dA where the unit is read
    expected = torch.zeros(6)
    for _, y in data:
        expected += weight[y].view(-1, 6, 4).mean(2).abs().sum(0)
    assert close(score, expected / 11, 1e-4)
    with pytest.raises(TypeError, match="class_score: output must be"):
        class_score(torch.ones(2, 3), torch.ones(2))


def test_pca_width_is_the_rank() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2)).double()
    data = [torch.randn(50, 3).double()]
    assert pca_width(model, data, share=1.0) == {"0.weight": 3, "1.weight": 2}
    stretched = [data[0] * torch.tensor([100.0, 1e-3, 1e-3])]
    assert pca_width(model, stretched)["0.weight"] == 1
    with pytest.raises(ValueError, match=r"more than 8 samples x positions for '0\.weight', got 8"):
        pca_width(model, [data[0][:8]])
    with pytest.raises(ValueError, match=re.escape("share must be a number in (0, 1]")):
        pca_width(model, data, share=0)


# --- unit scores in prune


def test_unit_scores_expand_to_the_shape_of_the_weight() -> None:
    model, data = images()
    units = unit_scores(model, "taylor_activation", data, F.cross_entropy)
    weights = sp.criteria.weight_scores(model, "taylor_activation", data, F.cross_entropy)
    for name, score in weights.items():
        assert score.shape == model.get_parameter(name).shape
        assert torch.equal(score.flatten(1), units[name][:, None].expand_as(score.flatten(1)))
    masks = sp.prune(model, {"0": 0.5}, "taylor_activation", data=data, loss=F.cross_entropy)
    kept = masks["0.weight"].flatten(1)
    assert (kept.all(1) | ~kept.any(1)).all() and int(kept.any(1).sum()) == 2


def test_channel_scores_expand_along_the_inputs_of_their_group() -> None:
    model, data = images()
    channels = unit_scores(model, "reconstruction", data)["4.weight"]
    expanded = sp.criteria.weight_scores(model, "reconstruction", data)["4.weight"]
    assert expanded.shape == (6, 2, 3, 3)
    assert torch.equal(expanded[:3, :, 0, 0], channels[:2].expand(3, 2))
    assert torch.equal(expanded[3:, :, 2, 1], channels[2:].expand(3, 2))


def test_a_zero_weight_does_not_devalue_its_unit_but_a_zero_unit_goes_first() -> None:
    model = net()
    model[0].weight.data = torch.tensor([[0.0, 5.0], [0.0, 0.0]])
    score = sp.criteria.weight_scores(model, "filter_l1")["0.weight"]
    assert score.tolist() == [[5, 5], [0, 0]]
