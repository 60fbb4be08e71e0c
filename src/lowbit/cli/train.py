"""`lowbit train` and `lowbit sweep`: one run, or every job of a sweep."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from lowbit.cli.verbs import OVERRIDES, SWEEP, AddVerb, check_jobs, jobs_of, known_sweep, told
from lowbit.config import compose as C
from lowbit.config import identity
from lowbit.config.problems import ConfigError
from lowbit.config.validate import load


def add(verb: AddVerb) -> None:
    """Add both verbs."""
    train = verb(
        "train", _train, "run one experiment, or several with -m", "lowbit train experiment=digits/ti_g seed=2"
    )
    train.add_argument("-m", "--multirun", action="store_true", help="run every combination of comma-separated values")
    train.add_argument("overrides", nargs="*", help=OVERRIDES)
    sweep = verb(
        "sweep", _sweep, "run every job of sweeps/NAME.yaml that is not finished", "lowbit sweep demo seed=1,2"
    )
    sweep.add_argument("name", help=SWEEP)
    sweep.add_argument("overrides", nargs="*", help=OVERRIDES)


def _train(args: argparse.Namespace) -> int:
    if args.multirun:
        return _multirun(args.overrides)
    jobs = C.expand(args.overrides) if any("," in o for o in args.overrides) else [args.overrides]
    if len(jobs) > 1:
        raise ConfigError([f"{len(jobs)} jobs in one command: add -m to run them all, or quote a value with commas"])
    cfg, config = load(args.overrides)
    from lowbit.training.guards import NonFiniteLossError
    from lowbit.training.run import train

    try:
        train(cfg, config)
    except (ValueError, OSError, NonFiniteLossError) as error:
        print(told(error), file=sys.stderr)
        return 1
    return 0


def _sweep(args: argparse.Namespace) -> int:
    known_sweep(args.name)
    return _multirun([f"+sweeps={args.name}", f"sweep={args.name}", *args.overrides])


def _multirun(overrides: list[str]) -> int:
    """Validate every job, then let Hydra's sweeper and launcher run them; a failed job does not stop the others."""
    jobs = jobs_of(overrides)
    check_jobs(jobs)
    import hydra

    failures: list[str] = []

    def job(cfg: Any) -> float | None:
        from lowbit.training.run import train

        try:
            return train(cfg, C.to_config(cfg))
        except Exception as error:
            failures.append(f"{cfg.name}/{identity.run_id(cfg)}: {told(error)}")
            print(f"FAILED {failures[-1]}", file=sys.stderr)
            return None

    C.register()
    run = hydra.main(config_path=str(C.shipped_root() / "conf"), config_name=C.ROOT_CONFIG, version_base="1.3")(job)
    argv = sys.argv
    sys.argv = ["lowbit", "-m", *C.hydra_arguments(overrides)]
    try:
        run()
    finally:
        sys.argv = argv
    if failures:
        print(f"{len(failures)} of {len(jobs)} jobs failed; the same command again retries them:", file=sys.stderr)
        print("\n".join(f"  - {failure}" for failure in failures), file=sys.stderr)
    return 1 if failures else 0
