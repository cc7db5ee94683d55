"""Programs bound to their weights, which are run without torch's dispatcher.

The op ``run`` takes a list of weights, and every one costs 0.3 us to hand over and to check, on
every call. Calls through the dispatcher cost 0.1 to 0.2 ms more after a program, which leaves
nothing of torch in the caches.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from sparseprune import backends

EXCHANGE = getattr(Tensor, "__dlpack_c_exchange_api__", None)
"""How compiled code reads and makes tensors (DLPack); older versions of torch lack it."""
NATIVE: Any = backends.native
ADDRESS = backends.run_bound_address()
EMPTY = partial(torch.empty, dtype=torch.float32, device="cpu")
POSSIBLE = (
    NATIVE is not None and ADDRESS != 0 and EXCHANGE is not None and NATIVE.exchanges(EXCHANGE)
)
"""Whether programs can be bound here."""

_modes, _traced = torch._C._len_torch_dispatch_stack, torch._C._get_tracing_state
_profiled = torch._C._autograd._profiler_enabled


def dispatched() -> bool:
    """Whether somebody looks at what is dispatched: a compiler, a tracer, a mode, a profiler."""
    return is_compiling() or bool(_modes()) or _traced() is not None or _profiled()


torch.library.define("sparseprune::run_bind", "(Tensor[] weights, str program) -> int")
torch.library.define("sparseprune::run_release", "(int bound) -> int")


class Bound:
    """A program with its weights, which are checked once, and again where their memory changes.

    Args:
        weights: the tensors that the steps count, on the CPU.
        program: the text.

    Raises:
        RuntimeError: weights that do not fit the program.
    """

    def __init__(self, weights: list[Tensor], program: str) -> None:
        self.weights, self.program = weights, program
        ops = torch.ops.sparseprune
        self._number: int = ops.run_bind.default(weights, program)
        weakref.finalize(self, ops.run_release.default, self._number).atexit = False

    def run(self, inputs: tuple[Any, ...]) -> list[Tensor] | None:
        """The outputs.

        None where an input is anything but a contiguous float32 tensor of torch's own class on the
        CPU that needs no gradient: the op ``run`` takes more.

        Raises:
            RuntimeError: inputs of other shapes than the program takes.
        """
        outputs: list[Tensor] | None = NATIVE.run_bound(
            EXCHANGE, ADDRESS, self._number, Tensor, EMPTY, inputs
        )
        return outputs
