"""2:4 as cuSPARSELt holds it: derived from a packed weight, never stored. Not yet run on a GPU.

The form is the library's own and may differ from device to device, so it is made where it is used:
compressed [rows, about 9/16 cols], in the dtype of the weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from sparseprune import backends
from sparseprune.errors import warn
from sparseprune.formats.base import PackedWeight

DTYPES = (torch.float16, torch.bfloat16)
SIDE = 16
"""Rows and columns must be multiples of it (_DTYPE_SHAPE_CONSTRAINTS in torch.sparse)."""


def lacking(dtype: torch.dtype, shape: Sequence[int]) -> str | None:
    """Why cuSPARSELt cannot multiply a 2:4 weight [rows, cols] of this dtype, or None."""
    if dtype not in DTYPES:
        return f"multiplies float16 and bfloat16, got {str(dtype).removeprefix('torch.')}"
    if min(shape) < SIDE or any(size % SIDE for size in shape):
        sizes = " x ".join(map(str, shape))
        return f"multiplies weights whose sides are multiples of {SIDE}, got {sizes}"
    return None


def compress(weight: Tensor) -> Tensor:
    """The form of a 2:4 weight [rows, cols] of which :func:`lacking` says nothing.

    Raises:
        RuntimeError: on a device that cuSPARSELt does not serve.
    """
    with torch.cuda.device(weight.device if weight.is_cuda else -1):
        return torch._cslt_compress(weight)


def shared(compressed: Tensor, values: Tensor) -> Tensor:
    """The values as `compressed` begins with them, where it does; else `values`.

    So a weight is held once. torch.sparse relies on that order; here it is looked at.
    """
    begin = compressed.view(-1)[: values.numel()]
    same = begin.numel() == values.numel() and torch.equal(begin, values.view(-1))
    return begin.view_as(values) if same else values


class Derived(PackedWeight):
    """A packed weight that also holds ``compressed`` while its backend is "cusparselt".

    It is in no state_dict, file or pickle: who copies or changes the weight derives it anew.
    """

    values: Tensor
    compressed: Tensor | None = None

    @property
    def nbytes(self) -> int:
        if self.compressed is None:
            return super().nbytes
        places = {t.untyped_storage().data_ptr() for t in (self.values, self.compressed)}
        once = self.values.nbytes if len(places) == 1 else 0
        return super().nbytes + self.compressed.nbytes - once

    def use(self, backend: str = "auto") -> Self:
        super().use(backend)
        self.compressed = None
        if self.namespace == backends.CUSPARSELT.namespace:
            self.compressed = compress(self.unpack())
            self.values = shared(self.compressed, self.values)
        return self

    def twin(self) -> Self:
        made = super().twin()
        made.compressed = self.compressed
        return made

    def _follow(self) -> None:
        """Derive it from what the weight is now; or leave cuSPARSELt, where it serves no more."""
        if self.namespace != backends.CUSPARSELT.namespace:
            return
        lacks = backends.refusal(self.backend, self.device, self.stem, self.lacking)
        if lacks:
            warn(f"sparseprune: the backend {self.backend!r} {lacks}; 'auto' chooses anew")
        self.use("auto" if lacks else self.backend)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._follow()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._follow()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "compressed": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._follow()
