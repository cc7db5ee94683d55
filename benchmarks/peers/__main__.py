"""python -m benchmarks.peers: build, export, compare outputs, time in turn, print and save."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from sparseprune.errors import bad, check_sparsity
from sparseprune.machine import core_count
from sparseprune.machine import threads as with_threads

from . import deepsparse_process
from .cases import CASES, SPARSITIES, Case
from .measure import measure
from .plot import speedups
from .results import Row, describe, facts, summary, table, write_csv
from .runtimes import PEERS, DeepSparse, Peer
from .targets import TARGETS, reached
from .timing import PAUSE_S

WIDTH = 120
"""Of tables that go to a file."""


def parser() -> argparse.ArgumentParser:
    """Every option with its default."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description="Times the same pruned networks in sparseprune and in other runtimes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--cases", default="", help="only cases whose title contains this, e.g. resnet or 'b1'")
    add("--sparsity", type=float, nargs="+", default=list(SPARSITIES), help="shares of zeros")
    add("--threads", type=int, default=core_count(), help="of every runtime")
    add("--seconds", type=float, default=4.0, help="of timing per case and sparsity")
    add("--pause", type=float, default=PAUSE_S, help="idle seconds between two runtimes")
    add("--out", type=Path, default=Path("peers-out"), help="folder of peers.csv and peers.png")
    add("--without", nargs="+", default=[], metavar="NAME", help="runtimes to leave out")
    add("--no-deepsparse", action="store_true", help="leave DeepSparse out")
    add("--deepsparse-python", type=Path, default=deepsparse_process.PYTHON, metavar="PYTHON",
        help="the interpreter that DeepSparse is installed for")  # fmt: skip
    add("--targets", action="store_true",
        help="only what there are targets for, and say at the end which were reached")  # fmt: skip
    add("--list", action="store_true", help="print cases and runtimes, and end")
    return parser


def main(arguments: Sequence[str] | None = None, cases: Sequence[Case] = CASES) -> int:
    """0 if every runtime that is here gave the right output, 1 otherwise."""
    options = parser().parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    try:
        peers, chosen = select_peers(options), select_cases(options, cases)
        sparsities = select_sparsities(options, chosen)
        chosen = [case for case in chosen if sparsities[case.title]]
    except ValueError as error:
        console.print(str(error), style="red", markup=False)
        return 2
    if options.list:
        print_list(console, chosen, peers)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    rows = run(options, console, chosen, peers, sparsities)
    return print_notes(console, rows)


def run(
    options: argparse.Namespace,
    console: Console,
    cases: Sequence[Case],
    peers: Sequence[Peer],
    sparsities: Mapping[str, Sequence[float]],
) -> list[Row]:
    """Measures, prints each case when it is through, saves."""
    rows: list[Row] = []
    table_file, picture = options.out / "peers.csv", options.out / "peers.png"
    with with_threads(options.threads), console.status("") as status:
        about = facts(peers, options.threads)
        console.print(describe(about), highlight=False)
        for case in cases:
            first = len(rows)
            for sparsity in sparsities[case.title]:
                rows += measure(
                    case,
                    sparsity,
                    peers,
                    threads=options.threads,
                    seconds=options.seconds,
                    pause_s=options.pause,
                    announce=status.update,
                )
                write_csv(rows, about, table_file)  # a run that is stopped keeps what it has
            console.print(table(rows[first:], peers))
    speedups(rows, about, picture)
    console.print(reached(rows) if options.targets else summary(rows))
    console.print(f"{table_file}, {picture}", highlight=False)
    return rows


def select_peers(options: argparse.Namespace) -> list[Peer]:
    """`PEERS` without those left out, DeepSparse with its interpreter."""
    names = [peer.name for peer in PEERS]
    for name in options.without:
        if name not in names:
            raise bad("peers", "--without", "names of runtimes", repr(name), f"known: {names}")
    left_out = {*options.without, *(["DeepSparse"] if options.no_deepsparse else [])}
    peers = [peer for peer in PEERS if peer.name not in left_out]
    own = DeepSparse(options.deepsparse_python)
    return [own if isinstance(peer, DeepSparse) else peer for peer in peers]


def select_cases(options: argparse.Namespace, cases: Sequence[Case]) -> list[Case]:
    """Those whose title contains the text asked for, in any case of letters."""
    text = options.cases
    cases = [case for case in cases if case.title in TARGETS or not options.targets]
    found = [case for case in cases if text.lower() in case.title.lower()]
    if not found:
        known = "; ".join(case.title for case in cases)
        raise bad("peers", "--cases", "part of a title", repr(text), f"known: {known}")
    return found


def select_sparsities(options: argparse.Namespace, cases: Sequence[Case]) -> dict[str, list[float]]:
    """Title of a case -> shares of zeros to measure it at."""
    shares = [check_sparsity("peers", "--sparsity", share) for share in options.sparsity]
    if not options.targets:
        return {case.title: shares for case in cases}
    wanted = {case.title: [s for s in shares if s in TARGETS[case.title]] for case in cases}
    if not any(wanted.values()):
        known = sorted({share for case in cases for share in TARGETS[case.title]})
        raise bad("peers", "--sparsity", "shares with a target", str(shares), f"known: {known}")
    return wanted


def print_list(console: Console, cases: Sequence[Case], peers: Sequence[Peer]) -> None:
    """What would run."""
    for case in cases:
        console.print(case.title, highlight=False)
    for peer in peers:
        console.print(f"{peer.name}: {peer.missing() or peer.version()}", highlight=False)


def print_notes(console: Console, rows: Sequence[Row]) -> int:
    """Says what is missing or wrong; 1 if something is wrong."""
    absent = {f"{row.runtime}: {row.note}" for row in rows if row.note and row.difference is None}
    for note in sorted(absent):
        console.print(f"not here: {note}", style="yellow", markup=False)
    wrong = [row for row in rows if row.note and row.difference is not None]
    for row in wrong:
        where = f"{row.case} at {row.sparsity:.0%}"
        console.print(f"{where}: {row.runtime} {row.note}", style="red", markup=False)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
