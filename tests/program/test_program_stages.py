"""Batches that threads share out piece by piece, and those that they may not."""

from __future__ import annotations

import threading

import pytest
import torch
from program_texts import NOTHING, RELU, Case, classifier, tokens_program, whole_program, windows
from torch import Tensor

from sparseprune.formats import Csr as Packed
from sparseprune.program.steps import Activation, Csr, Flatten, Input, Mean, Output, Step, Window
from sparseprune.program.text import to_text

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
BATCHES = (0, 1, 2, 3, 5, 16)


def run(case: Case, namespace: str = "sparseprune") -> list[Tensor]:
    steps, inputs, weights = case
    outputs: list[Tensor] = getattr(torch.ops, namespace).run(inputs, weights, to_text(steps))
    return outputs


def check(case: Case) -> None:
    """As the reference, and bit-equal from call to call."""
    expected = run(case, "sparseprune_reference")
    first, second = run(case), run(case)
    for got, again, wanted in zip(first, second, expected, strict=True):
        assert got.shape == wanted.shape and torch.equal(got, again)
        torch.testing.assert_close(got, wanted, **CLOSE)


def batch_of(case: Case, batch: int) -> Case:
    steps, inputs, weights = case
    return steps, [torch.randn(batch, *x.shape[1:]) for x in inputs], weights


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("batch", BATCHES)
def test_any_batch_on_any_threads(batch: int, count: int) -> None:
    torch.set_num_threads(count)
    check(classifier(batch))
    check(batch_of(whole_program(), batch))


@pytest.mark.usefixtures("threads")
def test_threads_change_no_image() -> None:
    case = classifier(7)
    outputs = []
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        outputs.append(run(case))
    for others in outputs[1:]:
        assert all(map(torch.equal, others, outputs[0]))


def small_images(batch: int, dims: int, layout: str) -> Case:
    """Maps of a few elements until the end, convolutions in groups too, and a classifier."""
    taps, size = 3**dims, (5, 6, 3)[-dims:]
    groups = 2 if layout == "rows" else 1  # others want more rows in a group
    shapes = (64, 8 * taps), (64, 64 // groups * taps), (64, 64 * taps), (24, 64)
    packed = [Packed(layout).pack(torch.randn(n) / n[1] ** 0.5) for n in shapes]
    blocks = [each.block for each in packed]
    same = windows(dims, 3, 1, 1)
    steps: list[Step] = [
        Input(0, "image", 8, dims),
        Csr(1, 0, -1, 0, 64, 8 * taps, blocks[0], 1, 0, windows(dims, 3, 2, 1), RELU),
        Csr(2, 1, 1, 4, 64, 64 // groups * taps, blocks[1], groups, 0, same, RELU),
        Csr(3, 2, 1, 8, 64, 64 * taps, blocks[2], 1, 0, same, Activation("silu")),
        Mean(4, 3),
        Flatten(5, 4),
        Csr(6, 5, -1, 12, 24, 64, blocks[3], 1, 0, Window(), NOTHING),
        Output(6),
        Output(2),
    ]
    weights = [t for each in packed for t in each.packed()]
    return steps, [torch.randn(batch, 8, *size)], weights


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("layout", ["rows", "groups", "sorted"])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("batch", [2, 5, 16, 35])
def test_small_images_side_by_side(batch: int, dims: int, layout: str) -> None:
    case = small_images(batch, dims, layout)
    outputs = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        check(case)
        outputs.append(run(case))
    for others in outputs[1:]:
        assert all(map(torch.equal, others, outputs[0]))


def linear_layers(shape: tuple[int, ...], layout: str) -> Case:
    """Two linear layers over tokens of two inputs, the second with a residual."""
    first, second = (Packed(layout).pack(torch.randn(24, n) / 5) for n in (30, 24))
    steps: list[Step] = [
        Input(0, "tokens", 24, 0),
        Input(1, "tokens", 30, 0),
        Csr(2, 1, 0, 0, 24, 30, first.block, 1, 0, Window(), RELU),
        Csr(3, 2, 2, 4, 24, 24, second.block, 1, 0, Window(), NOTHING),
        Output(3),
        Output(2),
    ]
    inputs = [torch.randn(*shape, 24), torch.randn(*shape, 30)]
    return steps, inputs, [*first.packed(), *second.packed()]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("layout", ["rows", "groups", "sorted"])
@pytest.mark.parametrize("shape", [(3, 50), (66,), (128,), (130,), (4, 64), (2, 0, 3), ()], ids=str)
def test_tokens_on_any_threads(shape: tuple[int, ...], layout: str) -> None:
    case = linear_layers(shape, layout)
    outputs = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        check(case)
        outputs.append(run(case))
    for others in outputs[1:]:
        assert all(map(torch.equal, others, outputs[0]))


def two_branches(batches: tuple[int, int]) -> Case:
    """Images of two inputs that never meet, as tokens of two linear layers and as they are."""
    conv, linear = Packed().pack(torch.randn(8, 27)), Packed("rows").pack(torch.randn(5, 8))
    steps: list[Step] = [
        Input(0, "image", 3, 2),
        Input(1, "image", 8, 2),
        Csr(2, 0, -1, 0, 8, 27, conv.block, 1, 0, windows(2, 3, 1, 1), RELU),
        Mean(3, 2),
        Flatten(4, 3),
        Mean(5, 1),
        Flatten(6, 5),
        Output(6),
        Csr(7, 6, -1, 4, 5, 8, 0, 1, 0, Window(), NOTHING),
        Csr(8, 4, -1, 4, 5, 8, 0, 1, 0, Window(), NOTHING),
        Output(7),
        Output(2),
        Output(8),
        Output(4),
    ]
    inputs = [torch.randn(batches[0], 3, 9, 8), torch.randn(batches[1], 8, 5, 5)]
    return steps, inputs, [*conv.packed(), *linear.packed()]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("batches", [(4, 4), (4, 6), (3, 0), (7, 1)], ids=str)
def test_batches_of_different_inputs(batches: tuple[int, int], count: int) -> None:
    torch.set_num_threads(count)
    check(two_branches(batches))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("batch", [3, 6])
def test_tokens_of_any_count_beside_images(batch: int) -> None:
    """An input of tokens has leading dimensions of its own."""
    torch.set_num_threads(2)
    steps, inputs, weights = batch_of(whole_program(), batch)
    _, linear = tokens_program()
    steps += [
        Input(12, "tokens", 6, 0),
        Csr(13, 12, -1, len(weights), 5, 6, 0, 1, 0, Window(), RELU),
        Output(13),
    ]
    check((steps, [*inputs, torch.randn(2, 1, 7, 6)], [*weights, *linear]))


def test_calls_may_run_at_the_same_time() -> None:
    cases = [classifier(1 + 2 * i) for i in range(4)]
    expected = [run(case, "sparseprune_reference") for case in cases]
    results: dict[int, list[Tensor]] = {}

    def work(i: int) -> None:
        for _ in range(8):
            results[i] = run(cases[i % 4])

    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i in range(8):
        torch.testing.assert_close(results[i], expected[i % 4], **CLOSE)


@pytest.mark.usefixtures("threads", "no_fallback")
def test_sizes_that_do_not_fit_are_named() -> None:
    torch.set_num_threads(2)
    steps, (x, tokens, y), weights = classifier(6)
    for inputs, message in (
        ([x, tokens[:5], y], "add up"),
        ([x, tokens, y[:5]], "add up"),
        ([x[:, :2], tokens, y], "3 features or channels"),
    ):
        with pytest.raises((RuntimeError, ValueError), match=f"run: .*{message}"):
            run((steps, inputs, weights))
