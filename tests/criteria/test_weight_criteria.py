"""Criteria of single weights, worked out by hand on the network of hand.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hand import DATA, T, X, all_signs, close, half_square, images, net  # noqa: F401
from torch import nn
from torch.nn import functional as F

import sparseprune as sp
from sparseprune.criteria import OBD, Correlation, Random, Taylor2, Wanda, weight_scores
from sparseprune.criteria.statistics.inputs import patches

G1, G2 = torch.tensor([[-2.0, -2.0], [4.0, 4.0]]), torch.tensor([[-6.0, -4.0]])
W1, W2 = net()[0].weight.detach(), net()[2].weight.detach()

BY_HAND = {
    "magnitude": ([[1, 2], [3, 1]], [[1, 2]]),
    "magnitude_l2": ([[1, 4], [9, 1]], [[1, 4]]),
    # deviations: of (1, 2, 3, -1) with mean 1.25 and of (1, -2) with mean -0.5
    "han": (W1.abs() / 2.1875**0.5, W2.abs() / 1.5),
    "gradient": ([[2, 2], [4, 4]], [[6, 4]]),
    "taylor": ([[2, 4], [12, 4]], [[6, 8]]),
    "taylor_samples": ([[2, 4], [12, 4]], [[6, 8]]),
    "obd_fisher": ([[2, 8], [72, 8]], [[18, 32]]),  # g^2 w^2 / 2
    "snip": (torch.tensor([[2, 4], [12, 4]]) / 36, torch.tensor([[6, 8]]) / 36),
    "wanda": ([[1, 2], [3, 1]], [[3, 4]]),  # inputs (1, 1) and (3, 2)
    "synflow": ([[1, 2], [6, 2]], [[3, 8]]),  # R = 1 (1 + 2) + 2 (3 + 1) = 11
}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_by_hand(name: str, dtype: torch.dtype) -> None:
    data = [(X.to(dtype), T.to(dtype))]
    first, second = weight_scores(net(dtype), name, data, half_square).values()
    assert close(first, BY_HAND[name][0]) and close(second, BY_HAND[name][1])


def second_derivatives() -> tuple[torch.Tensor, torch.Tensor]:
    """d2L/dW1_ij^2 = (W2_i x_j)^2, d2L/dW2_i^2 = h_i^2."""
    return torch.tensor([[1.0, 1.0], [4.0, 4.0]]), torch.tensor([[9.0, 4.0]])


@pytest.mark.usefixtures("all_signs")
@pytest.mark.parametrize("diagonal", ["hessian", "gauss_newton"])
def test_obd_by_hand(diagonal: str) -> None:
    first, second = weight_scores(net(), OBD(diagonal, probes=64), DATA, half_square).values()
    h1, h2 = second_derivatives()
    assert close(first, h1 * W1**2 / 2) and close(second, h2 * W2**2 / 2)


@pytest.mark.usefixtures("all_signs")
def test_taylor2_by_hand() -> None:
    first, second = weight_scores(net(), Taylor2(probes=64), DATA, half_square).values()
    h1, h2 = second_derivatives()
    assert close(first, (h1 * W1**2 / 2 - G1 * W1).abs())
    assert close(second, (h2 * W2**2 / 2 - G2 * W2).abs())


@pytest.mark.parametrize("diagonal", ["hessian", "gauss_newton"])
def test_obd_is_exact_on_a_quadratic_at_its_minimum(diagonal: str) -> None:
    """L = mean_n a_n (w_n - t_n)^2 / 2: the score is the rise of the loss, with one probe."""
    model = nn.Linear(4, 1, bias=False)
    a, x = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.eye(4)
    target = model(x).detach()

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return ((output - target).square().squeeze(1) * a).sum() / 2 / 4

    (score,) = weight_scores(model, OBD(diagonal, probes=1), [(x, target)], loss).values()
    for i in range(4):
        without = model.weight.detach().clone()
        without[0, i] = 0
        assert float(score[0, i]) == pytest.approx(float(loss(x @ without.T, target)))


@pytest.mark.usefixtures("all_signs")
def test_the_three_diagonals_differ_where_they_should() -> None:
    """A smooth network far from its minimum: H, Gauss-Newton and Fisher are three matrices."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    x, y = torch.randn(6, 2).double(), torch.tensor([0, 1, 1, 0, 1, 0])
    parameters = {n: p.detach() for n, p in model.named_parameters()}

    def of(weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, {**parameters, "0.weight": weight}, (x,))

    weight = parameters["0.weight"]
    hessian = torch.func.hessian(lambda w: F.cross_entropy(of(w), y))(weight)
    jacobian = torch.func.jacrev(of)(weight).reshape(6, 2, 6)
    bend = torch.func.hessian(lambda z: F.cross_entropy(z, y))(of(weight))
    gauss = torch.einsum("nai,namb,mbj->ij", jacobian, bend, jacobian)
    each = [
        torch.func.grad(lambda w, n=n: F.cross_entropy(of(w)[n], y[n]))(weight) for n in range(6)
    ]
    exact = {
        "hessian": hessian.reshape(6, 6).diagonal(),
        "gauss_newton": gauss.diagonal(),
        "fisher": torch.stack(each).square().mean(0).reshape(6),
    }
    for diagonal, expected in exact.items():
        rule, data = OBD(diagonal, probes=64), [(x, y)]
        (score,) = weight_scores(model, rule, data, F.cross_entropy, ignore="2").values()
        assert close(score.reshape(6), expected.clamp_min(0) * weight.reshape(6) ** 2 / 2, 1e-9)


