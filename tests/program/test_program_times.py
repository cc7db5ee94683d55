"""The op run_times: a time for every step, of what run runs."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from program_texts import classifier, whole_program
from torch import Tensor

from sparseprune.program.steps import Cat, Step
from sparseprune.program.text import to_text

NAMESPACES = ("sparseprune", "sparseprune_reference")
every_namespace = pytest.mark.parametrize("namespace", NAMESPACES)


def times(namespace: str, steps: list[Step], inputs: list[Tensor], weights: list[Tensor]) -> Tensor:
    got: Tensor = getattr(torch.ops, namespace).run_times(inputs, weights, to_text(steps))
    return got


@every_namespace
def test_opcheck(namespace: str) -> None:
    steps, inputs, weights = whole_program()
    op: Any = getattr(torch.ops, namespace).run_times.default
    checks = ("test_schema", "test_faketensor")  # others compare the outputs of two runs
    torch.library.opcheck(op, (inputs, weights, to_text(steps)), test_utils=checks)
    with torch.autocast("cpu", torch.bfloat16):
        assert op([inputs[0].bfloat16()], weights, to_text(steps)).dtype == torch.float64


@every_namespace
def test_every_step_has_its_time(namespace: str) -> None:
    steps, inputs, weights = whole_program()
    got = times(namespace, steps, inputs, weights)
    assert got.shape == (len(steps),) and got.dtype == torch.float64
    joins = torch.tensor([isinstance(step, Cat) for step in steps])  # parts may lie there already
    assert got.isfinite().all() and (got >= 0).all() and (got > 0)[~joins].all()
    assert times(namespace, steps, [inputs[0][:0]], weights).shape == got.shape


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("batch", [1, 4, 7])
def test_steps_take_no_longer_than_the_call(batch: int) -> None:
    torch.set_num_threads(1)  # with more, the mean of some images stands for others
    steps, inputs, weights = classifier(batch, size=40)
    for _ in range(5):
        start = time.perf_counter()
        got = times("sparseprune", steps, inputs, weights)
        assert 0 < float(got.sum()) <= (time.perf_counter() - start) * 1e3


@pytest.mark.usefixtures("threads", "no_fallback")
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("batch", [1, 4, 7])
def test_with_threads_every_step_has_its_time(count: int, batch: int) -> None:
    torch.set_num_threads(count)
    steps, inputs, weights = classifier(batch)
    assert (times("sparseprune", steps, inputs, weights) > 0).all()


@every_namespace
def test_what_run_refuses_is_refused(namespace: str) -> None:
    steps, inputs, weights = whole_program()
    with pytest.raises((RuntimeError, ValueError), match=r"run: .*channels"):
        times(namespace, steps, [inputs[0][:, :2]], weights)
