"""Forwards that look at shapes: recorded with their example, guarded, and right for every call."""

from __future__ import annotations

import pickle
import threading
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from program_models import Lambda, assert_close, planned, programs, sparsify
from recorded_forwards import FREE, GUARDED, REFUSED, Forward, heads, longer, mlp, unpacked
from torch import Tensor, nn

from sparseprune.program import sizes
from sparseprune.program.arguments import Arguments
from sparseprune.program.planned import Planned, narrow, plan, unplan
from sparseprune.program.recording import record
from sparseprune.program.tracing import NotTraced, trace


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
    made, x = model(heads), tokens()
    graph, _, _ = record(made, Arguments(made, x), [x])
    named = [(n.op, n.target) for n in graph.nodes]
    assert ("call_function", F.scaled_dot_product_attention) in named
    assert {("call_method", n) for n in ("view", "transpose", "reshape")} <= set(named)
    assert not any(n.target == "dim" or n.target is getattr for n in graph.nodes)


def test_models_made_in_inference_mode_are_recorded() -> None:
    with torch.inference_mode():
        fast, x = planned(model(mlp), tokens()), tokens(3, 5)
        assert next(fast.parameters()).is_inference()
        check(fast, True, x)


def test_writes_are_refused_in_inference_mode_as_well() -> None:
    def counting(m: Any, x: Tensor) -> Tensor:
        m.bias.add_(1)
        return mlp(m, x)

    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            made = model(counting)
            before = made.bias.clone()
            with pytest.raises(NotTraced):
                record(made, Arguments(made, (tokens(),)), [tokens()])
            assert torch.equal(made.bias, before)


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
