"""Changes to the programs of a saved file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def words(line: str, change: Callable[[list[str]], object]) -> Callable[[dict[str, Any]], None]:
    """Changes the words of the first step that begins so."""

    def edited(manifest: dict[str, Any]) -> None:
        program = manifest["programs"]["programs"]["program_0"]
        lines = program["text"].split("\n")
        place = next(i for i, text in enumerate(lines) if text.startswith(f"{line} "))
        found = lines[place].split()
        change(found)
        lines[place] = " ".join(found)
        program["text"] = "\n".join(lines)

    return edited


def word(line: str, place: int, value: object) -> Callable[[dict[str, Any]], None]:
    return words(line, lambda found: found.__setitem__(place, str(value)))


def program(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda m: m["programs"]["programs"]["program_0"].update(fields)


def source(place: int, path: Any) -> Callable[[dict[str, Any]], object]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["programs"]["programs"]["program_0"]["sources"][place] = path

    return change


def derived(place: int, value: Any) -> Callable[[dict[str, Any]], object]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["programs"]["programs"]["program_0"]["derived"][0][place] = value

    return change


def text(change: Callable[[str], str]) -> Callable[[dict[str, Any]], object]:
    def edited(manifest: dict[str, Any]) -> None:
        found = manifest["programs"]["programs"]["program_0"]
        found["text"] = change(found["text"])

    return edited
