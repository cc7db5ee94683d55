"""convert(): right outputs for every kind of model, no change to the given one, and reasons."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from problems import TOLERANCE, sparse_weight
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

from sparseprune import choose, convert
from sparseprune.nn import SPARSE, SparseConv2d, SparseLinear
from sparseprune.prune import prune
from sparseprune.report import Report

Model = tuple[nn.Module, Any]
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")


def prune_(model: nn.Module, density: float = 0.2) -> nn.Module:
    """Exact zeros in every Linear and Conv2d."""
    generator = torch.Generator().manual_seed(11)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.weight.is_leaf:
            weight = sparse_weight(tuple(module.weight.shape), density, generator) * 0.3
            module.weight.data = weight.to(module.weight.dtype)
    return model


def call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        y = model(**inputs)
        mask = inputs.get("src_key_padding_mask")  # what lies under it, torch leaves open
        return y if mask is None else y[~mask]
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


class Mlp(nn.Module):
    """Named children, a container in a container, and a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(24, 32)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(2))
        self.heads = nn.ModuleDict({"a": nn.Linear(32, 4), "b": nn.Linear(32, 3, bias=False)})

    def forward(self, x: Tensor, scale: float = 1.0, *, both: bool = True) -> dict[str, Tensor]:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x) * scale
        return {name: head(x) for name, head in self.heads.items() if both or name == "a"}


class ByKeyword(nn.Module):
    """Layers called with keywords, an unbatched image, and no positional argument at all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(4, 5)

    def forward(self, *, image: Tensor) -> Tensor:
        return self.linear(input=self.conv(input=image).mean((-1, -2)))


class Twice(nn.Module):
    """One layer called twice, under two names, and a third layer with the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.again = self.first
        self.tied = nn.Linear(16, 16)
        self.tied.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(self.again(self.first(x)))


class Tokens(nn.Module):
    """Integer inputs, and an output layer tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.middle = nn.Linear(16, 16)
        self.out = nn.Linear(16, 50, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.middle(self.embedding(ids)))


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding="same", padding_mode="reflect"),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),
        nn.Conv2d(8, 12, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(12, 5),
    )


def torch_pruned() -> nn.Module:
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))
    for layer in (model[0], model[2]):
        torch_prune.l1_unstructured(layer, "weight", 0.8)
    torch_prune.random_unstructured(model[0], "weight", 0.5)  # a container of two methods
    torch_prune.l1_unstructured(model[0], "bias", 0.5)
    return model


def normed(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(norm(nn.Linear(20, 30)), nn.ReLU(), norm(nn.Linear(30, 10)))


def encoder(layers: int = 0, **options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, **options)
    return nn.TransformerEncoder(layer, layers) if layers else layer


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(16, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        return self.attention(x, x, x, need_weights=False)[0]


def padded_sequence() -> dict[str, Tensor]:
    """A batch of which one sequence ends early: torch's encoder then makes nested tensors."""
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[1, 4:] = True
    return {"src": torch.randn(2, 7, 16), "src_key_padding_mask": mask}


MODELS: dict[str, Callable[[], Model]] = {
    "sequential": lambda: (
        nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10)),
        torch.randn(6, 20),
    ),
    "root_is_a_layer": lambda: (nn.Linear(20, 12), torch.randn(6, 20)),
    "root_is_a_conv": lambda: (nn.Conv2d(4, 8, 3), torch.randn(1, 4, 9, 9)),
    "nested": lambda: (Mlp(), torch.randn(6, 24)),
    "tuple": lambda: (Mlp(), (torch.randn(6, 24), 0.5)),
    "keywords": lambda: (Mlp(), {"x": torch.randn(6, 24), "scale": 2.0, "both": False}),
    "by_keyword": lambda: (ByKeyword(), {"image": torch.randn(3, 8, 9)}),
    "shared_and_tied": lambda: (Twice(), torch.randn(6, 16)),
    "integers": lambda: (Tokens(), torch.randint(0, 50, (2, 9))),
    "convnet": lambda: (convnet(), torch.randn(2, 3, 13, 15)),
    "torch_pruned": lambda: (torch_pruned(), torch.randn(4, 20)),
    "weight_norm": lambda: (normed(parametrizations.weight_norm), torch.randn(4, 20)),
    "spectral_norm": lambda: (normed(parametrizations.spectral_norm), torch.randn(4, 20)),
    "attention": lambda: (Attention(), torch.randn(2, 7, 16)),
    "encoder_layer": lambda: (encoder(), torch.randn(2, 7, 16)),
    "encoder_layer_gelu": lambda: (
        encoder(activation="gelu", norm_first=True),
        torch.randn(2, 7, 16),
    ),
    "encoder": lambda: (encoder(2), torch.randn(2, 7, 16)),
    "encoder_padded": lambda: (encoder(2), padded_sequence()),
    "batch_0": lambda: (nn.Sequential(nn.Linear(20, 30)), torch.randn(0, 20)),
}

