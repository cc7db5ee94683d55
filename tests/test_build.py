"""What is shipped: torch-free kernels, a complete sdist, a wheel without a compiler."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "csrc"
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)

pytestmark = pytest.mark.skipif(not SOURCES.exists(), reason="not a checkout")


def includes(path: Path) -> list[str]:
    return INCLUDE.findall(path.read_text())


def sources(*folders: str) -> list[Path]:
    return [p for f in folders for p in sorted((SOURCES / f).rglob("*")) if p.is_file()]


def test_formats_and_kernels_know_no_torch() -> None:
    files = sources("formats", "kernels")
    assert len(files) > 10
    for path in files:
        bad = [i for i in includes(path) if re.match(r"(torch|ATen|c10|caffe2|pybind11)/", i)]
        assert not bad, f"{path.relative_to(ROOT)} includes {bad}"


def test_instruction_set_files_share_no_inline_code() -> None:
    """An inline function compiled for AVX-512 could be the copy that the linker keeps."""
    files = [
        p for p in sources("kernels/cpu") if re.search(r"_(avx2|avx512\w*)\.cpp$|\.inc$", p.name)
    ]
    assert files
    for path in files:
        for include in includes(path):
            assert include == "immintrin.h" or re.match(
                r"(kernels/cpu|formats)/\w+\.(h|inc)$", include
            )
    headers = {i for p in files for i in includes(p) if i.endswith(".h") and "/" in i}
    for header in headers:
        system = {i for i in includes(SOURCES / header) if "/" not in i}
        assert system <= {"cstdint"}, f"{header} brings {system} into instruction set files"


def test_every_instruction_set_file_has_a_row_in_the_table() -> None:
    rows = re.findall(
        r"KERNEL\((\w+), \w+, \w+, (\w+)\)", (SOURCES / "kernels/cpu/table.def").read_text()
    )
    files = {
        tuple(p.stem.rsplit("_", 1))
        for p in sources("kernels/cpu")
        if re.search(r"_(scalar|avx2|avx512)\.cpp$", p.name)
    }
    assert files == {row for row in rows if row != ("stem", "isa")}


def checkout(folder: Path) -> Path:
    """What a build needs of this checkout, copied, so that building leaves no trace here."""
    for name in ("csrc", "sparseprune", "cmake"):
        if (ROOT / name).exists():
            ignore = shutil.ignore_patterns("*.so", "__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("CMakeLists.txt", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder)
    if not (folder / "README.md").exists():
        (folder / "README.md").write_text("")
    return folder


def run(*command: str, cwd: Path, **environment: str) -> None:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_sdist_holds_the_native_sources(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    folder = checkout(tmp_path)
    build = "import setuptools.build_meta as b; b.build_sdist('dist')"
    run(sys.executable, "-c", build, cwd=folder)
    (archive,) = (folder / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {n.partition("/")[2] for n in tar.getnames()}
    wanted = {p.relative_to(ROOT).as_posix() for p in sources(".")}
    wanted |= {p.relative_to(ROOT).as_posix() for p in (ROOT / "cmake").glob("*.cmake")}
    assert wanted | {"CMakeLists.txt", "setup.py", "sparseprune/py.typed"} <= names


def test_wheel_without_native_code(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    folder = checkout(tmp_path)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    wheel = (*pip, "wheel", ".", "--no-build-isolation", "--no-deps", "-q", "-w", "dist")
    run(*wheel, cwd=folder, SPARSEPRUNE_NATIVE="0")
    (archive,) = (folder / "dist").glob("*.whl")
    assert archive.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(archive) as z:
        names = z.namelist()
        z.extractall(folder / "installed")
    assert "sparseprune/formats/csr.py" in names
    assert not [n for n in names if n.endswith(".so") or n.startswith(("tests", "csrc"))]
    code = "import sparseprune; print(sparseprune.__file__)"
    shutil.rmtree(folder / "sparseprune")
    run(sys.executable, "-c", code, cwd=folder, PYTHONPATH=str(folder / "installed"))


@pytest.mark.slow
@pytest.mark.parametrize("sanitize", ["", "address,undefined"])
def test_native_kernels_between_guard_pages(tmp_path: Path, sanitize: str) -> None:
    cmake = shutil.which(
        "cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if cmake is None or shutil.which("c++") is None:
        pytest.skip("needs cmake and a C++ compiler")
    configure = (cmake, "-S", str(ROOT / "tests/native"), "-B", str(tmp_path))
    run(*configure, f"-DSPARSEPRUNE_SANITIZE={sanitize}", cwd=tmp_path)
    run(cmake, "--build", str(tmp_path), "-j2", cwd=tmp_path)
    run(str(tmp_path / "test_kernels"), "20", cwd=tmp_path)
    run(str(tmp_path / "test_cuda"), cwd=tmp_path)
