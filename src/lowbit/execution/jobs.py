"""From override lists to the jobs of a sweep: each with its run's folder, or with what is wrong with it."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lowbit.config import identity
from lowbit.config.batch import load_jobs
from lowbit.config.problems import ConfigError
from lowbit.config.validate import load, planned_steps
from lowbit.results.run_file import LOG_FILE
from lowbit.settings.run import Config


@dataclass(frozen=True)
class SweepJob:
    """One run of a sweep.

    Attributes:
        overrides: The arguments of `lowbit train`.
        label: The overrides in which the job differs from the others.
        run_id: The run's id; a hash of the overrides if the config is not valid.
        folder: The run's folder; the folder of its log if the config is not valid.
        outputs: The folder of all results.
        method: The method's name; times are estimated from jobs of the same method.
        steps: Optimizer steps without those of the teacher; None if only the data tell.
        teacher: The folder of the teacher that the job needs, or None.
        devices: Devices per node.
        nodes: Machines.
        threads: CPU threads that the config sets, or None.
        problems: What is wrong with the config.
    """

    overrides: tuple[str, ...]
    label: str
    run_id: str
    folder: Path
    outputs: Path
    method: str = ""
    steps: int | None = None
    teacher: Path | None = None
    devices: int = 1
    nodes: int = 1
    threads: int | None = None
    problems: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command that runs this job alone."""
        return f"lowbit train {shlex.join(self.overrides)}"

    @property
    def log(self) -> Path:
        """The file with the job's output."""
        return self.folder / LOG_FILE


def plan(jobs: Sequence[list[str]], name: str) -> list[SweepJob]:
    """Return the jobs of the sweep `name`; override lists that lead to the same run make one job.

    A job with an invalid config is returned with its problems, so that the others can run.

    Raises:
        ConfigError: no job is valid.
    """
    planned: dict[str, SweepJob] = {}
    invalid: list[tuple[list[str], str, list[str]]] = []
    outputs = Path()
    common = set(jobs[0]).intersection(*jobs[1:]) if len(jobs) > 1 else set()
    for overrides, loaded in zip(jobs, load_jobs(jobs), strict=True):
        label = " ".join(word for word in overrides if word not in common)
        if isinstance(loaded, ConfigError):
            invalid.append((overrides, label, loaded.problems))
            continue
        job = make_job(*loaded, overrides, label)
        outputs = job.outputs
        planned.setdefault(job.run_id, job)
    if not planned:
        raise ConfigError(list(dict.fromkeys(problem for _, _, problems in invalid for problem in problems)))
    return [*planned.values(), *(invalid_job(*job, outputs, name) for job in invalid)]


def one_job(overrides: list[str], label: str) -> SweepJob:
    """Return the job of one override list.

    Raises:
        ConfigError: its config is not valid.
    """
    return make_job(*load(overrides), overrides, label)


def make_job(cfg: identity.Composed, config: Config, overrides: Sequence[str], label: str) -> SweepJob:
    """Return the job of a valid config."""
    outputs, teacher = Path(config.paths.outputs), identity.cached_teacher(cfg)
    folder = identity.run_folder(cfg, config)
    return SweepJob(
        overrides=tuple(overrides),
        label=label or config.name,
        run_id=folder.name,
        folder=folder,
        outputs=outputs,
        method=config.method.name,
        steps=planned_steps(config),
        teacher=None if teacher is None else outputs / "teachers" / teacher,
        devices=config.trainer.devices,
        nodes=config.trainer.num_nodes,
        threads=config.trainer.threads,
    )


def invalid_job(overrides: list[str], label: str, problems: Sequence[str], outputs: Path, name: str) -> SweepJob:
    """Return a job of the sweep `name` that cannot run."""
    digest = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:12]
    folder = outputs / "sweeps" / name / digest
    return SweepJob(tuple(overrides), label, digest, folder, outputs, problems=tuple(problems))
