"""`lowbit check` and `lowbit ls`: whether a config is valid, and what there is to choose from."""

from __future__ import annotations

import argparse
import sys

from lowbit.cli.verbs import OVERRIDES, AddVerb, check_jobs, chosen_runs, jobs_of
from lowbit.config import compose as C
from lowbit.config import identity
from lowbit.config.idle import idle_notes
from lowbit.config.problems import ConfigError, nearest
from lowbit.results.selection import COLUMNS

FILTER = f"only runs of which this is true: {', '.join(COLUMNS)}, or a key of the config; a,b is either, * is any"


def add(verb: AddVerb) -> None:
    """Add both verbs."""
    check = verb(
        "check",
        _check,
        "say whether settings are valid, and what a run would do",
        "lowbit check experiment=digits/ti_g",
    )
    check.add_argument("overrides", nargs="*", default=[], help=OVERRIDES)
    ls = verb("ls", _ls, "list config groups, the choices of one, or all runs", "lowbit ls runs --filter method=ti_g")
    ls.add_argument("group", nargs="?", help="a config group, or `runs`")
    ls.add_argument(
        "overrides", nargs="*", default=[], help="with `runs`: paths.outputs=DIR, where they are not in outputs/"
    )
    ls.add_argument("--filter", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=FILTER)


def _check(args: argparse.Namespace) -> int:
    try:
        jobs = jobs_of(args.overrides)
    except ConfigError:
        jobs = [args.overrides]  # load() says everything that is wrong with them
    loaded = check_jobs(jobs)
    from lowbit.training.checks import examine
    from lowbit.training.run import Run

    problems: dict[str, None] = {}
    for job, (cfg, config), found in zip(jobs, loaded, examine(Run(*pair) for pair in loaded), strict=True):
        problems.update(dict.fromkeys(found.problems))
        if not found.problems:
            print(f"{config.name}/{identity.run_id(cfg)}: valid")
            unchecked = [f"not checked: {', '.join(subjects)}: {why}" for why, subjects in found.unchecked.items()]
            notes = [f"note: {note}" for note in idle_notes(config, job)]
            print("\n".join(f"  {line}" for line in [*found.preview, *notes, *unchecked]))
    if problems:
        raise ConfigError(list(problems))
    return 0


def _ls(args: argparse.Namespace) -> int:
    if args.group == "runs":
        return _ls_runs(args.overrides, args.filter)
    if args.overrides or args.filter:
        raise ConfigError([f"ls: {' '.join([*args.overrides, *args.filter])} goes with `lowbit ls runs`"])
    with C.hydra_session():
        groups = {group: C.choices(group) for group in C.groups()}
    if args.group is None:
        for group, names in groups.items():
            print(f"{group:<12} {', '.join(names)}")
        return 0
    if args.group not in groups:
        raise ConfigError([f"{args.group}: no such group. {nearest(args.group, groups)}Groups: {', '.join(groups)}"])
    names = groups[args.group]
    width = max((len(name) for name in names), default=0)
    for name in names:
        print(f"{name:<{width}}  {C.first_comment(args.group, name)}")
    return 0


def _ls_runs(overrides: list[str], filters: list[str]) -> int:
    outputs, found = chosen_runs(overrides, filters)
    if not found:
        print(f"{outputs / 'runs'}: there is no run; paths.outputs=DIR looks elsewhere", file=sys.stderr)
        return 0
    lines = [COLUMNS, *(tuple(run.facts.get(column, "-") for column in COLUMNS) for run in found)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(map(str.ljust, line, widths)).rstrip())
    return 0
