"""How ops become ops of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Kernels = Mapping[str, tuple[Callable[..., Any], Callable[..., Any]]]
"""Name of an op -> its reference, its fake kernel."""
Gradients = Mapping[str, tuple[Callable[..., Any], Callable[..., Any]]]
"""Name of an op -> what it saves for its gradient, the gradient."""


def register(
    namespaces: Sequence[str],
    schemas: Mapping[str, str],
    kernels: Kernels,
    gradients: Gradients | None = None,
    autocast: Sequence[str] = (),
) -> None:
    """One schema, one fake, one gradient; the reference runs where no compiled kernel does.

    Under autocast the inputs of ops with a gradient, and of those in `autocast`, become float32.
    """
    gradients = gradients or {}
    for namespace in namespaces:
        for name, schema in schemas.items():
            op = f"{namespace}::{name}"
            reference, fake = kernels[name]
            torch.library.define(op, schema)
            torch.library.register_kernel(op, "default", reference)
            torch.library.register_fake(op, fake)
        for name in (*gradients, *autocast):
            for device in ("cpu", "cuda"):  # all in one dtype, that of a model under autocast
                torch.library.register_autocast(f"{namespace}::{name}", device, torch.float32)
        for name, (save, backward) in gradients.items():
            torch.library.register_autograd(f"{namespace}::{name}", backward, setup_context=save)
