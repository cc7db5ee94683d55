"""Packings of a program's weights that are worth measuring in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod

import torch
from torch import Tensor

from sparseprune import tuning
from sparseprune.costs import GATHER_TOKENS, Work, packed_ns
from sparseprune.formats import Csr, CsrWeight
from sparseprune.formats.csr import LAYOUTS
from sparseprune.formats.csr_blocks import widths
from sparseprune.machine import isa_in_use
from sparseprune.ops.run import parse
from sparseprune.program.program import Program
from sparseprune.program.shapes import infer
from sparseprune.program.steps import Csr as CsrStep
from sparseprune.program.steps import Step
from sparseprune.program.text import to_text
from sparseprune.program.values import Value, Values

HOPELESS = 1.6
"""Layouts estimated to take so many times the least are not packed."""
LARGE = 2**24
"""Weights from which one width of block must do: each packing takes a second and more."""

Inputs = dict[str, list[Tensor]]
"""Program -> what it is called with."""


@dataclass(frozen=True)
class Site:
    """A csr step.

    Args:
        program, place: where it is.
        key: all that its time depends on but the machine and the packing.
        work: what it computes.
    """

    program: str
    place: int
    key: str
    work: Work


@dataclass(eq=False)
class Choice:
    """A packed weight, the steps that use it, and packings by name: first the one it has."""

    weight: CsrWeight
    sites: list[Site] = field(default_factory=list)
    formats: dict[str, Csr] = field(default_factory=dict)


def choices(programs: dict[str, Program], inputs: Inputs) -> list[Choice]:
    """The weights of these programs, layers' and derived ones, with all that may serve them."""
    found: dict[int, Choice] = {}
    for name, program in programs.items():
        steps = parse(program.text)
        values = infer(steps, [x.shape for x in inputs[name]])
        if _gathers(steps, values):
            continue
        others = [each.name for each in program.derived if each.recipe != "conv"]
        fixed = {id(getattr(program, other)) for other in others}
        for place, step in enumerate(steps):
            if not isinstance(step, CsrStep) or id(program.weight_of(step)) in fixed:
                continue
            weight = program.weight_of(step)
            site = _site(name, place, step, weight, values)
            found.setdefault(id(weight), Choice(weight)).sites.append(site)
    present: dict[str, list[Csr]] = {}  # where steps are alike, what one weight has serves all
    for choice in found.values():
        for site in choice.sites:
            present.setdefault(site.key, []).append(choice.weight.format)
    for choice in found.values():
        now, works = choice.weight.format, [site.work for site in choice.sites]
        alike = [f for site in choice.sites for f in present[site.key] if _fits(f, works)]
        choice.formats = {f.name: f for f in (now, *_worth(choice.weight, works), *alike)}
    return list(found.values())


def _gathers(steps: Sequence[Step], values: Values) -> bool:
    """Whether few tokens read x where it lies: another packing would change that for all steps."""
    packed = [step for step in steps if isinstance(step, CsrStep)]
    tokens = [_pixels(values[step.out]) for step in packed if values[step.out].kind == "tokens"]
    return all(step.block == 0 for step in packed) and any(t <= GATHER_TOKENS for t in tokens)


def _pixels(value: Value) -> int:
    """Tokens, or pixels of all images."""
    shape = value.shape
    return prod(shape[:-1]) if value.kind == "tokens" else shape[0] * prod(shape[2:])


def _site(program: str, place: int, step: CsrStep, weight: CsrWeight, values: Values) -> Site:
    """Its key is the line of the step without what does not matter, and the shape it reads."""
    sparsity = 1 - weight.nonzeros / max(1, weight.rows * weight.cols)
    alike = replace(step, out=0, x=0, residual=min(step.residual, 0), tensors=0, block=0)
    x = values[step.x]
    key = f"in a program {to_text([alike])} of {x.kind} {'x'.join(map(str, x.shape))}"
    pixels = _pixels(values[step.out])
    # "Conv2d": no program that gathers comes here.
    work = Work("Conv2d", step.rows, step.cols, weight.nonzeros, pixels, step.groups)
    return Site(program, place, f"{key} sparsity {tuning.coarse(sparsity)}", work)


def _worth(weight: CsrWeight, works: list[Work]) -> list[Csr]:
    """What is neither refused nor hopeless."""
    few = 1 if weight.rows * weight.cols > LARGE else None
    blocks = {name: widths(weight.cols, layout.WIDTHS)[:few] for name, layout in LAYOUTS.items()}
    every = [Csr("rows"), *(Csr(name, block) for name, of in blocks.items() for block in of)]
    possible = [f for f in every if _fits(f, works)]
    isa = isa_in_use()
    ns = {f: sum(packed_ns(f"csr/{f.layout}", work, isa) for work in works) for f in possible}
    least = min(ns.values(), default=0.0)
    return [f for f in possible if ns[f] <= HOPELESS * least]


def _fits(f: Csr, works: list[Work]) -> bool:
    """Whether all of these steps can use the format."""
    sizes = [(torch.empty(work.rows, work.cols, device="meta"), work.groups) for work in works]
    return all(f.refuses(*size) is None for size in sizes)
