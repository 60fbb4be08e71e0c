"""Tables of text cells in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowbit.results.formats import Grid
from lowbit.results.table import print_notes

if TYPE_CHECKING:
    from rich.console import Console

_COLORS = {"match": "green", "below": "red", "above": "blue", "not-run": "red"}


def print_grid(grid: Grid, console: Console | None = None) -> None:
    """Print the table, its notes, and the commands that fill the missing cells."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    drawn = Table(title=Text(grid.title, style="bold"), title_justify="left", box=SIMPLE_HEAD, show_edge=False)
    for name, align in grid.heads:
        drawn.add_column(Text(name), justify=align, overflow="fold")
    for number, texts in enumerate(grid.lines):
        colors = [_COLORS.get(grid.styles.get((number, place), ""), "") for place in range(len(texts))]
        last = number + 1 in grid.groups
        drawn.add_row(*(Text(text, style=color) for text, color in zip(texts, colors, strict=True)), end_section=last)
    # Not cropped: a terminal narrower than the table wraps its lines, which is ugly, but keeps every digit.
    console.print(drawn, crop=False)
    print_notes(grid.notes, grid.commands, console)
