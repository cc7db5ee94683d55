"""One problem: the dense layer, every case of it packed, outputs against float64, times in turn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from sparseprune import backends, clocks
from sparseprune.autotune import compare_ms
from sparseprune.formats import FORMATS, Format
from sparseprune.nn import SPARSE
from sparseprune.offers import engine
from sparseprune.prune import prune

from .caps import cap, computed_share, ridge
from .cases import Case, Problem
from .results import Row

TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}
"""Largest difference from float64, relative to the largest output, that is timed."""

Run = Callable[[], Tensor]
Layer = nn.Linear | nn.Conv2d


def measure(
    problem: Problem, device: torch.device, seconds: float, compiled: bool
) -> Iterator[Row]:
    """A row for every format of every case.

    Args:
        problem: dense layer, input and cases.
        device: where to run.
        seconds: of timing per case.
        compiled: whether torch.compile(mode="max-autotune") is a dense rival too.
    """
    torch.manual_seed(0)
    layer, x = _dense(problem, device)
    rival, why = _compiled(layer, x) if compiled else (None, "torch.compile was left out")
    for case in problem.cases:
        pruned = _pruned(layer, case)
        expected = _forward(pruned.double(), x.double())
        pruned = pruned.to(x.dtype)
        runs, rows = _candidates(problem, case, pruned, x)
        right = {}
        for name, run in runs.items():
            rows[name] = _checked(rows[name], run, expected)
            if rows[name].error is not None and not rows[name].note:
                right[name] = run
        del expected
        times = _times(pruned, rival, x, right, seconds)
        for name, row in rows.items():
            dense = {"eager_ms": times["eager"], "compile_ms": times.get("compile")}
            note = (
                row.note or ("" if name in times else "did not run") or (why if not rival else "")
            )
            yield replace(row, **dense, ms=times.get(name), note=note)


def _dense(problem: Problem, device: torch.device) -> tuple[Layer, Tensor]:
    """A float32 layer with the values of its dtype, and x in that dtype."""
    dtype = getattr(torch, problem.dtype)
    layer: Layer
    if problem.size is None:
        layer = nn.Linear(problem.cols, problem.rows, device=device)
        x = torch.randn(problem.tokens, problem.cols, device=device, dtype=dtype)
    else:
        side = problem.kernel
        layer = nn.Conv2d(problem.cols, problem.rows, side, padding=side // 2, device=device)
        layer = layer.to(memory_format=torch.channels_last)
        x = torch.randn(problem.tokens, problem.cols, *problem.size, device=device, dtype=dtype)
        x = x.to(memory_format=torch.channels_last)
    return layer.to(dtype).float().requires_grad_(False), x


def _pruned(layer: Layer, case: Case) -> Layer:
    """A float32 copy with zeros."""
    pruned = copy.deepcopy(layer)
    prune(pruned, case.sparsity, scope="local", pattern=case.pattern)
    return pruned


def _forward(layer: Layer, x: Tensor) -> Tensor:
    with torch.backends.cudnn.flags(enabled=x.dtype != torch.float64):
        y: Tensor = layer(x)
    return y


def _compiled(layer: Layer, x: Tensor) -> tuple[Callable[..., Tensor] | None, str]:
    """A dense layer compiled once for every weight of its shape; None and why not."""
    linear, padding = isinstance(layer, nn.Linear), getattr(layer, "padding", 0)

    def function(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        if linear:
            return nn.functional.linear(x, weight, bias)
        return nn.functional.conv2d(x, weight, bias, padding=padding)

    torch._dynamo.reset()  # else it gives up after some shapes of the same code
    try:
        compiled = torch.compile(function, mode="max-autotune-no-cudagraphs", dynamic=False)
        own = layer.to(x.dtype)
        compiled(own.weight, own.bias, x)
    except Exception as error:  # a missing compiler, a lost worker: the eager rival is there
        return None, f"torch.compile: {type(error).__name__}"
    finally:
        layer.float()
    return compiled, ""


def _candidates(
    problem: Problem, case: Case, pruned: Layer, x: Tensor
) -> tuple[dict[str, Run], dict[str, Row]]:
    """What can run, and a row for everything that was asked for."""
    runs: dict[str, Run] = {}
    rows: dict[str, Row] = {}
    for wanted in case.formats:
        name, _, backend = wanted.partition(":")
        found = [f for f in FORMATS if name in (f.stem, f.name)]
        for f in found:
            key = wanted if len(found) == 1 else f"{f.name}:{backend}"
            rows[key] = Row(problem.title, case.title, key, target=case.target)
            try:
                run, rows[key] = _packed(rows[key], problem, pruned, x, f, backend or "auto")
                runs[key] = run
            except (ValueError, RuntimeError) as error:
                rows[key] = replace(rows[key], note=str(error).splitlines()[0])
        if not found:
            note = f"this version has no format {name}"
            rows[wanted] = Row(problem.title, case.title, wanted, target=case.target, note=note)
    return runs, rows


def _packed(
    row: Row, problem: Problem, pruned: Layer, x: Tensor, f: Format, backend: str
) -> tuple[Run, Row]:
    """The packed layer, and its row with what the hardware allows."""
    twin = SPARSE[type(pruned)].from_dense(pruned, f.suited(pruned))  # type: ignore[arg-type]
    twin.weight.use(backend)
    if engine(twin) == "reference" and x.is_cuda:
        raise ValueError(f"no kernel on {x.device.type}")
    bits, weights = 8 * x.element_size(), pruned.weight.numel()
    r = ridge(torch.cuda.get_device_name(x.device) if x.is_cuda else "", bits)
    share = computed_share(f.stem, twin.weight.nonzeros / weights, bits)
    stored = sum(getattr(twin.weight, part).nbytes for part in twin.weight.parts)  # and read
    most = r and cap(problem.products, r, bits, 8 * stored / weights, share)
    return (lambda: twin(x)), replace(row, runs=f"{twin.weight.name} {engine(twin)}", cap=most)


def _checked(row: Row, run: Run, expected: Tensor) -> Row:
    """The row with its error; with a note if it is not to be timed."""
    try:
        got = run()
    except Exception as error:  # whatever a kernel or compiler raises belongs into the row
        return replace(row, note=f"{type(error).__name__}: {error}".splitlines()[0])
    scale = float(expected.abs().max()) or 1.0
    error_ = float((got.double() - expected).abs().max()) / scale
    wrong = "" if error_ <= TOLERANCE[got.dtype] else f"wrong by {error_:.1e}: not timed"
    return replace(row, error=error_, note=wrong)


def _times(
    pruned: Layer,
    rival: Callable[..., Tensor] | None,
    x: Tensor,
    runs: dict[str, Run],
    seconds: float,
) -> dict[str, float]:
    calls: dict[str, Callable[[], object]] = {"eager": lambda: pruned(x), **runs}
    if rival is not None:
        calls["compile"] = lambda: rival(pruned.weight, pruned.bias, x)
    return compare_ms(calls, seconds=seconds, clock=clocks.of_layers(x.device))


def facts(device: torch.device) -> dict[str, str]:
    """Device and versions, of every number."""
    from datetime import date
    from importlib.util import find_spec

    from sparseprune.version import __version__

    triton = ""
    if find_spec("triton"):
        import triton as module

        triton = module.__version__
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "capability": "{}.{}".format(*torch.cuda.get_device_capability(device)) if cuda else "",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda or ""),
        "cudnn": str(torch.backends.cudnn.version() or ""),
        "triton": triton,
        "sparseprune": __version__,
        "kernels": backends.CUDA.missing or "compiled",
        "date": date.today().isoformat(),
    }
