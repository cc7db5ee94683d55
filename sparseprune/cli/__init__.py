"""The sparseprune command: demo, bench, prune, convert, profile, info."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from sparseprune import zoo
from sparseprune.cli import commands
from sparseprune.machine import threads as with_threads


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command: 0, or 2 after a line on stderr that says what was wrong with it.

    The demo gives 1 if one of its promises does not hold.
    """
    args = parser().parse_args(argv)
    console = Console()
    if not console.is_terminal:
        console = Console(width=170)  # tables in a file stay in one piece
    try:
        with with_threads(args.threads):
            return int(args.run(args, console))
    except (ValueError, TypeError, OSError, ImportError) as error:
        if args.debug:
            raise
        line = " ".join(str(error).split())
        print(f"sparseprune {args.command}: error: {line}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    description = "Prune a PyTorch network, then make its zeros pay."
    top = argparse.ArgumentParser("sparseprune", description=description)
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_demo, _bench, _prune, _convert, _profile, _info):
        command: argparse.ArgumentParser = add(subparsers)
        text = "threads of torch (default: its own choice)"
        command.add_argument("--threads", type=positive, metavar="N", help=text)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return top


def positive(text: str) -> int:
    """An argument that must be a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def _demo(subparsers: Any) -> argparse.ArgumentParser:
    command = _command(
        subparsers,
        commands.demo,
        "The whole job on digits: train, prune, convert, save, load, time, draw.",
        """Trains two LeNets, prunes and retrains them, converts, saves and reloads them in a fresh
        process, and times larger networks dense and sparse. Needs sparseprune[demo]. Exits with 1
        if accuracy or outputs are not what the demo promises.""",
    )
    text = "folder for tables and pictures (default: sparseprune-demo)"
    out = Path("sparseprune-demo")
    command.add_argument("--out", type=Path, default=out, metavar="DIR", help=text)
    text = "repetitions of training (default: 3)"
    command.add_argument("--seeds", type=positive, default=3, metavar="N", help=text)
    return command


def _bench(subparsers: Any) -> argparse.ArgumentParser:
    command = _command(
        subparsers,
        commands.bench,
        "Time a network dense and sparse, side by side.",
        """Builds the network with random weights (times do not depend on training), removes the
        smallest weights of each layer, converts, checks the outputs against dense and times both
        in turn in one run. By default a first convolution that reads an image and a last Linear
        stay dense, as is usual, unless the network has nothing but Linear layers.""",
    )
    _model(command, required=True)
    _value(command, "--sparsity", "shares of weights to remove, each in [0, 1)", [0.9],
           type=float, nargs="+", metavar="S")  # fmt: skip
    _batch(command)
    text = "prune also that first convolution and last Linear"
    command.add_argument("--all-layers", action="store_true", help=text)
    text = "also time torch.compile with frozen weights (a minute or so; needs a C++ compiler)"
    command.add_argument("--compile", action="store_true", help=text)
    _value(command, "--seconds", "of timing per row", 0.5, type=float, metavar="S")
    _file(command, "--json", "write rows and machine as JSON")
    _file(command, "--csv", "write rows and machine as CSV")
    return command


def _prune(subparsers: Any) -> argparse.ArgumentParser:
    command = _command(
        subparsers,
        commands.prune,
        "Set the least important weights of a checkpoint to zero.",
        """With --model, --weights is a state_dict of that network of the zoo. Without, it may be
        any state_dict: tensors of two to five dimensions named *.weight are pruned, except where
        the name says embedding; --ignore names others. No data is read and nothing is retrained:
        check the accuracy afterwards. Zeros alone change neither size nor speed: see convert.""",
    )
    _model(command)
    _weights(command)
    text = "share of weights to remove, in [0, 1)"
    command.add_argument("--sparsity", type=float, required=True, metavar="S", help=text)
    _value(command, "--criterion", "what makes a weight important", "magnitude")
    _value(command, "--scope", "rank all weights together (global), or per layer (local)", "global")
    _value(command, "--pattern", "where zeros may be", "unstructured")
    text = "modules or weights to leave alone, or 're:pattern'"
    command.add_argument("--ignore", nargs="+", default=[], metavar="NAME", help=text)
    _file(command, "--out", "pruned state_dict to write, as safetensors", required=True)
    _file(command, "--masks", "also write the masks, 1 bit per weight")
    return command


def _convert(subparsers: Any) -> argparse.ArgumentParser:
    command = _command(
        subparsers,
        commands.convert,
        "Pack the layers of a pruned network that run faster packed.",
        """Times every layer dense and packed on the given batch, keeps the faster, says why, and
        writes one safetensors file from which sparseprune.load rebuilds the network.""",
    )
    _model(command, required=True)
    _weights(command)
    _batch(command)
    _value(command, "--backend", "who computes packed layers, see info", "auto")
    _value(command, "--format", "how to pack", "auto")
    _value(command, "--keep-dense", "layers where packed is not faster (auto), or never", "auto")
    _file(command, "--out", "file to write", required=True)
    return command


def _profile(subparsers: Any) -> argparse.ArgumentParser:
    command = _command(
        subparsers,
        commands.profile,
        "Parameters, MACs, bytes and milliseconds of every layer.",
        """Of a network of the zoo (--model, with --weights or random ones), or of a file that
        convert wrote (--file, with --model or --shape for its example input). MACs three times:
        dense, of nonzero weights, and executed by the layers as they are.""",
    )
    _model(command)
    _weights(command)
    _file(command, "--file", "what convert wrote, in place of --weights")
    text = "of random example inputs, batch first, in place of the network's own"
    command.add_argument("--shape", type=positive, nargs="+", metavar="N", help=text)
    _batch(command)
    command.add_argument("--no-latency", action="store_true", help="count only, do not time")
    _file(command, "--json", "write machine, totals and layers as JSON")
    return command


def _info(subparsers: Any) -> argparse.ArgumentParser:
    command = _command(
        subparsers,
        commands.info,
        "What can run here: every format, backend and instruction set, or why not.",
        "Also names the machine, as benchmark files do.",
    )
    _file(command, "--json", "write the same as JSON")
    return command


def _command(
    subparsers: Any, run: Callable[[argparse.Namespace, Console], int], summary: str, details: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = subparsers.add_parser(
        run.__name__, help=summary, description=f"{summary} {details}"
    )
    command.set_defaults(run=run)
    return command


def _model(command: argparse.ArgumentParser, required: bool = False) -> None:
    text = f"network of the zoo: {', '.join(zoo.MODELS)}"
    command.add_argument("--model", required=required, metavar="NAME", help=text)


def _weights(command: argparse.ArgumentParser) -> None:
    _file(command, "--weights", "safetensors file of a state_dict (default: random weights)")


def _batch(command: argparse.ArgumentParser) -> None:
    _value(command, "--batch", "examples per call", 1, type=positive, metavar="N")


def _value(
    command: argparse.ArgumentParser, option: str, text: str, default: Any, **more: Any
) -> None:
    shown = " ".join(map(str, default)) if isinstance(default, list) else default
    more.setdefault("metavar", "NAME")
    command.add_argument(option, default=default, help=f"{text} (default: {shown})", **more)


def _file(command: argparse.ArgumentParser, option: str, text: str, required: bool = False) -> None:
    command.add_argument(option, type=Path, metavar="FILE", help=text, required=required)
