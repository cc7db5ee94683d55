"""Files whose programs are made to harm: no kernel leaves its memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from io_problems import edit, image, pack_all, planned, refused, run, step
from io_program_edits import derived, program, source, text, word, words
from torch import nn

from sparseprune.formats import WEIGHTS
from sparseprune.io import load, save
from sparseprune.program.planned import plan
from sparseprune.program.steps import Activation, Depthwise, Input, Output, Step, Window
from sparseprune.program.text import to_text


def called(target: Any, *args: Any, op: str = "call_module") -> Callable[[dict[str, Any]], object]:
    return lambda m: m["programs"]["graph"].insert(1, step(op, target, *args))


X = {"step": 0}
FIRST = ("out", "x", "residual", "tensors")
LINES = {
    "csr": (*FIRST, "rows", "cols", "block", "groups", "has_bias"),
    "depthwise": (*FIRST, "channels", "multiplier", "has_bias"),
}
ON_TOKENS = (*FIRST, "rows", "cols", "has_bias")
NUMBERS = (-1, -2, 7, 10**6, 2**31, 2**63, 10**30)
HARMLESS = {("csr", "residual", -1), ("depthwise", "residual", -1)}
ATTACKS: dict[str, Callable[[dict[str, Any]], object]] = {
    **{
        f"{line} {name} {number}": word(line, place, number)
        for line, names in LINES.items()
        for place, name in enumerate(names, 1)
        for number in NUMBERS
        if (line, name, number) not in HARMLESS
    },
    **{
        f"{line} window {place} {number}": word(line, len(LINES[line]) + 1 + place, number)
        for line in LINES
        for place in (0, 2, 3, 5, 12, 14)
        for number in (-1, 0, 2**17, 10**30)
        if number
    },
    "kernel": word("csr", 12, 5),
    "no stride": word("csr", 13, 0),
    "mode": word("csr", 25, "os"),
    "activation": word("csr", 26, "exec"),
    "infinite": word("csr", 5, "inf"),
    "underscore": word("csr", 5, "0_8"),
    "other digits": word("csr", 5, "\N{ARABIC-INDIC DIGIT EIGHT}"),
    "more spaces": text(lambda t: t.replace(" ", "  ", 1)),
    "input channels": word("input", 3, 4),
    "input kind": word("input", 2, "tokens"),
    "input dims": word("input", 4, 4),
    "doubled": text(
        lambda t: "\n".join(
            [t.split("\n")[0], *(f"cat {i + 1} {i} {i}" for i in range(70)), "output 70"]
        )
    ),
    "truncated": text(lambda t: t[: len(t) // 2]),
    "one word less": words("csr", list.pop),
    "one word more": words("csr", lambda found: found.append("1")),
    "one step less": text(lambda t: t[: t.rindex("\n")]),
    "other step": text(lambda t: f"{t}\nexec 1"),
    "second input": text(lambda t: t.replace("\noutput", "\ninput 99 tokens 3 0\noutput")),
    "empty": program(text=""),
    "no text": program(text=None),
    "list": program(text=["input 0 image 3 2"]),
    "no sources": program(sources=[]),
    "one source": program(sources="stem"),
    "source numbers": program(sources=[1, 2, 3]),
    "source missing": source(0, "nothing.weight"),
    "source attribute": source(0, "expand.weight.rows"),
    "source class": source(0, "__class__"),
    "source dunder": source(0, "expand.__dict__"),
    "source module": source(0, "expand"),
    "source root": source(0, ""),
    "source dot": source(0, "."),
    "source own": source(0, ".text"),
    "source other": source(0, "expand.weight"),
    "source wrong tensor": source(2, "head.bias"),
    "source plain": source(0, "stem.weight"),
    "derived recipe": derived(0, "__import__"),
    "derived other recipe": derived(0, "place"),
    "derived scale": derived(0, "scale"),
    "derived slope": derived(0, "slope"),
    "derived path": derived(1, "norm"),
    "derived attribute": derived(1, "stem.__class__"),
    "derived tensor": derived(1, "stem.weight"),
    "derived sparse": derived(1, "expand"),
    "derived name": derived(2, "forward"),
    "derived names": derived(2, "a.b"),
    "derived numbers": derived(3, [1]),
    "derived layout": derived(3, [3, 32]),
    "derived layout before": derived(3, [-1, 32]),
    "derived layout of a flag": derived(3, [False, 32]),
    "derived layout of a word": derived(3, ["0", 32]),
    "derived block": derived(3, [0, 256]),
    "derived block before": derived(3, [0, -1]),
    "derived block of rows": derived(3, [2, 32]),
    "derived other block": derived(3, [0, 16]),
    "derived three": derived(3, [0, 32, 32]),
    "not derived": program(derived=[]),
    "huge": program(derived=[["place", "", "big", [10**5, 10**5, 0]]]),
    "negative": program(derived=[["place", "", "big", [-5, 10, 0]]]),
    "program name": lambda m: m["programs"]["programs"].update(
        forward=m["programs"]["programs"].pop("program_0")
    ),
    "program unknown": lambda m: m["programs"]["programs"].clear(),
    "graph empty": lambda m: m["programs"].update(graph=[]),
    "graph none": lambda m: m["programs"].update(graph=None),
    "graph inputs": lambda m: m["programs"]["graph"][0].update(target="y"),
    "graph default": lambda m: m["programs"]["graph"][0].update(args=[None]),
    "graph call": called("program_0", X, X),
    "graph literal": called("program_0", 3),
    "graph inner": called("program_0.text", X),
    "graph system": called("os.system", "true", op="call_function"),
    "graph eval": called("builtins.eval", "1", op="call_function"),
    "graph method": called("__reduce__", X, op="call_method"),
    "order": lambda m: m["programs"].update(order=["x=1", "scale"]),
    "order names": lambda m: m["programs"].update(order=3),
    "argument type": lambda m: m["programs"].update(args=[{"tensor": ["__dict__", 4]}]),
    "argument rank": lambda m: m["programs"].update(args=[{"tensor": ["float32", "4"]}]),
    "argument code": lambda m: m["programs"].update(args=[{"function": "torch.abs"}]),
    "no arguments": lambda m: m["programs"].update(args=[]),
    "arguments twice": lambda m: m["programs"].update(
        order=["x", "x"], args=[{"tensor": ["float32", 4]}] * 2
    ),
    "list of programs": lambda m: m["programs"].update(programs=[]),
    "a number": lambda m: m.update(programs=3),
    "nothing": lambda m: m.update(programs={}),
}


@pytest.fixture(scope="module")
def separable(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("io") / "file"
    save(planned("separable")[0], path)
    return path.read_bytes()


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_program_outside_the_rules(attack: str, separable: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(separable)
    refused(path, lambda manifest, _: ATTACKS[attack](manifest), "not allowed|manifest")


FEW = ("bitmask", "sell")
"""Steps with weights for few tokens."""


def on_tokens_attacks(stem: str) -> dict[str, Callable[[dict[str, Any]], object]]:
    """On a program of such a step and a dense one."""
    return {
        **{
            f"{label} {name} {number}": word(line, place, number)
            for label, line in (("packed", stem), ("dense", "linear"))
            for place, name in enumerate(ON_TOKENS, 1)
            for number in NUMBERS
            if (name, number) != ("residual", -1)
        },
        "rows of packed": word(stem, 5, 128),
        "cols of packed": word(stem, 6, 31),
        "rows and cols": words(
            "linear", lambda found: found.__setitem__(slice(5, 7), ["70", "40"])
        ),
        "packed as csr": word(stem, 0, "csr"),
        "dense as packed": word("linear", 0, stem),
        "packed as dense": word(stem, 0, "linear"),
        "turn": text(lambda t: t.replace("\noutput", "\nturn 3 2\noutput")),
        "image": text(lambda t: t.replace("input 0 tokens 32 0", "input 0 image 32 2")),
        "channels": word("input", 3, 33),
        "one word less": words("linear", list.pop),
        "one word more": words(stem, lambda found: found.append("1")),
        "bias as weight": source(2, "2.bias"),
        "other weight": source(2, "4.weight"),
        "weight as bias": source(3, "2.weight"),
        "packed as weight": source(2, "0.weight"),
        "weight as packed": source(0, "2.weight"),
        "buffer of packed": source(2, "0.weight.values"),
    }


ON_TOKENS_ATTACKS = {stem: on_tokens_attacks(stem) for stem in FEW}


@pytest.fixture(scope="module", params=FEW)
def on_tokens(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, bytes]:
    """A packed layer and a dense one in a program."""
    path = tmp_path_factory.mktemp("io") / "file"
    model = nn.Sequential(nn.Linear(32, 70), nn.ReLU(), nn.Linear(70, 40), nn.Softmax(-1),
                          nn.Linear(40, 71))  # fmt: skip
    fast = pack_all(model, request.param, ("2", "4")).eval()
    assert plan(fast, image(2, 32)) is None
    save(fast, path)
    return request.param, path.read_bytes()


@pytest.mark.parametrize("attack", ON_TOKENS_ATTACKS["sell"])
def test_no_layer_reads_past_its_weight(
    attack: str, on_tokens: tuple[str, bytes], tmp_path: Path
) -> None:
    path, (stem, data) = tmp_path / "file", on_tokens
    path.write_bytes(data)
    change = ON_TOKENS_ATTACKS[stem][attack]
    refused(path, lambda manifest, _: change(manifest), "not allowed|manifest")


@pytest.mark.parametrize("place", range(5))
def test_buffers_that_contradict_each_other(
    place: int, on_tokens: tuple[str, bytes], tmp_path: Path
) -> None:
    path, (stem, data) = tmp_path / "file", on_tokens
    parts = WEIGHTS[stem].parts
    if place >= len(parts):
        pytest.skip(f"{stem} has {place} buffers")
    if parts[place:] == ("order",):
        pytest.skip("rows of random zeros lie as they are")
    path.write_bytes(data)

    def change(manifest: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensor = tensors[f"0.weight.{parts[place]}"]
        changed = tensor[:-1] if place == 0 else (tensor.int() + 1).to(tensor.dtype)
        tensors[f"0.weight.{parts[place]}"] = changed

    refused(path, change)


def test_steps_of_two_weights_are_not_mixed(tmp_path: Path) -> None:
    """Four tensors, each of the right type, of two weights of one size."""
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    fast = pack_all(model, "csr/rows").eval()
    assert plan(fast, image(2, 32)) is None
    save(fast, tmp_path / "file")
    first = json.dumps(["0.weight", "0.bias"])

    def change(manifest: dict[str, Any], _: object) -> None:
        found = manifest["programs"]["programs"]["program_0"]
        assert json.dumps(found["sources"][:2]) == first
        found["sources"] = ["0.bias", *found["sources"]]

    refused(tmp_path / "file", change, "those of one packed weight")


def test_values_too_large_to_count_are_refused() -> None:
    """Sizes whose product wraps around would make memory that is too small."""
    wide = Window(before=(2**16,) * 3, after=(2**16,) * 3)
    steps: list[Step] = [Input(0, "image", 1, 3)]
    for i in range(40):
        steps.append(Depthwise(i + 1, i, -1, 0, 1, 1, 0, wide, Activation()))
    steps.append(Output(40))
    x, weight = torch.ones(1, 1, 1, 1, 1), torch.ones(1)
    with pytest.raises((ValueError, RuntimeError)):
        torch.ops.sparseprune.run([x], [weight], to_text(steps))
    with pytest.raises((ValueError, RuntimeError)):
        torch.ops.sparseprune.run([x[:0]], [weight], to_text(steps))


def test_random_words_are_refused_or_run(separable: bytes, tmp_path: Path) -> None:
    chance = torch.Generator().manual_seed(0)
    path, x = tmp_path / "file", image(2, 3, 16, 14)

    def below(count: int) -> int:
        return int(torch.randint(count, (), generator=chance))

    def change(manifest: dict[str, Any], _: object) -> None:
        found = manifest["programs"]["programs"]["program_0"]
        lines = [line.split() for line in found["text"].split("\n")]
        line = lines[below(len(lines))]
        line[below(len(line))] = str([-1, 0, 1, 2, 3, 5, 8, 32, 65536, "clamp"][below(10)])
        found["text"] = "\n".join(map(" ".join, lines))

    refusals = 0
    for _ in range(150):
        path.write_bytes(separable)
        edit(path, change)
        try:
            run(load(path), x)
        except (ValueError, RuntimeError):
            refusals += 1
    assert refusals > 50
