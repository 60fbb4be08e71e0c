"""The table of runs that were trained on one language and scored in several: a column per language, and their mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from lowbit.config.xglue_tasks import XGLUE_TASKS
from lowbit.results.collect import collect
from lowbit.results.formats import Align, Format, Grid, write_csv, write_grid
from lowbit.results.rows import Cell, Row
from lowbit.results.table import print_origin
from lowbit.results.text import EMPTY, damage_notes, score
from lowbit.settings.data import XglueTask

MEAN = "mean"
_MEAN_SPLIT = "val_mean"
_GAP = 3  # between columns


class LanguageTable:
    """Rows of the runs with their scores by language.

    Attributes:
        rows: One per group of seeds and one per teacher, with the mean over the languages.
        by_language: The same rows with the score in each language; no value where a run has none.

    Raises:
        ValueError: no finished run was scored in several languages, or runs are not comparable.
    """

    def __init__(self, cells: Iterable[Cell]) -> None:
        cells = list(cells)
        runs = [cell.run for cell in cells if cell.run is not None]
        found = list(dict.fromkeys(language for run in runs for language in _metrics(run)))
        if not found:
            damaged = [f"\n{note}" for note in damage_notes(cell.damage for cell in cells if cell.damage)]
            raise ValueError(
                "no finished run was scored in several languages: that takes data=xnli or another of XGLUE"
                + "".join(damaged)
            )
        self.rows = collect(cells)
        self.by_language = {language: collect(cells, partial(_metric, language)) for language in found}

    def heads(self) -> list[tuple[str, Align]]:
        """Return the header and the alignment of each column."""
        return [("method", "left"), *((name, "right") for name in (*self.by_language, MEAN)), ("status", "left")]

    def lines(self) -> Iterator[list[str]]:
        """Yield the text of each row; a mean over fewer languages than the table has says over how many."""
        for row, *parts in zip(self.rows, *self.by_language.values(), strict=True):
            scores = list(map(score, parts))
            there = sum(text != EMPTY for text in scores)
            mean = score(row) if there in (0, len(parts)) else f"{score(row)} of {there}"
            yield [row.label, *scores, mean, row.status]

    def render(self, fmt: Format) -> str:
        """Return the table as text: `md`, `latex`, `html`, or raw numbers as `csv`, a line per row and language."""
        if fmt == "csv":
            return self._csv()
        notes = damage_notes(message for row in self.rows for message in row.damaged)
        return write_grid(Grid(self.heads(), list(self.lines()), title="Scores by language", notes=notes), fmt)

    def print(self, title: str) -> None:
        """Print the table, where its numbers come from, and the commands that fill the missing cells.

        Languages that the terminal has no room for beside the others follow below, with the methods again.
        """
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console()
        heads, lines = self.heads(), list(self.lines())
        widths = [max(map(len, column)) for column in zip([name for name, _ in heads], *lines, strict=True)]
        for number, block in enumerate(_blocks(widths, console.width)):
            above = Text("" if number else title, style="bold")
            table = Table(title=above, title_justify="left", box=SIMPLE_HEAD, show_edge=False)
            for place in block:
                name, align = heads[place]
                table.add_column(Text(name), justify=align, no_wrap=True, min_width=widths[place])
            for line in lines:
                table.add_row(*(Text(line[place]) for place in block))
            console.print(table, crop=False)
        print_origin(self.rows, console)

    def _csv(self) -> str:
        lines: list[Sequence[object]] = [("method", "language", "metric", "mean", "std", "n", "expected")]
        columns: dict[str, Sequence[Row]] = {**self.by_language, MEAN: self.rows}
        for place, row in enumerate(self.rows):
            for language, rows in columns.items():
                part = rows[place]
                lines.append([row.label, language, part.metric, part.mean, part.std, len(part.values), row.expected])
        return write_csv(lines)


def _blocks(widths: Sequence[int], width: int) -> list[list[int]]:
    """Return the columns that stand beside one another, in lines of `width` characters; the first is in every block."""
    blocks, taken = [[0]], widths[0] + _GAP
    for place, needed in enumerate(widths[1:], start=1):
        if len(blocks[-1]) > 1 and taken + needed + _GAP > width:
            blocks.append([0])
            taken = widths[0] + _GAP
        blocks[-1].append(place)
        taken += needed + _GAP
    return blocks


def _metrics(run: dict[str, Any]) -> dict[str, str]:
    """Return the name of the metric in each language, that of the training rows first; nothing for other data sets."""
    data, (split, _, name) = run["config"]["data"], run["primary_metric"].partition("/")
    if split != _MEAN_SPLIT or not data.get("xglue_task"):
        return {}
    others = {language: f"val_{language}/{name}" for language in XGLUE_TASKS[XglueTask[data["xglue_task"]]].languages}
    return {data["language"]: f"val/{name}"} | {key: split for key, split in others.items() if split in run["metrics"]}


def _metric(language: str, run: dict[str, Any]) -> str:
    """Return the run's metric in a language; a name that no run has where it was not scored in it."""
    return _metrics(run).get(language, f"not scored in {language}")
