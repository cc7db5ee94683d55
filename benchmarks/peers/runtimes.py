"""The runtimes that are compared, one class each. Adding one is a class and an entry of `PEERS`.

Threads are set in every one, inputs have the runtime's own form before the clock starts, and no
output is copied inside the timed part. Weights are float32 everywhere, and so are sums and products
except where the name says otherwise.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from sparseprune.bench import compile_frozen
from sparseprune.convert import convert

from . import deepsparse_process
from .prepared import InProcess, Prepared
from .problem import Problem

TOLERANCE = 1e-4
"""Largest difference of outputs, relative to the largest output, that may still be timed."""

TOLERANCE_BF16 = 0.3
"""Random BatchNorm networks amplify rounding: torch's own bfloat16 differs by 0.14 in ResNet-50."""


class Peer:
    """One runtime.

    Attributes:
        name: in tables and files.
        package: whose version matters.
        dense: multiplies by zeros.
        fp32: computes in float32; what does not is shown apart. "Best dense" is dense and fp32.
        tolerance: see `TOLERANCE`.
        reads_onnx: needs the package that writes such files, too.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    dense: ClassVar[bool] = True
    fp32: ClassVar[bool] = True
    tolerance: ClassVar[float] = TOLERANCE
    reads_onnx: ClassVar[bool] = False

    def version(self) -> str:
        """Of the package; "" where it is not installed."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return ""

    def missing(self) -> str:
        """Why this runtime cannot be used here; "" if it can."""
        if self.reads_onnx and importlib.util.find_spec("onnx") is None:
            return "onnx is not installed"
        return "" if self.version() else f"{self.package} is not installed"

    def prepare(self, problem: Problem, threads: int) -> Prepared:
        """The problem's network, loaded."""
        raise NotImplementedError


class SparsePrune(Peer):
    """sparseprune.convert(), as users call it."""

    name, package, dense = "sparseprune", "sparseprune", False

    def version(self) -> str:
        """Of the sources that are in use, installed or not."""
        from sparseprune.version import __version__

        return __version__

    def prepare(self, problem: Problem, threads: int) -> Prepared:
        """Converted for this input with the threads that torch has."""
        model, x = convert(problem.model, problem.x), problem.x
        return InProcess(lambda: model(x), mode=torch.inference_mode)


class TorchEager(Peer):
    """The pruned dense network as it is."""

    name, package = "torch eager", "torch"

    def prepare(self, problem: Problem, threads: int) -> Prepared:
        """Nothing to prepare."""
        model, x = problem.model, problem.x
        return InProcess(lambda: model(x), mode=torch.inference_mode)


class TorchCompile(Peer):
    """torch.compile with its weights frozen in."""

    name, package = "torch compile", "torch"

    def prepare(self, problem: Problem, threads: int) -> Prepared:
        """Compiled for this input with the threads that torch has."""
        run, why_not = compile_frozen(problem.model, problem.x)
        if run is None:
            raise RuntimeError(why_not)
        # Compiled under no_grad: in another mode it would be compiled again, without freezing.
        return InProcess(run, mode=torch.no_grad)


class OnnxRuntime(Peer):
    """ONNX Runtime's CPU provider; input and output are bound, so that run() allocates nothing."""

    name, package, reads_onnx = "ONNX Runtime", "onnxruntime", True

    def prepare(self, problem: Problem, threads: int) -> Prepared:
        """Optimised as far as it goes, one operator after the other."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        session = ort.InferenceSession(
            str(problem.onnx()), options, providers=["CPUExecutionProvider"]
        )
        x, expected = problem.x.numpy(), problem.expected.numpy()
        y = ort.OrtValue.ortvalue_from_shape_and_type(expected.shape, expected.dtype, "cpu")
        binding = session.io_binding()
        binding.bind_cpu_input("input", x)
        binding.bind_ortvalue_output("output", y)
        return InProcess(
            lambda: session.run_with_iobinding(binding), lambda _: torch.from_numpy(y.numpy())
        )


class OpenVino(Peer):
    """OpenVINO's CPU plugin in one stream; outputs are read where they lie."""

    name, package, reads_onnx = "OpenVINO", "openvino", True
    precision: ClassVar[str] = "f32"

    def prepare(self, problem: Problem, threads: int) -> Prepared:
        """Compiled for latency, in the precision asked for whatever the processor prefers."""
        import openvino

        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self.precision,
        }
        compiled = openvino.Core().compile_model(str(problem.onnx()), "CPU", settings)
        request = compiled.create_infer_request()
        x = problem.x.numpy()
        request.set_input_tensor(openvino.Tensor(x, shared_memory=True))

        return InProcess(
            lambda: request.infer(share_outputs=True),  # as fast as start_async() and wait()
            lambda _: torch.tensor(request.get_output_tensor().data),
        )


class OpenVinoBf16(OpenVino):
    """The same with products of bfloat16: another precision, so shown apart."""

    name, fp32, tolerance = "OpenVINO bf16", False, TOLERANCE_BF16
    precision = "bf16"

    def missing(self) -> str:
        """bfloat16 must be in the processor too; emulated it says nothing."""
        if why_not := super().missing():
            return why_not
        import openvino

        known = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return "" if "BF16" in known else "the processor has no bfloat16"


@dataclass
class DeepSparse(Peer):
    """DeepSparse, the sparse peer, under an interpreter of its own."""

    python: Path = deepsparse_process.PYTHON
    name, package, dense, reads_onnx = "DeepSparse", "deepsparse", False, True

    def version(self) -> str:
        """Of what is installed for `python`; "" where nothing is."""
        return deepsparse_process.version(self.python)

    def missing(self) -> str:
        """The environment may not have been made."""
        if self.version():
            return super().missing()
        return f"not installed for {self.python}; see make peers"

    def prepare(self, problem: Problem, threads: int) -> Prepared:
        """Loaded by a worker that lives until close()."""
        return deepsparse_process.DeepSparseProcess(self.python, problem, threads)


PEERS: tuple[Peer, ...] = (
    SparsePrune(),
    TorchEager(),
    TorchCompile(),
    OnnxRuntime(),
    OpenVino(),
    OpenVinoBf16(),
    DeepSparse(),
)
