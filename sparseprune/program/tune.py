"""Which packing of every weight is fastest inside its program: they are tried there, all at once.

A layer alone pays for what a program does not do (entry, exit, activations in another layout), so
its times say little about the best layout there, and nothing about the width of blocks.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sparseprune import backends
from sparseprune.autotune import caller
from sparseprune.formats import CsrWeight
from sparseprune.nn.conv_program import ByProgram
from sparseprune.ops.run import parse
from sparseprune.program.packings import Choice, Inputs, choices
from sparseprune.program.planned import Planned, agrees
from sparseprune.program.program import Program
from sparseprune.program.steps import Csr
from sparseprune.program.text import to_text
from sparseprune.tuning import Milliseconds, Times

STAYS = 0.98
"""Another packing is taken when its time is below this share of that of the one there is."""
RUNS = 2
"""Counted in a turn, after one that finds the caches as another packing left them."""
TURNS, SECONDS = 3, 0.5
"""All packings have so many turns at least, and for so long at least."""
MOST_TURNS, MOST_SECONDS = 8, 2.5
"""Then either is enough."""
ALIKE = 4
"""So many weights of equal steps are tried: memory and packing have an end."""

Packings = dict[str, CsrWeight]
"""Name of a format -> the weight packed so."""
Samples = dict[tuple[str, str], dict[tuple[str, int], list[float]]]
"""(key, format) -> program and place -> milliseconds of every run."""


@torch.no_grad()
def tune(model: nn.Module, example_inputs: Any, kept: Times) -> str | None:
    """Give every csr weight of a planned model its fastest packing, in place.

    Times are those of the steps in whole runs of the programs, each with all weights packed in
    another way. What is in `kept` is not measured again, and what is measured goes there.

    Args:
        model: after :func:`sparseprune.program.planned.plan`, with packed weights of its own.
        example_inputs: as for ``plan``.
        kept: times of this machine.

    Returns:
        Why all stays as it was, where outputs changed; None otherwise.
    """
    if not isinstance(model, Planned) or not backends.has_kernel("sparseprune::run_times", "cpu"):
        return None
    programs: dict[str, Program] = {n: model._modules[n] for n in model._program_names}  # type: ignore[attr-defined]
    inputs = _inputs(model, programs, example_inputs)
    found = choices(programs, inputs)
    tried = {choice: _packed(choice, choice.formats) for choice in _unknown(found, kept)}
    if tried:
        _measure(tried, programs, inputs, kept)
    return _adopt({choice: _fastest(choice, kept) for choice in found}, tried, model, inputs)


def _inputs(model: nn.Module, programs: dict[str, Program], example_inputs: Any) -> Inputs:
    """What each program is called with."""
    seen: Inputs = {}

    def watcher(name: str) -> Any:
        return lambda module, args: seen.update({name: [x.detach().clone() for x in args]})

    handles = [p.register_forward_pre_hook(watcher(name)) for name, p in programs.items()]
    try:
        caller(model, example_inputs)()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _ms(choice: Choice, kept: Times) -> Milliseconds | None:
    """Milliseconds of all the steps of a weight, by format; None where one is unknown."""
    totals = dict.fromkeys(choice.formats, 0.0)
    for site in choice.sites:
        ms = kept.find(site.key, totals)
        if ms is None:
            return None
        for name in totals:
            totals[name] += ms[name]
    return totals


def _unknown(found: list[Choice], kept: Times) -> list[Choice]:
    """What is to be measured; of weights that are alike the first ones speak for all."""
    alike: dict[tuple[str, ...], list[Choice]] = defaultdict(list)
    for choice in found:
        if _ms(choice, kept) is None:
            alike[tuple(site.key for site in choice.sites)].append(choice)
    return [choice for same in alike.values() for choice in same[:ALIKE]]


def _fastest(choice: Choice, kept: Times) -> str:
    """The format to take; the first is the one that the weight has."""
    now, ms = next(iter(choice.formats)), _ms(choice, kept)
    best = now if ms is None else min(ms, key=ms.__getitem__)
    return best if ms is not None and ms[best] < STAYS * ms[now] else now


def _packed(choice: Choice, names: Iterable[str]) -> Packings:
    """The weight in these formats; its own buffers where it has the format."""
    weight, groups = choice.weight, max(site.work.groups for site in choice.sites)
    now = weight.format.name
    others = [name for name in names if name != now]
    dense = weight.unpack() if others else None
    packed = {name: choice.formats[name].pack(dense, groups) for name in others}  # type: ignore[arg-type]
    return {now: weight.twin(), **packed}


# Measuring


@dataclass
class Trial:
    """One program with packings to try: what the op takes, and key and format of its steps."""

    program: str
    inputs: list[Tensor]
    tensors: list[Tensor]
    text: str
    tried: dict[int, tuple[str, str]]


def step_ms(trial: Trial) -> list[float]:
    """Milliseconds of each step in one run."""
    ms: Tensor = torch.ops.sparseprune.run_times(trial.inputs, trial.tensors, trial.text)
    return ms.tolist()  # type: ignore[no-any-return]


def _measure(
    tried: dict[Choice, Packings], programs: dict[str, Program], inputs: Inputs, kept: Times
) -> None:
    """Times of every format of these weights; steps that are alike share theirs."""
    names = {site.program for choice in tried for site in choice.sites}
    lineups = [
        [_trial(name, programs[name], inputs[name], tried, number) for name in sorted(names)]
        for number in range(max(map(len, tried.values())))
    ]
    found: dict[str, Milliseconds] = defaultdict(dict)
    for (key, name), of_site in _samples(lineups).items():
        found[key][name] = statistics.mean(map(_undisturbed, of_site.values()))
    for key, ms in found.items():
        kept.keep(key, ms)


def _trial(
    name: str,
    program: Program,
    inputs: list[Tensor],
    packings: dict[Choice, Packings],
    number: int,
) -> Trial:
    """A program in which each of these weights has its packing of this number, or starts over."""
    steps, tensors, tried = list(parse(program.text)), program.tensors(), {}
    for choice, all_packed in packings.items():
        format, packed = list(all_packed.items())[number % len(all_packed)]
        for site in choice.sites:
            if site.program == name:
                step = steps[site.place]
                assert isinstance(step, Csr)
                steps[site.place] = replace(step, block=packed.block)
                tensors[step.tensors : step.tensors + 4] = packed.packed()
                tried[site.place] = site.key, format
    return Trial(name, inputs, tensors, to_text(steps), tried)


def _samples(lineups: Sequence[Sequence[Trial]]) -> Samples:
    """Runs in turn, so that drift hits all alike; as autotune.compare_ms."""
    samples: Samples = defaultdict(lambda: defaultdict(list))
    begin, turns = time.perf_counter(), 0
    while not _enough(turns, time.perf_counter() - begin):
        for lineup in lineups:
            for trial in lineup:
                step_ms(trial)
                for _ in range(RUNS):
                    ms = step_ms(trial)
                    for place, tried in trial.tried.items():
                        samples[tried][trial.program, place].append(max(ms[place], 1e-6))
        turns += 1
    return samples


def _enough(turns: int, seconds: float) -> bool:
    if turns < TURNS or seconds < SECONDS:
        return False
    return turns >= MOST_TURNS or seconds >= MOST_SECONDS


def _undisturbed(ms: list[float]) -> float:
    """The lower quartile: a shared machine is slow for seconds at a time, in some turns alone."""
    return statistics.quantiles(ms, n=4, method="inclusive")[0]


# Taking what is best


def _adopt(
    best: dict[Choice, str], tried: dict[Choice, Packings], model: Any, inputs: Inputs
) -> str | None:
    """Pack what has to be packed otherwise, and see that outputs stay."""
    changed = {c: name for c, name in best.items() if name != c.weight.format.name}
    if not changed:
        return None
    programs = {name: model._modules[name] for name in inputs}
    expected = [programs[name](*xs) for name, xs in inputs.items()]
    before = {choice: choice.weight.twin() for choice in changed}
    after = {c: (tried.get(c) or _packed(c, [name]))[name] for c, name in changed.items()}
    _repack(model, after)
    got = [programs[name](*xs) for name, xs in inputs.items()]
    if all(agrees(*pair) for pair in zip(_flat(got), _flat(expected), strict=True)):
        return None
    _repack(model, before)
    return "other packings changed the outputs of the programs, which keep those of the layers"


def _repack(model: nn.Module, packed: dict[Choice, CsrWeight]) -> None:
    for choice, weight in packed.items():
        choice.weight.adopt(weight)
    for module in model.modules():
        if isinstance(module, (ByProgram, Program)):
            module.follow()


def _flat(outputs: list[Any]) -> list[Tensor]:
    return [y for each in outputs for y in (each if isinstance(each, tuple) else (each,))]
