"""What every test on a device shares: weights and inputs there, and the float64 reference.

Tests run on CUDA, and are skipped without a device. SPARSEPRUNE_TEST_DEVICE=cpu runs them on the
CPU, which tells whether the tests themselves are right.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

import pytest
import torch
from problems import CONV, LINEAR, ConvProblem, LinearProblem, dense_conv2d, dense_linear
from torch import Tensor

from sparseprune import backends
from sparseprune.formats import FORMATS, Block, Format, Nm, PackedWeight

DEVICE = torch.device(os.environ.get("SPARSEPRUNE_TEST_DEVICE", "cuda"))
if DEVICE.type == "cuda" and not torch.cuda.is_available():
    pytest.skip("torch finds no CUDA device", allow_module_level=True)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Relative to the sum of the magnitudes of all products; 16-bit outputs are rounded once."""

SQUARES = tuple(Block(side, side) for side in (16, 32, 64))
EVERY: tuple[Format, ...] = (*FORMATS, *SQUARES, Block(8, 24), Nm(2, 4))
"""Formats with the grids and the n:m that tensor cores multiply, and one that only Triton does."""
HELD = tuple((f, d) for f in EVERY for d in DTYPES if not f.refuses(torch.zeros(1, 1, dtype=d)))
"""Every format with every dtype that it holds."""

BY_TRITON = {
    "batch_0", "one_weight", "no_bias", "three_dimensions", "tokens_17", "rows_65", "cols_193",
    "nonfinite_4_tokens", "aligned", "aligned_many", "groups_2", "channels_last", "stride_2",
}  # fmt: skip
"""Names of problems that Triton gets, too: it compiles anew for almost every size."""

UNPACKED = ("nm", "bitmask")
"""Formats that Triton multiplies with all their zeros, 0 * inf = NaN among them."""

EXACT = ("csr", "bitmask")
"""Formats that store no zero."""

LARGE_LINEAR = (
    *(LinearProblem(f"wide_{n}", rows=193, cols=1037, batch=(n,), density=0.2)
      for n in (1, 2, 3, 4, 5, 8, 11, 16, 17, 32, 33, 64, 65, 128, 129, 300)),
    LinearProblem("tall", rows=2050, cols=264, batch=(3,), density=0.1),
    LinearProblem("long_rows", rows=70, cols=9000, batch=(2,), density=0.1),
    LinearProblem("long_rows_16", rows=70, cols=9000, batch=(16,), density=0.1),
    LinearProblem("long_rows_64", rows=66, cols=4096, batch=(64,), density=0.3),
    LinearProblem("nonfinite_70_tokens", rows=70, cols=136, batch=(70,), input="nonfinite"),
    LinearProblem("aligned", rows=256, cols=1024, batch=(16,), density=0.5),
    LinearProblem("aligned_many", rows=256, cols=1024, batch=(256,), density=0.1),
)  # fmt: skip
"""Beside the edges of problems.py: sizes at which thread blocks share a layer."""
LINEARS = (*LINEAR, *LARGE_LINEAR)
CONVS = (
    *CONV,
    ConvProblem("wide_channels", rows=64, channels=64, size=(14, 14), density=0.2),
    replace(CONV[0], name="channels_last_64", rows=64, channels=64, input="channels_last"),
)


def backends_of(fmt: Format, problem: str = "rows_65") -> list[str]:
    """Names of the backends that serve what this format packs here, the reference last.

    Those that time alone chooses have files of their own.
    """
    found = [
        b.name
        for b in backends.BACKENDS
        if not b.by_time and not b.refuses(DEVICE, fmt.stem, fmt.lacking)
    ]
    by_triton = problem in BY_TRITON and fmt.name != "nm/2:4"  # other n:m are the same code
    by_triton = by_triton and not (fmt.stem in UNPACKED and problem.startswith("nonfinite"))
    return [name for name in found if name != "triton" or by_triton]


def stored(packed: PackedWeight) -> Tensor | None:
    """Where the packed weight has a value that may be zero; None where only nonzeros are."""
    if packed.stem in EXACT:
        return None
    ones = packed.twin()
    ones._buffers["values"] = torch.ones_like(ones._buffers["values"])  # type: ignore[arg-type]
    return (ones.unpack() != 0).cpu()


def lying_alike(x: Tensor, like: Tensor) -> Tensor:
    """x on another device with the strides and the offset of `like`, which moving may drop."""
    if like.storage_offset() or not like.is_contiguous():
        room = like.untyped_storage().nbytes() // like.element_size()
        base = x.new_full((room,), torch.nan)
        return base.as_strided(like.shape, like.stride(), like.storage_offset()).copy_(x)
    return x


def assert_close(y: Tensor, expected: Tensor, scale: Tensor) -> None:
    """y against float64; where the reference is not finite, y must be the same."""
    got, finite = y.double().cpu(), expected.isfinite()
    assert got.shape == expected.shape
    assert torch.equal(got[~finite].nan_to_num(), expected[~finite].nan_to_num())
    error = (got - expected).abs()[finite]
    allowed = TOLERANCE[y.dtype] * scale[finite] + 1e-7
    assert bool((error <= allowed).all()), f"off by {float((error / allowed).max()):.1f} tolerances"


Problem = TypeVar("Problem", LinearProblem, ConvProblem)


@lru_cache(maxsize=8)
def tensors(problem: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    """x, weight and bias of a problem in a dtype."""
    x, weight, bias = problem.tensors()
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def there(x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """x and bias on the device, x with its strides."""
    return lying_alike(x.to(DEVICE), x), None if bias is None else bias.to(DEVICE)


@lru_cache(maxsize=512)
def exact_linear(problem: LinearProblem, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The result over the nonzeros alone and the sums of magnitudes, once for all formats."""
    x, weight, bias = tensors(problem, dtype)
    return dense_linear(x, weight, bias), magnitudes_linear(x, weight, bias)


@lru_cache(maxsize=512)
def exact_conv2d(problem: ConvProblem, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As :func:`exact_linear`."""
    x, weight, bias = tensors(problem, dtype)
    scale = magnitudes_conv2d(x, weight, bias, problem)
    return dense_conv2d(x, weight, bias, *problem.window), scale


def magnitudes_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The sum of the magnitudes of all products."""
    clean = x.nan_to_num(0, 0, 0).abs()
    return dense_linear(clean, weight.abs(), None if bias is None else bias.abs())


def magnitudes_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, problem: ConvProblem
) -> Tensor:
    clean = x.nan_to_num(0, 0, 0).abs()
    return dense_conv2d(clean, weight.abs(), None if bias is None else bias.abs(), *problem.window)
