"""`lowbit compare`: what differs between two runs."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lowbit.cli.verbs import AddVerb
from lowbit.config import compose as C
from lowbit.results.compare import Difference, differences, find_run, load_run

_MEASURED = ("metrics", "size", "cost", "teacher")
_RUN = "a run's id or the first digits of it, or the run's folder"


def add(verb: AddVerb) -> None:
    """Add the verb."""
    compare = verb(
        "compare", _compare, "show the differences of two runs in config and results", "lowbit compare 3fa1 9c07"
    )
    compare.add_argument("left", help=_RUN)
    compare.add_argument("right", help=_RUN)
    compare.add_argument("overrides", nargs="*", help="paths.outputs=DIR, where the runs are not in outputs/")


def _compare(args: argparse.Namespace) -> int:
    outputs = Path(C.compose(args.overrides).paths.outputs)
    folders, problems = [], []
    for word in (args.left, args.right):
        try:
            folders.append(find_run(outputs, word))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    left, right = map(load_run, folders)
    print(f"left   {folders[0]}")
    print(f"right  {folders[1]}")
    for name, found in differences(left, right).items():
        print(f"\n{name}: no difference" if not found else f"\n{name}")
        for line in _lines(found, changes=name in _MEASURED):
            print(line)
    return 0


def _lines(found: Iterable[Difference], *, changes: bool) -> list[str]:
    """Return aligned columns: key, left, right and, if wanted, right minus left."""
    rows = [[each.key, _text(each.left), _text(each.right), _change(each.change) if changes else ""] for each in found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _change(change: float | None) -> str:
    return "" if change is None else f"{change:+.6g}"
