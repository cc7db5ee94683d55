"""One CSV per experiment: a line for every number, with its seed, the machine and the versions."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparseprune.errors import bad
from sparseprune.files import replacing
from sparseprune.machine import machine

from .experiment import Results, Row
from .training import Task

KEYS = ("experiment", "network", "setting", "measure", "seed", "value")


def facts(task: Task) -> dict[str, Any]:
    """What every number depends on beside the seed."""
    return {"data": task.images.name, "epochs": task.epochs, **machine()}


class Store:
    """The file of one experiment. Seeds are added whole, or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        if path.exists():
            with path.open(newline="") as file:
                self.lines = list(csv.DictReader(file))

    def check(self, about: Mapping[str, Any]) -> None:
        """ValueError if the file holds numbers of other data or of another number of epochs."""
        for line in self.lines:
            for key in ("data", "epochs"):
                if line[key] != str(about[key]):
                    expected = f"made with {key} {about[key]}"
                    way_out = "choose another --out, or delete the file"
                    raise bad("pruning", str(self.path), expected, line[key], way_out)

    def add(self, experiment: str, seed: int, rows: list[Row], about: Mapping[str, Any]) -> None:
        """Writes the rows of one seed behind the others."""
        for row in rows:
            value = f"{row.value:.6g}"
            keys = (experiment, row.network, row.setting, row.measure, str(seed), value)
            self.lines.append({**dict(zip(KEYS, keys, strict=True)), **about})
        with replacing(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.lines[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.lines)

    def results(self) -> Results:
        """All rows, by seed."""
        seeds: dict[int, list[Row]] = {}
        for line in self.lines:
            row = Row(line["network"], line["setting"], line["measure"], float(line["value"]))
            seeds.setdefault(int(line["seed"]), []).append(row)
        return Results(dict(sorted(seeds.items())))
