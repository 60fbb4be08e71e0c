"""`lowbit table`: the table of a sweep's runs."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from lowbit.cli.verbs import SWEEP, AddVerb, jobs_of, known_sweep
from lowbit.config import identity
from lowbit.config.validate import load


def add(verb: AddVerb) -> None:
    """Add the verb."""
    table = verb(
        "table", _table, "print the table of a sweep's runs", "lowbit table demo --format latex --out demo.tex"
    )
    table.add_argument("name", help=SWEEP)
    table.add_argument("overrides", nargs="*", help="the overrides that the sweep was run with")
    table.add_argument("--format", choices=("md", "csv", "latex"), help="default: a table for the terminal")
    table.add_argument("--out", type=Path, help="write to this file (md unless --format says otherwise)")


def _table(args: argparse.Namespace) -> int:
    from lowbit.results import Cell, collect, print_table, render

    known_sweep(args.name)
    jobs = jobs_of([f"+sweeps={args.name}", *args.overrides])
    labels = [{key: value for key, _, value in (o.partition("=") for o in job)} for job in jobs]
    swept = {"method", *(key for key in labels[0] if len({label[key] for label in labels}) > 1)}
    cells = []
    for job, label in zip(jobs, labels, strict=True):
        cfg, config = load(job)
        shown = {key: value for key, value in label.items() if key in swept}
        cells.append(Cell(identity.run_folder(cfg, config), shown, f"lowbit train {shlex.join(job)}"))
    rows = collect(cells)
    if args.format is None and args.out is None:
        print_table(rows, title=args.name)
        return 0
    text = render(rows, args.format or "md")
    if args.out is None:
        print(text)
    else:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
        print(f"wrote {args.out}")
    return 0
