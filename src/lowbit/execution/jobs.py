"""From override lists to jobs: each with its run's folder, or with what is wrong with it."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowbit.config import identity
from lowbit.config.batch import load_jobs
from lowbit.config.problems import ConfigError
from lowbit.config.validate import load, planned_steps
from lowbit.results.run_folder import LOG_FILE
from lowbit.settings.run import Config


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        overrides: What `lowbit train` takes.
        label: The overrides in which it differs from the other jobs.
        run_id: The run's id; of a job whose config is not valid, a hash of its overrides.
        folder: The run's folder; of a job whose config is not valid, where its log goes.
        outputs: Where results go.
        method: The method's name, to estimate times from jobs of the same method.
        steps: Optimizer steps, without the teacher's; None where only the data tell.
        teacher: Where the teacher will be that it needs, if it does.
        devices: Devices that it asks for, of each of its `nodes`.
        nodes: Machines that it asks for.
        threads: CPU threads that it asks for, or None.
        problems: What is wrong with its config.
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
        """The file that gets what the job prints."""
        return self.folder / LOG_FILE


def plan(jobs: Sequence[list[str]], name: str) -> list[Job]:
    """Return the jobs of the sweep `name`, each run once even where several override lists lead to it.

    A job whose config is not valid is returned with its problems: the others are still worth running.

    Raises:
        ConfigError: no job is valid.
    """
    labels = _labels(jobs)
    planned: dict[str, Job] = {}
    invalid: list[tuple[list[str], str, list[str]]] = []
    outputs = Path()
    for overrides, label, loaded in zip(jobs, labels, load_jobs(jobs), strict=True):
        if isinstance(loaded, ConfigError):
            invalid.append((overrides, label, loaded.problems))
            continue
        job = job_of(*loaded, overrides, label)
        outputs = job.outputs
        planned.setdefault(job.run_id, job)
    if not planned:
        raise ConfigError(list(dict.fromkeys(problem for _, _, problems in invalid for problem in problems)))
    refused = [invalid_job(*job, outputs, name) for job in invalid]
    return [*planned.values(), *refused]


def one_job(overrides: list[str], label: str) -> Job:
    """Return a job of its own.

    Raises:
        ConfigError: its config is not valid.
    """
    return job_of(*load(overrides), overrides, label)


def job_of(cfg: identity.Composed, config: Config, overrides: Sequence[str], label: str) -> Job:
    """Return the job of a config that is valid."""
    outputs, teacher = Path(config.paths.outputs), identity.cached_teacher(cfg)
    folder = identity.run_folder(cfg, config)
    return Job(
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


def invalid_job(overrides: list[str], label: str, problems: Sequence[str], outputs: Path, name: str) -> Job:
    """Return a job of the sweep `name` that cannot be run."""
    digest = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:12]
    folder = outputs / "sweeps" / name / digest
    return Job(tuple(overrides), label, digest, folder, outputs, problems=tuple(problems))


def _labels(jobs: Iterable[list[str]]) -> list[str]:
    """Return, for each job, the overrides that not all jobs have in common."""
    rows = [list(job) for job in jobs]
    common = set(rows[0]).intersection(*rows[1:]) if len(rows) > 1 else set()
    return [" ".join(word for word in row if word not in common) for row in rows]