def test_taylor_is_exact_on_a_linear_loss() -> None:
    model = nn.Linear(3, 2, bias=False)
    x = torch.randn(4, 3)
    (score,) = weight_scores(model, "taylor", [x], lambda out, _: out.sum()).values()
    for i in range(2):
        for j in range(3):
            removed = model.weight.detach().clone()
            removed[i, j] = 0
            change = (x @ removed.T).sum() - model(x).detach().sum()
            assert float(score[i, j]) == pytest.approx(abs(float(change)), rel=1e-4)


def test_sum_then_absolute_is_not_absolute_then_sum() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(2)
    data = [torch.tensor([[1.0], [-1.0]])]  # gradients of the sum: 1 and -1

    def loss(output: torch.Tensor, _: object) -> torch.Tensor:
        return output.mean()

    assert weight_scores(model, "taylor", data, loss)["weight"].item() == 0
    assert weight_scores(model, "taylor_samples", data, loss)["weight"].item() == 2


def test_grasp_is_the_change_of_the_gradient_norm() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    data = [(torch.randn(n, 3).double(), torch.randn(n, 1).double()) for n in (4, 2)]
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    names = ["0.weight", "2.weight"]
    fixed = {n: p.detach() for n, p in model.named_parameters()}

    def loss(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        return half_square(torch.func.functional_call(model, {**fixed, **weights}, (x,)), y)

    weights = {n: fixed[n] for n in names}
    slope = torch.func.grad(loss)(weights)
    _, product = torch.func.jvp(torch.func.grad(loss), (weights,), (slope,))
    scores = weight_scores(model, "grasp", data, half_square)
    assert all(close(scores[n], weights[n] * product[n], 1e-9) for n in names)


def test_synflow_conserves_flow() -> None:
    """What flows into a hidden unit flows out; every layer carries all of R."""
    model, data = images()
    conv, norm = model[0], model[1]
    norm.weight.data.uniform_(-1, 2)
    scores = weight_scores(model, "synflow", data)
    totals = [float(score.sum()) for score in scores.values()]
    assert totals == pytest.approx([totals[0]] * 3, rel=1e-9)
    into = scores["0.weight"].sum((1, 2, 3))
    out = scores["4.weight"].sum((2, 3))  # [6, 2]: group g reads inputs 2 g and 2 g + 1
    assert close(into, torch.cat([out[:3].sum(0), out[3:].sum(0)]), 1e-9)
    assert conv.weight.dtype == torch.float32


def test_synflow_refuses_what_has_no_positive_form() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    with pytest.raises(ValueError, match=r"the model must be made of linear layers.*no such rule"):
        weight_scores(layer, "synflow", [torch.randn(1, 3, 4)], ignore=["self_attn"])


def test_wanda_by_rows_and_for_convolutions() -> None:
    model = net()
    masks = sp.prune(model, 0.5, "wanda", "local", data=[torch.tensor([[3.0, 1.0]])])
    assert masks["0.weight"].tolist() == [[True, False], [True, False]]  # 3 2, 9 1: one per row
    model, data = images()
    scores = weight_scores(model, Wanda(), data)
    with torch.no_grad():
        x = torch.cat([x for x, _ in data])
        h = model.eval()[:4](x)
    for name, conv, inputs in (("0.weight", model[0], x), ("4.weight", model[4], h)):
        for group, part in enumerate(inputs.chunk(conv.groups, 1)):
            unfolded = F.unfold(part, 3, padding=conv.padding)  # [samples, k, positions]
            norm = unfolded.square().sum((0, 2)).sqrt()
            rows = conv.weight.detach().chunk(conv.groups)[group]
            expected = rows.flatten(1).abs() * norm
            assert close(scores[name].chunk(conv.groups)[group].flatten(1), expected, 1e-4)


CONVOLUTIONS = [
    nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2),
    nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(1, 2), groups=2),
    nn.Conv2d(4, 4, 3, padding="same", padding_mode="reflect", groups=4),
    nn.Conv3d(2, 3, 2, padding=1, padding_mode="circular"),
]


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
def test_patches_are_what_the_weight_multiplies(conv: nn.Module) -> None:
    x = torch.randn(2, conv.in_channels, *[7] * len(conv.kernel_size))
    found = patches(conv, x)
    rows = conv.weight.reshape(conv.groups, -1, found.shape[-1])
    output = torch.einsum("npgk,gok->ngop", found, rows).flatten(1, 2)
    expected = conv(x).flatten(2) - conv.bias[:, None]
    assert torch.allclose(output, expected, atol=1e-5)


