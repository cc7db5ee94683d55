"""Measured numbers beside published ones, as tables for the terminal and for a README."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from rich.box import SIMPLE
from rich.table import Table

from .experiment import Experiment, Published, Results
from .store import Store


@dataclass(frozen=True)
class Line:
    """One line of a table; measured or published."""

    setting: str
    source: str
    cells: tuple[str, ...]


def spread(values: Sequence[float]) -> str:
    """`median [min..max]` over seeds, or - without any."""
    if not values:
        return "-"
    numbers = (min(values), median(values), max(values))
    low, middle, high = (f"{v:.4g}" if v < 1e4 else f"{v:,.0f}" for v in numbers)
    return middle if low == high else f"{middle} [{low}..{high}]"


def networks(experiment: Experiment, results: Results) -> list[str]:
    """A table for each: the measured ones, then those that are only published."""
    return list(dict.fromkeys([*results.networks(), *(p.network for p in experiment.published)]))


def columns(experiment: Experiment, results: Results, network: str) -> list[str]:
    """Measures of the network's table: measured ones, then those that are only published."""
    papers = (m for p in experiment.published if p.network == network for m in p.numbers)
    return list(dict.fromkeys([*results.measures(network), *papers]))


def lines(experiment: Experiment, results: Results, network: str, data: str) -> Iterator[Line]:
    """Each setting as measured, and below it as published."""
    measures = columns(experiment, results, network)
    papers = [p for p in experiment.published if p.network == network]
    measured = results.settings(network)
    for setting in dict.fromkeys([*measured, *(p.setting for p in papers)]):
        if setting in measured:
            cells = (spread(results.values(network, setting, m)) for m in measures)
            yield Line(setting, f"measured, {data}", tuple(cells))
        for paper in (p for p in papers if p.setting == setting):
            yield _published(paper, measures)


def _published(paper: Published, measures: Sequence[str]) -> Line:
    cells = tuple(paper.numbers.get(measure, "-") for measure in measures)
    return Line(paper.setting, f"published, {paper.of}", cells)


def verdicts(experiment: Experiment, results: Results) -> Iterator[tuple[bool, str]]:
    """Every claim: whether it holds, and a sentence with the numbers."""
    for claim in experiment.claims:
        holds, numbers = claim.check(results)
        yield holds, f"{claim.text}: {numbers}"


def terminal(experiment: Experiment, results: Results, data: str) -> Iterator[Table]:
    """One table per network."""
    for network in networks(experiment, results):
        title = f"{experiment.title}: {network}"
        table = Table("setting", "numbers", title=title, title_justify="left", box=SIMPLE)
        for measure in columns(experiment, results, network):
            table.add_column(measure, justify="right")
        for line in lines(experiment, results, network, data):
            style = "" if line.source.startswith("measured") else "dim"
            table.add_row(line.setting, line.source, *line.cells, style=style)
        yield table


def markdown(experiment: Experiment, store: Store) -> str:
    """The experiment's section of the README: what differs, tables, claims, picture."""
    results, about = store.results(), store.lines[0]
    parts = [f"## {experiment.title}", f"What differs from the papers: {experiment.differs}"]
    for network in networks(experiment, results):
        measures = columns(experiment, results, network)
        grid = [["setting", "numbers", *measures], ["---"] * 2 + ["--:"] * len(measures)]
        for line in lines(experiment, results, network, about["data"]):
            grid.append([line.setting, line.source, *line.cells])
        table = "\n".join("| " + " | ".join(cells) + " |" for cells in grid)
        parts.append(f"**{network}**\n\n{table}")
    said = [
        f"- {'holds' if holds else '**does not hold**'}: {text}"
        for holds, text in verdicts(experiment, results)
    ]
    parts.append("\n".join(said))
    parts.append(f"![{experiment.title}]({experiment.name}.png)")
    seeds = ", ".join(map(str, results.seeds))
    parts.append(
        f"[{experiment.name}.csv]({experiment.name}.csv): seeds {seeds}; {about['epochs']} epochs; "
        f"{about['cpu']}, {about['threads']} threads, torch {about['torch']}, "
        f"sparseprune {about['sparseprune']}, {about['date']}."
    )
    return "\n\n".join(part for part in parts if part) + "\n"
