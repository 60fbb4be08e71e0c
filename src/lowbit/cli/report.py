"""`lowbit report`: a sweep on one page."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from lowbit.cli.table import cells_of, grid_of
from lowbit.cli.verbs import SWEEP, AddVerb, known_sweep
from lowbit.config import compose as C
from lowbit.config.problems import ConfigError
from lowbit.files import write_text
from lowbit.results.report import Group, LayerFacts, Report, groups_of, render_report

_SUFFIXES = (".html", ".htm")


def add(verb: AddVerb) -> None:
    """Add the verb."""
    report = verb(
        "report",
        _report,
        "write a web page of a sweep: table, curves, layers, commands",
        "lowbit report demo --out demo.html",
    )
    report.add_argument("name", help=SWEEP)
    report.add_argument("overrides", nargs="*", default=[], help="the overrides that the sweep was run with")
    report.add_argument("--out", type=Path, required=True, help="the page, FILE.html")
    report.add_argument("--no-layers", action="store_true", help="leave out what is computed from the runs' weights")
    report.add_argument(
        "--weights-of", metavar="ROW", help="row of the table whose weights are shown; default: the best"
    )


def _report(args: argparse.Namespace) -> int:
    known_sweep(args.name)
    if args.out.suffix.lower() not in _SUFFIXES:
        raise ConfigError([f"--out {args.out}: a report is a page of HTML; end in .html"])
    cells = cells_of(args.name, args.overrides)
    groups = groups_of(cells)
    sweep = shlex.join(["lowbit", "sweep", args.name, *args.overrides])
    if not any(group.finished for group in groups):
        print(
            f"no run of {args.name} has finished, so there is nothing to report. To run them: {sweep}", file=sys.stderr
        )
        for damage in dict.fromkeys(cell.damage for cell in cells if cell.damage):
            print(f"damaged: {damage}", file=sys.stderr)
        return 1
    chosen = _chosen(groups, args.weights_of)
    outputs = Path(cells[0].config["paths"]["outputs"])
    table = shlex.join(["lowbit", "table", args.name, *args.overrides])
    page = render_report(
        Report(
            title=args.name,
            about=C.first_comment("sweeps", args.name),
            grid=grid_of(args.name, cells, C.files_of(f"sweeps/{args.name}")),
            groups=groups,
            commands=[sweep, table, args.command],
            facts={} if args.no_layers else _facts(groups, outputs),
            chosen=chosen,
            note="Left out (--no-layers)." if args.no_layers else "",
        )
    )
    write_text(args.out, page)
    print(f"wrote {args.out}")
    return 0


def _chosen(groups: Sequence[Group], label: str | None) -> str:
    """Return the label of the group whose weights are shown."""
    finished = {group.label: group for group in groups if group.finished}
    if label is None:
        return max(finished.values(), key=lambda group: group.score or 0.0).label
    if label not in finished:
        raise ConfigError([f"--weights-of {label}: no such row with a finished run; allowed: {', '.join(finished)}"])
    return label


def _facts(groups: Sequence[Group], outputs: Path) -> dict[str, LayerFacts]:
    from lowbit.training.inspection import inspect_run

    facts = {}
    for group in groups:
        if group.finished:
            cell, run = group.finished[0]
            print(f"layers of {group.label}", flush=True)
            facts[group.label] = inspect_run(run, cell.run_dir, outputs)
    return facts
