"""convert(): right outputs for every kind of model, and no change to the given one."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from convert_models import (
    MEMORIES,
    MODELS,
    Mlp,
    Remembers,
    Tokens,
    Twice,
    as_convert_is_tested,
    assert_same,
    call,
    convnet,
    every_model,
    normed,
    prune_,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from sparseprune import convert
from sparseprune.nn import SPARSE, SparseConv, SparseLinear
from sparseprune.prune import prune

pytestmark = as_convert_is_tested


@every_model
@pytest.mark.parametrize("keep_dense", ["never", "auto"])
def test_outputs_are_those_of_the_dense_model(name: str, keep_dense: str) -> None:
    model, inputs = MODELS[name]()
    expected = call(prune_(model).eval(), inputs)
    fast = convert(model.train(), inputs, keep_dense=keep_dense)
    assert not any(m.training for m in fast.modules())
    assert_same(call(fast, inputs), expected)
    with torch.inference_mode():
        assert_same(call(fast, inputs), expected)


@every_model
def test_every_called_layer_is_packed_with_keep_dense_never(name: str) -> None:
    model, inputs = MODELS[name]()
    fast = convert(prune_(model), inputs, keep_dense="never")
    left = {n for n, m in fast.named_modules() if type(m) in SPARSE}
    assert left == {r.name for r in fast.report.rows if r.reason.startswith("not called")}
    assert all(n == "heads.b" for n in left)
    assert any(isinstance(m, (SparseLinear, SparseConv)) for m in fast.modules())


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that a conversion could disturb."""
    modules = dict(model.named_modules(remove_duplicate=False))
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    return {
        "state": {n: t.clone() for n, t in model.state_dict().items()},
        "modules": {n: (id(m), type(m), m.training) for n, m in modules.items()},
        "parameters": {n: (id(p), p.requires_grad) for n, p in model.named_parameters()},
        "hooks": {n: [list(getattr(m, h).values()) for h in hooks] for n, m in modules.items()},
        "attributes": {n: set(vars(m)) for n, m in modules.items()},
    }


@every_model
@pytest.mark.parametrize("training", [True, False])
def test_the_given_model_is_not_changed(name: str, training: bool) -> None:
    model, inputs = MODELS[name]()
    prune_(model).train(training)
    next(model.parameters()).requires_grad_(False)
    model.register_forward_hook(lambda *_: None)
    before = snapshot(model)
    fast = convert(model, inputs, keep_dense="never")
    for tensor in (*fast.parameters(), *fast.buffers()):
        with torch.no_grad():
            tensor.zero_()
    after = snapshot(model)
    assert all(torch.equal(after["state"][n], t) for n, t in before.pop("state").items())
    assert {k: after[k] for k in before} == before


def test_a_model_that_rejects_its_inputs_is_not_changed() -> None:
    model = prune_(Mlp())
    before = snapshot(model)
    with pytest.raises(RuntimeError):
        convert(model, torch.randn(2, 23))
    after = snapshot(model)
    assert all(torch.equal(after["state"][n], t) for n, t in before.pop("state").items())
    assert {k: after[k] for k in before} == before


def test_other_shapes_work_after_conversion() -> None:
    model = prune_(convnet()).eval()
    fast = convert(model, torch.randn(2, 3, 13, 15), keep_dense="never")
    for shape in ((1, 3, 13, 15), (5, 3, 8, 31)):
        x = torch.randn(shape)
        assert_same(fast(x), model(x))


def test_shared_and_tied_layers_are_packed_once(sparse_wins: list[dict[str, float]]) -> None:
    model = prune_(Twice())
    fast = convert(model, torch.randn(6, 16))
    assert fast.first is fast.again
    assert fast.tied is not fast.first
    assert fast.tied.weight is fast.first.weight
    rows = {r.name: r for r in fast.report.rows}
    assert set(rows) == {"first", "tied"}
    assert rows["first"].dense_ms == 2.0, "the times of both calls"
    assert rows["first"].sparse_ms == 1.0
    assert rows["tied"].dense_ms == 1.0
    assert rows["tied"].kernel == rows["first"].kernel


def test_an_output_layer_tied_to_an_embedding_leaves_the_embedding() -> None:
    model = prune_(Tokens()).eval()
    fast = convert(model, torch.randint(0, 50, (2, 9)), keep_dense="never")
    assert isinstance(fast.out, SparseLinear)
    assert torch.equal(fast.embedding.weight, model.embedding.weight)


def test_the_frozen_copy_serves_autograd_and_load_state_dict() -> None:
    model = prune_(Mlp()).eval()
    fast = convert(model, torch.randn(6, 24), keep_dense="never")
    fast.load_state_dict(fast.state_dict())
    x = torch.randn(3, 24, requires_grad=True)
    grads = [torch.autograd.grad(m(x)["a"].sum(), x)[0] for m in (fast, model)]
    assert_same(*grads)
    assert_same(copy.deepcopy(fast)(x), fast(x))