def test_correlation_is_numpy_corrcoef() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    data = [torch.randn(n, 4) for n in (20, 13)]
    scores = weight_scores(model, Correlation(apart=False), data)
    with torch.no_grad():
        x = torch.cat(data)
        h = model[:2](x)
        y = model[2](h)
    for name, a, b in (("0.weight", x, h), ("2.weight", h, y)):
        r = np.corrcoef(a.numpy().T, b.numpy().T)[a.shape[1] :, : a.shape[1]]
        assert close(scores[name], np.abs(r), 1e-6)


def test_correlation_of_a_convolution_is_the_mean_over_positions() -> None:
    conv = nn.Conv1d(1, 1, 2, padding=1)
    x = torch.randn(30, 1, 3)
    (score,) = weight_scores(conv, Correlation(apart=False), [x]).values()
    with torch.no_grad():
        z = conv(x)[:, 0].numpy()  # 4 positions; kernel entry 0 reads x[p - 1], entry 1 reads x[p]
    x0 = x[:, 0].numpy()
    for entry in range(2):
        pairs = [(p, p - 1 + entry) for p in range(4) if 0 <= p - 1 + entry < 3]
        r = [abs(np.corrcoef(x0[:, q], z[:, p])[0, 1]) for p, q in pairs]
        assert float(score[0, 0, entry]) == pytest.approx(np.mean(r), rel=1e-6)


def test_correlation_ranks_signs_apart_and_gives_constants_zero() -> None:
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[5.0, 1.0, -2.0, 1.0]])
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    x[:, 3] = 7  # constant
    (score,) = weight_scores(layer, "correlation", [x]).values()
    assert score.tolist() == [[1.0, 0.5, 1.0, 0.0]]  # + : 0.9 and 0.2, -: one, constant: none


def test_random_is_seeded_and_leaves_torch_alone() -> None:
    model, state = net(), torch.get_rng_state()
    one, same, other = (weight_scores(model, Random(seed)) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one["0.weight"], same["0.weight"])
    assert not torch.equal(one["0.weight"], other["0.weight"])
    large = weight_scores(nn.Linear(200, 200), "random")["weight"]
    assert large.min() >= 0 and large.max() < 1 and abs(float(large.mean()) - 0.5) < 0.01


def test_han_is_one_quality_factor() -> None:
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    model[1].weight.data.mul_(100)
    masks = sp.prune(model, 0.6, "han")
    scores = weight_scores(nn.Sequential(nn.Linear(2, 2)), "han")
    assert all(torch.isfinite(s).all() for s in scores.values())
    assert [m.float().mean().item() for m in masks.values()] == pytest.approx([0.4, 0.4], abs=0.03)
