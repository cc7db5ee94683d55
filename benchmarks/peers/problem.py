"""A pruned network, its input and expected output, in every form that a runtime may ask for."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from . import attention

OPSET, OLD_OPSET = 17, 13
"""The newest that this exporter writes (it has attention and layer norms), and DeepSparse reads."""

attention.register(OLD_OPSET)


@dataclass
class Problem:
    """What every runtime gets; files are written to `folder` when the first one asks for them."""

    model: nn.Module
    x: Tensor
    folder: Path

    @cached_property
    def expected(self) -> Tensor:
        """The output of the pruned dense network in torch eager."""
        with torch.inference_mode():
            return self.model(self.x).clone()

    def onnx(self, opset: int = OPSET) -> Path:
        """The network as an ONNX file of this batch, from tensor "input" to tensor "output"."""
        path = self.folder / f"model-{opset}.onnx"
        if path.exists():
            return path
        with warnings.catch_warnings():
            # The exporter based on torch.export cannot write old opsets.
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.onnx.export(
                self.model,
                (self.x,),
                str(path),
                opset_version=opset,
                input_names=["input"],
                output_names=["output"],
                dynamo=False,
            )
        return path

    @cached_property
    def npy(self) -> Path:
        """The input as a NumPy file."""
        path = self.folder / "input.npy"
        np.save(path, self.x.numpy())
        return path
