"""Planned models as torch knows modules: copies, state, compile, export, and when layers run."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from program_models import (
    PATTERNS,
    Lambda,
    arguments,
    assert_close,
    conv,
    image,
    planned,
    preactivation,
    programs,
    sparsify,
)
from torch import Tensor, nn

from sparseprune import backends
from sparseprune.nn import SparseConv2d
from sparseprune.program.planned import Planned, plan, unplan
from sparseprune.program.program import Program
from sparseprune.program.watch import Quick

SOME = ("downsampled", "preactivation", "two_inputs", "two_outputs", "conv1d", "shared", "in_place")
some_patterns = pytest.mark.parametrize("name", SOME)


def made(name: str) -> tuple[nn.Module, tuple[Tensor, ...], Any]:
    """A planned model, its inputs, and what it should give."""
    model, inputs = PATTERNS[name]()
    expected = sparsify(model)(*deepcopy(arguments(inputs)))
    return planned(model, inputs), arguments(inputs), expected


@contextmanager
def counting() -> Iterator[list[Any]]:
    """What ran programs inside."""
    ran: list[Any] = []
    forward, run = Program.forward, Quick.run

    def note(self: Program, *inputs: Tensor) -> Any:
        ran.append(self)
        return forward(self, *inputs)

    def note_quick(self: Quick, args: Any) -> Any:
        outputs = run(self, args)
        ran.extend([self] * (outputs is not None))
        return outputs

    with patch.object(Program, "forward", note), patch.object(Quick, "run", note_quick):
        yield ran


def runs_programs(model: nn.Module, *inputs: Any, **kwargs: Any) -> bool:
    """Whether it does, at first and again; the outputs must be those of the layers either way."""
    expected = unplan_copy(model)(*deepcopy(inputs), **kwargs)
    with counting() as ran:
        for _ in range(3):  # the first may go the long way, and find the short one
            before = len(ran)
            assert_close(model(*deepcopy(inputs), **kwargs), expected)
            assert bool(ran[before:]) == bool(ran)
    return bool(ran)


def unplan_copy(model: nn.Module) -> nn.Module:
    return unplan(deepcopy(model))


@some_patterns
def test_copies_are_of_their_own(name: str) -> None:
    model, inputs, expected = made(name)
    copy = deepcopy(model)
    own = {id(m) for m in model.modules()}
    assert own.isdisjoint(map(id, copy.modules())) and type(copy) is type(model)
    bound = {id(m) for p in copy.modules() if isinstance(p, Program) for m, *_ in p._bound}
    assert bound <= {id(m) for m in copy.modules()}
    assert_close(copy(*inputs), expected)
    for parameter in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
        parameter.data.zero_()
    assert runs_programs(copy, *inputs)
    assert_close(copy(*inputs), expected)


@some_patterns
@pytest.mark.parametrize("assign", [False, True])
def test_state_dict(name: str, assign: bool) -> None:
    model, inputs, expected = made(name)
    twin, _, _ = made(name)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            if tensor.is_floating_point():
                tensor.add_(1)
    assert runs_programs(twin, *deepcopy(inputs))
    assert twin.load_state_dict(state, assign=assign).missing_keys == []
    assert runs_programs(twin, *inputs)
    assert_close(twin(*inputs), expected)


@some_patterns
def test_compiles_as_one_graph(name: str) -> None:
    model, inputs, expected = made(name)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_close(compiled(*deepcopy(inputs)), expected)


@pytest.mark.parametrize("dynamic", [False, True])
@some_patterns
def test_export(name: str, dynamic: bool) -> None:
    model, inputs, expected = made(name)
    each = ({0: torch.export.Dim("batch")},) * len(inputs)
    shapes = {"inputs": each} if isinstance(model, Lambda) else {"input": each[0]}
    with torch.no_grad():
        exported = torch.export.export(
            model, inputs, dynamic_shapes=shapes if dynamic else None, strict=False
        )
        assert any("run" in str(n.target) for n in exported.graph.nodes)
        assert_close(exported.module()(*deepcopy(inputs)), expected)
        if dynamic:
            more = [torch.cat([x, x]) for x in inputs]
            assert_close(exported.module()(*deepcopy(more)), model(*more))


def mlp(**more: nn.Module) -> tuple[nn.Module, Tensor]:
    layers = {"a": nn.Linear(8, 6), "act": nn.ReLU(), "b": nn.Linear(6, 4), **more}
    model = Lambda(lambda m, x: m.b(m.act(m.a(x))), **layers)
    x = torch.randn(3, 8)
    return planned(sparsify(model), x), x


def test_names_and_class_stay() -> None:
    model, x = mlp()
    assert isinstance(model, Lambda) and isinstance(model, Planned)
    assert list(dict(model.named_children())) == ["a", "act", "b", "program_0"]
    assert runs_programs(model, x) and runs_programs(model, x[:1])
    unplan(model)
    assert type(model) is Lambda and "program_0" not in dict(model.named_modules())
    assert plan(model, x) is None and "already" in str(plan(model, x))


def test_other_calls_run_the_layers() -> None:
    model, x = mlp()
    assert runs_programs(model, x)
    assert not runs_programs(model, x[None])
    assert not runs_programs(model, x[0])
    assert not runs_programs(model, x.clone().requires_grad_())
    with torch.no_grad():
        assert runs_programs(model, x.clone().requires_grad_())
    with torch.inference_mode():
        assert runs_programs(model, x)
    with pytest.raises((RuntimeError, ValueError)):
        model(x.double())


def test_gradients_are_those_of_the_layers() -> None:
    model, x = mlp()
    x.requires_grad_()
    (grad,) = torch.autograd.grad(model(x).square().sum(), x)
    (expected,) = torch.autograd.grad(unplan_copy(model)(x).square().sum(), x)
    assert_close(grad, expected)


def test_training_mode_runs_the_layers() -> None:
    model, x = mlp()
    assert not runs_programs(model.train(), x)
    assert runs_programs(model.eval(), x)
    model.act.train()
    assert not runs_programs(model, x)


def test_hooks_are_called() -> None:
    model, x = mlp()
    seen: list[Any] = []
    handle = model.act.register_forward_hook(lambda *args: seen.append(args))
    assert not runs_programs(model, x)
    assert seen
    handle.remove()
    assert runs_programs(model, x)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *args: None)
    assert not runs_programs(model, x)
    handle.remove()
    model.register_forward_hook(lambda module, args, y: y + 1)
    assert runs_programs(model, x)


def test_replaced_modules_are_noticed() -> None:
    model, x = mlp()
    model.b = nn.Linear(6, 2)
    assert not runs_programs(model, x)
    assert model(x).shape == (3, 2)


def test_changed_tensors_are_noticed() -> None:
    model, x = mlp()
    model.a.bias = nn.Parameter(torch.randn(6))
    assert runs_programs(model, x)
    model.a.weight.values = torch.randn_like(model.a.weight.values)
    assert runs_programs(model, x)
    model.b.bias.data = torch.randn(4)
    assert runs_programs(model, x)


def test_what_is_derived_follows_its_layer() -> None:
    model, x = preactivation()
    sparsify(model, keep=("a",))
    planned(model, x)
    assert any(p.derived for p in model.modules() if isinstance(p, Program))
    with torch.no_grad():
        for change in (model.n1.running_mean, model.n2.weight, model.a.weight):
            change.mul_(1.5)
            assert runs_programs(model, x)
        model.a.weight = nn.Parameter(torch.randn_like(model.a.weight))
        assert runs_programs(model, x)
        copy = deepcopy(model)
        assert runs_programs(copy, x)


def test_sequential_counts_its_layers() -> None:
    layers = [conv(), nn.ReLU(), conv(), nn.ReLU()]
    model, x = nn.Sequential(*layers), image()
    expected = sparsify(model)(x)
    planned(model, x)
    assert len(model) == 4 and list(model) == [model[i] for i in range(4)]
    assert isinstance(model[-1], nn.ReLU) and isinstance(model[2], SparseConv2d)
    assert len(model[1:-1]) == 2
    with pytest.raises(IndexError):
        model[4]
    assert_close(model.train()(x), expected)
    assert_close(model.eval()(x), expected)
    model.append(nn.Tanh())
    assert not runs_programs(model, x)
    assert_close(model(x), expected.tanh())


class Optional(nn.Module):
    """Arguments of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(
        self, x: Tensor, y: Tensor | None = None, scale: float = 1.0, *, twice: bool = False
    ) -> Tensor:
        x = F.relu(self.a(x)) if y is None else F.relu(self.a(x) + y)
        for _ in range(2 if twice else 1):
            x = self.b(x) * scale
        return x


