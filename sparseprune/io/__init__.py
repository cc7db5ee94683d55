"""save() and load(): one safetensors file that a fresh process can run. No pickle, no code.

    save(convert(model, x), "fast.safetensors")
    fast = load("fast.safetensors")

The file holds the layers as types and arguments, the forward of custom classes as a graph of
named tensor functions, programs as lines of steps, and every tensor. All names are checked against
allow-lists before anything is built.
"""

from __future__ import annotations

import os
import warnings

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from sparseprune.copying import copy_settled, copy_with
from sparseprune.errors import bad, bad_type
from sparseprune.io import file, network, programs
from sparseprune.io.onto import load_onto
from sparseprune.report import Report
from sparseprune.version import __version__

__all__ = ["load", "save"]


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Writes a network, converted or dense, to one safetensors file.

    It is saved as it runs in eval mode. A forward that torch.fx cannot trace (branches or loops on
    tensor values) is not in the file: a warning says so, and ``load`` then needs ``model=``.
    Optional arguments of a forward whose default is None, a bool or a string keep that default.
    Programs are saved as well; a warning says where they cannot be.
    Atomic: a crash leaves the old file, if any, as it was.

    Raises:
        TypeError: model is not a module.
        ValueError: path is a folder, or a tensor has no values or cannot be stored.
        FileNotFoundError: the folder of path does not exist.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    if not isinstance(model, nn.Module):
        raise bad_type("save", "model", "an nn.Module", type(model).__name__, "pass the network")
    if os.path.isdir(path):
        raise bad("save", "path", "a file", f"the folder {os.fspath(path)!r}", "name a file in it")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta or is_lazy(tensor):
            raise bad("save", f"tensor {name!r}", "one with values", "none", "load them first")
        if tensor.layout != torch.strided:
            got = str(tensor.layout)
            raise bad("save", f"tensor {name!r}", "a dense one", got, "store it with .to_dense()")
    copy = _copy(model).eval()
    spec, reason = programs.take_off(copy)
    manifest, tensors = network.describe(copy)
    rebuilt = copy
    if manifest["untraceable"] is None:
        try:  # what load will do, so that no file promises more than it keeps
            rebuilt = network.rebuild(manifest, dict(tensors))
        except Exception as error:
            manifest |= {"graph": None, "untraceable": _why(error)}
    if manifest["untraceable"] is not None:
        warnings.warn(
            f"save: the file holds the layers but not the forward of {manifest['class']} "
            f"({manifest['untraceable']}); load it with load(path, model={manifest['class']}(...))",
            stacklevel=2,
        )
    if spec is not None:
        try:
            programs.attach(rebuilt, spec)
        except Exception as error:
            spec, reason = None, _why(error)
    if reason is not None:
        warnings.warn(f"save: the file holds the layers but not the programs of "
                      f"{manifest['class']} ({reason}); what load gives runs layer by layer",
                      stacklevel=2)  # fmt: skip
    report = getattr(model, "report", None)
    manifest |= {
        "programs": spec,
        "sparseprune": __version__,
        "torch": torch.__version__,
        "sparsity": network.sparsities(copy),
        "report": report.to_dict() if isinstance(report, Report) else None,
    }
    try:
        file.write(path, manifest, tensors)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = f"one that safetensors refuses ({error})"
        raise bad("save", "model", "one of plain tensors", reason, "convert the tensors") from error


def load(path: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """The network that :func:`save` wrote, in eval mode on the CPU, with its ``report``.

    Packed layers use the best backend of this machine. Nothing in the file is ever run as code.

    Args:
        path: the file.
        model: a freshly made dense model of the saved class. Needed where the forward could not
            be saved; with it, the result is a copy of this model (on its device) with the saved
            layers and tensors. The given model is not changed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a damaged, foreign or disallowed file, or a model that does not fit it.
        TypeError: model is not a module.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise bad_type("load", "model", "an nn.Module", type(model).__name__, "pass an instance")
    argument = f"file {os.fspath(path)!r}"
    try:
        manifest, tensors = file.read(path)
        reason = manifest["untraceable"]
        if model is None and reason is not None:
            name = manifest["class"]
            raise file.Unreadable(
                f"one without the forward of {name} ({reason})", f"load(path, model={name}(...))"
            )
        report = None if manifest["report"] is None else Report.from_dict(manifest["report"])
    except file.Unreadable as error:
        raise bad("load", argument, file.WHOLE, error.got, error.way_out) from error
    except OSError:
        raise
    except Exception as error:  # whatever a damaged manifest leads to
        got = f"one with a manifest that does not fit ({_why(error)})"
        raise bad("load", argument, file.WHOLE, got, file.SAVE_AGAIN) from error
    loaded = _assemble(argument, manifest, tensors, model)
    if report is not None:
        loaded.report = report  # type: ignore[assignment]
    return loaded


def _assemble(
    argument: str, manifest: network.Manifest, tensors: network.Tensors, model: nn.Module | None
) -> nn.Module:
    spec = manifest.get("programs")  # None as well in files of before there were programs
    try:
        if model is None:
            loaded = network.rebuild(manifest, tensors)
            if spec is not None:
                programs.attach(loaded, spec)
            return loaded
        loaded = load_onto(model, manifest, tensors)
    except Exception as error:  # whatever the manifest leads to: the file is at fault
        if model is not None:
            way_out = "pass a new model, made with the arguments of the saved one"
            raise bad("load", argument, "of the given model", _why(error), way_out) from error
        got = f"one that is not allowed or does not fit together ({_why(error)})"
        raise bad("load", argument, file.WHOLE, got, file.SAVE_AGAIN) from error
    if spec is not None:
        try:
            programs.attach(loaded, spec)
        except Exception as error:  # the given class may hold its layers in another way
            warnings.warn(f"load: the programs of {argument} do not fit the given model "
                          f"({_why(error)}); it runs layer by layer", stacklevel=3)  # fmt: skip
    return loaded


def _why(error: Exception) -> str:
    return str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"


def _copy(model: nn.Module) -> nn.Module:
    """A copy with plain weights; it shares them with the model unless they must be computed."""
    computed = any(parametrize.is_parametrized(m) or m._forward_pre_hooks for m in model.modules())
    return copy_settled(model) if computed else copy_with(model, {})
