"""The CUDA kernels as compiled, without a GPU: no warnings, no spills, the instructions meant.

nvcc compiles them and cuobjdump (of the CUDA toolkit, or of the triton wheel) shows their code.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from beforehand import begun

ROOT = Path(__file__).parent.parent

# File -> its kernels of half and of float, and the most registers of one: 168 leaves room for three
# thread blocks of 128 threads on a multiprocessor, 255 for two, 128 for 16 warps, 224 for 9.
FILES = {
    "block_linear": (12, 6, 168),
    "block_conv2d": (6, 3, 168),
    "block_wgmma": (8, 0, 160),
    "nm_linear": (8, 3, 255),
    "nm_conv2d": (6, 2, 255),
    "bitmask": (10, 4, 255),
    "csr_rows": (16, 8, 128),
    "csr": (0, 6, 128),
}
PRODUCTS = {"block": "HMMA.16816", "nm": "HMMA.SP.16832", "bitmask": "HMMA.16816"}
ARCHITECTURES = {"sm_80": "80", "sm_90a": "90a"}
OF_HOPPER = "block_wgmma"  # sm_90a alone

FOLDER = tempfile.TemporaryDirectory()

pytestmark = pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="not a checkout")


def cuobjdump() -> str | None:
    """Of the toolkit, else of the triton wheel."""
    found = shutil.which("cuobjdump")
    spec = importlib.util.find_spec("triton")
    if found or spec is None or spec.origin is None:
        return found
    carried = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump"
    return str(carried) if carried.exists() else None


@dataclass
class Kernel:
    """One compiled kernel: what ptxas says of it, and how often each instruction occurs."""

    name: str
    registers: int
    stack: int
    spilled: int
    instructions: Counter[str]

    def count(self, start: str) -> int:
        return sum(n for name, n in self.instructions.items() if name.startswith(start))


def compiled(file: str, architecture: str) -> list[Kernel]:
    """Every kernel of a file of csrc/kernels/cuda."""
    nvcc, dump = shutil.which("nvcc"), cuobjdump()
    if nvcc is None or dump is None:
        pytest.skip("needs nvcc and cuobjdump")
    number, cubin = ARCHITECTURES[architecture], Path(FOLDER.name) / f"{file}.{architecture}.cubin"
    done = subprocess.run(
        [nvcc, "-std=c++20", "-O3", "-I", str(ROOT / "csrc"), "--expt-relaxed-constexpr",
         "-Werror=all-warnings", f"-gencode=arch=compute_{number},code=sm_{number}",
         "-Xptxas", "-v", "-cubin", "-o", str(cubin),
         str(ROOT / f"csrc/kernels/cuda/{file}.cu")],
        capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    sass = subprocess.run([dump, "-sass", str(cubin)], capture_output=True, text=True, check=True)
    code = dict(_functions(sass.stdout))
    said = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        done.stderr,
        re.DOTALL,
    )
    return [
        Kernel(name, int(registers), int(stack), int(stores) + int(loads), code[name])
        for name, stack, stores, loads, registers in said
    ]


def _functions(sass: str) -> Iterator[tuple[str, Counter[str]]]:
    for part in sass.split("Function : ")[1:]:
        name, _, text = part.partition("\n")
        lines = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Zx0-9_.]*)", text)
        yield name.strip(), Counter(lines)


def kernels_of(file: str, architecture: str) -> list[Kernel]:
    """As :func:`compiled`, once for all tests."""
    kernels: list[Kernel] = begun(compiled, file, architecture).result()
    return kernels


PAIRS = [(f, a) for f in FILES for a in ARCHITECTURES if f != OF_HOPPER or a == "sm_90a"]
BEFOREHAND = [(compiled, *pair) for pair in PAIRS]
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def in_fragments(kernel: Kernel) -> bool:
    """Whether it is one of bitmask's for tensor cores."""
    return "TensorCores" in kernel.name


def each(kernel: Kernel) -> int:
    """The first number among the template arguments of a kernel: tokens, or tiles of them."""
    return int(re.search(r"Li(\d+)E", kernel.name)[1])  # type: ignore[index]


def every_file(*stems: str) -> pytest.MarkDecorator:
    """Those of these formats, for both architectures."""
    pairs = [(f, a) for f, a in PAIRS if f.startswith(stems) and f != OF_HOPPER]
    return pytest.mark.parametrize(("file", "architecture"), pairs)


def half(kernel: Kernel) -> bool:
    """By the mangled name of its first template argument."""
    return re.search("_kernelI(6__half|13__nv_bfloat16)", kernel.name) is not None


@pytest.mark.parametrize(("file", "architecture"), PAIRS)
def test_nothing_spills(file: str, architecture: str) -> None:
    kernels = kernels_of(file, architecture)
    halves, floats, most_registers = FILES[file]
    assert (sum(map(half, kernels)), len(kernels)) == (halves, halves + floats)
    for kernel in kernels:
        assert (kernel.stack, kernel.spilled) == (0, 0), kernel.name
        assert kernel.registers <= most_registers, kernel.name
        assert kernel.count("LDL") == kernel.count("STL") == 0, kernel.name


