"""Result files and the tables made from them; reads and writes files only, never imports torch."""

from lowbit.results.collect import Cell, Row, collect
from lowbit.results.pivot import build_pivot, print_pivot, read_layout, render_pivot
from lowbit.results.published import read_papers
from lowbit.results.render import FORMATS, Format, format_of
from lowbit.results.run_file import RUN_FILE, SCHEMA, read_run
from lowbit.results.table import LanguageTable, print_table, provenance, render, to_text

__all__ = [
    "FORMATS",
    "RUN_FILE",
    "SCHEMA",
    "Cell",
    "Format",
    "LanguageTable",
    "Row",
    "build_pivot",
    "collect",
    "format_of",
    "print_pivot",
    "print_table",
    "provenance",
    "read_layout",
    "read_papers",
    "read_run",
    "render",
    "render_pivot",
    "to_text",
]
