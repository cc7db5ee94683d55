"""Forwards that look at shapes: recorded with their example, guarded, and right for every call."""

from __future__ import annotations

import math
import pickle
import threading
from collections import namedtuple
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from program_models import Lambda, assert_close, planned, programs, sparsify
from torch import Tensor, nn

from sparseprune.program import sizes
from sparseprune.program.arguments import Arguments
from sparseprune.program.planned import Planned, narrow, plan, unplan
from sparseprune.program.tracing import NotTraced, trace

Forward = Callable[[Any, Tensor], Any]
Pair = namedtuple("Pair", "first second")


def mlp(m: Any, x: Tensor) -> Tensor:
    return m.second(F.gelu(m.first(x)))


def unpacked(m: Any, x: Tensor) -> Tensor:
    batch, length, features = x.shape
    return mlp(m, x.view(batch * length, features)).view(batch, length, -1)


def heads(m: Any, x: Tensor) -> Tensor:
    x = mlp(m, x)
    parts = x.view(*x.shape[:-1], -1, 4).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(parts, parts, parts)
    return mixed.transpose(1, 2).reshape(*x.shape)


def by_rank(m: Any, x: Tensor) -> Tensor:
    if x.dim() == 4 or x.ndim != 3 or x.dtype != torch.float32 or x.device.type != "cpu":
        raise ValueError("not tokens")
    return mlp(m, x) if isinstance(x, Tensor) and not isinstance(len(x.shape), str) else x


def positions(m: Any, x: Tensor) -> Tensor:
    places = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
    rest = torch.zeros(x.shape[0], x.size(1), 1) + x.new_ones(())
    return mlp(m, x + places[None, :, None] + rest)


def averages(m: Any, x: Tensor) -> Tensor:
    mean = mlp(m, x).sum(1) / x.shape[1]
    return mean * (1 / x.shape[1]) + x.numel() // x.shape[0] + x.shape[1] ** 0.5 - math.ceil(3.5)