@every_file("block", "nm")
def test_halves_go_through_tensor_cores_and_float_does_not(file: str, architecture: str) -> None:
    product = PRODUCTS[file.partition("_")[0]]
    for kernel in kernels_of(file, architecture):
        if half(kernel):
            kind = f"{product}.F32" + (".BF16" if "bfloat16" in kernel.name else "")
            assert kernel.count("HMMA") == kernel.instructions[kind] > 0, kernel.name
            assert kernel.count("LDSM.16.M88.4") > 0, kernel.name
        else:
            assert kernel.count("HMMA") == 0 < kernel.count("FFMA"), kernel.name
            assert kernel.count("LDS.128") > 0, kernel.name


@every_file("block", "nm", "bitmask")
def test_copies_take_16_bytes_and_go_past_registers(file: str, architecture: str) -> None:
    """All but those of 2:4's places, 4 or 8 bytes of a row."""
    for kernel in kernels_of(file, architecture):
        few = kernel.instructions["LDGSTS.E"] + kernel.instructions["LDGSTS.E.64"]
        copies = kernel.count("LDGSTS")
        assert copies - few == kernel.count("LDGSTS.E.BYPASS.128") > 2 * few, kernel.name
        assert (few > 0) == ("nm_kernel" in kernel.name), kernel.name


@every_architecture
def test_bits_are_ranked_four_columns_at_once(architecture: str) -> None:
    """One count of bits for eight positions of a lane, and no branch for each, few tokens."""
    for kernel in kernels_of("bitmask", architecture):
        if in_fragments(kernel):
            continue
        tokens, columns = each(kernel), 16 if half(kernel) else 8
        assert kernel.count("FFMA") == columns // 4 * 8 * tokens, kernel.name
        assert kernel.count("POPC") < 24, kernel.name
        if tokens <= 4:
            most = {"sm_80": 32, "sm_90a": 48}[architecture]  # meetings of a cluster have some
            assert kernel.count("BSSY") < most, kernel.name


@every_architecture
def test_bitmask_expands_in_registers_and_multiplies_all_tokens(architecture: str) -> None:
    """16 columns at once: a load per position of a lane, and for every tile four products."""
    kernels = [k for k in kernels_of("bitmask", architecture) if in_fragments(k)]
    assert sorted(map(each, kernels)) == [1, 1, 2, 2, 4, 4, 8, 8]
    for kernel in kernels:
        kind = f"{PRODUCTS['bitmask']}.F32" + (".BF16" if "bfloat16" in kernel.name else "")
        assert kernel.count("HMMA") == kernel.instructions[kind] == 4 * each(kernel), kernel.name
        assert kernel.count("LDS.U.16") + kernel.count("LDS.U16") == 32, kernel.name
        assert kernel.count("LDG.E.64") >= each(kernel), kernel.name
        assert kernel.count("POPC") < 24, kernel.name
        assert kernel.registers <= {1: 128, 2: 128, 4: 168, 8: 255}[each(kernel)], kernel.name


@every_architecture
def test_a_cluster_shares_a_unit_where_there_are_clusters(architecture: str) -> None:
    for kernel in kernels_of("bitmask", architecture):
        assert (kernel.count("UCGABAR") > 0) == (architecture == "sm_90a"), kernel.name


@every_architecture
def test_csr_reads_16_bytes_of_values_and_neighbouring_tokens(architecture: str) -> None:
    kernels = kernels_of("csr_rows", architecture)
    for kernel in kernels:
        if "few_kernel" in kernel.name:
            assert kernel.count("LDG.E.128") > 0, kernel.name
        else:
            wide = {1: "LDS", 2: "LDS.64", 4: "LDS.128"}[each(kernel)]
            assert kernel.count(wide) > 0, kernel.name
    assert sum("few_kernel" in k.name for k in kernels) == 15


def test_warpgroups_multiply_what_the_copy_unit_brings() -> None:
    """Four products of 16 columns per 128 tokens, one after the other without waiting; a copy of W
    and one of x by one thread; sums turned by MOVM to be written in pairs of rows."""
    for kernel in kernels_of(OF_HOPPER, "sm_90a"):
        parts = each(kernel) // 128
        kind = "HGMMA.64x128x16.F32" + (".BF16" if "bfloat16" in kernel.name else "")
        assert kernel.count("HGMMA") == kernel.instructions[kind] == 4 * parts, kernel.name
        assert kernel.count("WARPGROUP.ARRIVE") == 1, kernel.name
        assert kernel.count("WARPGROUP.DEPBAR") == 2, kernel.name
        of_x = "UTMALDG.4D.IM2COL" if "PixelWindow" in kernel.name else "UTMALDG.2D"
        copies = kernel.instructions
        assert copies["UTMALDG.2D"] + copies["UTMALDG.4D.IM2COL"] == 2, kernel.name
        assert copies[of_x] >= 1 and kernel.count("LDGSTS") == 0, kernel.name
        assert kernel.count("MOVM.16.MT88") == 32 * parts, kernel.name
