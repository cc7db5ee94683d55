"""bench(): a network dense and sparse, timed in turn in one run, outputs checked first.

rows = bench("resnet50", sparsities=(0.9, 0.95), batch=1, threads=2)
write_csv(rows, Path("resnet50.csv"))
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from sparseprune import zoo
from sparseprune.autotune import compare_ms
from sparseprune.bench.rows import BenchRow, table, tally, write_csv, write_json
from sparseprune.convert import convert
from sparseprune.errors import bad, check_sparsity
from sparseprune.machine import threads as with_threads
from sparseprune.prune import prune
from sparseprune.report import Report
from sparseprune.selection import prunable_modules

__all__ = [
    "BenchRow",
    "Network",
    "bench",
    "check",
    "compile_frozen",
    "measure",
    "stem_and_classifier",
    "table",
    "tally",
    "write_csv",
    "write_json",
]

TOLERANCE = 1e-4
"""Largest difference of outputs, relative to the largest output, that may still be timed."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
MOST_IMAGE_CHANNELS = 4


@dataclass(frozen=True)
class Network:
    """A zoo model, the options of its builder and the batch that it is timed at."""

    title: str
    name: str
    batch: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def inputs(self) -> Tensor:
        """Example inputs; `width` of an mlp changes their shape."""
        if self.name == "mlp" and "width" in self.options:
            return torch.randn(self.batch, self.options["width"])
        return zoo.example_inputs(self.name, self.batch)


def bench(
    model: str,
    sparsities: Iterable[float] = (0.9,),
    batch: int = 1,
    threads: int | None = None,
    compiled: bool = False,
    all_layers: bool = False,
    seconds: float = 0.5,
    announce: Callable[[str], None] = lambda step: None,
) -> list[BenchRow]:
    """One row per sparsity for a zoo model with random weights, pruned by magnitude per layer.

    Args:
        model: a name of sparseprune.zoo.MODELS.
        sparsities: each in [0, 1).
        batch: examples per call.
        threads: of torch while it is timed; None leaves them as they are.
        compiled: also time torch.compile with frozen weights, which takes a minute or so.
        all_layers: prune also what `stem_and_classifier` names.
        seconds: of timing per row.
        announce: called with a line of text before each step.

    Raises:
        ValueError: a bad argument, or sparse outputs that differ from dense ones.
    """
    network = Network(model, model, batch)
    with with_threads(threads):
        return measure(
            [network],
            sparsities,
            compiled=compiled,
            all_layers=all_layers,
            seconds=seconds,
            announce=announce,
        )


def measure(
    networks: Iterable[Network],
    sparsities: Iterable[float],
    *,
    compiled: bool = True,
    all_layers: bool = True,
    seconds: float = 0.5,
    announce: Callable[[str], None] = lambda step: None,
) -> list[BenchRow]:
    """Prunes, converts, checks and times every network at every sparsity; see `bench`."""
    shares = [check_sparsity("bench", "sparsities", sparsity) for sparsity in sparsities]
    rows = []
    for network in networks:
        zoo.entry(network.name)
        if network.batch < 1:
            raise bad("bench", "batch", "at least 1", network.batch, "pass a positive number")
        announce(f"{network.title}: build")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, x = zoo.build(network.name, **network.options).eval(), network.inputs()
        rival, note = None, "not asked for"
        if compiled:
            announce(f"{network.title}: torch.compile")
            rival, note = compile_frozen(model, x)
        ignore = () if all_layers else stem_and_classifier(model)
        for sparsity in shares:
            announce(f"{network.title} at {sparsity:.0%}")
            rows.append(_measure_one(network, model, x, sparsity, ignore, rival, note, seconds))
    return rows


def stem_and_classifier(model: nn.Module) -> tuple[str, ...]:
    """The first convolution if it reads an image, and a Linear that comes last.

    Both are small, sensitive and commonly left dense. A network of nothing but Linear layers has
    neither in this sense.
    """
    modules = prunable_modules(model, operation="bench")
    convolutional = any(isinstance(m, (*CONVOLUTIONS, nn.Embedding)) for m in model.modules())
    if not modules or not convolutional:
        return ()
    first, *_, last = [*modules, *modules]  # of one layer: the same twice
    stem = modules[first]
    reads_image = isinstance(stem, CONVOLUTIONS) and stem.in_channels <= MOST_IMAGE_CHANNELS
    names = [first] if reads_image else []
    return (*names, last) if isinstance(modules[last], nn.Linear) else tuple(names)


def compile_frozen(model: nn.Module, x: Tensor) -> tuple[Callable[[], Tensor] | None, str]:
    """The strongest dense rival: torch.compile with weights frozen in, or None and why not.

    Its time does not depend on zeros, so once per network is enough.
    """
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    try:
        with inductor.patch(freezing=True), torch.no_grad():
            compiled = torch.compile(copy.deepcopy(model), dynamic=False)
            compiled(x)
    except (RuntimeError, OSError, ImportError) as error:  # e.g. no compiler
        # The first line names the backend's failure, the last lines are advice on debugging.
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        return None, f"not here: {type(error).__name__}: {first}"[:120]
    return lambda: compiled(x), ""


@torch.no_grad()
def _measure_one(
    network: Network,
    model: nn.Module,
    x: Tensor,
    sparsity: float,
    ignore: tuple[str, ...],
    rival: Callable[[], Tensor] | None,
    note: str,
    seconds: float,
) -> BenchRow:
    if rival is not None:
        check(f"{network.title}: torch.compile", rival(), model(x))
    pruned = copy.deepcopy(model)
    prune(pruned, sparsity, criterion="magnitude", scope="local", ignore=ignore)
    fast = convert(pruned, x)
    difference = check(f"{network.title} at {sparsity:.0%}: sparse", fast(x), pruned(x))
    runs: dict[str, Callable[[], object]] = {"eager": lambda: pruned(x), "sparse": lambda: fast(x)}
    if rival is not None:
        runs["compiled"] = rival
    ms = compare_ms(runs, seconds=seconds)
    report = cast(Report, fast.report)
    layers = report.rows
    return BenchRow(
        network=network.title,
        sparsity=sparsity,
        eager_ms=ms["eager"],
        compiled_ms=ms.get("compiled"),
        compiled_note=note,
        sparse_ms=ms["sparse"],
        nonzeros=report.nonzeros,
        dense_bytes=report.dense_bytes,
        packed_bytes=report.packed_bytes,
        kernels=tally(row.kernel.split()[0] for row in layers if row.kernel != "dense"),
        kept_dense=tally(row.reason for row in layers if row.kernel == "dense"),
        batch=network.batch,
        threads=torch.get_num_threads(),
        weights=sum(torch.Size(row.shape).numel() for row in layers if not row.tied_to),
        difference=difference,
    )


def check(what: str, found: Tensor, expected: Tensor) -> float:
    """The largest difference / the largest output; ValueError if it is above `TOLERANCE`."""
    scale = float(expected.abs().max())
    difference = float((found - expected).abs().max()) / (scale or 1.0)
    if not difference <= TOLERANCE:  # true for NaN as well
        way_out = f"a wrong result is not timed; largest dense output {scale:.2e}"
        expected_ = f"within {TOLERANCE:.0e} of dense, relative to the largest output"
        raise bad("bench", f"{what} output", expected_, f"{difference:.2e}", way_out)
    return difference
