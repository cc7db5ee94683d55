"""DeepSparse, which needs an older Python and NumPy: reached through pipes (see worker.py)."""

from __future__ import annotations

import json
import os
import select
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseprune.errors import bad

from .problem import OLD_OPSET, Problem

PYTHON = Path("build/deepsparse/bin/python")
WORKER = Path(__file__).with_name("worker.py")
PATIENCE_S = 120
"""For one answer: large models take a while to load."""

# Neither usage reports nor log lines between the timed calls.
SILENT = {"NM_DISABLE_ANALYTICS": "1", "NM_LOGGING_LEVEL": "ERROR"}


def version(python: Path) -> str:
    """The version installed for that interpreter; "" where there is none."""
    if not python.is_file():
        return ""
    command = [str(python), "-I", "-c", "import deepsparse; print(deepsparse.__version__)"]
    env = {**os.environ, **SILENT}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    return done.stdout.split()[-1] if done.returncode == 0 else ""


class DeepSparseProcess:
    """A network loaded in a worker; see `prepared.Prepared`."""

    def __init__(self, python: Path, problem: Problem, threads: int) -> None:
        """Starts a worker, which loads the network and runs it once."""
        self._result = problem.folder / "deepsparse.npy"
        # -I: of this environment it must see neither the folder nor PYTHONPATH.
        model = problem.onnx(OLD_OPSET)
        command = [python, "-I", WORKER, model, problem.npy, self._result, threads]
        self._log = problem.folder / "deepsparse.log"
        with self._log.open("w") as log:
            self._worker = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **SILENT},
            )
        try:
            cores = self._answer()["cores"]
            if cores != threads:
                raise bad("peers", "DeepSparse", f"on {threads} cores", cores, "pass --threads")
        except BaseException:
            self.close()
            raise

    def output(self) -> Tensor:
        """What came out when the network was loaded."""
        return torch.from_numpy(np.load(self._result))

    def burst(self, warm_s: float, timed_s: float) -> list[float]:
        """See `worker.burst`."""
        assert self._worker.stdin is not None
        self._worker.stdin.write(json.dumps({"warm_s": warm_s, "timed_s": timed_s}) + "\n")
        self._worker.stdin.flush()
        ms: list[float] = self._answer()["ms"]
        return ms

    def close(self) -> None:
        """Ends the worker."""
        self._worker.kill()
        self._worker.communicate()

    def _answer(self) -> dict[str, Any]:
        """The next line of the worker, or an error with the last line that it wrote on stderr."""
        assert self._worker.stdout is not None
        ready, _, _ = select.select([self._worker.stdout], [], [], PATIENCE_S)
        line = self._worker.stdout.readline() if ready else ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        said = self._log.read_text(errors="replace").strip().splitlines() or ["nothing"]
        why = "ended" if ready else f"did not answer for {PATIENCE_S} s"
        raise RuntimeError(f"the DeepSparse worker {why}; it said last: {said[-1][:200]}")
