"""Files that are either the old one or the new one, never half of either."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends without an error.

    Whatever goes wrong, the old file stays as it was and the temporary one is removed. A link is
    followed: the file that it points to is the one replaced.

    Raises:
        FileNotFoundError: the folder does not exist.
        IsADirectoryError: `path` is a folder.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{os.fspath(path)!r} is a folder; name a file in it")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"no folder {str(target.parent)!r}; create it first")
    temporary = target.with_name(f".{target.name[:64]}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Puts `data` at `path` in one step (see :func:`replacing`)."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
