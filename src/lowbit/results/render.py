"""A table of text cells in every format: terminal, Markdown, LaTeX (booktabs), CSV, a page of HTML."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console

Align = Literal["left", "right"]
Format = Literal["md", "csv", "latex", "html"]
FORMATS: tuple[Format, ...] = ("md", "csv", "latex", "html")
SUFFIXES: Mapping[str, Format] = {".md": "md", ".csv": "csv", ".tex": "latex", ".html": "html", ".htm": "html"}

_LINE_ENDS = re.compile(r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")  # a line that ends ends a comment, a row, a block
# One pass over the text, so that the backslashes of a replacement are not escaped again.
_LATEX = str.maketrans(
    {char: f"\\{char}" for char in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$"}
)
_CELL = str.maketrans({"\\": "\\\\", "|": "\\|"})  # of Markdown: what would end it
OPEN_TABLE = (
    '<p class="hint">The table scrolls sideways.</p>',
    '<div class="wide" tabindex="0"><table>',  # the arrow keys scroll what can be tabbed to
)


@dataclass(frozen=True)
class Grid:
    """A table as text.

    Attributes:
        heads: Header and alignment of each column.
        lines: The cells.
        title: Heading of the page.
        styles: Class of single cells, by line and column: `match`, `below`, `above`, `not-run`, `done`.
        groups: Lines before which there is a gap; none before the first.
        notes: What to know about the numbers, a line each.
        commands: Those that fill missing cells.
        numbers: Lines of the table as CSV, header first, with raw numbers.
    """

    heads: Sequence[tuple[str, Align]]
    lines: Sequence[Sequence[str]]
    title: str = ""
    styles: Mapping[tuple[int, int], str] = field(default_factory=dict)
    groups: frozenset[int] = frozenset()
    notes: Sequence[str] = ()
    commands: Sequence[str] = ()
    numbers: Sequence[Sequence[object]] = ()


def format_of(path: Path) -> Format:
    """Return the format that a file's suffix names.

    Raises:
        ValueError: it names none.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--out {path}: the suffix names no format; end in {', '.join(SUFFIXES)}, or add --format")
    return SUFFIXES[path.suffix.lower()]


def write_grid(grid: Grid, fmt: Format) -> str:
    """Return the table as text: `md` for GitHub, `latex` with booktabs rules, a page of `html`, `csv` with raw numbers.

    Raises:
        ValueError: `fmt` is none of these.
    """
    if fmt not in _WRITERS:
        raise ValueError(f"unknown table format {fmt!r}, choose one of {', '.join(FORMATS)}")
    return _WRITERS[fmt](grid)


