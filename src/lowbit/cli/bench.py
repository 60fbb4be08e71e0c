"""`lowbit bench step`, a distillation step against its parts, and `lowbit bench job`, a run against a bare loop."""

from __future__ import annotations

import argparse

from lowbit.cli.verbs import AddVerb
from lowbit.config.problems import ConfigError
from lowbit.config.validate import load


def add(verb: AddVerb) -> None:
    """Add the verb."""
    bench = verb("bench", _bench, "measure how long a training step or a whole job takes", "lowbit bench step")
    bench.add_argument("what", choices=("step", "job"), help="what to measure")
    bench.add_argument(
        "overrides", nargs="*", default=[], help="an experiment to measure; none: --shape under TernaryBERT"
    )
    bench.add_argument(
        "--shape", help="hidden=384,layers=6,heads=12,ffn=1536,vocab=30522,batch=32,length=64 if not given"
    )
    bench.add_argument("--rounds", type=int, default=8, help="timed rounds; each runs every part once")
    bench.add_argument("--threads", type=int, help="torch threads; default: all cores")


def _bench(args: argparse.Namespace) -> int:
    overrides = list(args.overrides)
    if overrides and args.shape is not None:
        raise ConfigError([f"bench {args.what}: give --shape or an experiment's overrides, not both"])
    loaded = load(overrides) if overrides else None
    config = None if loaded is None else loaded[1]
    if args.what == "job":
        from lowbit.training.overhead import bench_job

        print(bench_job(config, args.shape, args.rounds, args.threads))
    else:
        from lowbit.training.bench import bench_step

        print(bench_step(config, args.shape, args.rounds, args.threads))
    return 0
