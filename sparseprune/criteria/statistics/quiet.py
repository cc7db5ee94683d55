"""Running a model without leaving a trace on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from sparseprune.modes import evaluating


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile, DistributedDataParallel and DataParallel."""
    wrappers = (DistributedDataParallel, nn.DataParallel)
    while isinstance(model, wrappers) or hasattr(model, "_orig_mod"):
        model = model.module if isinstance(model, wrappers) else model._orig_mod  # type: ignore[assignment]
    return model


@contextmanager
def undisturbed(model: nn.Module, weights: Iterable[nn.Parameter]) -> Iterator[None]:
    """Eval mode inside, and `weights` take gradients; afterwards all is as it was.

    Restored, whatever happens: training flags, requires_grad, buffers (BN statistics), torch's
    random state on the CPU and on the GPUs of the model, gradient and inference mode, fast paths.
    `.grad` is not touched: gradients come from torch.autograd.grad.
    """
    frozen = [weight for weight in weights if not weight.requires_grad]
    buffers = {buffer: buffer.clone() for buffer in model.buffers()}
    gpus = {p.device for p in model.parameters() if p.device.type == "cuda"}
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=list(gpus)))
        stack.enter_context(torch.inference_mode(False))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)  # it runs past the modules and their hooks
        stack.enter_context(evaluating(model))
        try:
            for weight in frozen:
                weight.requires_grad_(True)
            yield
        finally:
            for weight in frozen:
                weight.requires_grad_(False)
            with torch.no_grad():
                for buffer, before in buffers.items():
                    if not torch.equal(buffer, before):
                        buffer.copy_(before)


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention by plain products inside: the fused kernels have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield
