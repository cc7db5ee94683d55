"""What tables look like as text. rich is loaded where something is shown: kernels need none."""

from __future__ import annotations


def printed(shown: object, width: int) -> str:
    """What rich prints of an object, in lines of this width."""
    from rich.console import Console

    console = Console(width=width)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()