def sliced(m: Any, x: Tensor) -> Tensor:
    half = -(-x.shape[1] // 2)
    return mlp(m, x)[:, -half:, : x.shape[-1] - 1] + m.bias[: x.shape[2] - 1]


def outer(m: Any, x: Tensor) -> Tensor:
    scale = 1 / math.sqrt(x.size(-1))
    first, second = mlp(m, x).split(x.shape[-1] // 2, -1)
    return torch.cat([first * scale, second], dim=x.dim() - 1).expand(*x.shape)


def named(m: Any, x: Tensor) -> Any:
    batch, length = x.shape[:2]
    top = mlp(m, x).view(batch, length, -1).max(1)
    return {"pair": Pair(top.values, top.indices), "rest": [None, length, (top[0] + batch,)]}


FREE: dict[str, Forward] = {
    f.__name__: f
    for f in (unpacked, heads, by_rank, positions, averages, sliced, outer, named)
}  # fmt: skip
"""Sizes are only passed on: every batch and length runs as programs."""


def longer(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x) if x.shape[1] > 4 else mlp(m, x) + 1


def one_length(m: Any, x: Tensor) -> Tensor:
    return sum((mlp(m, x)[:, i] for i in range(x.shape[1])), start=torch.zeros(()))


def one_image(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x) if x.shape[0] != 1 else mlp(m, x) - 1


def counted(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x) / len(x)


def squeezed(m: Any, x: Tensor) -> Tensor:
    y = mlp(m, x)
    return y if y[:, :2].squeeze().dim() == 3 else y * 2


def listed(m: Any, x: Tensor) -> Tensor:
    return torch.cat([mlp(m, x)] * (x.shape[1] // 4), 1)


def hashed(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x) * {5: 1, 6: 2}.get(x.shape[1], 3)


def looped(m: Any, x: Tensor) -> Tensor:
    return torch.stack([part.sum(1) for part in mlp(m, x).split(2, 1)], 1)


def iterated(m: Any, x: Tensor) -> Tensor:
    return sum((row.sum(0) for row in mlp(m, x)), start=x.new_zeros(8))


def alike(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x) + (x.shape[:2] == torch.Size([2, 6])) + max(x.shape[1], 6)


GUARDED: dict[str, tuple[Forward, list[tuple[int, int]], list[tuple[int, int]]]] = {
    "longer": (longer, [(2, 6), (5, 6), (1, 9)], [(2, 4), (1, 1)]),
    "one_length": (one_length, [(2, 6), (1, 6)], [(2, 5), (2, 7)]),
    "one_image": (one_image, [(2, 6), (3, 2)], [(1, 6), (1, 7)]),
    "counted": (counted, [(2, 6), (2, 3)], [(1, 6), (3, 6)]),
    "squeezed": (squeezed, [(2, 6), (3, 7)], [(1, 6), (2, 1)]),
    "listed": (listed, [(2, 6), (2, 4), (1, 7)], [(2, 8), (2, 13)]),
    "hashed": (hashed, [(2, 6), (3, 6)], [(2, 5), (2, 7)]),
    "looped": (looped, [(2, 6), (3, 6), (2, 5)], [(2, 4), (1, 1)]),
    "iterated": (iterated, [(2, 6), (2, 1)], [(1, 6), (3, 6)]),
    "alike": (alike, [(2, 6)], [(2, 7), (1, 6), (2, 5)]),
}
"""Forward, the (batch, length) that take its programs, and those that go layer by layer."""


def by_values(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x) if x.sum() > 0 else -mlp(m, x)


def by_mask(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x) if x.shape[0] and torch.all(x > -9) else x


def by_item(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x) * x.shape[0] * int(x[0, 0, 0].item() > 0)


def by_buffer(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x) * x.shape[0] if m.bias.max() > -9 else x


def by_nonzero(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x) + x[x > 0].shape[0]


def by_one_hot(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x) + len(F.one_hot(x.abs().long().flatten()).T)


def by_memory(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x).view(*x.shape) if x.is_contiguous() else x


def by_error(m: Any, x: Tensor) -> Tensor:
    try:
        return mlp(m, x).view(x.shape[0], 7)
    except RuntimeError:
        return mlp(m, x)


def keeps_size(m: Any, x: Tensor) -> Tensor:
    m.seen = x.shape[1]
    return mlp(m, x).view(*x.shape)


def writes_buffer(m: Any, x: Tensor) -> Tensor:
    m.bias.add_(1)
    return mlp(m, x).view(*x.shape)


KEPT: dict[Any, Tensor] = {}


def keeps_outside(m: Any, x: Tensor) -> Tensor:
    length = x.shape[1]
    if length not in KEPT or len(KEPT) > 1:
        KEPT[length] = torch.arange(length, dtype=x.dtype)[:, None]
    return mlp(m, x) + KEPT[length]


def random(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x) + torch.rand(*x.shape)


def other_tensor(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x).view(*x.shape) + m.hidden[0]


REFUSED: dict[str, tuple[Forward, str]] = {
    "by_values": (by_values, "values in a tensor"),
    "by_mask": (by_mask, "values in a tensor"),
    "by_item": (by_item, "values in a tensor"),
    "by_buffer": (by_buffer, "values in a tensor"),
    "by_nonzero": (by_nonzero, "depend on the values"),
    "by_one_hot": (by_one_hot, "depend on the values"),
    "by_memory": (by_memory, "is_contiguous"),
    "by_error": (by_error, "invalid for input of size"),
    "keeps_size": (keeps_size, "'seen'"),
    "writes_buffer": (writes_buffer, "writes into"),
    "keeps_outside": (keeps_outside, "neither parameter nor buffer"),
    "random": (random, "random"),
    "other_tensor": (other_tensor, "neither parameter nor buffer"),
}


def looking(forward: Forward) -> Forward:
    """A forward that torch.fx does not trace alone."""

    def run(m: Any, x: Tensor) -> Any:
        if x.dim() == 7:
            raise ValueError("not tokens")
        return forward(m, x)

    return run


def model(forward: Forward) -> nn.Module:
    torch.manual_seed(0)
    made = Lambda(looking(forward), first=nn.Linear(8, 16), second=nn.Linear(16, 8))
    made.register_buffer("bias", torch.randn(8))
    made.hidden = [torch.ones(8)]
    return sparsify(made)


def tokens(batch: int = 2, length: int = 6) -> Tensor:
    return torch.randn(batch, length, 8)


def check(fast: nn.Module, served: bool, *inputs: Any) -> None:
    """The call gives what the layers give, by programs or without."""
    assert isinstance(fast, Planned)
    assert (fast._programmed(deepcopy(inputs), {}) is not None) == served
    with torch.no_grad():
        got, expected = fast(*deepcopy(inputs)), unplan(deepcopy(fast))(*deepcopy(inputs))
    flat, form = torch.utils._pytree.tree_flatten(got)
    other, wanted = torch.utils._pytree.tree_flatten(expected)
    assert form == wanted
    for mine, its in zip(flat, other, strict=True):
        assert_close(mine, its) if isinstance(its, Tensor) else pytest.approx(its) == mine


@pytest.mark.parametrize("name", FREE)
def test_sizes_that_are_passed_on_are_free(name: str) -> None:
    fast = planned(model(FREE[name]), tokens())
    assert programs(fast) and not narrow(fast)
    for batch, length in ((2, 6), (3, 6), (1, 6), (2, 9), (4, 2), (1, 1)):
        check(fast, True, tokens(batch, length))


@pytest.mark.parametrize("name", GUARDED)
def test_answers_are_checked(name: str) -> None:
    forward, served, refused = GUARDED[name]
    fast = planned(model(forward), tokens())
    for _ in range(2):  # found out, then looked up
        for shape in served:
            check(fast, True, tokens(*shape))
        for shape in refused:
            check(fast, False, tokens(*shape))
    assert narrow(fast)


@pytest.mark.parametrize("name", REFUSED)
def test_what_depends_on_more_is_refused(name: str) -> None:
    forward, why = REFUSED[name]
    made = model(forward)
    before, bias = dict(vars(made)), made.bias.clone()
    assert why in str(plan(made, tokens()))
    assert not isinstance(made, Planned) and torch.equal(made.bias, bias)
    assert vars(made).keys() == before.keys()


def test_first_and_later_calls_are_bit_equal() -> None:
    fast, x = planned(model(heads), tokens()), tokens(3, 7)
    first = fast(x)
    assert torch.equal(first, fast(x)) and torch.equal(fast(x), deepcopy(fast)(x))


def test_inputs_keep_their_values_while_sizes_are_found() -> None:
    def written(m: Any, x: Tensor) -> Tensor:
        batch, *_ = x.shape
        x += 1
        return mlp(m, x).view(batch, -1)

    fast, x = planned(model(written), tokens()), tokens(5, 3)
    before = x.clone()
    fast(x)
    assert torch.equal(x, before + 1)


def test_a_failing_call_fails_as_in_the_layers() -> None:
    fast = planned(model(unpacked), tokens())
    with pytest.raises((RuntimeError, ValueError)):
        fast(torch.randn(2, 6, 7))
    check(fast, True, tokens(2, 6))


def test_a_graph_that_torch_fx_finds_is_left_as_it_is() -> None:
    made = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    fast = planned(sparsify(made), tokens())
    assert fast._sizes is None and fast._form is None
    with pytest.raises(NotTraced):
        trace(model(mlp), Arguments(model(mlp), tokens()))


def test_layers_and_functions_are_recorded_as_torch_fx_does() -> None:
    fast = planned(model(heads), tokens())
    named = [(n.op, n.target) for n in fast._graph.nodes]
    assert ("call_function", F.scaled_dot_product_attention) in named
    assert {("call_method", n) for n in ("view", "transpose", "reshape")} <= set(named)
    assert not any(n.target == "dim" or n.target is getattr for n in fast._graph.nodes)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "MOST", 30)
    fast = planned(model(lambda m, x: mlp(m, x).view(*x.shape)), tokens())
    for length in range(1, 50):
        fast._programmed((tokens(1, length),), {})
    assert len(fast._sizes._found) <= 30
    check(fast, True, tokens())


def test_from_many_threads() -> None:
    fast = planned(model(longer), tokens())
    layers = unplan(deepcopy(fast))
    inputs = [tokens(1 + i % 3, 2 + i) for i in range(8)]
    expected = [layers(x) for x in inputs]
    wrong: list[int] = []

    def call() -> None:
        for i, x in enumerate(inputs * 5):
            if not torch.allclose(fast(x), expected[i % len(inputs)], atol=1e-4):
                wrong.append(i)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_copies_compile_and_gradients() -> None:
    fast, x = planned(model(heads), tokens()), tokens(3)
    expected = unplan(deepcopy(fast))(x)
    assert_close(deepcopy(fast)(x), expected)
    with torch.no_grad():
        compiled = torch.compile(fast, backend="eager", fullgraph=True)
        assert_close(compiled(x), expected)
    check(fast, False, x.clone().requires_grad_())


def test_pickles_without_programs() -> None:
    made = sparsify(Sized())
    fast = planned(made, tokens())
    again = pickle.loads(pickle.dumps(fast))
    assert not isinstance(again, Planned)
    assert_close(again(tokens().zero_()), fast(tokens().zero_()))


class Sized(nn.Module):
    """Tokens as rows and back."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return unpacked(self, x)
