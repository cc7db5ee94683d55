"""How a layer may be packed and who would compute it: what choose.py compares with dense."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparseprune import backends
from sparseprune.formats import Format, PackedWeight
from sparseprune.machine import isa_in_use
from sparseprune.nn import SPARSE
from sparseprune.nn.conv_program import ByProgram


@dataclass(frozen=True)
class Offer:
    """A format and a backend for it.

    Args:
        name: the format's; where the backend is a rival of the one that is first, also that one's.
        format: settled for the weight.
        backend: as ``PackedWeight.use`` takes it.
        engine: who computes, as reports name it.
    """

    name: str
    format: Format
    backend: str
    engine: str

    @property
    def label(self) -> str:
        """As the cache of times names it."""
        return f"{self.format.name} {self.engine}"


@dataclass(frozen=True)
class Offers:
    """What may be tried for one layer.

    Args:
        by_name: the offers.
        refusals: name of a format or an offer -> why it is not tried, or None.
        unserved: whether formats fit, but the wanted backend can take it in none.
    """

    by_name: dict[str, Offer]
    refusals: dict[str, str | None]
    unserved: bool = False


def offers_for(
    dense: nn.Module, tokens: int, formats: tuple[Format, ...], backend: str, keep_dense: str
) -> Offers:
    """Offers for a dense layer.

    Args:
        dense: Linear or convolution.
        tokens: fewest rows of input that it is called with.
        formats: that may be taken.
        backend, keep_dense: as for ``convert``.
    """
    kind = SPARSE[type(dense)]
    weight, groups = kind.dense_weight(dense)  # type: ignore[arg-type]
    formats = tuple(f.suited(dense) for f in formats)
    refusals = {f.name: _misfit(f, kind.kind) or f.refuses(weight, groups) for f in formats}
    fitting = [f for f in formats if refusals[f.name] is None]
    barred = {f.name: _barred(f, dense, weight, groups, backend) for f in fitting}
    served = [f for f in fitting if barred[f.name] is None]
    worth = [f for f in served if f.worth(weight, tokens)]
    if not worth and (keep_dense == "never" or len({f.stem for f in formats}) == 1):
        worth = served
    refusals |= barred
    refusals |= {f.name: f"{f.stem} is not meant for it" for f in served if f not in worth}
    settled = [f.settled(weight, groups) for f in worth]
    offers = [o for f in settled for o in by_backends(kind, f, weight.device, backend, dense)]
    if weight.device.type != "cpu" and (keep_dense, backend) == ("auto", "auto"):
        hopeless = [o for o in offers if o.engine == "reference"]
        refusals |= {o.name: f"{o.name} has no kernel on {weight.device.type}" for o in hopeless}
        offers = [o for o in offers if o not in hopeless]
    return Offers({o.name: o for o in offers}, refusals, bool(fitting) and not served)


def by_backends(
    kind: type[Any],
    f: Format,
    device: torch.device,
    backend: str = "auto",
    dense: nn.Module | None = None,
) -> list[Offer]:
    """A format by the backend that is first or wanted, and where none is by the rivals of that."""
    lacking = partial(f.lacking, layer=dense)
    first = backends.find(device, backend, f.stem, lacking)
    offers = [Offer(f.name, f, backend, _engine(kind, first.namespace, device))]
    if backend == "auto":
        rivals = backends.rivals(device, f.stem, lacking)
        offers += [Offer(f"{f.name} {b.name}", f, b.name, b.name) for b in rivals]
    return offers


def engine(layer: Any) -> str:
    """Who computes this packed layer: an instruction set, a device, a library or the reference."""
    weight: PackedWeight = layer.weight
    return _engine(type(layer), weight.namespace, weight.device)


def _engine(kind: type[Any], namespace: str, device: torch.device) -> str:
    by_program = issubclass(kind, ByProgram)
    if by_program and not backends.has_kernel(f"{namespace}::run", device.type):
        return "reference"
    if namespace == backends.CPU.namespace:  # the compiled kernels of every device
        return isa_in_use() if device.type == "cpu" else device.type
    return next(b.name for b in backends.BACKENDS if b.namespace == namespace)


def _misfit(f: Format, kind: str) -> str | None:
    return None if kind in f.serves else f"{f.stem} serves {', '.join(f.serves)} alone"


def _barred(f: Format, dense: nn.Module, weight: Tensor, groups: int, backend: str) -> str | None:
    """Why the wanted backend cannot take the layer in this format, which fits it; or None."""
    if backend == "auto":
        return None
    lacking = partial(f.settled(weight, groups).lacking, layer=dense)
    why = backends.refusal(backend, weight.device, f.stem, lacking)
    return why and f"the backend {backend!r} {why}"
