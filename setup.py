"""Hands the native build to CMake (CMakeLists.txt). Everything else is in pyproject.toml.

SPARSEPRUNE_NATIVE=0 installs the pure-Python package; SPARSEPRUNE_CUDA=0 leaves CUDA out.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Configures, builds and installs the CMake project beside the Python files."""

    def run(self):
        target = ROOT if self.inplace else Path(self.build_lib).resolve()
        # A checkout installed with -e keeps its build folder, so that a change compiles alone.
        build = ROOT / "build" / sys.implementation.cache_tag if self.inplace else self.build_temp
        build = Path(build).resolve()
        # pip does not put the environment's own cmake and ninja on the path without isolation.
        path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
        cuda = "OFF" if os.environ.get("SPARSEPRUNE_CUDA") == "0" else "ON"
        configure = ["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(build)]
        configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-DSPARSEPRUNE_CUDA={cuda}"]
        for command in (
            configure,
            ["cmake", "--build", str(build)],
            ["cmake", "--install", str(build), "--prefix", str(target)],
        ):
            subprocess.run(command, check=True, env={**os.environ, "PATH": path})

    def get_outputs(self):
        return [str(p) for p in (Path(self.build_lib) / "sparseprune").glob("*.so")]


native = os.environ.get("SPARSEPRUNE_NATIVE") != "0"
setup(
    ext_modules=[Extension("sparseprune._native", [])] if native else [],
    cmdclass={"build_ext": CMakeBuild},
)
