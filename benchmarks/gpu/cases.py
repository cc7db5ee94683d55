"""What is timed: dense layers, and what becomes of each when it is pruned. Data alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One way to prune a layer, and what may run it then.

    Args:
        pattern: as sparseprune.prune takes it.
        sparsity: share of zeros; of "2:4" it is 0.5.
        formats: stems or names of formats, with ":backend" where one is asked for; those that this
            version does not have are noted.
        target: time of dense / time of sparse that an H200 should reach; None: for the record.
    """

    pattern: str
    sparsity: float
    formats: tuple[str, ...]
    target: float | None = None

    @property
    def title(self) -> str:
        """Pattern and sparsity."""
        return f"{self.pattern} {self.sparsity:.0%}"


@dataclass(frozen=True)
class Problem:
    """A dense layer and its input.

    Args:
        rows: outputs, or output channels.
        cols: inputs, or input channels.
        tokens: rows of input, or images.
        dtype: name in torch.
        cases: how it is pruned.
        size: height and width of the images of a convolution; None: a Linear layer.
        kernel: side of the convolution's window.
    """

    rows: int
    cols: int
    tokens: int
    dtype: str
    cases: tuple[Case, ...]
    size: tuple[int, int] | None = None
    kernel: int = 3

    @property
    def title(self) -> str:
        """Sizes and dtype."""
        if self.size is None:
            return f"{self.rows}x{self.cols}, {self.tokens} tokens, {self.dtype}"
        height, width = self.size
        return (
            f"{self.kernel}x{self.kernel} {self.cols} to {self.rows}, {self.tokens} images "
            f"{height}x{width}, {self.dtype}"
        )

    @property
    def products(self) -> int:
        """How often each weight is used: tokens, or output pixels of all images."""
        height, width = self.size or (1, 1)
        return self.tokens * height * width


def _unstructured(targets: dict[float, float | None], *formats: str) -> tuple[Case, ...]:
    return tuple(Case("unstructured", s, formats, target) for s, target in targets.items())


BY_24 = ("nm", "nm:cusparselt")
"""2:4 in Linear layers: by the kernels here, by cuSPARSELt."""
FEW = ("bitmask", "csr/rows")
BLOCKS = ("block", "block:wgmma", "block:triton")
"""Triton where it says something new: it compiles for some ten seconds."""

PROBLEMS = (
    Problem(8192, 8192, 1, "bfloat16", (
        *_unstructured({0.5: 1.25, 0.8: 2.2, 0.9: 3.5}, *FEW),
        Case("2:4", 0.5, BY_24, 1.35),
    )),
    Problem(4096, 4096, 2048, "bfloat16", (
        Case("block(64,64)", 0.9, BLOCKS, 4.0),
        Case("block(32,32)", 0.9, ("block",), 2.5),
        Case("block(16,16)", 0.9, ("block",), 1.5),
    )),
    Problem(4096, 4096, 512, "float32", _unstructured(
        {0.9: 1.5, 0.95: None}, "csr/rows", "csr/groups", "csr/sorted"
    )),
    Problem(8192, 8192, 16, "bfloat16", (
        Case("block(64,64)", 0.9, ("block",), 4.0),
        *_unstructured({0.7: 1.3, 0.9: 2.5}, *FEW),
        Case("2:4", 0.5, BY_24, 1.35),
    )),
    Problem(256, 256, 32, "bfloat16", (
        Case("block(32,32,taps)", 0.8, ("block",), 1.8),
        Case("block(32,32,taps)", 0.9, ("block", "block:triton"), 2.5),
        Case("block(64,64,taps)", 0.9, ("block", "block:wgmma")),
        Case("2:4", 0.5, ("nm",), 1.2),
    ), size=(28, 28)),
    Problem(8192, 8192, 1, "float32", _unstructured(
        {0.5: None, 0.8: None, 0.9: None, 0.95: None}, *FEW
    )),
    Problem(8192, 8192, 64, "bfloat16", (
        Case("2:4", 0.5, BY_24, 1.35), *_unstructured({0.7: None, 0.9: None}, "bitmask")
    )),
    Problem(8192, 8192, 4096, "float16", (Case("2:4", 0.5, BY_24, 1.2),)),
    Problem(28672, 8192, 1, "float16", _unstructured({0.5: 1.25, 0.8: 2.2, 0.9: 3.5}, *FEW)),
    Problem(8192, 8192, 8, "float16", _unstructured({0.7: 1.3, 0.9: 2.5}, *FEW)),
    Problem(4096, 4096, 16, "float16", _unstructured({0.7: None, 0.9: None}, *FEW)),
    Problem(8192, 8192, 128, "float16", _unstructured({0.9: None}, "bitmask")),
    Problem(8192, 8192, 2, "bfloat16", _unstructured({0.5: None, 0.8: None}, *FEW)),
)  # fmt: skip
"""In the order in which they are timed; what a budget does not reach is noted."""
