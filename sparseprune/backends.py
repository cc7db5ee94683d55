"""The one place that chooses who computes: compiled kernels where they fit, else the reference.

Every op exists in two namespaces with one schema: ``sparseprune`` (compiled kernels) and
``sparseprune_reference`` (Python); some in others, ``sparseprune_triton`` and
``sparseprune_wgmma``. What a library computes from a form of its own, as cuSPARSELt does, takes
that form as one more argument. A packed weight stores the namespace that it was given.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from sparseprune.errors import bad, suggest

FOLDER = Path(__file__).parent

Lacking = Callable[[str], str | None]
"""Why the backend of that name has no kernel for one weight of a format that it serves, or None."""


@dataclass(frozen=True)
class Backend:
    """Who computes a packed layer.

    Args:
        name: what users ask for, e.g. ``convert(..., backend="reference")``.
        namespace: where its ops live in ``torch.ops``.
        device: the device type that it serves, or ``"any"``.
        missing: why it is not there, or None.
        by_time: whether it is taken by name or by measured time alone, whatever is before it.
    """

    name: str
    namespace: str
    device: str
    missing: str | None
    by_time: bool = False

    def refuses(
        self, device: torch.device, stem: str | None = None, lacking: Lacking | None = None
    ) -> str | None:
        """Why it cannot serve this device, or such a weight of that format on it; else None."""
        if self.missing:
            return self.missing
        if self.device not in ("any", device.type):
            return f"serves {self.device}, the layer is on {device.type}"
        if stem is None:
            return None
        return self.lacks(stem) or (None if lacking is None else lacking(self.name))

    def lacks(self, stem: str) -> str | None:
        """That no kernels of a format are compiled for its device, or None."""
        if self.device == "any" or has_kernel(f"{self.namespace}::{stem}_linear", self.device):
            return None
        return f"has no {stem} kernels"


def _load_native() -> tuple[ModuleType | None, str | None]:
    if os.environ.get("SPARSEPRUNE_NATIVE") == "0":
        return None, "switched off by SPARSEPRUNE_NATIVE=0"
    try:
        return importlib.import_module("sparseprune._native"), None
    except ImportError as error:
        return None, f"not compiled ({error}); reinstall with a C++ compiler at hand"


def _load_ops(device: str) -> tuple[ctypes.CDLL | None, str | None]:
    path = FOLDER / f"sparseprune_{device}.so"
    if os.environ.get("SPARSEPRUNE_NATIVE") == "0":
        return None, "switched off by SPARSEPRUNE_NATIVE=0"
    if not path.exists():
        return None, f"not compiled: this build has no {path.name}"
    try:
        torch.ops.load_library(str(path))
        return ctypes.CDLL(str(path)), None
    except (OSError, RuntimeError) as error:
        return None, f"{path.name} does not load: {error}"


def _load_cuda() -> str | None:
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    return _load_ops("cuda")[1] or (
        None if torch.cuda.is_available() else "torch finds no CUDA device"
    )


def _load_triton() -> str | None:
    """Its kernels are registered by sparseprune.ops, after the ops themselves."""
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None if torch.cuda.is_available() else "torch finds no CUDA device"


def _load_cusparselt() -> str | None:
    """torch brings the library; the op is registered by sparseprune.ops, as Triton's."""
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    if not torch.backends.cusparselt.is_available():
        return "this torch was built without cuSPARSELt"
    return None if torch.cuda.is_available() else "torch finds no CUDA device"


def has_kernel(op: str, device: str) -> bool:
    """Whether compiled code registered a kernel of this op for the device type."""
    return torch._C._dispatch_has_kernel(op) and torch._C._dispatch_has_kernel_for_dispatch_key(
        op, device.upper()
    )


native, native_missing = _load_native()
"""The module of CPU features, or None and why."""
_cpu_library, _cpu_missing = _load_ops("cpu")

CPU = Backend("cpu", "sparseprune", "cpu", native_missing or _cpu_missing)
CUDA = Backend("cuda", "sparseprune", "cuda", _load_cuda())
TRITON = Backend("triton", "sparseprune_triton", "cuda", _load_triton())
WGMMA = Backend("wgmma", "sparseprune_wgmma", "cuda", CUDA.missing, by_time=True)
"""The kernels of compute capability 9.0 alone; what else a layer needs, those of CUDA."""
CUSPARSELT = Backend(
    "cusparselt", "sparseprune_cusparselt", "cuda", _load_cusparselt(), by_time=True
)
REFERENCE = Backend("reference", "sparseprune_reference", "any", None)
BACKENDS = (CPU, CUDA, TRITON, WGMMA, CUSPARSELT, REFERENCE)
"""Best first."""

_forced: Backend | None = None
_told = False


def choose(
    device: torch.device,
    wanted: str = "auto",
    stem: str | None = None,
    lacking: Lacking | None = None,
) -> Backend:
    """As :func:`find`; falling to the reference is said once.

    Raises:
        ValueError: unknown backend, or the wanted one refuses.
    """
    chosen = find(device, wanted, stem, lacking)
    if chosen is REFERENCE and wanted == "auto" and _forced is None:
        _tell(device, stem, lacking)
    return chosen


