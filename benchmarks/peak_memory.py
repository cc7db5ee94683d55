"""Peak resident memory of inference: torch eager and the converted network, as CSV.

    python benchmarks/peak_memory.py > benchmarks/results/memory-<cpu>.csv

Each side runs in a process of its own that only loads a saved network and calls it: eager from a
state dict on disk, sparseprune from its own file. The peak is counted from before the network is
loaded, so that what the imports take is left out. Linux alone.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import sparseprune as sp
from sparseprune import zoo
from sparseprune.bench import stem_and_classifier
from sparseprune.machine import machine

CASES = (("resnet50", 1), ("resnet50", 16), ("mobilenet_v1", 1), ("mobilenet_v1", 16), ("vgg16", 1))
SPARSITY = 0.9
KEYS = ("cpu", "threads", "isa", "torch", "sparseprune", "date")


def resident(word: str) -> float:
    """Megabytes of this process now ("VmRSS") or at their most ("VmHWM")."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(word)).split()[1]) / 1024


def side(kind: str, name: str, batch: int, path: str) -> None:
    """What one process does: load, run three times, print megabytes and seconds."""
    x = torch.randn(batch, 3, 224, 224)
    zoo.build("lenet_300_100")(torch.randn(1, 1, 28, 28))  # what torch loads on first use
    before = resident("VmRSS")
    with torch.inference_mode():
        if kind == "eager":
            with torch.device("meta"):
                model = zoo.build(name)
            model.load_state_dict(torch.load(path, weights_only=True, mmap=True), assign=True)
            model.eval()
        else:
            model = sp.load(path)
        loaded = resident("VmRSS")
        for _ in range(3):
            model(x)
    print(f"{loaded - before:.0f} {resident('VmHWM') - before:.0f}")


def measure(kind: str, name: str, batch: int, path: Path) -> tuple[str, ...]:
    """Megabytes of the loaded network and at the peak, in a fresh process."""
    command = [sys.executable, __file__, kind, name, str(batch), str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return tuple(done.stdout.split())


def main() -> None:
    """Measure and print."""
    here = machine()
    out = csv.writer(sys.stdout)
    out.writerow((*KEYS, "network", "batch", "sparsity", "kind", "loaded_mb", "peak_mb"))
    for name, batch in CASES:
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            model = zoo.build(name).eval()
            sp.prune(model, SPARSITY, scope="local", ignore=stem_and_classifier(model))
            dense, packed = Path(folder) / "dense.pt", Path(folder) / "packed.safetensors"
            torch.save(model.state_dict(), dense)
            sp.save(sp.convert(model, torch.randn(batch, 3, 224, 224)), packed)
            for kind, path in (("eager", dense), ("sparseprune", packed)):
                numbers = measure(kind, name, batch, path)
                out.writerow([*(here[key] for key in KEYS), name, batch, SPARSITY, kind, *numbers])
                sys.stdout.flush()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        side(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        main()
