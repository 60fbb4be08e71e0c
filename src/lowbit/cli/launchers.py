"""The launchers of a multirun: job processes, submitit, this process itself, and those of Hydra's plugins."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowbit.cli.verbs import describe_error
from lowbit.config import compose as C
from lowbit.config import identity
from lowbit.config.problems import ConfigError
from lowbit.config.validate import load
from lowbit.execution.jobs import Job
from lowbit.execution.pool import Launcher, Pool
from lowbit.execution.states import State, state_of
from lowbit.execution.views import View, make_view

_OF_HYDRA = ("hydra/launcher=", "hydra/sweeper=", "hydra.launcher.", "hydra.sweeper.")
_ONE_DEVICE = ("basic", "joblib")  # they run jobs in processes that are not theirs


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what says how jobs are run."""
    parser.add_argument("--jobs", type=int, metavar="N", help="jobs at once (1; with submitit: all)")
    parser.add_argument("--dry-run", action="store_true", help="list the jobs with their states, start nothing")
    kinds = ("processes", "basic", "submitit")
    parser.add_argument(
        "--launcher",
        choices=kinds,
        help="run each job in a process of its own (default), in this process, or under Slurm",
    )
    parser.add_argument(
        "--cluster",
        choices=("slurm", "local"),
        help="where --launcher submitit runs jobs; default: Slurm if there is sbatch",
    )
    parser.add_argument("--slurm", action="append", metavar="KEY=VALUE", help="partition=gpu, time=60 (minutes), ...")


def check_options(args: argparse.Namespace, overrides: Sequence[str] = ()) -> None:
    """Raise ConfigError for options that do not fit together; it takes no time, unlike composing the jobs."""
    of_hydra = hydra_words(overrides)
    if of_hydra and (args.dry_run or args.launcher or args.jobs):
        raise ConfigError([f"{of_hydra[0]}: Hydra runs the jobs; leave out --jobs, --launcher and --dry-run"])
    if args.launcher != "submitit" and (args.cluster or args.slurm):
        raise ConfigError(["--cluster and --slurm go with --launcher submitit"])
    if args.jobs is not None and args.jobs < 1:
        raise ConfigError([f"--jobs {args.jobs}: must be 1 or greater"])
    if args.launcher == "basic" and args.jobs not in (None, 1):
        raise ConfigError([f"--jobs {args.jobs}: --launcher basic runs one job at a time; leave --launcher out"])
    _pairs(args.slurm or [])


def make_launcher(args: argparse.Namespace, title: str, outputs: Path, jobs: Sequence[Job]) -> tuple[Launcher, View]:
    """Return the launcher that the options ask for, and how its jobs are shown.

    Raises:
        ConfigError: options that do not fit together, or a launcher that cannot run these jobs.
    """
    kind = args.launcher or "processes"
    check_options(args)
    refuse_several_devices(kind, jobs)
    if kind == "basic":
        return InProcess(), make_view(1, title, live=False)
    if kind == "processes":
        slots = args.jobs or 1
        return Pool(slots), make_view(slots, title, live=True)
    from lowbit.execution.cluster import Cluster

    slots = args.jobs or max(len(jobs), 1)
    cluster = Cluster(outputs / "submitit", slots, args.cluster, _pairs(args.slurm or []))
    return cluster, make_view(slots, title, live=True)


def refuse_several_devices(launcher: str, jobs: Sequence[Job]) -> None:
    """Refuse launchers without a process per job where a job has several devices, and all where it has several nodes.

    Lightning starts the other ranks by running the command line of the process again: that would be the whole sweep.

    Raises:
        ConfigError: naming what can.
    """
    spread = [job for job in jobs if job.nodes > 1]
    if spread:
        problem = (
            f"trainer.num_nodes={spread[0].nodes}: a sweep starts jobs on one machine each. Start the job on its nodes "
            f"with torchrun or srun (docs/distributed.md): {spread[0].command}"
        )
        raise ConfigError([problem])
    several = [job for job in jobs if job.devices > 1]
    if launcher in _ONE_DEVICE and several:
        problem = (
            f"trainer.devices={several[0].devices} under launcher {launcher}: each rank would start the sweep anew. "
            "Use --launcher processes (the default) or --launcher submitit: one process per job"
        )
        raise ConfigError([problem])


def hydra_words(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that name a launcher or a sweeper of Hydra, or set them."""
    return [word for word in overrides if word.lstrip("+").startswith(_OF_HYDRA)]


class InProcess:
    """Run each job in this process, to its end: for debuggers and tests, and where a process is expensive."""

    def __init__(self) -> None:
        self.slots = 1
        self.running: dict[str, Job] = {}
        self._ended: list[tuple[Job, int]] = []

    def start(self, job: Job) -> None:
        """Train; a failed job does not stop the others."""
        from lowbit.training.run import train

        self.running[job.run_id] = job
        code = 0
        try:
            train(*load(list(job.overrides)))
        except Exception as error:
            code = 1
            job.folder.mkdir(parents=True, exist_ok=True)
            with job.log.open("a", encoding="utf-8") as log:
                log.write(f"$ {job.command}\n{describe_error(error)}\n")
        finally:
            del self.running[job.run_id]
        self._ended.append((job, code))

    def poll(self) -> list[tuple[Job, int]]:
        """Return the job that has just ended."""
        ended, self._ended = self._ended, []
        return ended

    def interrupt(self) -> bool:
        """Do nothing: the interrupt has reached the job, which is in this process."""
        return True

    def kill(self) -> None:
        """Do nothing: no job outlives this process."""


def hydra_multirun(overrides: list[str], jobs: Sequence[Job]) -> int:
    """Let Hydra's sweeper and launcher run the jobs; a failed job does not stop the others.

    Raises:
        ConfigError: a job is not valid.
    """
    problems = list(dict.fromkeys(problem for job in jobs for problem in job.problems))
    if problems:
        raise ConfigError(problems)
    import hydra

    failures: dict[str, str] = {}

    def run_one(cfg: Any) -> float | None:
        from lowbit.training.run import train

        try:
            return train(cfg, C.to_config(cfg))
        except Exception as error:
            run_id = identity.run_id(cfg)
            failures[run_id] = f"{cfg.name}/{run_id}: {describe_error(error)}"
            print(f"FAILED {failures[run_id]}", file=sys.stderr)
            return None

    C.register()
    run = hydra.main(config_path=str(C.shipped_root() / "conf"), config_name=C.ROOT_CONFIG, version_base="1.3")(run_one)
    argv = sys.argv
    sys.argv = ["lowbit", "-m", *C.hydra_arguments(overrides)]
    try:
        run()
    finally:
        sys.argv = argv
    # A launcher may have run the jobs in processes of its own, whose `failures` are not these; a sweeper may choose.
    choosing = any("sweeper" in word for word in hydra_words(overrides))
    failed = (State.failed,) if choosing else (State.failed, State.missing)
    for job in jobs:
        if state_of(job) in failed:
            failures.setdefault(job.run_id, f"{job.label}: {job.command}")
    if failures:
        print(f"{len(failures)} of {len(jobs)} jobs failed; the same command again retries them:", file=sys.stderr)
        print("\n".join(f"  - {failure}" for failure in failures.values()), file=sys.stderr)
    return 1 if failures else 0


def _pairs(options: Sequence[str]) -> dict[str, str]:
    words = [word for option in options for word in option.split(",")]
    for word in words:
        if "=" not in word:
            raise ConfigError([f"--slurm {word}: give KEY=VALUE, for example --slurm partition=gpu,time=60"])
    return {key: value for key, _, value in (word.partition("=") for word in words)}