def find(
    device: torch.device,
    wanted: str = "auto",
    stem: str | None = None,
    lacking: Lacking | None = None,
) -> Backend:
    """The first backend that does not refuse the device.

    Args:
        device: where the layer is.
        wanted: "auto", or the name of one.
        stem: of the layer's format, for which a backend may lack kernels.
        lacking: what it lacks for this weight.

    Raises:
        ValueError: unknown backend, or the wanted one refuses.
    """
    if wanted != "auto":
        known = {b.name: b for b in BACKENDS}
        if wanted not in known:
            raise bad("convert", "backend", f"one of auto, {', '.join(known)}", repr(wanted),
                      suggest(wanted, ["auto", *known]))  # fmt: skip
        if reason := refusal(wanted, device, stem, lacking):
            raise bad("convert", "backend", f"one that serves {device}", repr(wanted), reason)
        return known[wanted]
    if _forced is not None:
        return _forced
    return next(b for b in BACKENDS if not b.by_time and not b.refuses(device, stem, lacking))


def rivals(
    device: torch.device, stem: str | None = None, lacking: Lacking | None = None
) -> list[Backend]:
    """Backends beside the one of :func:`find` that serve where they are measured to be faster."""
    if _forced is not None:
        return []
    return [b for b in BACKENDS if b.by_time and not b.refuses(device, stem, lacking)]


def refusal(
    wanted: str,
    device: torch.device,
    stem: str | None = None,
    lacking: Lacking | None = None,
) -> str | None:
    """Why :func:`choose` would not take this name for this device and format, or None."""
    if wanted == "auto":
        return None
    reasons = {b.name: b.refuses(device, stem, lacking) for b in BACKENDS if b.name == wanted}
    return reasons.get(wanted, "there is no such backend")


def serves(
    wanted: str,
    device: torch.device,
    stem: str | None = None,
    lacking: Lacking | None = None,
) -> bool:
    """Whether :func:`choose` would take this name for this device and format."""
    return refusal(wanted, device, stem, lacking) is None


def _tell(device: torch.device, stem: str | None, lacking: Lacking | None) -> None:
    global _told
    if not _told:
        _told = True
        reasons = "; ".join(
            f"{b.name}: {b.refuses(device, stem, lacking)}"
            for b in BACKENDS
            if b.device == device.type and not b.by_time
        )
        warnings.warn(
            f"sparseprune runs its Python reference on {device.type}, which is correct but slow "
            f"({reasons or 'no backend for this device'})",
            stacklevel=4,
        )


def available() -> list[str]:
    """What :func:`only` accepts here: "reference", and "cpu:<isa>" for every level of this CPU."""
    names = ["reference"]
    if native is not None and CPU.missing is None:
        names += [f"cpu:{isa}" for isa in cpu_levels()]
    return names


def cpu_levels() -> list[str]:
    """Instruction set levels with kernels that this CPU supports, best first."""
    rows = native.kernels() if native is not None else []
    return list(dict.fromkeys(r["isa"] for r in rows if r["supported"]))


def current_isa() -> str:
    """The level in use: SPARSEPRUNE_ISA or the best of this CPU; "reference" without kernels.

    Raises:
        RuntimeError: SPARSEPRUNE_ISA names an unknown level, or one that this CPU lacks.
    """
    if native is None or CPU.missing is not None:
        return "reference"
    return _isa or str(native.current_isa())


def run_bound_address() -> int:
    """Of the compiled function that runs bound programs (csrc/ops/bound_call.h); 0 without one."""
    if _cpu_library is None:
        return 0
    return ctypes.cast(_cpu_library.sparseprune_run_bound, ctypes.c_void_p).value or 0


_isa = ""


def force_isa(name: str) -> None:
    """Use this instruction set level from now on; "" returns to SPARSEPRUNE_ISA or the best.

    Raises:
        ValueError: unknown, or not supported by this CPU.
    """
    global _isa
    if _cpu_library is None:
        raise bad("force_isa", "name", "compiled CPU kernels", repr(name), str(CPU.missing))
    force = _cpu_library.sparseprune_force_isa
    force.restype = ctypes.c_char_p
    error = force(name.encode())
    if error is not None:
        raise ValueError(error.decode())
    _isa = name


@contextlib.contextmanager
def only(name: str) -> Iterator[None]:
    """Weights packed inside, and CPU kernels run inside, use this entry of :func:`available`."""
    global _forced
    before = _forced, _isa
    device, _, isa = name.partition(":")
    known = {b.name: b for b in BACKENDS}
    if device not in known:
        raise bad("only", "name", "one of available()", repr(name), suggest(name, available()))
    _forced = known[device]
    try:
        if isa:
            force_isa(isa)
        yield
    finally:
        _forced = before[0]
        if isa:
            force_isa(before[1])
