"""Files whose steps on images are made to harm: sizes and channels are what kernels are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from io_problems import edit, image, pack_all, planned, refused, run
from io_program_edits import word, words
from torch import nn

from sparseprune.io import load, save
from sparseprune.program.planned import plan


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A network that averages to 3 x 2 and flattens."""
    path = tmp_path_factory.mktemp("io") / "file"
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(),
                          nn.Linear(48, 5))  # fmt: skip
    fast = pack_all(model, "csr/groups").eval()
    assert plan(fast, image(2, 3, 16, 14)) is None
    save(fast, path)
    return path.read_bytes()


ADAPTIVE_ATTACKS: dict[str, Callable[[dict[str, Any]], object]] = {
    **{
        f"adaptive {place} {number}": word("adaptive", place, number)
        for place in (1, 2, 3, 4, 5)
        for number in (-1, 7, 2**17, 10**30)
        if not (place > 3 and number == 7)
    },
    "no size": words("adaptive", list.pop),
    "depth": word("adaptive", 3, 2),
    "depth of a window": words("csr", lambda found: found.__setitem__(slice(16, 22), ["1"] * 6)),
    "of tokens": words(
        "flatten",
        lambda found: found.__setitem__(slice(0, 3), ["adaptive", "3", "2", "1", "1", "1"]),
    ),
}


@pytest.mark.parametrize("attack", ADAPTIVE_ATTACKS)
def test_no_image_grows_where_it_has_no_size(attack: str, adaptive: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(adaptive)
    refused(path, lambda manifest, _: ADAPTIVE_ATTACKS[attack](manifest), "not allowed|manifest")


@pytest.mark.parametrize("size", [1, 4, 65536])
def test_other_sizes_are_told_from_the_weight(size: int, adaptive: bytes, tmp_path: Path) -> None:
    """What flatten gives depends on the inputs: the op itself looks."""
    path = tmp_path / "file"
    path.write_bytes(adaptive)
    edit(path, lambda manifest, _: word("adaptive", 4, size)(manifest))
    with pytest.raises((RuntimeError, ValueError), match=r"features|channels"):
        run(load(path), image(2, 3, 16, 14))


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Channels dealt and chosen, pixels repeated."""
    path = tmp_path_factory.mktemp("io") / "file"
    save(planned("shuffles")[0], path)
    return path.read_bytes()


NUMBERS = (-1, -2, 0, 5, 10**6, 2**31, 2**63, 10**30)
MOVING_ATTACKS: dict[str, Callable[[dict[str, Any]], object]] = {
    **{
        f"{line} {name} {number}": word(line, place, number)
        for line, names in (
            ("channels", ("out", "x", "groups", "begin", "count")),
            ("upsample", ("out", "x", "depth", "height", "width")),
        )
        for place, name in enumerate(names, 1)
        for number in NUMBERS
        if (line, name, number) not in (("channels", "begin", 0), ("channels", "x", 0))
        and not (name in ("height", "width") and number in (5,))
        and not (name == "x" and number in (0, 5))
    },
    "as many twice": word("channels", 5, 9),
    "behind the last": word("channels", 4, 7),
    "no channel count": words("channels", list.pop),
    "more times": words("upsample", lambda found: found.append("1")),
    "as channels": word("upsample", 0, "channels"),
    "as upsample": word("channels", 0, "upsample"),
}


@pytest.mark.parametrize("attack", MOVING_ATTACKS)
def test_nothing_is_moved_from_outside(attack: str, moving: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(moving)
    refused(path, lambda manifest, _: MOVING_ATTACKS[attack](manifest), "not allowed|manifest")
