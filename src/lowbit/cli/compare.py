"""`lowbit compare`: what differs between two runs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowbit.cli.verbs import AddVerb
from lowbit.config import compose as C
from lowbit.results.compare import ABSENT, Difference, differences
from lowbit.results.selection import find_run

_MEASURED = ("metrics", "size", "cost", "teacher")
_RUN = "a run's id or the first digits of it, or the run's folder"


def add(verb: AddVerb) -> None:
    """Add the verb."""
    compare = verb(
        "compare", _compare, "show the differences of two runs in config and results", "lowbit compare 3fa1 9c07"
    )
    compare.add_argument("left", help=_RUN)
    compare.add_argument("right", help=_RUN)
    compare.add_argument(
        "overrides", nargs="*", default=[], help="paths.outputs=DIR, where the runs are not in outputs/"
    )


def _compare(args: argparse.Namespace) -> int:
    outputs = Path(C.compose(args.overrides).paths.outputs)
    found, problems = [], []
    for word in (args.left, args.right):
        try:
            found.append(find_run(outputs, word))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    (left_folder, left), (right_folder, right) = found
    print(f"left   {left_folder}\nright  {right_folder}")
    sections = {name: section for name, section in differences(left, right).items() if section}
    for name, section in sections.items():
        print("\n".join(["", name, *_lines(section, changes=name in _MEASURED)]))
    if not sections:
        print("no difference")
    return 0


def _lines(found: Sequence[Difference], *, changes: bool) -> list[str]:
    """Return aligned columns: key, left, right and, if wanted, right minus left; keys of one group below its name."""
    lines: list[list[str]] = []
    group = ""
    for each in found:
        head, _, rest = each.key.partition(".")
        if rest and head != group:
            lines.append([f"  {head}"])
        group = head if rest else ""
        key = f"    {rest}" if rest else f"  {head}"
        change = f"{each.change:+.6g}" if changes and each.change is not None else ""
        lines.append([key, _text(each.left), _text(each.right), change])
    widths = [max(map(len, column)) for column in zip(*(line for line in lines if len(line) > 1), strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_text(item)}" for key, item in value.items() if item is not None) + "}"
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else "-" if value == ABSENT else str(value)
