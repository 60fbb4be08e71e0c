"""The launchers of a multirun: job processes, submitit, this process, and the launchers and sweepers of Hydra."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import setup_globals
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from lowbit.cli.verbs import describe_error
from lowbit.config import compose as C
from lowbit.config.problems import ConfigError, nearest
from lowbit.config.validate import load
from lowbit.execution.jobs import SweepJob, make_job
from lowbit.execution.pool import Pool
from lowbit.execution.progress import View, make_view
from lowbit.execution.sweep import Launcher

_OF_HYDRA = ("hydra/launcher=", "hydra/sweeper=", "hydra.launcher.", "hydra.sweeper.")
_PLUGINS = {
    "hydra/launcher": {
        "joblib": "hydra-joblib-launcher",
        "ray": "hydra-ray-launcher",
        "ray_aws": "hydra-ray-launcher",
        "rq": "hydra-rq-launcher",
        "submitit_local": "hydra-submitit-launcher",
        "submitit_slurm": "hydra-submitit-launcher",
    },
    "hydra/sweeper": {
        "ax": "hydra-ax-sweeper",
        "nevergrad": "hydra-nevergrad-sweeper",
        "optuna": "hydra-optuna-sweeper",
    },
}
_ONE_DEVICE = ("basic", "joblib")  # they run several jobs in one process


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how jobs are run."""
    parser.add_argument("--jobs", type=int, metavar="N", help="jobs at once (1; with submitit: all)")
    parser.add_argument("--dry-run", action="store_true", help="list the jobs with their states, start nothing")
    parser.add_argument(
        "--launcher",
        choices=("processes", "basic", "submitit"),
        help="run each job in a process of its own (default), in this process, or under Slurm",
    )
    parser.add_argument(
        "--cluster",
        choices=("slurm", "local"),
        help="where --launcher submitit runs jobs; default: Slurm if there is sbatch",
    )
    parser.add_argument("--slurm", action="append", metavar="KEY=VALUE", help="partition=gpu, time=60 (minutes), ...")


def check_options(args: argparse.Namespace, hydra_words: Sequence[str] = ()) -> None:
    """Raise ConfigError for options that do not fit together; this is fast, unlike composing the jobs."""
    if hydra_words and (args.dry_run or args.launcher or args.jobs):
        raise ConfigError([f"{hydra_words[0]}: Hydra runs the jobs; leave out --jobs, --launcher and --dry-run"])
    if args.launcher != "submitit" and (args.cluster or args.slurm):
        raise ConfigError(["--cluster and --slurm go with --launcher submitit"])
    if args.jobs is not None and args.jobs < 1:
        raise ConfigError([f"--jobs {args.jobs}: must be 1 or greater"])
    if args.launcher == "basic" and args.jobs not in (None, 1):
        raise ConfigError([f"--jobs {args.jobs}: --launcher basic runs one job at a time; leave --launcher out"])
    _slurm_settings(args.slurm or [])
    for word in hydra_words:
        _check_plugin(word)


def _slurm_settings(options: Sequence[str]) -> dict[str, str]:
    words = [word for option in options for word in option.split(",")]
    for word in words:
        if "=" not in word:
            raise ConfigError([f"--slurm {word}: give KEY=VALUE, for example --slurm partition=gpu,time=60"])
    return {key: value for key, _, value in (word.partition("=") for word in words)}


def _check_plugin(word: str) -> None:
    """Raise ConfigError for a launcher or a sweeper of Hydra that is not installed."""
    group, _, name = word.lstrip("+").partition("=")
    if group not in _PLUGINS:
        return
    with C.hydra_session():
        installed = C.choices(group)
    if name in installed:
        return
    package = _PLUGINS[group].get(name)
    if package is not None:
        raise ConfigError([f"{word} needs the package {package}: run `pip install {package}`"])
    known = sorted({*installed, *_PLUGINS[group]})
    raise ConfigError([f"{word}: no such choice. {nearest(name, known)}Allowed: {', '.join(known)}"])


