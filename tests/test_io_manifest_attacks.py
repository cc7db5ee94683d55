"""Manifests made to harm: nothing in one ever runs, and no layer outside the lists is built."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from io_problems import Residual, edit, image, make, packed, refused, step
from torch import Tensor, nn

from sparseprune.io import load, save


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
