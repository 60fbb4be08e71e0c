"""`lowbit table`: the table of a sweep's runs."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from lowbit.cli.verbs import SWEEP, AddVerb, chosen_runs, jobs_of, known_sweep
from lowbit.config import compose as C
from lowbit.config import identity
from lowbit.config.batch import load_jobs
from lowbit.config.problems import ConfigError
from lowbit.files import write_text
from lowbit.results import (
    FORMATS,
    Cell,
    Format,
    Grid,
    collect,
    format_of,
    print_grid,
    read_layout,
    read_papers,
    tabulate_languages,
    tabulate_layout,
    tabulate_rows,
    write_grid,
)
from lowbit.results.selection import cells_of_runs


def add(verb: AddVerb) -> None:
    """Add the verb."""
    table = verb(
        "table", _table, "print the table of a sweep's runs", "lowbit table demo --format latex --out demo.tex"
    )
    table.add_argument("name", nargs="?", help=SWEEP)
    table.add_argument("overrides", nargs="*", default=[], help="the overrides that the sweep was run with")
    table.add_argument(
        "--runs",
        nargs="+",
        metavar="RUN|KEY=VALUE",
        help="of these runs, not of a sweep: ids or their beginnings, NAME/ID with *, or filters of `lowbit ls runs`",
    )
    table.add_argument("--format", choices=FORMATS, help="default: a table for the terminal")
    table.add_argument(
        "--languages", action="store_true", help="one column per language and their mean, of runs on XGLUE"
    )
    table.add_argument("--rows", action="store_true", help="a row per method, also where the sweep has a layout")
    table.add_argument("--out", type=Path, help="write to this file; its suffix (.md .csv .tex .html) is the format")


def _table(args: argparse.Namespace) -> int:
    fmt = args.format or (None if args.out is None else format_of(args.out))
    if args.runs:
        title, overrides = "runs", [*([args.name] if args.name else []), *args.overrides]
        cells = _cells_of_runs(args.runs, overrides)
    elif args.name:
        known_sweep(args.name)
        title, cells = args.name, cells_of(args.name, args.overrides)
    else:
        raise ConfigError(["table: name a sweep (`lowbit ls sweeps`), or runs with --runs (`lowbit ls runs`)"])
    for cell in cells:
        if cell.damage and fmt == "csv":  # which has no notes
            print(f"damaged: {cell.damage}", file=sys.stderr)
    if args.languages:
        grid = tabulate_languages(cells, title)
    else:
        grid = grid_of(title, cells, [] if args.rows or args.runs else C.files_of(f"sweeps/{title}"))
    show(grid, fmt, args.out)
    return 0


def _cells_of_runs(words: list[str], overrides: list[str]) -> list[Cell]:
    """Return the finished runs that the words choose as cells of a table; the others are named on stderr."""
    _, found = chosen_runs(overrides, words)
    finished = [run for run in found if run.run is not None or run.damage]
    for run in found:
        if run not in finished:
            print(f"not in the table, {run.facts['state']}: {run.folder}", file=sys.stderr)
    if not finished:
        raise ConfigError(["table --runs: no such run has finished; `lowbit ls runs` lists all"])
    return cells_of_runs(finished)


def cells_of(name: str, overrides: list[str]) -> list[Cell]:
    """Return the jobs of a sweep as cells of a table; those with an invalid config are named on stderr and left out.

    Raises:
        ConfigError: no job is valid.
    """
    jobs = jobs_of([f"+sweeps={name}", *overrides])
    labels = [{key: value for key, _, value in (o.partition("=") for o in job)} for job in jobs]
    swept = {"method", *(key for key in labels[0] if len({label[key] for label in labels}) > 1)}
    cells, refused = [], []
    for job, label, loaded in zip(jobs, labels, load_jobs(jobs), strict=True):
        if isinstance(loaded, ConfigError):  # the sweep runs the others
            refused.append((job, loaded.problems))
            continue
        content, config = loaded
        shown = {key: value for key, value in label.items() if key in swept}
        command = f"lowbit train {shlex.join(job)}"
        cells.append(Cell(identity.run_folder(content, config), shown, command, content))
    if not cells:
        raise ConfigError(list(dict.fromkeys(problem for _, problems in refused for problem in problems)))
    for job, problems in refused:
        print(f"not in the table: lowbit train {shlex.join(job)}: {'; '.join(problems)}", file=sys.stderr)
    return cells


def grid_of(title: str, cells: Sequence[Cell], layouts: Sequence[Path]) -> Grid:
    """Return the table with published values, in the layout of the last of these files of a sweep that has one."""
    roots = dict.fromkeys((C.shipped_root(), Path.cwd()))  # a file of the working directory replaces a shipped one
    records = read_papers(root / "conf" / "paper" for root in roots)
    layout = read_layout(layouts)
    if layout is not None:
        return tabulate_layout(cells, layout, records)
    return tabulate_rows(collect(cells, records=records), title)


def show(grid: Grid, fmt: Format | None, out: Path | None = None) -> None:
    """Print the table, as text of a format or for the terminal, or write it to a file."""
    if fmt is None:
        print_grid(grid)
    elif out is None:
        print(write_grid(grid, fmt), end="")
    else:
        write_text(out, write_grid(grid, fmt))
        print(f"wrote {out}")