every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(autouse=True)
def _quick_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call of each candidate instead of hundreds; tests of decisions script their times."""
    script_times(monkeypatch, lambda name: 1.0)


def script_times(
    monkeypatch: pytest.MonkeyPatch, ms: Callable[[str], float]
) -> list[dict[str, float]]:
    """Let compare_ms call each candidate once and report ms(name). Returns what it reported."""
    calls: list[dict[str, float]] = []

    def compare(functions: dict[str, Callable[[], object]], **_: Any) -> dict[str, float]:
        for function in functions.values():
            function()
        calls.append({name: ms(name) for name in functions})
        return calls[-1]

    for module in ("sparseprune.choose", "sparseprune.convert"):
        monkeypatch.setattr(sys.modules[module], "compare_ms", compare)
    return calls


@pytest.fixture
def sparse_wins(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    return script_times(monkeypatch, lambda name: 1.0 if name == "dense" else 0.5)


def assert_same(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, **TOLERANCE)


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
    assert all(n == "heads.b" or n.endswith("out_proj") for n in left)
    assert any(isinstance(m, (SparseLinear, SparseConv2d)) for m in fast.modules())


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


# Decisions, with scripted times


def decide(
    monkeypatch: pytest.MonkeyPatch, ms: Callable[[str], float], density: float = 0.2
) -> nn.Module:
    script_times(monkeypatch, ms)
    return convert(prune_(nn.Sequential(nn.Linear(20, 12)), density), torch.randn(6, 20))


TIMES = {"csr/groups": 0.6, "csr/rows": 0.5, "csr/sorted": 0.7, "dense": 1.0, "sparse": 0.5}


def test_the_fastest_format_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    for fastest in ("csr/groups", "csr/rows"):
        fast = decide(monkeypatch, {**TIMES, fastest: 0.4}.__getitem__)
        row = fast.report.rows[0]
        assert row.kernel.startswith(f"{fastest} ")
        assert fast[0].weight.name == fastest
        assert (row.dense_ms, row.sparse_ms, row.reason) == (1.0, 0.4, "")
        assert row.packed_bytes == fast[0].weight.nbytes
        assert fast.report.speedup == 2.0


@pytest.mark.parametrize(
    ("share", "packed"), [(choose.MARGIN - 0.01, True), (choose.MARGIN + 0.01, False), (1.0, False)]
)
def test_dense_stays_without_a_margin(
    monkeypatch: pytest.MonkeyPatch, share: float, packed: bool
) -> None:
    fast = decide(monkeypatch, lambda name: 1.0 if name == "dense" else share)
    row = fast.report.rows[0]
    assert isinstance(fast[0], SparseLinear) is packed
    if not packed:
        assert row.kernel == "dense"
        assert row.packed_bytes == row.dense_bytes
        assert row.reason.endswith(f": {1 / share:.2f}x)") and "not 11% faster" in row.reason
        assert fast.report.speedup == 1.0


def test_a_near_tie_of_the_whole_model_goes_back_to_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = decide(monkeypatch, {**TIMES, "sparse": 0.98}.__getitem__)
    assert type(fast[0]) is nn.Linear
    fast = decide(monkeypatch, {**TIMES, "sparse": 0.96}.__getitem__)
    assert isinstance(fast[0], SparseLinear)


def test_a_slower_whole_model_goes_back_to_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = decide(monkeypatch, {**TIMES, "sparse": 1.1}.__getitem__)
    row = fast.report.rows[0]
    assert type(fast[0]) is nn.Linear
    assert row.kernel == "dense"
    assert row.packed_bytes == row.dense_bytes
    assert row.reason == "the whole model was not faster with packed layers"
    assert fast.report.sparse_ms == fast.report.dense_ms == 1.0
    assert "1.100 ms" in fast.report.notes[0]


def test_a_slower_whole_model_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = iter([1.1, 0.9])
    fast = decide(monkeypatch, lambda name: next(whole) if name == "sparse" else TIMES[name])
    assert isinstance(fast[0], SparseLinear)
    assert fast.report.sparse_ms == 0.9


def test_a_slower_whole_model_stays_packed_with_keep_dense_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script_times(monkeypatch, lambda name: 1.0 if name == "dense" else 9.0)
    fast = convert(nn.Linear(20, 12), torch.randn(6, 20), keep_dense="never")
    assert isinstance(fast, SparseLinear)
    assert fast.report.speedup == pytest.approx(1 / 9)


def test_too_few_zeros_are_not_even_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    few = decide(monkeypatch, lambda name: TIMES[name], density=0.95).report.rows[0]
    assert "below 30% does not repay an index" in few.reason
    assert (few.kernel, few.dense_ms) == ("dense", None)
    none = decide(monkeypatch, lambda name: TIMES[name], density=1).report.rows[0]
    assert (none.reason, none.pattern) == ("no zeros", "dense")


def test_a_wrong_packed_layer_never_takes_over(
    monkeypatch: pytest.MonkeyPatch, sparse_wins: list[dict[str, float]]
) -> None:
    right = SparseLinear.forward
    monkeypatch.setattr(SparseLinear, "forward", lambda self, x: right(self, x) * 1.01)
    fast = convert(prune_(nn.Sequential(nn.Linear(20, 12))), torch.randn(6, 20))
    assert type(fast[0]) is nn.Linear
    assert "its output differs from dense by" in fast.report.rows[0].reason


# Layers that stay dense, with reasons


class MyLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_stay_dense(dtype: torch.dtype) -> None:
    model = prune_(nn.Sequential(nn.Linear(20, 12).to(dtype)))
    x = torch.randn(6, 20, dtype=dtype)
    fast = convert(model, x, keep_dense="never")
    assert fast.report.rows[0].reason == f"csr holds float32, the weight is {str(dtype)[6:]}"
    assert torch.equal(fast(x), model.eval()(x))


def test_a_layer_that_is_not_called_stays_dense() -> None:
    model = prune_(Mlp())
    fast = convert(model, {"x": torch.randn(6, 24), "both": False}, keep_dense="never")
    rows = {r.name: r for r in fast.report.rows}
    assert "not called" in rows["heads.b"].reason
    assert type(fast.heads["b"]) is nn.Linear


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv1d(8, 8, 3), torch.randn(2, 8, 20)),
        (nn.Conv3d(8, 8, 1), torch.randn(2, 8, 3, 3, 3)),
        (nn.ConvTranspose2d(8, 8, 3), torch.randn(2, 8, 5, 5)),
        (nn.LSTM(8, 8), torch.randn(2, 3, 8)),
        (MyLinear(8, 8), torch.randn(2, 8)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_unsupported_layers_are_named(layer: nn.Module, x: Tensor) -> None:
    model = nn.ModuleDict({"odd": layer, "linear": nn.Linear(8, 8)})
    weights = [p for p in layer.parameters() if p.dim() > 1]
    for weight in weights:
        weight.data = sparse_weight(tuple(weight.shape), 0.3, torch.Generator().manual_seed(2))

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, x: Tensor, y: Tensor) -> tuple[Any, Tensor]:
            return self.parts["odd"](x), self.parts["linear"](y)

    inputs = (x, torch.randn(2, 8))
    fast = convert(Both(), inputs, keep_dense="never")
    rows = [r for r in fast.report.rows if r.name.startswith("parts.odd")]
    assert len(rows) == len(weights)
    assert all(type(layer).__name__ in r.reason and r.kernel == "dense" for r in rows)
    assert all(0.6 < r.sparsity < 0.8 for r in rows)
    assert type(fast.parts["odd"]) is type(layer)


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


@pytest.mark.parametrize("name", ["nested", "convnet", "shared_and_tied"])
def test_a_converted_model_compiles_as_one_graph(name: str) -> None:
    model, inputs = MODELS[name]()
    fast = convert(prune_(model), inputs, keep_dense="never")
    torch._dynamo.reset()
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    assert_same(call(compiled, inputs), call(fast, inputs))


@pytest.mark.parametrize("name", ["nested", "convnet", "shared_and_tied", "encoder_layer"])
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


# The report


def test_report_fields_and_round_trips(sparse_wins: list[dict[str, float]]) -> None:
    model, x = prune_(Mlp()), torch.randn(6, 24)
    report = convert(model, x).report
    assert isinstance(report, Report)
    assert [r.name for r in report.rows] == [
        "first", "blocks.0.0", "blocks.1.0", "heads.a", "heads.b",
    ]  # fmt: skip
    first = report.rows[0]
    nonzeros = int(model.first.weight.count_nonzero())
    assert (first.kind, first.shape, first.pattern) == ("Linear", (32, 24), "unstructured")
    assert (first.nonzeros, first.sparsity) == (nonzeros, 1 - nonzeros / 768)
    assert (first.dense_bytes, first.dense_ms, first.sparse_ms) == (768 * 4, 1.0, 0.5)
    assert sum(report.kernels.values()) == len(report.rows)
    assert report.nonzeros == sum(r.nonzeros for r in report.rows)
    assert report.packed_bytes == sum(r.packed_bytes for r in report.rows) != report.dense_bytes
    assert report.speedup == 2.0
    again = Report.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again == report
    text = str(report)
    for word in ("first", "blocks.0.0", "Linear", "32x24", "csr/", "2.00x"):
        assert word in text
    assert Report().speedup is None
    assert "weights: 0 bytes" in str(Report())


def test_a_root_layer_has_a_name() -> None:
    report = convert(prune_(nn.Linear(8, 8)), torch.randn(2, 8)).report
    assert [r.name for r in report.rows] == ["(model)"]


# Bad arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "cpus"}, r"backend must be .* got 'cpus'; did you mean 'cpu'"),
        ({"backend": "cuda"}, r"backend must be one that serves cpu, got 'cuda'; "),
        ({"format": "crs"}, r"format must be .* got 'crs'; did you mean 'csr'"),
        ({"format": "dense"}, r"format must be .* got 'dense'; known: auto, csr"),
        ({"keep_dense": "neve"}, r"keep_dense must be .* got 'neve'; did you mean 'never'"),
        ({"keep_dense": True}, r"keep_dense must be 'auto' or 'never', got True"),
    ],
)
def test_bad_choices_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"convert: {message}"):
        convert(nn.Linear(8, 8), torch.randn(2, 8), **arguments)


@pytest.mark.parametrize("model", [None, 3, "model", lambda x: x, nn.Linear], ids=str)
def test_not_a_module(model: Any) -> None:
    with pytest.raises(TypeError, match=r"convert: model must be an nn\.Module, got"):
        convert(model, torch.randn(2, 8))


@pytest.mark.parametrize("model", [nn.Identity(), nn.Sequential(), nn.Conv1d(3, 3, 3)], ids=str)
def test_nothing_to_convert(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="nothing to convert"):
        convert(model, torch.randn(2, 3, 8))


@pytest.mark.filterwarnings("ignore:sparseprune runs its Python reference")
def test_a_model_without_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"convert: model must .*meta"):
        convert(nn.Linear(8, 8, device="meta"), torch.randn(2, 8, device="meta"))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_wanted_backend_is_used(backend: str, request: pytest.FixtureRequest) -> None:
    if backend == "cpu":
        request.getfixturevalue("no_fallback")
    model, x = prune_(Mlp()).eval(), torch.randn(6, 24)
    fast = convert(model, x, backend=backend, keep_dense="never")
    assert {m.weight.backend for m in fast.modules() if isinstance(m, SparseLinear)} == {backend}
    assert all((backend == "reference") == ("reference" in k) for k in fast.report.kernels)
    assert_same(fast(x), model(x))


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


def test_a_weight_read_past_its_layer_keeps_the_model_dense() -> None:
    class Peeks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) @ self.linear.weight

    model = Peeks().eval()
    prune(model, 0.8)
    x = torch.randn(3, 16)
    fast = convert(model, x, keep_dense="never")
    assert "does not run with packed layers" in fast.report.rows[0].reason
    assert torch.equal(fast(x), model(x))


def test_a_parametrized_model_survives_its_conversion() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)), nn.ReLU()).eval()
    x = torch.randn(2, 8)
    before = model(x)
    fast = convert(model, x, keep_dense="never")
    assert torch.equal(model(x), before)
    torch.testing.assert_close(fast(x), before)


def test_tied_weights_count_once_in_totals() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    prune(model, 0.5)
    report = convert(model, torch.randn(2, 16), keep_dense="never").report
    assert [row.tied_to for row in report.rows] == ["", "0"]
    assert report.dense_bytes == 16 * 16 * 4
    assert report.nonzeros == int(model[0].weight.count_nonzero())
