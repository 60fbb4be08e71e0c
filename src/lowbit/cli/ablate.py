"""`lowbit ablate`: what each part of a recipe is worth."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout

from lowbit.cli.launchers import add_options, make_launcher
from lowbit.cli.sweep import exit_code
from lowbit.cli.table import show
from lowbit.cli.verbs import OVERRIDES, AddVerb, check_jobs
from lowbit.config import compose as C
from lowbit.config import identity
from lowbit.config.problems import ConfigError, nearest
from lowbit.execution.ablation import (
    SLOTS,
    Skipped,
    Variant,
    build_variants,
    effects,
    metric_of,
    plan_ablation,
)
from lowbit.execution.progress import print_plan
from lowbit.execution.state import state_of
from lowbit.execution.sweep import run_sweep
from lowbit.results.compare import effects_grid

_OVER = "over="
_EXAMPLE = "lowbit ablate experiment=digits/ti_g over=losses,intervention seed=1,2,3"


def add(verb: AddVerb) -> None:
    """Add the verb."""
    ablate = verb("ablate", _ablate, "train with parts of a method left out, to see what they do", _EXAMPLE)
    ablate.add_argument(
        "overrides", nargs="*", default=[], help=f"over=SLOT,... of {', '.join(SLOTS)}; seed=1,2,3; and {OVERRIDES}"
    )
    ablate.add_argument(
        "--with", dest="more", action="append", default=[], metavar="KEY=VALUE", help="one more variant: this override"
    )
    ablate.add_argument("--format", choices=("md", "csv"), help="default: a table for the terminal")
    add_options(ablate)


def _ablate(args: argparse.Namespace) -> int:
    base, slots, seeds = _parsed(args.overrides)
    cfg, config = check_jobs([[*base, seed] for seed in seeds])[0]
    variants = build_variants(identity.resolved(cfg), slots)
    unused = [slot for slot in slots if all(variant.slot != slot for variant in variants)]
    variants += [Variant("--with", word, (word,)) for word in args.more]
    if not variants:
        name = config.method.name
        raise ConfigError([f"over={','.join(slots)}: nothing of it can be left out or chosen in method={name}"])
    arms, skipped = plan_ablation(base, variants, seeds)
    jobs = [job for arm in arms for job in arm.jobs]
    # A table to be redirected into a file is alone there.
    with nullcontext() if args.format is None else redirect_stdout(sys.stderr):
        _tell_skipped(skipped, unused)
        if args.dry_run:
            print_plan(jobs, {job.run_id: state_of(job) for job in jobs}, args.jobs or 1)
            return 0
        launcher, view = make_launcher(args, "ablate", jobs[0].outputs, jobs)
        failures = run_sweep(jobs, launcher, view)
    code = exit_code(failures, jobs)
    show(effects_grid(effects(arms), metric_of(arms)), args.format)
    return code


def _parsed(words: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the recipe's overrides, the slots, and an override for each seed.

    Raises:
        ConfigError: slots or seeds that cannot be.
    """
    over = [word.removeprefix(_OVER) for word in words if word.startswith(_OVER)]
    rest = [word for word in words if not word.startswith((_OVER, "seed="))]
    slots = list(dict.fromkeys(slot for text in over for slot in text.strip("[]").split(",") if slot))
    if not slots:
        raise ConfigError([f"over=...: name what is varied: {', '.join(SLOTS)}. For example {_EXAMPLE}"])
    problems = [
        f"over={slot}: no such slot. {nearest(slot, SLOTS)}Allowed: {', '.join(SLOTS)}"
        for slot in slots
        if slot not in SLOTS
    ]
    seeds = [job[0] for job in C.expand([word for word in words if word.startswith("seed=")] or ["seed=1"])]
    if len(C.expand(rest)) > 1:
        problems.append("only the seed may have several values here: they are the sample of every variant")
    if len(set(seeds)) < len(seeds):
        problems.append(f"{', '.join(seeds)}: every seed once")
    if problems:
        raise ConfigError(problems)
    return rest, slots, seeds


def _tell_skipped(skipped: Sequence[Skipped], unused: Sequence[str]) -> None:
    for slot in unused:
        print(f"nothing to vary in {slot}: this recipe has none of it, or one part only")
    for one in skipped:
        print(f"left out: {one.variant}: {one.reason}")
