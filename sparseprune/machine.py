"""What a measured time depends on: processor, threads, memory and versions."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import torch

from sparseprune import backends
from sparseprune.version import __version__

CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")


def machine() -> dict[str, str | int | float | None]:
    """Flat and plain, for CSV and JSON.

    Keys: cpu (`cpu_name`), cores (physical), threads (that torch uses), isa (instruction set of
    the kernels in use), ram_gb, gpu (None without one), system, python, torch, sparseprune, date.
    """
    return {
        "cpu": cpu_name(),
        "cores": core_count(),
        "threads": torch.get_num_threads(),
        "isa": isa_in_use(),
        "ram_gb": ram_gb(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sparseprune": __version__,
        "date": date.today().isoformat(),
    }


def cpu_name() -> str:
    """The model name the system gives its processor, and the numbers of its kind where it has any.

    Virtual machines may call every processor of a maker the same.
    """
    first: dict[str, str] = {}
    for key, value in _fields(CPUINFO):
        first.setdefault(key, value)
    name = first.get("model name") or first.get("Model") or platform.processor()
    kind = [first.get(key) for key in ("cpu family", "model")]
    numbers = " (family {} model {})".format(*kind) if all(kind) else ""
    return (name or platform.machine() or "unknown") + numbers


def cuda_words(device: torch.device) -> list[str]:
    """What times on a CUDA device depend on: its name, driver, CUDA, and where TF32 may be used."""
    driver = getattr(torch._C, "_cuda_getDriverVersion", lambda: 0)()  # CUDA that it knows, 13000
    return [
        "on", torch.cuda.get_device_name(device), "driver", str(driver),
        "cuda", str(torch.version.cuda), "conv", torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
    ]  # fmt: skip


def core_count() -> int:
    """Physical cores; where the system does not tell, logical ones."""
    cores: set[tuple[str, str]] = set()
    socket = ""
    for key, value in _fields(CPUINFO):
        if key == "physical id":
            socket = value
        if key == "core id":
            cores.add((socket, value))
    return len(cores) or os.cpu_count() or 1


def ram_gb() -> float | None:
    """Memory in 10^9 bytes; None where the system does not tell."""
    for key, value in _fields(MEMINFO):
        if key == "MemTotal":
            return round(int(value.split()[0]) * 1024 / 1e9, 1)
    if {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(getattr(os, "sysconf_names", ())):
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    return None


def isa_in_use() -> str:
    """Instruction set level of the kernels, "reference" without any, or what is wrong."""
    try:
        return backends.current_isa()
    except RuntimeError as error:  # SPARSEPRUNE_ISA asks for what is not there
        return f"none: {error}"


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """torch computes with `count` threads inside; None leaves it as it is."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def _fields(path: Path) -> Iterator[tuple[str, str]]:
    """The `key : value` lines of a file in /proc; none where it does not exist."""
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            key, colon, value = line.partition(":")
            if colon:
                yield key.strip(), value.strip()
