"""The short way into a model that is one program: what it notices, and what it leaves to others."""

from __future__ import annotations

import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from program_models import Lambda, assert_close, conv, planned, sparsify
from test_program_planned import counting
from torch import Tensor, nn

from sparseprune import backends
from sparseprune.ops.bound import POSSIBLE, Bound
from sparseprune.program.planned import unplan
from sparseprune.program.program import Program
from sparseprune.program.watch import Quick, _standing, standing

pytestmark = pytest.mark.skipif(not POSSIBLE, reason="needs compiled kernels and DLPack's C API")


def image(batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, 9, 9)


def programs(model: nn.Module) -> list[Program]:
    return [m for m in model.modules() if isinstance(m, Program)]


def network() -> Any:
    """With a depthwise convolution, whose weight the program derives."""
    torch.manual_seed(0)
    layers = [conv(3, 8), nn.ReLU(), conv(8, 8, groups=8), nn.Sequential(nn.ReLU(), conv(8, 4))]
    model = planned(sparsify(nn.Sequential(*layers)), image())
    model(image())
    return model


def went_quick(model: Any, *inputs: Any, **kwargs: Any) -> bool:
    """Whether the call went the short way."""
    with counting() as ran:
        model(*inputs, **kwargs)
    return any(isinstance(each, Quick) for each in ran)


def layers_give(model: nn.Module, x: Tensor) -> Any:
    return unplan(deepcopy(model))(x)


def test_gives_the_bits_of_the_op() -> None:
    model, x = network(), image(batch=2)
    (program,) = programs(model)
    (expected,) = torch.ops.sparseprune.run([x], program.tensors(), program.text)
    assert went_quick(model, x) and torch.equal(model(x), expected)
    for batch in (0, 1, 5):
        assert went_quick(model, image(batch=batch))
        assert model(image(batch=batch)).shape[0] == batch


def hooked(m: Any) -> None:
    m[1].register_forward_hook(lambda *_: None)


def replaced(m: Any) -> None:
    m[3][0] = nn.Sigmoid()


def training(m: Any) -> None:
    m[3].train()


def longer(m: Any) -> None:
    m[3].append(nn.Tanh())


def other_bias(m: Any) -> None:
    m[0].bias = nn.Parameter(m[0].bias + 1)


def other_buffer(m: Any) -> None:
    m[0].weight.values = 2 * m[0].weight.values


def written_to(m: Any) -> None:
    m[0].weight.values.mul_(2)


def other_memory(m: Any) -> None:
    m[0].weight.values.data = 2 * m[0].weight.values


def derived(m: Any) -> None:
    with torch.no_grad():
        m[2].weight.mul_(2)


def derived_anew(m: Any) -> None:
    m[2].weight = nn.Parameter(-m[2].weight)


def state(m: Any) -> None:
    m.load_state_dict({k: 2 * v if v.is_floating_point() else v for k, v in m.state_dict().items()})


def program_hooked(m: Any) -> None:
    programs(m)[0].register_forward_hook(lambda *_: None)


CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "hook": (hooked, "layers"),
    "replaced": (replaced, "layers"),
    "training": (training, "layers"),
    "longer": (longer, "layers"),
    "parameter": (other_bias, "quick"),
    "buffer": (other_buffer, "quick"),
    "written to": (written_to, "quick"),
    "memory": (other_memory, "quick"),
    "derived": (derived, "quick"),
    "derived anew": (derived_anew, "quick"),
    "state": (state, "quick"),
    "hook of the program": (program_hooked, "program"),
}
"""What is changed, and which way calls go then, the first apart."""


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_noticed(name: str) -> None:
    change, way = CHANGES[name]
    model, x = network(), image(batch=2)
    assert went_quick(model, x)
    change(model)
    expected = layers_give(model, x)
    assert_close(model(x), expected)
    with counting() as ran:
        assert_close(model(x), expected)
    assert (type(ran[-1]).__name__.lower() if ran else "layers") == way


def test_hooks_of_all_modules_are_noticed() -> None:
    model, seen = network(), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(m))
    model(image())
    assert model[0] in seen
    handle.remove()
    assert went_quick(model, image())


class Mine(Tensor):
    """A tensor of another class."""


INPUTS: dict[str, Callable[[], Tensor]] = {
    "not contiguous": lambda: torch.randn(1, 9, 9, 3).permute(0, 3, 1, 2),
    "channels last": lambda: image(batch=2).to(memory_format=torch.channels_last),
    "subclass": lambda: image().as_subclass(Mine),
    "parameter": lambda: nn.Parameter(image(), requires_grad=False),
    "needs a gradient": lambda: image().requires_grad_(),
}


@pytest.mark.parametrize("name", INPUTS)
def test_other_inputs_go_the_long_way(name: str) -> None:
    model, x = network(), INPUTS[name]()
    assert not went_quick(model, image()[0])  # a rank that only layers take
    assert not went_quick(model, x)
    assert_close(
        torch.as_tensor(model(x)).detach(), torch.as_tensor(layers_give(model, x)).detach()
    )


