"""Tables of rows: a DataFrame, Markdown, LaTeX, CSV, the terminal."""

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from lowbit.results.rows import Row
from lowbit.results.text import cells, columns, provenance

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

__all__ = ["Format", "print_table", "provenance", "render", "to_frame"]

Format = Literal["md", "csv", "latex"]
_STYLE = {"done": "green", "not run": "red"}
_MIN_WIDTH = 80
_ROOMY_WIDTH = 100
_CSV_COLUMNS = (
    *("method", "metric", "mean", "std", "n", "expected"),
    *("bits", "size_mb", "compression", "steps", "seconds", "status"),
    *("teacher_id", "commit", "device"),
)
# One pass over the text, so that the backslashes of a replacement are not escaped again.
_LATEX = str.maketrans(
    {char: f"\\{char}" for char in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$"}
)


def to_frame(rows: Sequence[Row]) -> "pd.DataFrame":
    """The table as text cells, one column per header."""
    import pandas as pd

    return pd.DataFrame(cells(rows), columns=[name for name, _ in columns(rows)])


def render(rows: Sequence[Row], fmt: Format) -> str:
    """The table as text: `md` for GitHub, `latex` with booktabs rules, `csv` with raw unrounded numbers.

    Raises:
        ValueError: `fmt` is none of these.
    """
    if fmt == "md":
        return _markdown(rows)
    if fmt == "latex":
        return _latex(rows)
    if fmt == "csv":
        return _csv(rows)
    raise ValueError(f"unknown table format {fmt!r}, choose one of md, csv, latex")


def print_table(rows: Sequence[Row], title: str, console: "Console | None" = None) -> None:
    """Print the table, its provenance, and the commands that fill the missing cells."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    # Not cropped: a terminal narrower than the table wraps its lines, which is ugly, but keeps every digit.
    console.print(_rich(rows, title, console.width), crop=False)
    console.print(Text(provenance(rows)), soft_wrap=True)
    missing = dict.fromkeys(command for row in rows for command in row.missing)
    if missing:
        console.print(Text("\nTo fill the missing cells:"))
        for command in missing:
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


def _markdown(rows: Sequence[Row]) -> str:
    heads = columns(rows)
    lines = [[name for name, _ in heads], ["---" if align == "left" else "---:" for _, align in heads], *cells(rows)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _latex(rows: Sequence[Row]) -> str:
    def line(texts: Sequence[str]) -> str:
        return " & ".join(text.translate(_LATEX) for text in texts) + r" \\"

    heads = columns(rows)
    spec = "".join(align[0] for _, align in heads)
    top = [rf"\begin{{tabular}}{{{spec}}}", r"\toprule", line([name for name, _ in heads]), r"\midrule"]
    return "\n".join([*top, *map(line, cells(rows)), r"\bottomrule", r"\end{tabular}"]) + "\n"


def _csv(rows: Sequence[Row]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for row in rows:
        sizes = [row.bits, row.simulated_mb, row.compression, row.steps, row.seconds]
        origin = [row.teacher_id, "; ".join(row.commits), "; ".join(row.devices)]
        writer.writerow([row.label, row.metric, row.mean, row.std, row.n, row.expected, *sizes, row.status, *origin])
    return buffer.getvalue()
