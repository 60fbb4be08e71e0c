"""Result files and the tables made from them; reads and writes files only, never imports torch."""

from lowbit.results.collect import Cell, Row, collect
from lowbit.results.run_file import RUN_FILE, SCHEMA, read_json, read_run, write_json, write_text
from lowbit.results.table import print_table, provenance, render, to_frame

__all__ = [
    "RUN_FILE",
    "SCHEMA",
    "Cell",
    "Row",
    "collect",
    "print_table",
    "provenance",
    "read_json",
    "read_run",
    "render",
    "to_frame",
    "write_json",
    "write_text",
]