def test_wrong_calls_are_refused_as_ever() -> None:
    model = network()
    with pytest.raises(RuntimeError, match=r"inputs must be of .* channels"):
        model(torch.randn(1, 5, 9, 9))
    with pytest.raises(RuntimeError, match="must be float32"):
        model(image().double())
    with pytest.raises(TypeError):
        model(image(), image())
    with pytest.raises((TypeError, AttributeError)):
        model(None)
    assert went_quick(model, image())


def test_keywords_go_the_long_way() -> None:
    model, x = network(), image()
    with counting() as ran:
        assert_close(model(input=x), model(x))
    assert not isinstance(ran[0], Quick)


def test_outputs_are_tensors_like_others() -> None:
    model, x = network(), image()
    torch.set_default_dtype(torch.float64)
    try:
        y = model(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert y.dtype == torch.float32 and not y.requires_grad and y._version == 0
    assert y.resize_(10_000).numel() == 10_000
    with torch.device("meta"):
        assert model(x).device.type == "cpu"
    with torch.inference_mode():
        assert model(x).is_inference()


def test_tracers_modes_and_profilers_see_the_op() -> None:
    model, x = network(), image()
    traced = torch.jit.trace(model, x, check_trace=False)
    assert "sparseprune::run" in str(traced.inlined_graph)
    assert_close(traced(2 * x), model(2 * x))
    graph = torch.fx.experimental.proxy_tensor.make_fx(model)(x)
    assert_close(graph(2 * x), model(2 * x))
    with torch.profiler.profile() as profile:
        model(x)
    assert any(event.key == "sparseprune::run" for event in profile.key_averages())
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert model(mode.from_tensor(x)).shape == model(x).shape


def test_models_of_more_than_a_program_go_the_long_way() -> None:
    model = Lambda(lambda m, x: (m.a(x), m.b(m.a(x))), a=conv(3, 4), b=conv(4, 4))
    fast, x = planned(sparsify(model), image()), image()
    fast(x)
    assert not went_quick(fast, x) and type(fast(x)) is tuple
    assert_close(fast(x)[1], layers_give(fast, x)[1])


def test_copies_and_pickles_have_ways_of_their_own() -> None:
    model, x = network(), image()
    copy, loaded = deepcopy(model), pickle.loads(pickle.dumps(model))
    expected = model(x)
    written_to(model)
    for other in (copy, loaded):
        assert_close(other(x), expected)
    assert copy(x).equal(expected) and went_quick(copy, x)


def test_nothing_is_held_when_the_model_is_gone() -> None:
    model = network()
    values = weakref.ref(model[0].weight.values.untyped_storage())
    bound = weakref.ref(programs(model)[0].bound())
    del model
    gc.collect()
    assert bound() is None and values() is None


def test_tensors_from_before_a_move_are_let_go() -> None:
    model = network()
    values = weakref.ref(model[0].weight.values.untyped_storage())
    model.double()
    gc.collect()
    assert values() is None


def test_bound_programs_refuse_what_does_not_fit() -> None:
    (program,) = programs(network())
    with pytest.raises(RuntimeError, match="weights must hold the tensors of every step"):
        Bound(program.tensors()[:-1], program.text)
    with pytest.raises(RuntimeError):
        Bound([t.double() for t in program.tensors()], program.text)
    with pytest.raises(ValueError, match="image 3"):
        Bound(program.tensors(), "input 0 image 3")
    bound = Bound(program.tensors(), program.text)
    bound.weights[0].data = torch.ones(1)
    with pytest.raises(RuntimeError, match="convert the model again"):
        bound.run((image(),))
    gone, bound._number = bound._number, -1
    with pytest.raises(RuntimeError, match="bound must be"):
        bound.run((image(),))
    bound._number = gone


def test_threads_share_a_model_whose_weights_change() -> None:
    model, x = network(), image(batch=2)
    values = model[0].weight.values
    choices = [values.clone(), 2 * values]
    expected = []
    for choice in choices:
        model[0].weight.values = choice
        expected.append(model(x))
    wrong: list[Tensor] = []

    def call() -> None:
        for _ in range(200):
            y = model(x)
            if not any(torch.equal(y, each) for each in expected):
                wrong.append(y)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(200):
        model[0].weight.values = choices[i % 2]
    for thread in threads:
        thread.join()
    assert not wrong


def test_compiled_and_python_agree_on_what_stands() -> None:
    thing, tensor = object(), torch.ones(1)
    table: dict[str, Any] = {"a": thing, "none": None}
    good = ([table, "a", thing, table, "none", None], [table, 2, {}, 0], [tensor, 0])
    bad: list[tuple[list[Any], list[Any], list[Any]]] = [
        ([table, "a", object()], [], []),
        ([table, "missing", thing], [], []),
        ([], [table, 1], []),
        ([], [], [tensor, 1]),
    ]
    for ask in (standing, _standing):
        assert ask([], [], []) and ask(*good)
        assert not any(ask(*each) for each in bad)
    with pytest.raises(TypeError, match="dicts"):
        backends.native.standing([1, "a", 2], [], [])  # type: ignore[union-attr]
