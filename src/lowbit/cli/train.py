"""`lowbit train`: one run, or with -m one for every combination of values."""

from __future__ import annotations

import argparse
import os
import sys

from lowbit.cli.launchers import add_options
from lowbit.cli.sweep import multirun
from lowbit.cli.verbs import OVERRIDES, AddVerb, told
from lowbit.config import compose as C
from lowbit.config.problems import ConfigError
from lowbit.config.validate import load
from lowbit.execution.parent import lead_children
from lowbit.execution.process import use_own_temporary_folder


def add(verb: AddVerb) -> None:
    """Add the verb."""
    train = verb(
        "train", _train, "run one experiment, or several with -m", "lowbit train experiment=digits/ti_g seed=2"
    )
    train.add_argument("-m", "--multirun", action="store_true", help="run every combination of comma-separated values")
    train.add_argument("overrides", nargs="*", help=OVERRIDES)
    add_options(train)


def _train(args: argparse.Namespace) -> int:
    if args.multirun:
        return multirun(args, args.overrides, "multirun")
    if args.jobs or args.dry_run or args.launcher or args.cluster or args.slurm:
        raise ConfigError(["--jobs, --dry-run and the launchers are of several runs: add -m"])
    jobs = C.expand(args.overrides) if any("," in o for o in args.overrides) else [args.overrides]
    if len(jobs) > 1:
        raise ConfigError([f"{len(jobs)} jobs in one command: add -m to run them all, or quote a value with commas"])
    cfg, config = load(args.overrides)
    if config.trainer.devices * config.trainer.num_nodes > 1:
        lead_children()
        # DistributedDataParallel looks for unused parameters in every step, and torch says so if it finds none.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    use_own_temporary_folder()
    from lowbit.training.run import train

    try:
        train(cfg, config)
    except ConfigError:
        raise
    except Exception as error:
        if not isinstance(error, (ValueError, OSError, MemoryError)) and not hasattr(error, "__notes__"):
            raise  # a fault of lowbit, before there was a file for its traceback
        print(told(error), file=sys.stderr)
        return 1
    return 0
