"""Result files and the tables made from them; reads and writes files only, never imports torch."""

from lowbit.results.collect import Cell, Row, collect
from lowbit.results.layout import read_layout
from lowbit.results.published import read_papers
from lowbit.results.render import FORMATS, Format, Grid, format_of, print_grid, write_grid
from lowbit.results.run_file import RUN_FILE, SCHEMA, read_run
from lowbit.results.table import tabulate_languages, tabulate_layout, tabulate_rows

__all__ = [
    "FORMATS",
    "RUN_FILE",
    "SCHEMA",
    "Cell",
    "Format",
    "Grid",
    "Row",
    "collect",
    "format_of",
    "print_grid",
    "read_layout",
    "read_papers",
    "read_run",
    "tabulate_languages",
    "tabulate_layout",
    "tabulate_rows",
    "write_grid",
]