@pytest.mark.parametrize(
    ("example", "fits", "others"),
    [
        ({}, [{}], [{"y": 1}, {"scale": 2.0}, {"twice": True}]),
        ({"y": 1}, [{"y": 1}], [{}, {"y": None}]),
        ({"twice": True, "scale": 2.0}, [{"scale": 2.0, "twice": True}], [{"scale": 2}, {}]),
    ],
)
def test_arguments(example: Any, fits: Any, others: Any) -> None:
    x, y = torch.randn(2, 3, 8)

    def filled(call: dict[str, Any]) -> dict[str, Any]:
        return {k: y if k == "y" and v else v for k, v in call.items()}

    model = planned(sparsify(Optional()), {"x": x, **filled(example)})
    for call in fits:
        assert runs_programs(model, x, **filled(call))
        assert runs_programs(model, x=x, **filled(call))
    for call in others:
        assert not runs_programs(model, x, **filled(call))


def test_batch_size_in_the_forward() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.b(F.relu(m.a(x)))
        return y.reshape(x.shape[0], 2, 3).sum(1) * x.size(0)

    model, x = Lambda(forward, a=nn.Linear(8, 6), b=nn.Linear(6, 6)), torch.randn(3, 8)
    planned(sparsify(model), x)
    for batch in (x, x[:1], torch.cat([x, x])):
        assert runs_programs(model, batch)