def split_hydra_words(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides that choose or set a launcher or a sweeper of Hydra, and all others."""
    words = [word for word in overrides if word.lstrip("+").startswith(_OF_HYDRA)]
    return words, [word for word in overrides if word not in words]


def make_launcher(
    args: argparse.Namespace, title: str, outputs: Path, jobs: Sequence[SweepJob], hydra_words: Sequence[str] = ()
) -> tuple[Launcher, View]:
    """Return the launcher that the options or Hydra's words ask for, and the view of its jobs.

    Raises:
        ConfigError: options that do not fit together, or a launcher that cannot run these jobs.
    """
    check_options(args, hydra_words)
    kind = hydra_launcher(hydra_words) if hydra_words else args.launcher or "processes"
    refuse_several_devices(kind, jobs)
    if hydra_words or kind == "basic":
        slots = 1 if kind == "basic" else max(len(jobs), 1)
        run = _launch_by_hydra(hydra_words, outputs) if hydra_words else _run_here
        return Blocking(run, slots), make_view(slots, title, live=False)
    if kind == "processes":
        slots = args.jobs or 1
        return Pool(slots), make_view(slots, title, live=True)
    from lowbit.execution.slurm import Slurm

    slots = args.jobs or max(len(jobs), 1)
    launcher = Slurm(outputs / "submitit", slots, args.cluster, _slurm_settings(args.slurm or []))
    return launcher, make_view(slots, title, live=True)


def hydra_launcher(words: Sequence[str]) -> str:
    """Return the name of the launcher that Hydra's words choose."""
    return next((word.split("=")[1] for word in words if "launcher=" in word), "basic")


def refuse_several_devices(launcher: str, jobs: Sequence[SweepJob]) -> None:
    """Refuse jobs with several nodes, and jobs with several devices if the launcher has no process per job.

    Lightning starts the other ranks by running the command line of the process again: that would be the whole sweep.

    Raises:
        ConfigError: naming the command or the launchers that can run them.
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


def run_job(overrides: Sequence[str]) -> float | None:
    """Run one job in this process; return its metric, or None if it failed, with the error in the job's log."""
    from lowbit.training.train import train

    try:
        return train(*load([*overrides]))
    except Exception as error:
        cfg = C.compose([*overrides])
        job = make_job(cfg, C.to_config(cfg), overrides, "")
        job.folder.mkdir(parents=True, exist_ok=True)
        with job.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {job.command}\n{describe_error(error)}\n")
        return None


def run_job_of_hydra(cfg: DictConfig) -> float | None:
    """Run the job that a launcher of Hydra has composed, perhaps in another process: Hydra's task function."""
    return run_job(HydraConfig.get().overrides.task)


class Blocking:
    """A launcher that returns when its jobs have ended: in this process, or through a launcher of Hydra.

    Args:
        run: Runs jobs, given by their overrides; the state of a job, not an exit code, says whether it failed.
        slots: Jobs that are passed to `run` at once.
    """

    def __init__(self, run: Callable[[list[list[str]]], object], slots: int) -> None:
        self.slots = slots
        self.running: dict[str, SweepJob] = {}
        self._run = run

    def start(self, job: SweepJob) -> None:
        """Keep the job until `poll` runs it."""
        self.running[job.run_id] = job

    def poll(self) -> list[tuple[SweepJob, int]]:
        """Run the jobs that were started."""
        jobs = list(self.running.values())
        try:
            if jobs:
                self._run([list(job.overrides) for job in jobs])
        finally:
            self.running.clear()
        return [(job, 0) for job in jobs]

    def interrupt(self) -> bool:
        """Forget the jobs that have not begun; the interrupt itself has reached the others."""
        self.running.clear()
        return True

    def kill(self) -> None:
        """Do nothing: no job outlives `poll`."""


def _run_here(jobs: list[list[str]]) -> None:
    for overrides in jobs:
        run_job(overrides)


def _launch_by_hydra(words: Sequence[str], outputs: Path) -> Callable[[list[list[str]]], object]:
    config, context = _hydra_config(words, outputs)
    launcher = Plugins.instance().instantiate_launcher(context, run_job_of_hydra, config)
    return lambda jobs: launcher.launch(jobs, initial_job_idx=0)


def make_sweeper(words: Sequence[str], outputs: Path) -> Sweeper:
    """Return Hydra's sweeper, which chooses jobs itself and runs them by its launcher."""
    config, context = _hydra_config(words, outputs)
    return Plugins.instance().instantiate_sweeper(hydra_context=context, task_function=run_job_of_hydra, config=config)


def _hydra_config(words: Sequence[str], outputs: Path) -> tuple[DictConfig, HydraContext]:
    """Return Hydra's settings for a multirun, and what else its plugins need."""
    from hydra._internal.callbacks import Callbacks

    setup_globals()
    with C.hydra_session():
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        config = hydra.compose_config(C.ROOT_CONFIG, C.quoted(words), RunMode.MULTIRUN)
        loader = hydra.config_loader
    OmegaConf.update(config, "paths.outputs", str(outputs))  # where Hydra makes its own folder
    return config, HydraContext(config_loader=loader, callbacks=Callbacks(config))
