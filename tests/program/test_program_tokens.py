"""Linear layers in programs, packed as bits or dense: against float64, and after each other."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import TOLERANCE, dense_linear, sparse_weight
from program_models import assert_close, conv, image, planned, programs, sparsify, words
from torch import Tensor, nn

from sparseprune import backends
from sparseprune.formats import Bitmask as Bits
from sparseprune.formats import Csr as Packed
from sparseprune.formats import Format
from sparseprune.formats import Sell as Slices
from sparseprune.io import load, save
from sparseprune.nn import SparseLinear
from sparseprune.ops.run_reference import activate
from sparseprune.program.planned import plan, unplan
from sparseprune.program.program import Program
from sparseprune.program.steps import (
    ACTIVATIONS,
    Activation,
    Add,
    Bitmask,
    Csr,
    Input,
    Linear,
    Output,
    Sell,
    Step,
    Window,
)
from sparseprune.program.text import to_text

NOTHING = Activation()
every_backend = pytest.mark.parametrize("backend", backends.available())
every_step = pytest.mark.parametrize("kind", [Bitmask, Sell, Linear])


def made(kind: type[Step], rows: int, cols: int) -> tuple[Tensor, list[Tensor]]:
    """A weight, and the tensors that a step takes of it."""
    generator = torch.Generator().manual_seed(rows + cols)
    weight = sparse_weight((rows, cols), 0.4, generator) / cols**0.5
    packed: dict[type[Step], Any] = {Bitmask: lambda: Bits().pack(weight).packed(),
                                     Sell: lambda: Slices().pack(weight).packed(),
                                     Csr: lambda: Packed("rows").pack(weight).packed(),
                                     Linear: lambda: [weight]}  # fmt: skip
    return weight, list(packed[kind]())


def run(steps: list[Step], inputs: list[Tensor], weights: list[Tensor], backend: str) -> Tensor:
    with backends.only(backend):
        namespace = backends.choose(torch.device("cpu")).namespace
        (out,) = getattr(torch.ops, namespace).run(inputs, weights, to_text(steps))
    return out


@every_backend
@every_step
@pytest.mark.parametrize(("rows", "cols"), [(70, 18), (64, 64), (1, 1), (197, 300), (63, 129)])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 16, 65])
def test_layers_are_dense_ones(kind: Any, rows: int, cols: int, tokens: int, backend: str) -> None:
    weight, tensors = made(kind, rows, cols)
    x, residual, bias = torch.randn(tokens, cols), torch.randn(tokens, rows), torch.randn(rows)
    for has_bias, adds, name in ((1, 0, "silu"), (0, 1, "clamp"), (1, 1, "gelu"), (0, 0, "clamp")):
        activation = Activation(name, *((-0.2, 0.3) if name == "clamp" else ()))
        first: list[Step] = [Input(0, "tokens", cols, 0), Input(1, "tokens", rows, 0)]
        layer = kind(2, 0, 1 if adds else -1, 0, rows, cols, has_bias, activation)
        got = run([*first, layer, Output(2)], [x, residual], [*tensors, bias], backend)
        wanted = dense_linear(x, weight, bias if has_bias else None) + adds * residual.double()
        torch.testing.assert_close(got.double(), activate(wanted, activation), **TOLERANCE)


@every_step
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(kind: Any, name: str) -> None:
    weight, tensors = made(kind, 70, 18)
    activation = Activation(name, 0.1, 0.5)
    steps = [
        Input(0, "tokens", 18, 0),
        kind(1, 0, -1, 0, 70, 18, 0, activation),
        Output(1),
    ]
    for tokens in (1, 3, 9):
        x = torch.randn(tokens, 18)
        wanted = activate(dense_linear(x, weight, None), activation)
        for backend in backends.available():
            got = run(steps, [x], tensors, backend)
            torch.testing.assert_close(got.double(), wanted, **TOLERANCE)


@every_backend
@pytest.mark.parametrize("tokens", [(), (0,), (1,), (2, 2), (5,), (2, 33)], ids=str)
def test_forms_of_tokens_between_layers(tokens: tuple[int, ...], backend: str) -> None:
    """Some steps read one row per token, others tiles, features first."""
    sizes = [(40, 24), (70, 40), (33, 70), (40, 33), (40, 40)]
    kinds: list[Any] = [Csr, Bitmask, Linear, Linear, Sell]
    weights = [made(kind, *size) for kind, size in zip(kinds, sizes, strict=True)]
    groups = Packed("groups").pack(weights[0][0])
    layers: list[Step] = [
        Csr(1, 0, -1, 0, 40, 24, groups.block, 1, 0, Window(), Activation("clamp", 0.0)),
        Bitmask(2, 1, -1, 4, 70, 40, 0, NOTHING),
        Linear(3, 2, -1, 7, 33, 70, 0, Activation("tanh")),
        Linear(4, 3, 1, 8, 40, 33, 0, NOTHING),
        Sell(5, 4, 4, 9, 40, 40, 0, NOTHING),
        Add(6, 5, 1, NOTHING),
        Csr(7, 6, 5, 14, 40, 40, 0, 1, 0, Window(), NOTHING),
    ]
    last, last_tensors = made(Csr, 40, 40)
    tensors = [*groups.packed(), *(t for _, ts in weights[1:] for t in ts), *last_tensors]
    x = torch.randn(*tokens, 24)
    y = [dense_linear(x, weights[0][0], None).relu()]
    y.append(dense_linear(y[0], weights[1][0], None))
    y.append(dense_linear(y[1], weights[2][0], None).tanh())
    y.append(dense_linear(y[2], weights[3][0], None) + y[0])
    y.append(dense_linear(y[3], weights[4][0], None) + y[3])
    y.append(y[4] + y[0])
    y.append(dense_linear(y[5], last, None) + y[4])
    for value, wanted in enumerate(y, 1):
        steps = [Input(0, "tokens", 24, 0), *layers, Output(value)]
        got = run(steps, [x], tensors, backend)
        torch.testing.assert_close(got.double(), wanted, **TOLERANCE)


@every_backend
def test_packed_weights_ignore_nan_and_dense_ones_do_not(backend: str) -> None:
    weight = torch.zeros(9, 5)
    weight[:, 0] = 1
    x = torch.randn(2, 5)
    x[:, 3] = torch.nan
    bits, slices = list(Bits().pack(weight).packed()), list(Slices().pack(weight).packed())
    for kind, tensors, finite in (
        (Bitmask, bits, True),
        (Sell, slices, True),
        (Linear, [weight], False),
    ):
        steps = [Input(0, "tokens", 5, 0), kind(1, 0, -1, 0, 9, 5, 0, NOTHING), Output(1)]
        assert bool(run(steps, [x], tensors, backend).isfinite().all()) is finite


@pytest.mark.parametrize("namespace", ["sparseprune", "sparseprune_reference"])
@pytest.mark.parametrize("tokens", [3, 6])
@pytest.mark.parametrize("kind", [Bitmask, Sell])
def test_opcheck(namespace: str, tokens: int, kind: Any) -> None:
    packed = made(kind, 70, 18)[1]
    tensors = [*packed, torch.randn(70), *made(Linear, 20, 70)[1]]
    steps = [
        Input(0, "tokens", 18, 0),
        kind(1, 0, -1, 0, 70, 18, 1, Activation("gelu")),
        Linear(2, 1, -1, len(packed) + 1, 20, 70, 0, NOTHING),
        Output(2),
    ]
    op = getattr(torch.ops, namespace).run.default
    torch.library.opcheck(op, ([torch.randn(tokens, 18)], tensors, to_text(steps)))


BAD: dict[str, tuple[Any, str]] = {
    "values": (lambda t: t.__setitem__(0, t[0][:-1]), "values must have"),
    "masks": (lambda t: t.__setitem__(1, t[1][:, :-1].contiguous()), "masks must be"),
    "starts": (lambda t: t.__setitem__(2, t[2][:-1]), "starts must be"),
    "bias": (lambda t: t.__setitem__(3, t[3][:-1]), "bias must be"),
    "weight": (lambda t: t.__setitem__(4, t[4][:-1]), "must be"),
    "transposed": (lambda t: t.__setitem__(4, t[4].t().contiguous().t()), "must be"),
    "double": (lambda t: t.__setitem__(4, t[4].double()), "must be"),
    "few": (lambda t: t.pop(), "weights must"),
}


SLICES_BAD: dict[str, tuple[Any, str]] = {
    "values": (lambda t: t.__setitem__(0, t[0][:-1]), "values must be"),
    "columns": (lambda t: t.__setitem__(1, t[1][:-1]), "columns must be"),
    "windows": (lambda t: t.__setitem__(2, t[2].int()), "windows must be"),
    "starts": (lambda t: t.__setitem__(3, t[3][:-1]), "starts must be"),
    "order": (lambda t: t.__setitem__(4, torch.zeros(69, dtype=torch.int32)), "order must be"),
    "bias": (lambda t: t.__setitem__(5, t[5][:-1]), "bias must be"),
    "half": (lambda t: t.__setitem__(0, t[0].half()), "must be"),
    "few": (lambda t: t.pop(), "weights must"),
}


@pytest.mark.parametrize("name", SLICES_BAD)
@pytest.mark.parametrize("namespace", ["sparseprune", "sparseprune_reference"])
def test_slices_that_do_not_fit(name: str, namespace: str) -> None:
    tensors = [*made(Sell, 70, 18)[1], torch.randn(70)]
    change, message = SLICES_BAD[name]
    change(tensors)
    steps = [Input(0, "tokens", 18, 0), Sell(1, 0, -1, 0, 70, 18, 1, NOTHING), Output(1)]
    with pytest.raises(RuntimeError, match=f"run: .*{message}"):
        getattr(torch.ops, namespace).run([torch.randn(2, 18)], tensors, to_text(steps))


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("namespace", ["sparseprune", "sparseprune_reference"])
def test_weights_that_do_not_fit(name: str, namespace: str) -> None:
    if name == "values" and namespace == "sparseprune_reference":
        pytest.skip("the reference reads no further than its tensors")
    tensors = [*made(Bitmask, 70, 18)[1], torch.randn(70), *made(Linear, 20, 70)[1]]
    change, message = BAD[name]
    change(tensors)
    steps = [
        Input(0, "tokens", 18, 0),
        Bitmask(1, 0, -1, 0, 70, 18, 1, NOTHING),
        Linear(2, 1, -1, 4, 20, 70, 0, NOTHING),
        Output(2),
    ]
    with pytest.raises(RuntimeError, match=f"run: .*{message}"):
        getattr(torch.ops, namespace).run([torch.randn(2, 18)], tensors, to_text(steps))


@every_step
def test_no_images_and_no_other_features(kind: Any) -> None:
    _, tensors = made(kind, 70, 18)
    layer = kind(1, 0, -1, 0, 70, 18, 0, NOTHING)
    for namespace in ("sparseprune", "sparseprune_reference"):
        op = getattr(torch.ops, namespace).run
        for first, x in (
            (Input(0, "image", 18, 2), torch.randn(1, 18, 1, 1)),
            (Input(0, "tokens", 19, 0), torch.randn(1, 19)),
        ):
            with pytest.raises((RuntimeError, ValueError), match="run: "):
                op([x], tensors, to_text([first, layer, Output(1)]))


def packed(model: nn.Sequential, formats: dict[int, Format]) -> nn.Sequential:
    """These layers with 0.4 of their weights, packed so; the others stay dense."""
    for place, how in formats.items():
        layer: Any = model[place]
        generator = torch.Generator().manual_seed(place)
        weight = sparse_weight(tuple(layer.weight.shape), 0.4, generator)
        layer.weight.data = weight / layer.in_features**0.5
        model[place] = SparseLinear.from_dense(layer, how)
    return model.eval()


def mixed() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(48, 200), nn.ReLU(), nn.Linear(200, 70), nn.GELU(),
                          nn.Linear(70, 70), nn.ReLU(), nn.Linear(70, 9, bias=False))  # fmt: skip
    return packed(model, {0: Bits(), 2: Packed("groups"), 4: Bits()})


def test_models_of_every_kind_of_layer_are_one_program(tmp_path: Path) -> None:
    model, x = mixed(), torch.randn(2, 48)
    inputs = [x[:1], x, torch.randn(5, 48), torch.randn(3, 7, 48)[0], torch.randn(0, 48)]
    expected = [model(each) for each in inputs]
    assert plan(model, x) is None
    assert words(model) == ["bitmask csr bitmask linear"]
    program = next(m for m in model.modules() if isinstance(m, Program))
    assert not program.derived and "6.weight" in program.sources
    assert not any(t.numel() == 9 * 70 for t in program.buffers()), "no copy of a dense weight"
    save(model, tmp_path / "file")
    loaded = load(tmp_path / "file")
    for each, wanted in zip(inputs, expected, strict=True):
        with torch.inference_mode():
            torch.testing.assert_close(model(each), wanted, **TOLERANCE)
            assert torch.equal(loaded(each), model(each))
    twin = deepcopy(model)
    with torch.no_grad():
        twin[6].weight.mul_(2)
        torch.testing.assert_close(twin(x), 2 * model(x))
        twin[6].weight = nn.Parameter(model[6].weight * 3)
        torch.testing.assert_close(twin(x), 3 * model(x))


def test_outputs_do_not_depend_on_threads(threads: int) -> None:
    model, x = mixed(), torch.randn(65, 48)
    planned(model, x)
    for rows in (1, 5, 12, 13, 65):
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with torch.inference_mode():
                found.append(model(x[:rows]))
        assert all(torch.equal(found[0], other) for other in found)


def test_compiled_and_exported() -> None:
    model, x = mixed(), torch.randn(2, 48)
    expected = planned(model, x)(x)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="eager")(x), expected)
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), expected)


def test_dense_layers_after_images() -> None:
    model = nn.Sequential(conv(), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 72, 40), nn.Sigmoid(),
                          nn.Linear(40, 5))  # fmt: skip
    sparsify(model, keep=("3", "5"))
    x = image()
    expected = model(x)
    assert words(planned(model, x)) == ["csr flatten linear linear"]
    assert_close(model(x), expected)
    many = torch.cat([x] * 9)
    with torch.no_grad():
        got = model(many)
        assert_close(got, unplan(model)(many))


def test_residuals_and_activations_join_the_layers() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = packed(nn.Sequential(nn.Linear(24, 24)), {0: Bits()})[0]
            self.b = nn.Linear(24, 24)

        def forward(self, x: Tensor) -> Tensor:
            x = F.silu(self.a(x)) + x
            return F.relu(self.b(x) + x)

    model, x = Block().eval(), torch.randn(3, 24)
    expected = model(x)
    assert words(planned(model, x)) == ["bitmask add linear"]
    assert [s.residual for s in programs(model)[0] if isinstance(s, Linear)] == [2]
    assert_close(model(x), expected)
    assert_close(model(x[0]), expected[0])


def test_weights_that_programs_cannot_read_stay_outside() -> None:
    model, x = mixed(), torch.randn(2, 48)
    model[6].weight.data = model[6].weight.t().contiguous().t()
    assert words(planned(model, x)) == ["bitmask csr bitmask"]