def test_broadcast_that_looks_like_a_sum() -> None:
    """At batch 1 a position of its own has the shape of the values it is added to."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.b(F.relu(m.a(x) + m.position))

    model = Lambda(forward, a=nn.Linear(8, 6), b=nn.Linear(6, 6))
    model.position = nn.Parameter(torch.randn(1, 6))
    planned(sparsify(model), torch.randn(1, 8))
    with torch.no_grad():
        assert runs_programs(model, torch.randn(4, 8))


def test_pickled_models_run_layer_by_layer() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    x = torch.randn(2, 8)
    expected = sparsify(model)(x)
    loaded = pickle.loads(pickle.dumps(planned(model, x)))
    assert type(loaded) is nn.Sequential and len(loaded) == 3
    assert_close(loaded(x), expected)


def test_spec_and_back() -> None:
    model, x = preactivation()
    sparsify(model, keep=("a",))
    planned(model, x)
    expected = model(x)
    (name,) = type(model)._program_names
    program = model.get_submodule(name)
    again = Program.from_spec(program.spec(), model).use()
    assert again.spec() == program.spec()
    model.add_module(name, again.eval())
    assert runs_programs(model, x)
    assert_close(model(x), expected)
    with pytest.raises(ValueError, match=r"Program.bind: .* must be a layer of the model"):
        Program.from_spec(program.spec(), nn.Sequential())
    with pytest.raises(ValueError, match=r"Program.bind: .* must be a tensor of the model"):
        program.bind(nn.Sequential(nn.Linear(2, 2)))


def test_programs_use_the_backend_of_the_layers() -> None:
    model, x = (
        Lambda(lambda m, x: m.b(m.a(x)), a=nn.Linear(8, 6), b=nn.Linear(6, 4)),
        torch.randn(2, 8),
    )
    with backends.only("reference"):
        planned(sparsify(model), x)
    assert model.program_0.namespace == "sparseprune_reference"
    assert runs_programs(model, x)
    model, x = mlp()
    assert model.program_0.namespace == backends.choose(torch.device("cpu")).namespace
    assert len(programs(model.double().float())) == 1
    assert runs_programs(model, x)


def test_autocast_keeps_float32() -> None:
    model, x = mlp()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.float32
