"""What each command of the command line does; its options are in cli.py."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from sparseprune import zoo
from sparseprune.cli import checkpoints
from sparseprune.errors import bad
from sparseprune.machine import machine


def demo(args: argparse.Namespace, console: Console) -> int:
    """sparseprune demo: 1 if a promise does not hold."""
    from sparseprune import demo

    try:
        demo.run(args.out, seeds=args.seeds)
    except demo.DemoError as error:
        if args.debug:
            raise
        print(f"sparseprune demo: {error}", file=sys.stderr)
        return 1
    return 0


def bench(args: argparse.Namespace, console: Console) -> int:
    """sparseprune bench"""
    from sparseprune import bench

    checkpoints.check_folders((args.json, args.csv))
    with console.status("") as status:
        rows = bench.bench(
            args.model,
            args.sparsity,
            batch=args.batch,
            compiled=args.compile,
            all_layers=args.all_layers,
            seconds=args.seconds,
            announce=status.update,
        )
    here = machine()
    _say(console, f"{here['cpu']}, {here['threads']} threads, {here['isa']}, torch {here['torch']}")
    console.print(bench.table(rows))
    if args.json is not None:
        bench.write_json(rows, args.json)
    if args.csv is not None:
        bench.write_csv(rows, args.csv)
    return 0


def prune(args: argparse.Namespace, console: Console) -> int:
    """sparseprune prune"""
    from sparseprune.prune import prune

    checkpoints.check_folders((args.out, args.masks))
    options = {key: getattr(args, key) for key in ("criterion", "scope", "pattern", "ignore")}
    if args.model is not None:
        model = _model(args)
        masks = prune(model, args.sparsity, **options)
        checkpoints.save_weights(model, args.out)
    elif args.weights is not None:
        tensors, metadata = checkpoints.read(args.weights)
        model, left_out = checkpoints.skeleton(tensors)
        masks = prune(model, args.sparsity, **options)
        checkpoints.write(tensors, metadata, args.out)
        if left_out:
            _say(console, f"left alone: {', '.join(left_out)}")
    else:
        raise bad("prune", "--weights or --model", "given", "neither", "pass a file to prune")
    if args.masks is not None:
        masks.save(args.masks)
    _say(console, masks.summary())
    _say(console, f"written: {args.out}")
    return 0


def convert(args: argparse.Namespace, console: Console) -> int:
    """sparseprune convert"""
    from sparseprune.convert import convert
    from sparseprune.io import save

    checkpoints.check_folders((args.out,))
    inputs = zoo.example_inputs(args.model, args.batch)
    fast = convert(_model(args), inputs, args.backend, args.format, args.keep_dense)
    console.print(fast.report)
    save(fast, args.out)
    _say(console, f"written: {args.out}, {args.out.stat().st_size:,} bytes")
    return 0


def profile(args: argparse.Namespace, console: Console) -> int:
    """sparseprune profile"""
    from sparseprune.profile import profile

    checkpoints.check_folders((args.json,))
    if args.file is None:
        model = _model(args)
    else:
        from sparseprune.io import load

        if args.weights is not None:
            raise bad("profile", "--weights", "left out with --file", str(args.weights), "pass one")
        model = load(args.file)
    found = profile(model, _inputs(args), latency=not args.no_latency)
    console.print(found)
    _write_json({"machine": machine(), **found.to_dict()}, args.json)
    return 0


def info(args: argparse.Namespace, console: Console) -> int:
    """sparseprune info"""
    from sparseprune.info import info

    checkpoints.check_folders((args.json,))
    found = info()
    console.print(found)
    _write_json(found.to_dict(), args.json)
    return 0


def _model(args: argparse.Namespace) -> nn.Module:
    """The zoo network of --model with the weights of --weights, or random ones and a word on it."""
    if args.model is None:
        raise bad(args.command, "--model", "given", "none", "pass a name of the zoo")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = zoo.build(args.model).eval()
    if args.weights is None:
        print(f"sparseprune {args.command}: no --weights, these are random", file=sys.stderr)
    else:
        checkpoints.load_weights(model, args.weights)
    return model


def _inputs(args: argparse.Namespace) -> Tensor:
    """Example inputs of --shape, or of the network --model."""
    if args.shape is not None:
        return torch.randn(*args.shape, generator=torch.Generator().manual_seed(0))
    if args.model is None:
        raise bad(args.command, "--model or --shape", "given", "neither", "an input is needed")
    return zoo.example_inputs(args.model, args.batch)


def _write_json(content: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps(content, indent=2) + "\n")


def _say(console: Console, text: str) -> None:
    """Plain text: names and paths may look like rich markup."""
    console.print(text, markup=False, highlight=False)
