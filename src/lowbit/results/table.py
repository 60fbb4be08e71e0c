"""Tables of rows, a line per method: Markdown, LaTeX, CSV, HTML, the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lowbit.results.formats import FORMATS, Format, Grid, write_csv, write_grid
from lowbit.results.rows import Row
from lowbit.results.scores import Comparison, Published
from lowbit.results.text import cells, columns, damage_notes, notes_on, provenance

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["Format", "print_table", "provenance", "render", "to_text"]

_STYLE = {"done": "green", "not run": "red", "damaged": "red"}
_MIN_WIDTH = 80
_ROOMY_WIDTH = 100
_CSV_COLUMNS = (
    *("method", "metric", "mean", "std", "n", "expected"),
    *("bits", "size_mb", "compression", "steps", "seconds", "status"),
    *("teacher_id", "commit", "device"),
)
_CSV_PUBLISHED = ("published", "published_high", "published_std", "difference", "tolerance", "vs_paper")


def to_text(rows: Sequence[Row]) -> list[list[str]]:
    """Return the header and the rows as text."""
    return [[name for name, _ in columns(rows)], *cells(rows)]


def render(rows: Sequence[Row], fmt: Format, title: str = "") -> str:
    """The table as text: `md` for GitHub, `latex` with booktabs rules, a page of `html`, `csv` with unrounded numbers.

    Raises:
        ValueError: `fmt` is none of these.
    """
    if fmt not in FORMATS:
        raise ValueError(f"unknown table format {fmt!r}, choose one of {', '.join(FORMATS)}")
    return _csv(rows) if fmt == "csv" else write_grid(grid_of(rows, fmt, title), fmt)


def grid_of(rows: Sequence[Row], fmt: Format, title: str) -> Grid:
    """The rows as text cells; all that goes with them stands on a page of `html` only."""
    heads, body = columns(rows), cells(rows)
    notes = notes_on([row.published for row in rows if row.published])
    damaged = damage_notes(message for row in rows for message in row.damaged)
    if fmt != "html":  # the others are pasted into texts, which say the rest themselves
        return Grid(heads, body, notes=[*notes, *([provenance(rows)] if notes else []), *damaged])
    styles = {(number, len(heads) - 1): row.status.replace(" ", "-") for number, row in enumerate(rows)}
    missing = dict.fromkeys(command for row in rows for command in row.missing)
    return Grid(heads, body, title, styles, notes=[*notes, provenance(rows), *damaged], commands=list(missing))


def print_table(rows: Sequence[Row], title: str, console: "Console | None" = None) -> None:
    """Print the table, its provenance, and the commands that fill the missing cells."""
    from rich.console import Console

    console = console or Console()
    # Not cropped: a terminal narrower than the table wraps its lines, which is ugly, but keeps every digit.
    console.print(_rich(rows, title, console.width), crop=False)
    print_origin(rows, console)


def print_origin(rows: Sequence[Row], console: "Console") -> None:
    """Print the provenance of the rows, and the commands that fill the missing cells."""
    print_notes(
        [
            *notes_on([row.published for row in rows if row.published]),
            provenance(rows),
            *damage_notes(message for row in rows for message in row.damaged),
        ],
        list(dict.fromkeys(command for row in rows for command in row.missing)),
        console,
    )


def print_notes(notes: Sequence[str], commands: Sequence[str], console: "Console") -> None:
    """Print what stands below a table."""
    from rich.text import Text

    for note in notes:
        console.print(Text(note), soft_wrap=True)
    if commands:
        console.print(Text("\nTo fill the missing cells:"))
        for command in commands:
            # Text and soft wrap: brackets stay brackets, and a copied command stays one line.
            console.print(Text(f"  {command}"), soft_wrap=True)


def _rich(rows: Sequence[Row], title: str, width: int) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    roomy = width > _ROOMY_WIDTH
    table = Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        # Where space is short, the names of the methods need it more than the gaps and the status do.
        padding=(0, int(roomy), 0, 0),
        width=_MIN_WIDTH if width < _MIN_WIDTH else None,
    )
    for name, align in columns(rows):
        # Only words may wrap: number columns keep their width and give it up in the header instead.
        header = "compr." if name == "compression" else name.replace(" ", "\n", 1)
        table.add_column(Text(header), justify=align, no_wrap=align == "right", overflow="fold")
    for row, texts in zip(rows, cells(rows), strict=True):
        status = texts[-1] if roomy else texts[-1].replace(" seeds", "\nseeds")
        table.add_row(*map(Text, texts[:-1]), Text(status, style=_STYLE.get(row.status, "yellow")))
    return table


def _csv(rows: Sequence[Row]) -> str:
    published = any(row.published for row in rows)
    lines: list[list[object]] = [[*_CSV_COLUMNS, *(_CSV_PUBLISHED if published else ())]]
    for row in rows:
        sizes = [row.bits, row.simulated_mb, row.compression, row.steps, row.seconds]
        origin = [row.teacher_id, "; ".join(row.commits), "; ".join(row.devices)]
        line = [row.label, row.metric, row.mean, row.std, row.n, row.expected, *sizes, row.status, *origin]
        lines.append([*line, *(numbers_of(row.published, row.comparison) if published else ())])
    return write_csv(lines)


def numbers_of(published: Published | None, comparison: Comparison | None) -> list[object]:
    """The published value and the difference to it as raw numbers in the unit of papers, and the verdict."""
    values = [None] * 3 if published is None else [published.low, published.high, published.std]
    judged = [None] * 3 if comparison is None else [comparison.difference, comparison.tolerance, comparison.verdict]
    return [*values, *judged]
