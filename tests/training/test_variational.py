"""Sparse variational dropout: its KL divergence, its noise, what it prunes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from scipy.integrate import quad
from torch import nn

from sparseprune import Masks
from sparseprune.training.variational import (
    EPS,
    VariationalDropout,
    kl_divergence,
    log_alpha,
    variance,
)

DOUBLE = torch.float64


def exact_kl(log_alpha: float) -> float:
    """E log|1 + sqrt(alpha) t| - 0.5 log alpha - E log|t|, t ~ N(0, 1), by quadrature.

    KL between N(theta, alpha theta^2) and the log-uniform prior, up to the constant that makes it
    zero for alpha -> infinity. E log|t| = -(Euler's gamma + log 2) / 2.
    """
    root = math.exp(log_alpha / 2)

    def density(t: float) -> float:
        return math.exp(-t * t / 2) / math.sqrt(2 * math.pi) * math.log(abs(1 + root * t))

    # the logarithm is singular at -1 / root: an end of two intervals
    ends = sorted({-12.0, max(-12.0, -1 / root), 0.0, 12.0})
    spread = sum(quad(density, a, b, limit=500)[0] for a, b in itertools.pairwise(ends))
    return spread - log_alpha / 2 + (0.5772156649015329 + math.log(2)) / 2


LOG_ALPHAS = torch.linspace(-8, 8, 33, dtype=DOUBLE)


def test_kl_is_the_quadrature_within_the_tolerance_of_the_fit() -> None:
    """Over log alpha from -8 to 8, where KL falls from 4.6 to 0."""
    exact = torch.tensor([exact_kl(a) for a in LOG_ALPHAS.tolist()], dtype=DOUBLE)
    error = (kl_divergence(LOG_ALPHAS) - exact).abs()
    assert error.max() < 0.01
    assert error.max() > 1e-5  # an approximation, not the same code twice


def test_gradient_of_the_kl_is_that_of_the_quadrature() -> None:
    step = 1e-3
    exact = [(exact_kl(a + step) - exact_kl(a - step)) / (2 * step) for a in LOG_ALPHAS.tolist()]
    a = LOG_ALPHAS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(kl_divergence(a).sum(), a)
    assert torch.allclose(gradient, torch.tensor(exact, dtype=DOUBLE), atol=0.02)
    assert (gradient < 0).all()  # more noise is always cheaper


def test_kl_is_the_paper_s_formula() -> None:
    k1, k2, k3 = 0.63576, 1.87320, 1.48695
    alpha = LOG_ALPHAS.exp()
    minus = k1 * torch.sigmoid(k2 + k3 * LOG_ALPHAS) - 0.5 * (1 + 1 / alpha).log() - k1
    assert torch.allclose(kl_divergence(LOG_ALPHAS), -minus, atol=1e-12)
    far = torch.tensor([-1e4, 1e4], dtype=DOUBLE, requires_grad=True)
    kl_divergence(far).sum().backward()
    assert torch.isfinite(far.grad).all()


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 3), (5,)),
    "linear, tokens": (lambda: nn.Linear(5, 3, bias=False), (2, 5)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 7)),
    "conv2d": (lambda: nn.Conv2d(2, 4, 3, padding="same"), (2, 4, 4)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (4, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(3, 3, 2, dilation=2, groups=3, bias=False), (3, 4, 4)),
    "circular": (lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), (2, 4, 3)),
    "conv3d": (lambda: nn.Conv3d(2, 2, 2, padding=(1, 0, 1)), (2, 2, 3, 2)),
}


def noisy(kind: str) -> tuple[nn.Module, torch.Tensor, VariationalDropout]:
    """A prepared layer in float64 with unequal variances, and one input without batch."""
    make, shape = LAYERS[kind]
    layer = make().double()
    method = VariationalDropout(10).prepare(layer, torch.optim.SGD(layer.parameters()))
    with torch.no_grad():
        layer.log_sigma2.uniform_(-4, 0)
    return layer, torch.randn(shape, dtype=DOUBLE), method


@pytest.mark.parametrize("kind", LAYERS)
def test_noise_has_mean_and_variance_of_sampled_weights(kind: str) -> None:
    """Against 4,000 drawn weights: 6 standard errors, of the mean and of the variance."""
    layer, x, _ = noisy(kind)
    draws = 4_000
    theta, sigma = layer.weight.detach().clone(), (layer.log_sigma2 / 2).exp().detach()
    assert (log_alpha(theta, layer.log_sigma2).abs() < 8).sum() > theta.numel() / 2
    plain = LAYERS[kind][0]().double()
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "log_sigma2"})
    outputs = []
    with torch.no_grad():
        # what is clipped has sigma^2 = e^8 (theta^2 + EPS)
        sigma = sigma.minimum((math.exp(8) * (theta.square() + EPS)).sqrt())
        for _ in range(draws):
            plain.weight.copy_(theta + sigma * torch.randn_like(theta))
            outputs.append(plain(x.unsqueeze(0))[0])
        sampled = torch.stack(outputs)
        exact = variance(layer, x.unsqueeze(0), clip=8)[0]
        layer.eval()
        mean = layer(x.unsqueeze(0))[0]
        layer.train()
        noised = layer(x.expand(draws, *x.shape).contiguous())
    for found in (sampled, noised):
        assert ((found.mean(0) - mean).abs() <= 6 * (exact / draws).sqrt() + 1e-4).all()
        assert ((found.var(0) - exact).abs() <= 6 * exact * math.sqrt(2 / draws) + 1e-6).all()
    assert exact.unique().numel() > 1


def test_noise_of_samples_is_independent() -> None:
    layer, x, _ = noisy("linear")
    a, b = layer(x.expand(2, 5).contiguous())
    assert not torch.equal(a, b)


def test_eval_mode_is_the_plain_layer() -> None:
    layer, x, _ = noisy("groups")
    layer.eval()
    y = layer(x.unsqueeze(0))
    assert torch.equal(y, layer._conv_forward(x.unsqueeze(0), layer.weight, layer.bias))


def test_log_alpha_is_clipped_while_training() -> None:
    """alpha = e^8 however large sigma^2 is; the gradient goes to theta then."""
    layer = nn.Linear(1, 1, bias=False).double()
    VariationalDropout(1).prepare(layer, torch.optim.SGD(layer.parameters()))
    with torch.no_grad():
        layer.weight.fill_(2.0)
        layer.log_sigma2.fill_(30.0)
    x = torch.full((1, 1), 3.0, dtype=DOUBLE)
    found = variance(layer, x, clip=8)
    assert found.item() == pytest.approx(9 * math.exp(8) * (4 + EPS))
    found.backward()
    assert layer.log_sigma2.grad.item() == 0
    assert layer.weight.grad.item() > 0
    with torch.no_grad():
        layer.log_sigma2.fill_(1.0)
    layer.zero_grad()
    variance(layer, x, clip=8).backward()
    assert layer.weight.grad.item() == pytest.approx(0, abs=1e-9)  # additive: sigma^2 stands alone
    assert layer.log_sigma2.grad.item() == pytest.approx(9 * math.e)


def test_penalty_is_the_kl_of_all_weights_over_the_samples() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    method = VariationalDropout(50).prepare(model, torch.optim.Adam(model.parameters()))
    total = 0.0
    for layer in (model[0], model[2]):
        a = (layer.log_sigma2 - (layer.weight**2 + EPS).log()).clamp(-8, 8)
        total += kl_divergence(a).sum().item()
    assert method.penalty().item() == pytest.approx(total / 50)
    method.penalty().backward()
    a = log_alpha(model[0].weight, model[0].log_sigma2)
    assert ((model[0].log_sigma2.grad < 0) == (a.abs() < 8)).all()  # none beyond the clip


def test_warm_up_counts_steps_of_the_optimizer() -> None:
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), 0.0)
    method = VariationalDropout(1, warmup=(2, 6)).prepare(layer, optimizer)
    shares = []
    for _ in range(8):
        shares.append(method.penalty().item())
        layer(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    whole = shares[-1]
    assert [s / whole for s in shares] == pytest.approx([0, 0, 0, 0.25, 0.5, 0.75, 1, 1])


def test_what_is_above_the_threshold_goes() -> None:
    layer = nn.Linear(3, 2, bias=False).double()
    with torch.no_grad():
        layer.weight.fill_(1.0)
    method = VariationalDropout(1).prepare(layer, torch.optim.SGD(layer.parameters()))
    with torch.no_grad():
        layer.log_sigma2.copy_(torch.tensor([[2.9, 3.1, -5.0], [100.0, 0.0, 3.0 + 1e-6]]))
    masks = method.finalize()
    expected = torch.tensor([[1, 0, 1], [0, 1, 0]], dtype=torch.bool)
    assert masks == Masks({"weight": expected})
    assert torch.equal(layer.weight.detach(), expected.double())


def test_noise_drowns_irrelevant_inputs() -> None:
    """Three of twelve inputs explain the target, the rest of it no input: those three stay."""
    x = 16 * torch.linalg.qr(torch.randn(256, 12)).Q
    noise = torch.randn(256, 1)
    noise -= x @ (x.T @ noise) / 256
    y = x[:, :3] @ torch.tensor([[2.0], [-1.0], [1.5]]) + noise
    layer = nn.Linear(12, 1)
    optimizer = torch.optim.Adam(layer.parameters(), 0.05)
    method = VariationalDropout(256, warmup=(100, 200), threshold=0.0, initial=-6.0)
    method.prepare(layer, optimizer)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, 700)
    for _ in range(700):
        optimizer.zero_grad()
        error = (layer(x) - y).square().mean() / 2  # Gaussian likelihood, deviation 1
        (error + method.penalty()).backward()
        optimizer.step()
        schedule.step()
    masks = method.finalize()
    assert masks["weight"].tolist() == [[True] * 3 + [False] * 9]
    assert (layer(x) - y).square().mean() < 1.1 * noise.square().mean()


def test_under_autocast_and_in_half_precision() -> None:
    """Squares beyond float16 are summed in float32."""
    layer = nn.Linear(2, 2).half()
    VariationalDropout(1).prepare(layer, torch.optim.SGD(layer.parameters()))
    assert layer.log_sigma2.dtype == torch.float32
    y = layer(torch.full((1, 2), 300.0, dtype=torch.float16))
    assert y.dtype == torch.float16 and y.isfinite().all()
    single = nn.Linear(2, 2)
    VariationalDropout(1).prepare(single, torch.optim.SGD(single.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        assert single(torch.ones(1, 2)).dtype == torch.bfloat16


BAD = [
    ({"samples": 0}, "samples"),
    ({"samples": 1, "warmup": (5, 2)}, "warmup"),
    ({"samples": 1, "clip": 0.0}, "clip"),
    ({"samples": 1, "lr": -1.0}, "lr"),
]


@pytest.mark.parametrize(("arguments", "named"), BAD, ids=[n for _, n in BAD])
def test_bad_arguments(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=f"VariationalDropout: {named} must be"):
        VariationalDropout(**arguments)  # type: ignore[arg-type]
