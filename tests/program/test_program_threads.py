"""One program from many threads, with many threads, over many sizes."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from sparseprune import backends, convert, prune, zoo
from sparseprune.program.planned import Planned

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    """ResNet-20 pruned, dense and as a program."""
    torch.manual_seed(0)
    model = zoo.build("resnet20").eval()
    prune(model, 0.8, scope="local")
    fast = convert(model, torch.randn(2, 3, 32, 32), keep_dense="never")
    return model, fast


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_results_are_bit_equal_for_a_number_of_threads(
    pair: tuple[nn.Module, nn.Module], count: int
) -> None:
    model, fast = pair
    x = torch.randn(3, 3, 32, 32)
    torch.set_num_threads(count)
    with torch.inference_mode():
        first, *others = [fast(x) for _ in range(5)]
        torch.testing.assert_close(first, model(x), **CLOSE)
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("shape", [(1, 16, 16), (2, 33, 47), (5, 32, 32), (0, 32, 32)], ids=str)
def test_any_batch_and_size(pair: tuple[nn.Module, nn.Module], shape: tuple[int, ...]) -> None:
    model, fast = pair
    batch, height, width = shape
    x = torch.randn(batch, 3, height, width)
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), model(x), **CLOSE)


def test_calls_may_run_at_the_same_time(pair: tuple[nn.Module, nn.Module]) -> None:
    model, fast = pair
    inputs = [torch.randn(1 + i % 3, 3, 32, 32) for i in range(6)]
    results: dict[int, Tensor] = {}

    def work(i: int) -> None:
        with torch.inference_mode():
            for _ in range(10):
                results[i] = fast(inputs[i])

    workers = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    with torch.inference_mode():
        for i, x in enumerate(inputs):
            torch.testing.assert_close(results[i], model(x), **CLOSE)


def test_it_was_a_program(pair: tuple[nn.Module, nn.Module]) -> None:
    assert isinstance(pair[1], Planned) is (backends.CPU.missing is None)