@pytest.mark.parametrize("remember", MEMORIES)
def test_what_the_forward_remembers_is_as_in_the_dense_model(remember: Any) -> None:
    model = prune_(Remembers(remember)).eval()
    x = torch.randn(6, 20)
    fast = convert(model, x, keep_dense="never")
    assert not model.calls and not model.seen and model.hidden is None
    with torch.no_grad():
        for scale in (1, 2, 3):
            assert_same(fast(x * scale), model(x * scale))
    assert_same(fast.mean, model.mean)
    assert fast.calls == model.calls and len(fast.seen) == len(model.seen)


# Hooks


def test_user_hooks_survive_and_see_the_same() -> None:
    model = prune_(Mlp()).eval()
    seen: list[tuple[str, Tensor]] = []
    model.first.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    model.first.register_forward_hook(lambda m, args, y: y + 1)
    model.blocks[0].register_forward_hook(lambda m, args, y: seen.append(("block", y)))
    model.heads["a"].register_forward_hook(
        lambda m, args, kwargs, y: seen.append(("head", y)), with_kwargs=True
    )
    x = torch.randn(6, 24)
    fast = convert(model, x, keep_dense="never")
    assert isinstance(fast.first, SparseLinear), fast.report.rows[0].reason
    seen.clear()
    expected, dense_seen = model(x), list(seen)
    seen.clear()
    assert_same(fast(x), expected)
    assert [name for name, _ in seen] == ["block", "head"]
    assert_same([y for _, y in seen], [y for _, y in dense_seen])


def test_an_old_spectral_norm_survives() -> None:
    model = normed(nn.utils.spectral_norm).eval()
    x = torch.randn(4, 20)
    assert_same(convert(model, x, keep_dense="never")(x), model(x))


def test_an_old_weight_norm_survives() -> None:
    with pytest.warns(FutureWarning):
        model = normed(nn.utils.weight_norm).eval()
    x = torch.randn(4, 20)
    assert_same(convert(model, x, keep_dense="never")(x), model(x))


# Compiled, exported, converted twice, called from threads


def test_a_compiled_model_is_understood() -> None:
    model, x = prune_(Mlp()).eval(), torch.randn(6, 24)
    fast = convert(torch.compile(model, backend="eager"), x, keep_dense="never")
    assert isinstance(fast, Mlp)
    assert_same(fast(x), model(x))


@pytest.mark.parametrize(
    "name", ["nested", "convnet", "convnet_1d", "convnet_3d", "shared_and_tied"]
)
def test_a_converted_model_compiles_as_one_graph(name: str) -> None:
    model, inputs = MODELS[name]()
    fast = convert(prune_(model), inputs, keep_dense="never")
    torch._dynamo.reset()
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    assert_same(call(compiled, inputs), call(fast, inputs))


@pytest.mark.parametrize(
    "name", ["nested", "convnet", "convnet_1d", "convnet_3d", "shared_and_tied", "encoder_layer"]
)
def test_a_converted_model_exports(name: str) -> None:
    model, inputs = MODELS[name]()
    fast = convert(prune_(model), inputs, keep_dense="never")
    with torch.no_grad():
        program = torch.export.export(fast, (inputs,), strict=False)
    assert_same(call(program.module(), inputs), call(fast, inputs))


def test_converting_twice() -> None:
    model, x = prune_(Mlp()).eval(), torch.randn(6, 24)
    fast = convert(model, x, keep_dense="never")
    with pytest.raises(ValueError, match="nothing to convert"):
        convert(fast, x)
    part = convert(model, {"x": x, "both": False}, keep_dense="never")
    whole = convert(part, x, keep_dense="never")  # packs the head that was not called
    assert isinstance(whole.heads["b"], SparseLinear)
    assert_same(whole(x), model(x))


def test_a_converted_model_is_thread_safe() -> None:
    model, inputs = MODELS["convnet"]()
    fast = convert(prune_(model), inputs, keep_dense="never")
    batches = [torch.randn(1 + i % 5, 3, 13 + i % 3, 15) for i in range(24)]
    with torch.inference_mode():
        expected = [fast(x) for x in batches]

    def run(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return fast(x)

    with ThreadPoolExecutor(4) as pool:
        assert_same(list(pool.map(run, batches)), expected)


def test_under_autocast_packed_layers_stay_float32() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    prune(model, 0.8)
    x = torch.randn(5, 32)
    fast = convert(model, x, keep_dense="never")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = fast(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, model(x))


def test_runs_of_convert_leave_no_trace_in_buffers_or_inputs() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.linear(x.mul_(2))

    model = Counter().eval()
    prune(model, 0.8)
    x = torch.ones(3, 16)
    fast = convert(model, x, keep_dense="never")
    assert float(fast.calls) == 0
    assert torch.equal(x, torch.ones(3, 16))


def test_a_parametrized_model_survives_its_conversion() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)), nn.ReLU()).eval()
    x = torch.randn(2, 8)
    before = model(x)
    fast = convert(model, x, keep_dense="never")
    assert torch.equal(model(x), before)
    torch.testing.assert_close(fast(x), before)
