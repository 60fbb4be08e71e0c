"""`lowbit sweep`, and what it shares with `lowbit train -m`: every job of a multirun that is not finished."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lowbit.cli.launchers import (
    add_options,
    check_options,
    hydra_launcher,
    make_launcher,
    make_sweeper,
    refuse_several_devices,
    split_hydra_words,
)
from lowbit.cli.verbs import OVERRIDES, SWEEP, AddVerb, jobs_of, known_sweep
from lowbit.config import compose as C
from lowbit.config.problems import ConfigError
from lowbit.execution.jobs import SweepJob, plan
from lowbit.execution.process import last_error
from lowbit.execution.progress import print_plan
from lowbit.execution.state import State, state_of
from lowbit.execution.sweep import Failure, run_sweep

FAILED, STILL_RUNNING = 1, 3


def add(verb: AddVerb) -> None:
    """Add the verb."""
    sweep = verb(
        "sweep", _sweep, "run every job of sweeps/NAME.yaml that is not finished", "lowbit sweep demo seed=1,2"
    )
    sweep.add_argument("name", help=SWEEP)
    sweep.add_argument("overrides", nargs="*", default=[], help=OVERRIDES)
    add_options(sweep)


def _sweep(args: argparse.Namespace) -> int:
    known_sweep(args.name)
    return multirun(args, [f"+sweeps={args.name}", f"sweep={args.name}", *args.overrides], args.name)


def multirun(args: argparse.Namespace, overrides: list[str], name: str) -> int:
    """Run every job of the overrides that is not finished; a job that is not valid does not stop the others.

    Raises:
        ConfigError: no job is valid, or the options do not fit.
    """
    words, overrides = split_hydra_words(overrides)
    check_options(args, words)
    jobs = plan(jobs_of(overrides), name)
    if any("sweeper" in word for word in words):
        return _run_sweeper(words, overrides, jobs)
    if args.dry_run:
        print_plan(jobs, {job.run_id: state_of(job) for job in jobs}, args.jobs or 1)
        return 0
    launcher, view = make_launcher(args, name, jobs[0].outputs, jobs, words)
    return exit_code(run_sweep(jobs, launcher, view), jobs)


def _run_sweeper(words: list[str], overrides: list[str], jobs: Sequence[SweepJob]) -> int:
    """Let a sweeper of Hydra choose among the jobs; those that it leaves out have not failed.

    Raises:
        ConfigError: a job is not valid.
    """
    problems = list(dict.fromkeys(problem for job in jobs for problem in job.problems))
    if problems:
        raise ConfigError(problems)
    refuse_several_devices(hydra_launcher(words), jobs)
    files = [word for word in overrides if word.startswith("+sweeps=")]  # their values are the sweeper's parameters
    make_sweeper([*words, *files], jobs[0].outputs).sweep(arguments=C.quoted(overrides))
    failed = [job for job in jobs if state_of(job) is State.failed]
    return exit_code([Failure(job, last_error(job.log)) for job in failed], jobs)


def exit_code(failures: Sequence[Failure], jobs: Sequence[SweepJob]) -> int:
    """Say what has failed, and what still runs in another process; return the exit code (docs/sweeps.md)."""
    tell_failures(failures, len(jobs))
    running = [job for job in jobs if state_of(job) is State.running]
    if running:
        print(
            f"{len(running)} of {len(jobs)} jobs are still running in another process; the same command again looks "
            "after them:",
            file=sys.stderr,
        )
        print("\n".join(f"  - {job.label}: {job.folder}" for job in running), file=sys.stderr)
    return FAILED if failures else STILL_RUNNING if running else 0


def tell_failures(failures: Sequence[Failure], jobs: int, then: str = "the same command again retries them") -> None:
    """Print every failed job with its reason, the command that runs it alone, and its log."""
    if not failures:
        return
    print(f"{len(failures)} of {jobs} jobs failed; {then}:", file=sys.stderr)
    for failure in failures:
        lines = (failure.reason, failure.job.command, f"log: {failure.job.log}")
        print("\n    ".join([f"  - {failure.job.label}", *lines]), file=sys.stderr)
