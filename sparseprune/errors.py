"""Error messages: the operation, the argument, what was expected, what came, and the way out."""

from __future__ import annotations

import difflib
import sys
import traceback
import warnings
from collections.abc import Iterable
from numbers import Real
from pathlib import Path

import torch

PASSED = (Path(__file__).parent, Path(torch.__file__).parent)
"""Code that `summary` passes over in search of the user's."""


def _message(operation: str, argument: str, expected: str, got: object, way_out: str) -> str:
    return f"{operation}: {argument} must be {expected}, got {got}; {way_out}"


def bad(operation: str, argument: str, expected: str, got: object, way_out: str) -> ValueError:
    """A ValueError reading `operation: argument must be expected, got ...; way_out`."""
    return ValueError(_message(operation, argument, expected, got, way_out))


def bad_type(operation: str, argument: str, expected: str, got: object, way_out: str) -> TypeError:
    """The same message as `bad`, for an argument of the wrong type."""
    return TypeError(_message(operation, argument, expected, got, way_out))


def suggest(name: object, choices: Iterable[str], most: int = 12) -> str:
    """The way out of a misspelt name: near matches, then at most `most` of the known names."""
    known = list(dict.fromkeys(choices))
    near = difflib.get_close_matches(str(name), known, n=3)
    question = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    rest = f", ... ({len(known)} in all)" if len(known) > most else ""
    return f"{question}known: {', '.join(known[:most]) or 'none'}{rest}"


def check_sparsity(operation: str, argument: str, value: object) -> float:
    """`value` as a float, or an error unless it is a real number in [0, 1)."""
    expected, way_out = "a number in [0, 1)", "pass the share of weights to remove, e.g. 0.9"
    if isinstance(value, bool) or not isinstance(value, Real):
        got = f"{value!r} ({type(value).__name__})"
        raise bad_type(operation, argument, expected, got, way_out)
    share = float(value)
    if not 0 <= share < 1:  # false for NaN as well
        raise bad(operation, argument, expected, value, way_out)
    return share


def check_count(operation: str, argument: str, value: object, least: int = 1) -> None:
    """An error unless `value` is a whole number of at least `least`."""
    expected = f"a whole number of at least {least}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise bad_type(operation, argument, expected, repr(value), "pass an int")
    if value < least:
        raise bad(operation, argument, expected, value, "pass a larger one")


def summary(error: BaseException) -> str:
    """Type and first sentence of an error, and the line of the user's code that raised it."""
    text = f"{type(error).__name__}: {error}".splitlines()[0].partition(". ")[0]
    return text + place(error)


def place(error: BaseException) -> str:
    """The line of the user's code that raised an error, to be put behind its text."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and not any(passed in path.parents for passed in PASSED):
            return f", at {path.name}:{frame.lineno} ({frame.line})"
    return ""


def warn(message: str) -> None:
    """A UserWarning that points at the first line of the caller's code outside this package."""
    depth, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("sparseprune."):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, stacklevel=depth)
