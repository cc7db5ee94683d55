"""Files made to harm: nothing in one ever runs, and no kernel leaves its memory."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from io_problems import Residual, edit, image, make, packed, refused, step
from torch import Tensor, nn

from sparseprune.formats import Bitmask, Csr, Format, csr_check
from sparseprune.io import load, save
from sparseprune.nn import SparseConv2d, SparseLinear


@pytest.fixture
def traced(tmp_path: Path) -> Path:
    save(Residual(), tmp_path / "file")
    return tmp_path / "file"


X = {"step": 0}


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Tensor, Path]:
    model, x = make("residual")
    fast, path = packed(model, x), tmp_path_factory.mktemp("io") / "residual.safetensors"
    save(fast, path)
    return fast, x, path


ATTACKS: dict[str, Callable[[str], dict[str, Any]]] = {
    "os.system": lambda m: step("call_function", "os.system", f"touch {m}"),
    "posix.system": lambda m: step("call_function", "posix.system", f"touch {m}"),
    "subprocess": lambda m: step("call_function", "subprocess.Popen", ["touch", m]),
    "eval": lambda m: step("call_function", "builtins.eval", f"open({m!r}, 'w')"),
    "exec": lambda m: step("call_function", "exec", f"open({m!r}, 'w')"),
    "import": lambda m: step("call_function", "__import__", "os"),
    "open": lambda m: step("call_function", "builtins.open", m, "w"),
    "torch.load": lambda m: step("call_function", "torch.load", m),
    "torch.save": lambda m: step("call_function", "torch.save", X, m),
    "from_file": lambda m: step("call_function", "torch.from_file", m, True, 10),
    "hub": lambda m: step("call_function", "torch.hub.load", "a/b", "c"),
    "load_library": lambda m: step("call_function", "torch.ops.load_library", m),
    "compile": lambda m: step("call_function", "torch.compile", X),
    "F.torch": lambda m: step("call_function", "torch.nn.functional.torch", X),
    "F.importlib": lambda m: step("call_function", "torch.nn.functional.importlib", "os"),
    "private": lambda m: step("call_function", "torch._C._cuda_setDevice", 0),
    "attrgetter": lambda m: step("call_function", "operator.attrgetter", "a"),
    "methodcaller": lambda m: step("call_function", "operator.methodcaller", "a"),
    "operator.call": lambda m: step("call_function", "operator.call", X),
    "getattr": lambda m: step("call_function", "getattr", X, "__class__"),
    "getattr computed": lambda m: step("call_function", "getattr", X, {"step": 0}),
    "getattr default": lambda m: step("call_function", "getattr", X, "grad", "shape"),
    "reduce": lambda m: step("call_method", "__reduce__", X),
    "reduce_ex": lambda m: step("call_method", "__reduce_ex__", X, 2),
    "class": lambda m: step("call_method", "__class__", X),
    "apply": lambda m: step("call_method", "apply_", X, {"function": "torch.abs"}),
    "function": lambda m: step("call_method", "abs", X, {"function": "torch.abs"}),
    "register_hook": lambda m: step("call_method", "register_hook", X),
    "share": lambda m: step("call_method", "share_memory_", X),
    "storage": lambda m: step("call_method", "untyped_storage", X),
    "format": lambda m: step("call_method", "format", "{0.__class__}", X),
    "number": lambda m: step("call_method", 3, X),
    "list": lambda m: step("call_function", ["os", "system"], X),
    "later": lambda m: step("call_function", "torch.abs", {"step": 99}),
    "negative": lambda m: step("call_function", "torch.abs", {"step": -1}),
    "unknown tag": lambda m: step("call_function", "torch.abs", {"pickle": "gASV"}),
    "device": lambda m: step("call_method", "to", X, {"device": "cuda:0"}),
    "dtype": lambda m: step("call_method", "to", X, {"dtype": "__dict__"}),
    "op": lambda m: step("call_anything", "torch.abs", X),
    "module path": lambda m: step("call_module", "fc.__class__", X),
    "module dunder": lambda m: step("call_module", "__init__", X),
    "parameter called": lambda m: step("call_module", "fc.weight", X),
    "module read": lambda m: step("get_attr", "fc"),
    "attribute": lambda m: step("get_attr", "fc.in_features"),
    "quote": lambda m: step("get_attr", f'fc") or open("{m}", "w") or ("'),
    "newline": lambda m: step("call_module", f"fc\nopen({m!r}, 'w')\n", X),
    "argument name": lambda m: step("placeholder", f"x=open({m!r}, 'w')"),
    "argument line": lambda m: step("placeholder", f"x\nopen({m!r}, 'w')"),
    "argument stars": lambda m: step("placeholder", "***x"),
    "argument keyword": lambda m: step("placeholder", "lambda"),
    "argument default": lambda m: step("placeholder", "z", {"step": 0}),
    "keyword": lambda m: step("call_function", "torch.abs", X, **{f"a=open({m!r},'w'), b": 1}),
    "deep": lambda m: step("call_function", "torch.abs", json.loads("[" * 60 + "]" * 60)),
    "second output": lambda m: step("output", "output", X),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_step_outside_the_lists(attack: str, traced: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    bad_step = ATTACKS[attack](str(marker))
    refused(traced, lambda manifest, _: manifest["graph"].insert(1, bad_step), "not allowed|fit")
    assert not marker.exists()


def test_strings_never_become_code(tmp_path: Path) -> None:
    """A literal with quotes, newlines and braces reaches its function as it is."""
    marker = tmp_path / "marker"
    poison = f"'\n\"\"\"\\\nopen({str(marker)!r}, 'w')\n#{{}}"
    save(Residual(), tmp_path / "file")

    def change(manifest: dict[str, Any], _: object) -> None:
        manifest["graph"].insert(-1, step("call_function", "torch.sum", X, poison))
        manifest["graph"].insert(-1, step("call_function", "operator.add", poison, "b"))
        manifest["graph"].insert(1, step("placeholder", "other", poison))
        shift = {str(i): i + 1 for i in range(1, 200)}
        text = json.dumps(manifest["graph"][2:])
        for old in sorted(shift, key=int, reverse=True):
            text = text.replace(f'{{"step": {old}}}', f'{{"step": {shift[old]}}}')
        manifest["graph"][2:] = json.loads(text)

    edit(tmp_path / "file", change)
    with pytest.raises((TypeError, RuntimeError)):  # torch.sum does not take a string
        load(tmp_path / "file")(image(2, 3, 8, 8))
    assert not marker.exists()


LAYER_ATTACKS: dict[str, Callable[[dict[str, Any]], object]] = {
    "popen": lambda m: m["modules"]["fc"].update(type="subprocess:Popen", arguments={"args": "ls"}),
    "module": lambda m: m["modules"]["fc"].update(type="torch.nn.Module"),
    "private": lambda m: m["modules"]["fc"].update(type="torch.nn.modules.linear.os"),
    "number": lambda m: m["modules"]["fc"].update(type=3),
    "missing type": lambda m: m["modules"]["fc"].pop("type"),
    "argument": lambda m: m["modules"]["fc"]["arguments"].update(nonsense=1),
    "hook": lambda m: m["modules"]["fc"].update(attributes={"_forward_hooks": {"dict": []}}),
    "method": lambda m: m["modules"]["fc"].update(attributes={"forward": None}),
    "class": lambda m: m["modules"]["fc"].update(attributes={"__class__": None}),
    "huge": lambda m: m["modules"]["fc"]["arguments"].update(in_features=10**15),
    "shape": lambda m: m["modules"]["fc"]["arguments"].update(in_features=17),
    "no bias": lambda m: m["modules"]["fc"]["arguments"].update(in_features="a"),
    "own child": lambda m: m["modules"].update({"fc.a": {"same": "fc"}}),
    "orphan": lambda m: m["modules"].update({"a.b.c": {"type": "torch.nn.ReLU", "arguments": {}}}),
    "clobber": lambda m: m["modules"].update({"forward": {"type": "custom"}}),
    "same as none": lambda m: m["modules"].update({"a": {"same": "b"}}),
    "no root": lambda m: m["modules"].pop(""),
    "no graph": lambda m: m.update(graph=None),
    "empty graph": lambda m: m.update(graph=[]),
    "odd graph": lambda m: m.update(graph={"a": 1}),
    "steps": lambda m: m.update(graph=[3]),
    "no modules": lambda m: m.pop("modules"),
    "list of modules": lambda m: m.update(modules=[]),
    "tensor kind": lambda m: m["tensors"]["fc.bias"].update(kind="code"),
    "tensor grad": lambda m: m["tensors"]["fc.bias"].update(requires_grad="yes"),
    "tensor missing": lambda m: m["tensors"].pop("fc.bias"),
    "tensor unknown": lambda m: m["tensors"].update({"fc.c": {"kind": "buffer"}}),
    "tensor same": lambda m: m["tensors"].update({"fc.bias": {"same": "gain"}}),
    "tensor orphan": lambda m: m["tensors"].update({"q.bias": {"same": "gain"}}),
    "report": lambda m: m.update(report={"rows": [{"name": 1}]}),
}


@pytest.mark.parametrize("attack", LAYER_ATTACKS)
def test_no_layer_outside_the_lists(attack: str, traced: Path) -> None:
    refused(traced, lambda manifest, _: LAYER_ATTACKS[attack](manifest))


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in nested JSON."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    found = [(value, key) for key in keys]
    for key in keys:
        if isinstance(value[key], (dict, list)):
            found += places(value[key])
    return found


def test_no_random_manifest_raises_anything_but_value_error(
    residual: tuple[nn.Module, Tensor, Path], tmp_path: Path
) -> None:
    whole, path, chance = residual[2].read_bytes(), tmp_path / "file", random.Random(0)
    junk: list[Any] = [None, True, -1, 0, 10**30, 0.5, "", "fc", "__class__", "torch.abs", [], {},
                       [[]], {"a": 1}, {"step": 1}, {"tuple": [0]}, {"tuple": 3}, {"size": ["a"]},
                       {"slice": []}, {"dict": 5}, {"same": ""}, {"float": "x"}]  # fmt: skip

    def change(manifest: dict[str, Any], _: object) -> None:
        for _ in range(chance.choice([1, 1, 3])):
            container, key = chance.choice(places(manifest))
            container[key] = copy.deepcopy(chance.choice(junk))

    refusals = 0
    for _ in range(300):
        path.write_bytes(whole)
        with contextlib.suppress(TypeError, KeyError, AttributeError):  # of the edit itself
            edit(path, change)
        try:
            load(path)
        except ValueError as error:
            assert str(error).startswith("load: file")
            refusals += 1
    assert refusals > 150  # most: some edits change nothing that matters, or do not apply


def test_endless_recurrent_layer_is_refused(tmp_path: Path) -> None:
    save(nn.LSTM(2, 2), tmp_path / "file")
    refused(
        tmp_path / "file",
        lambda m, _: m["modules"][""]["arguments"].update(num_layers=10**12),
        "without their tensors",
    )


# --- packed weights


def weight_file(path: Path, fmt: Format) -> Tensor:
    """A sparse layer of 135 x 300 in a file, and its dense weight."""
    torch.manual_seed(0)
    linear = nn.Linear(300, 135)
    with torch.no_grad():
        linear.weight *= torch.rand(135, 300) < 0.2
    save(nn.Sequential(SparseLinear.from_dense(linear, fmt)), path)
    return linear.weight.detach()


def poke(name: str, index: Any, value: int) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def change(_: object, tensors: dict[str, Tensor]) -> None:
        tensor = tensors[f"0.weight.{name}"]
        signed = tensor.to(torch.int64)
        signed[index] = value
        tensors[f"0.weight.{name}"] = signed.to(tensor.dtype)

    return change


def spec_of(**sizes: Any) -> Callable[[dict[str, Any], object], object]:
    return lambda m, _: m["modules"]["0.weight"]["arguments"].update(sizes)


def cast(name: str, dtype: torch.dtype) -> Callable[[object, dict[str, Tensor]], object]:
    full = f"0.weight.{name}"
    return lambda _, tensors: tensors.update({full: tensors[full].to(dtype)})


def cut(name: str) -> Callable[[object, dict[str, Tensor]], object]:
    full = f"0.weight.{name}"
    return lambda _, tensors: tensors.update({full: tensors[full][:-1].clone()})


@pytest.mark.parametrize("layout", ["rows", "groups", "sorted"])
def test_corrupt_packed_weights_never_reach_a_kernel(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    dense = weight_file(path, Csr(layout))
    loaded: Any = load(path)
    assert torch.equal(loaded[0].weight.unpack(), dense)
    changes = [
        poke("columns", -1, 60_000 if layout == "rows" else 250),
        poke("columns", 0, 300 if layout == "rows" else 200),
        poke("starts", -1, 2**30),
        poke("starts", 0, -5),
        poke("starts", 3, 2**30),
        poke("starts", 3, -7),
        *(cut(name) for name in ("values", "columns", "starts")),
        *(cast(name, torch.float64) for name in ("values", "columns", "starts")),
        cast("columns", torch.int16),
        spec_of(rows=136),
        spec_of(rows=10**6),
        spec_of(rows=-1),
        spec_of(rows=True),
        spec_of(rows="135"),
        spec_of(cols=2),
        spec_of(cols=2**40),
        spec_of(block=0 if layout != "rows" else 16),
        spec_of(block=255),
        spec_of(block=1),
        spec_of(layout="rows" if layout != "rows" else "groups"),
        spec_of(layout="sorted" if layout != "sorted" else "groups"),
        spec_of(layout="other"),
        spec_of(layout=None),
        spec_of(values=1),
    ]
    if layout != "rows":
        changes += [poke("counts", (0, 0, 0), 255), poke("counts", (-1, -1, 1), 9), cut("counts")]
    for change in changes:
        refused(path, change, "load: file")


def test_corrupt_bitmask_never_reaches_a_kernel(tmp_path: Path) -> None:
    path = tmp_path / "file"
    dense = weight_file(path, Bitmask())
    loaded: Any = load(path)
    assert torch.equal(loaded[0].weight.unpack(), dense)
    for change in (
        poke("masks", (0, 0), 255),
        poke("masks", (-1, -1, 0), 0xFF),
        poke("masks", (-1, 0, 7), 1),  # rows past the last
        poke("starts", -1, 2**30),
        poke("starts", 0, -5),
        poke("starts", 1, 2**30),
        poke("starts", 1, -7),
        *(cut(name) for name in ("values", "masks", "starts")),
        *(cast(name, torch.float64) for name in ("values", "masks", "starts")),
        spec_of(rows=136),
        spec_of(rows=200),
        spec_of(rows=-1),
        spec_of(rows=True),
        spec_of(cols=299),
        spec_of(cols=2**40),
        spec_of(layout="rows"),
        spec_of(values=1),
    ):
        refused(path, change, "load: file")


def test_a_convolution_with_a_bitmask_is_refused(tmp_path: Path) -> None:
    path, packed_ = tmp_path / "file", Bitmask().pack(torch.randn(8, 4))
    save(nn.Sequential(SparseConv2d.from_dense(nn.Conv2d(4, 8, 1))), path)

    def change(manifest: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        manifest["modules"]["0.weight"] = {
            "type": "sparseprune.bitmask",
            "arguments": packed_.spec(),
        }
        manifest["tensors"]["0.weight.masks"] = dict(manifest["tensors"]["0.weight.values"])
        for name in ("columns", "counts"):
            del manifest["tensors"][f"0.weight.{name}"], tensors[f"0.weight.{name}"]
        tensors.update({f"0.weight.{n}": b.clone() for n, b in packed_.named_buffers()})

    refused(path, change, "a convolution of 1 groups")


def test_values_past_the_last_row_are_refused(tmp_path: Path) -> None:
    """135 rows fill the last group of four but for one row, which a pattern must not name."""
    weight = Csr("groups").pack(torch.eye(135, 300))
    csr_check.check(weight)
    weight.counts[0, -1] = weight.counts[0, -1].roll(4)
    with pytest.raises(ValueError, match="csr_check"):
        csr_check.check(weight)


def wrong_numbers(change: Callable[[Tensor], None]) -> str:
    """What the check says of numbered groups of 128 rows whose counts [groups, 19] were changed."""
    weight = Csr("groups").pack(torch.eye(128, 8))
    csr_check.check(weight)
    change(weight.counts[0])
    with pytest.raises(ValueError, match="csr_check: packed weight must be") as refusal:
        csr_check.check(weight)
    return str(refusal.value)


def test_numbers_that_a_kernel_would_leave_its_memory_with_are_refused() -> None:
    def twice(groups: Tensor) -> None:
        groups[3, 1] = groups[4, 1]

    def of_another_segment(groups: Tensor) -> None:
        groups[3, 1] += 64

    def unlike_starts(groups: Tensor) -> None:
        groups[0, 4] += 1

    assert "rows that do not each occur once" in wrong_numbers(twice)
    assert "a row outside its segment of 64" in wrong_numbers(of_another_segment)
    assert "starts that contradict counts" in wrong_numbers(unlike_starts)


def test_numbered_groups_of_broken_segments_are_refused() -> None:
    weight = Csr("groups").pack(torch.zeros(128, 8))
    weight.rows = 124
    weight.counts, weight.starts = weight.counts[:, :31].contiguous(), weight.starts[:32]
    with pytest.raises(ValueError, match="60 rows past their last segment"):
        csr_check.check(weight)


def test_segments_stay_in_one_group_of_a_convolution() -> None:
    weight = Csr("groups").pack(torch.eye(128, 8))
    csr_check.check_groups(weight, 2)
    with pytest.raises(ValueError, match="divisible by 4 groups, each by 64"):
        csr_check.check_groups(weight, 4)
    csr_check.check_groups(Csr("groups").pack(torch.eye(128, 8), 4), 4)


def wrong_pairs(change: Callable[[Tensor], None]) -> str:
    """What the check says of 5 rows in sorted pairs whose counts were changed."""
    weight = torch.zeros(5, 8)
    weight[0, :2], weight[1, 1:4], weight[2, 5:8], weight[3, 4:6] = 1.0, 2.0, 3.0, 4.0
    packed = Csr("sorted").pack(weight)
    assert packed.counts.tolist() == [[[0, 1, 1, 1, 2], [3, 2, 1, 1, 2], [4, 4, 0, 0, 0]]]
    csr_check.check(packed)
    change(packed.counts[0])
    with pytest.raises(ValueError, match="csr_check: packed weight must be") as refusal:
        csr_check.check(packed)
    return str(refusal.value)


def test_pairs_that_a_kernel_would_leave_its_memory_with_are_refused() -> None:
    def more_first(pairs: Tensor) -> None:
        pairs[0, 3], pairs[0, 4] = 2, 1

    def with_company(pairs: Tensor) -> None:
        pairs[1, 3:] -= 1
        pairs[2, 3:] += 1

    def twice(pairs: Tensor) -> None:
        pairs[0, 1] = 2

    def outside(pairs: Tensor) -> None:
        pairs[0, 0] = 128

    def unlike_starts(pairs: Tensor) -> None:
        pairs[0, 2], pairs[0, 4] = 2, 1

    assert "a first row of a pair with more columns than the second" in wrong_pairs(more_first)
    assert "a last row that is not alone" in wrong_pairs(with_company)
    assert "rows that do not each occur once" in wrong_pairs(twice)
    assert "rows that do not each occur once" in wrong_pairs(outside)
    assert "starts that contradict counts" in wrong_pairs(unlike_starts)


def test_random_packed_weights_pass_the_check_or_are_refused() -> None:
    chance = torch.Generator().manual_seed(0)
    for rows, cols in [(0, 5), (5, 0), (1, 1), (3, 17), (130, 250), (7, 700), (128, 90)]:
        for layout in ("rows", "groups", "sorted"):
            dense = torch.randn(rows, cols, generator=chance)
            weight = Csr(layout).pack(dense * (torch.rand(rows, cols, generator=chance) < 0.3))
            csr_check.check(weight)
            for _ in range(20):
                changed = copy.deepcopy(weight)
                buffer = list(changed.buffers())[int(torch.randint(1, 4, (), generator=chance))]
                if not buffer.numel():
                    continue
                place = int(torch.randint(buffer.numel(), (), generator=chance))
                top = 2**31 if buffer.dtype == torch.int32 else 256
                buffer.view(-1)[place] = int(torch.randint(top, (), generator=chance))
                try:
                    csr_check.check(changed)
                except ValueError:
                    continue
                row, column = changed.unpack().nonzero().unbind(-1)
                assert not len(row) or (int(row.max()) < rows and int(column.max()) < cols)


@pytest.mark.parametrize(
    "arguments",
    [{"groups": 3}, {"groups": 0}, {"stride": {"tuple": [0, 1]}}, {"kernel_size": {"tuple": [3]}},
     {"padding": {"tuple": [-1, 0, 0, 0]}}, {"padding_mode": "os"}, {"dilation": [1, 1]},
     {"extra": 1}, {"kernel_size": {"tuple": [7, 1]}}],
    ids=str,
)  # fmt: skip
def test_impossible_convolutions_are_refused(arguments: dict[str, Any], tmp_path: Path) -> None:
    conv = SparseConv2d.from_dense(nn.Conv2d(4, 8, 3))
    save(nn.Sequential(conv), tmp_path / "file")
    refused(tmp_path / "file", lambda m, _: m["modules"]["0"]["arguments"].update(arguments))