def write_csv(lines: Iterable[Sequence[object]]) -> str:
    """Return lines of CSV; a text that a spreadsheet would take for a formula has an apostrophe before it."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([_no_formula(cell) for cell in line] for line in lines)
    return buffer.getvalue()


def _no_formula(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _markdown(grid: Grid) -> str:
    rule = ["---" if align == "left" else "---:" for _, align in grid.heads]
    lines = [[name for name, _ in grid.heads], rule, *grid.lines]
    text = "".join("| " + " | ".join(_plain(cell).translate(_CELL) for cell in line) + " |\n" for line in lines)
    text += "".join(f"\n{_plain(note)}\n" for note in grid.notes)
    if grid.commands:
        commands = (line for command in grid.commands for line in _LINE_ENDS.split(command))
        text += "\nTo fill the missing cells:\n\n" + "".join(f"    {line}\n" for line in commands)
    return text


def _on_one_line(text: str) -> str:
    return _LINE_ENDS.sub(" ", text)


def _plain(text: str) -> str:
    """Return a line of Markdown of which nothing becomes a tag of HTML."""
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", _on_one_line(text))


def _latex(grid: Grid) -> str:
    def line(texts: Sequence[str]) -> str:
        return " & ".join(_on_one_line(text).translate(_LATEX) for text in texts) + r" \\"

    spec = "".join(align[0] for _, align in grid.heads)
    lines = [rf"\begin{{tabular}}{{{spec}}}", r"\toprule", line([name for name, _ in grid.heads]), r"\midrule"]
    for number, texts in enumerate(grid.lines):
        lines += [r"\addlinespace"] if number in grid.groups else []
        lines.append(line(texts))
    lines.append(r"\bottomrule")
    for note in grid.notes:
        text = _on_one_line(note).translate(_LATEX)
        lines.append(rf"\multicolumn{{{len(grid.heads)}}}{{p{{0.95\linewidth}}}}{{\footnotesize {text}}} \\")
    lines.append(r"\end{tabular}")
    if grid.commands:
        commands = [line for command in grid.commands for line in _LINE_ENDS.split(command)]
        lines += ["% To fill the missing cells:", *(f"%   {line}" for line in commands)]
    return "\n".join(lines) + "\n"


def html_table(grid: Grid) -> list[str]:
    """Return the lines of the table alone, in a box that scrolls by itself; every text in it is escaped."""
    heads = [f'<th scope="col" class="{align}">{escape(name)}</th>' for name, align in grid.heads]
    rows = []
    for number, texts in enumerate(grid.lines):
        classes = [
            f"{align} {grid.styles.get((number, place), '')}".strip() for place, (_, align) in enumerate(grid.heads)
        ]
        cells = [f'<td class="{name}">{escape(text)}</td>' for name, text in zip(classes, texts, strict=True)]
        opening = '<tr class="new">' if number in grid.groups else "<tr>"
        rows.append(f"{opening}{''.join(cells)}</tr>")
    return [
        *OPEN_TABLE,
        f"<thead><tr>{''.join(heads)}</tr></thead>",
        "<tbody>",
        *rows,
        "</tbody>",
        "</table></div>",
    ]


def _html(grid: Grid) -> str:
    """Return a page that needs no other file."""
    lines = [*html_table(grid), *(f"<p>{escape(note)}</p>" for note in grid.notes)]
    if grid.commands:
        commands = "\n".join(map(escape, grid.commands))
        lines += ["<p>To fill the missing cells:</p>", f"<pre>{commands}</pre>"]
    return html_page(grid.title, lines)


def html_page(title: str, body: Sequence[str], head: Sequence[str] = ()) -> str:
    """Return a page of lines that needs no other file; `head` is more of its head."""
    css = files("lowbit.results").joinpath("page.css").read_text(encoding="utf-8").rstrip()
    lines = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        *head,
        f"<title>{escape(title)}</title>",
        f"<style>\n{css}\n</style>",
        "</head>",
        "<body>",
        f"<h1>{escape(title)}</h1>",
        *body,
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


_WRITERS: Mapping[Format, Callable[[Grid], str]] = {
    "md": _markdown,
    "csv": lambda grid: write_csv(grid.numbers),
    "latex": _latex,
    "html": _html,
}
_GAP = 3  # between the columns of a terminal
_COLORS = {"match": "green", "done": "green", "below": "red", "not-run": "red", "above": "blue", "partial": "yellow"}
_SHORT = {"compression": "compr."}


def print_grid(grid: Grid, console: Console | None = None) -> None:
    """Print the table, its notes, and the commands that fill the missing cells.

    Where the terminal is narrow, columns of words fold between words, and columns without room follow below, with the
    first column again. Numbers stay whole.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    heads, widths, gap, blocks = _fit(grid, console.width)
    for number, block in enumerate(blocks):
        title = Text("" if number else grid.title, style="bold")
        padding = (0, int(gap == _GAP))
        drawn = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=padding)
        for place in block:
            drawn.add_column(
                Text(heads[place]), justify=grid.heads[place][1], min_width=widths[place], max_width=widths[place]
            )
        for line, texts in enumerate(grid.lines):
            cells = [Text(texts[place], style=_COLORS.get(grid.styles.get((line, place), ""), "")) for place in block]
            drawn.add_row(*cells, end_section=line + 1 in grid.groups)
        # Not cropped: a column that is wider than the terminal is ugly, but keeps every digit.
        console.print(drawn, crop=False)
    for note in grid.notes:
        console.print(Text(note), soft_wrap=True)
    if grid.commands:
        console.print(Text("\nTo fill the missing cells:"))
        for command in grid.commands:
            # Text and soft wrap: brackets stay brackets, and a copied command stays one line.
            console.print(Text(f"  {command}"), soft_wrap=True)


def _fit(grid: Grid, width: int) -> tuple[list[str], list[int], int, list[list[int]]]:
    """Return the headers, the widths of the columns, the gap between them, and which columns stand together."""
    heads = [name for name, _ in grid.heads]
    columns = list(zip(heads, *grid.lines, strict=True))
    widths = [max(map(len, column)) for column in columns]
    whole = list(range(len(heads)))
    if sum(widths) + _GAP * len(widths) <= width:
        return heads, widths, _GAP, [whole]
    heads = [_SHORT.get(name, name.replace(" ", "\n", 1)) for name in heads]
    least = []
    for head, (_, align), (_, *cells) in zip(heads, grid.heads, columns, strict=True):
        pieces = [*head.split("\n"), *(cells if align == "right" else " ".join(cells).split())]
        least.append(max(map(len, pieces)))
    spare = width - sum(least) - len(least)
    if spare < 0:
        return heads, least, _GAP, _blocks(least, width)
    for place, (_, align) in enumerate(grid.heads):  # the first column, the names, needs the room most
        added = min(spare, widths[place] - least[place]) if align == "left" else 0
        least[place] += added
        spare -= added
    return heads, least, 1, [whole]


def _blocks(widths: Sequence[int], width: int) -> list[list[int]]:
    """Return which columns fit into `width` characters together; the first column is in every block."""
    blocks, taken = [[0]], widths[0] + _GAP
    for place, needed in enumerate(widths[1:], start=1):
        if len(blocks[-1]) > 1 and taken + needed + _GAP > width:
            blocks.append([0])
            taken = widths[0] + _GAP
        blocks[-1].append(place)
        taken += needed + _GAP
    return blocks
