"""What times one call: the host's clock, or the events of a CUDA device whose L2 was emptied."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Call = Callable[[], object]

L2_TIMES = 4
"""A buffer of so many times the L2 cache is read to empty it."""
LEAST_BYTES = 64 << 20
"""Of that buffer: reading it takes longer than the host needs to queue a call."""


class Gpu(Protocol):
    """What a clock needs of a device that works on its own while the host goes on."""

    def empty_l2(self) -> None:
        """Queue work after which nothing that a call reads is in the L2 cache."""

    def mark(self) -> Any:
        """Queue a mark whose time can be asked for later."""

    def wait(self) -> None:
        """Until all that was queued is done."""

    def ms(self, start: Any, end: Any) -> float:
        """Milliseconds from one mark to a later one; both are done."""


class Clock(Protocol):
    """Times single calls; the caller orders and repeats them (:func:`autotune.compare_ms`)."""

    def samples_ms(self, call: Call, count: int) -> list[float]:
        """Milliseconds of each of `count` calls in a row."""


@dataclass(frozen=True)
class HostClock:
    """Wall time. On a GPU from idle to idle, so that what the host does is part of it.

    Args:
        gpu: whose L2 is emptied before every call; None where calls run on the CPU.
    """

    gpu: Gpu | None = None

    def samples_ms(self, call: Call, count: int) -> list[float]:
        """Milliseconds of each of `count` calls in a row."""
        return [self._once_ms(call) for _ in range(count)]

    def _once_ms(self, call: Call) -> float:
        if self.gpu is not None:
            self.gpu.empty_l2()
            self.gpu.wait()
        start = time.perf_counter()
        call()
        if self.gpu is not None:
            self.gpu.wait()
        return (time.perf_counter() - start) * 1e3


@dataclass(frozen=True)
class EventClock:
    """Time of the device alone, its L2 cold: what the host does is hidden behind emptying it.

    Args:
        gpu: that the calls run on.
    """

    gpu: Gpu

    def samples_ms(self, call: Call, count: int) -> list[float]:
        """Milliseconds of each of `count` calls in a row; the host waits once, at the end."""
        marks = []
        for _ in range(count):
            self.gpu.empty_l2()
            start = self.gpu.mark()
            call()
            marks.append((start, self.gpu.mark()))
        self.gpu.wait()
        return [self.gpu.ms(start, end) for start, end in marks]


class CudaGpu:
    """A CUDA device, its current stream and a buffer that empties its L2, as long as this lives.

    The buffer is read, not written: lines that must be written back would take bandwidth from the
    call that is timed.

    Args:
        device: with its index.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        l2 = torch.cuda.get_device_properties(device).L2_cache_size
        count = max(L2_TIMES * l2, LEAST_BYTES) // 4
        self._buffer = torch.zeros(count, dtype=torch.float32, device=device)

    def empty_l2(self) -> None:
        """Read the buffer."""
        self._buffer.sum()

    def mark(self) -> torch.cuda.Event:
        """An event on the current stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def wait(self) -> None:
        """For the whole device."""
        torch.cuda.synchronize(self._device)

    def ms(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Between two events."""
        return float(start.elapsed_time(end))


def of_layers(device: torch.device) -> Clock:
    """For layers on this device: on CUDA the device's own time, so that graphs may hold them."""
    return EventClock(CudaGpu(_indexed(device))) if device.type == "cuda" else HostClock()


def of_models(device: torch.device) -> Clock:
    """For whole models on this device: as they are called, launches included."""
    return HostClock(CudaGpu(_indexed(device)) if device.type == "cuda" else None)


def _indexed(device: torch.device) -> torch.device:
    if device.index is not None:
        return device
    return torch.device(device.type, torch.cuda.current_device())
