"""`lowbit sync`: upload the W&B runs that were written offline, with `wandb sync`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lowbit.cli.verbs import AddVerb, jobs_of
from lowbit.config import compose as C
from lowbit.config.problems import ConfigError, nearest
from lowbit.config.validate import load
from lowbit.execution.jobs import plan
from lowbit.execution.state import is_running

_AT_ONCE = 100  # folders of one command: its length is limited
_ID = "[0-9a-f]" * 12


@dataclass(frozen=True)
class Found:
    """The offline folders of the runs in `runs`, and what there should be more."""

    runs: tuple[Path, ...]
    absent: tuple[str, ...] = ()

    @property
    def offline(self) -> list[Path]:
        """Every attempt of every run is a folder, in the order of their starts."""
        return [folder for run in self.runs for folder in sorted(run.glob("wandb/offline-run-*"))]


def add(verb: AddVerb) -> None:
    """Add the verb."""
    sync = verb("sync", _sync, "upload W&B runs that were written offline", "lowbit sync demo --dry-run")
    sync.add_argument(
        "overrides",
        nargs="*",
        metavar="NAME|RUN|OVERRIDE",
        help="sweeps, run ids or their beginnings, and the overrides that the sweeps were run with; none: every run",
    )
    sync.add_argument("--dry-run", action="store_true", help="list the folders and upload nothing")
    sync.add_argument("--again", action="store_true", help="also what was uploaded before")


def _sync(args: argparse.Namespace) -> int:
    names = [word for word in args.overrides if "=" not in word]
    overrides = [word for word in args.overrides if "=" in word]
    found = _by_name(names, overrides) if names else _everything(load(overrides)[1].paths.outputs)
    for line in found.absent:
        print(f"no W&B files: {line}")
    running = [run for run in found.runs if is_running(run)]
    done = [] if args.again else [folder for folder in found.offline if is_synced(folder)]
    todo = [folder for folder in found.offline if folder not in done and folder.parents[1] not in running]
    for run in running:
        print(f"still running, left out: {run}")
    print(f"{len(todo)} offline folders to upload, {len(done)} uploaded before")
    if args.dry_run:
        print("".join(f"  {folder}\n" for folder in todo), end="")
        return 0
    return _upload(todo, again=args.again) if todo else 0


def is_synced(folder: Path) -> bool:
    """Whether `wandb sync` has left its mark in an offline folder."""
    return any(folder.glob("run-*.wandb.synced"))


def _everything(outputs: str) -> Found:
    folders = [folder for folder in _folders(Path(outputs)) if (folder / "wandb").is_dir()]
    if not folders:
        raise ConfigError([f"sync: {outputs} holds no W&B files; name another folder with paths.outputs=FOLDER"])
    return Found(tuple(sorted(folders)))


def _by_name(names: Iterable[str], overrides: list[str]) -> Found:
    with C.hydra_session():
        sweeps = C.choices("sweeps")
    runs: dict[Path, None] = {}
    absent: list[str] = []
    for name in names:
        if name in sweeps:
            found = _of_sweep(name, overrides)
            absent += found.absent
            runs.update(dict.fromkeys(found.runs))
        else:
            outputs = Path(load([word for word in overrides if word.startswith("paths.")])[1].paths.outputs)
            run = _of_run(name, outputs, sweeps)
            runs[run] = None
            absent += [] if (run / "wandb").is_dir() else [f"{run} was made with logger.mode=disabled"]
    return Found(tuple(runs), tuple(absent))


def _of_sweep(name: str, overrides: list[str]) -> Found:
    """Return the runs of a sweep's jobs, and the teachers that they share."""
    jobs = [job for job in plan(jobs_of([f"+sweeps={name}", *overrides]), name) if not job.problems]
    teachers = dict.fromkeys(job.teacher for job in jobs if job.teacher is not None)
    runs = [*teachers, *(job.folder for job in jobs)]
    absent = [f"not run, or with logger.mode=disabled: {j.command}" for j in jobs if not (j.folder / "wandb").is_dir()]
    return Found(tuple(run for run in runs if (run / "wandb").is_dir()), tuple(absent))


def _of_run(name: str, outputs: Path, sweeps: Iterable[str]) -> Path:
    """Return the folder of a run or teacher by the beginning of its id.

    Raises:
        ConfigError: there is none, or there are several.
    """
    found = [folder for folder in _folders(outputs) if folder.name.startswith(name)]
    if len(found) > 1:
        raise ConfigError(
            [f"sync: {name} is the beginning of {', '.join(path.name for path in found)}: add a character"]
        )
    if not found:
        raise ConfigError(
            [f"sync: {name} is neither a sweep nor a run under {outputs}. {nearest(name, sweeps)}".strip()]
        )
    return found[0]


def _folders(outputs: Path) -> list[Path]:
    """Return the folders of runs, whatever their names, and of teachers.

    Not those of teachers in training (`ID.partial`): what is uploaded of them now would count as uploaded for good.
    """
    return [
        path for pattern in (f"runs/**/{_ID}", f"teachers/{_ID}") for path in outputs.glob(pattern) if path.is_dir()
    ]


def _upload(folders: list[Path], *, again: bool) -> int:
    """Run `wandb sync`; say what it has not uploaded, and return the exit code."""
    options = ["--include-synced"] if again else []
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_MODE"}  # offline, it would refuse
    code = 0
    for first in range(0, len(folders), _AT_ONCE):
        batch = [str(folder) for folder in folders[first : first + _AT_ONCE]]
        command = [sys.executable, "-m", "wandb", "sync", *options, *batch]
        code = code or subprocess.run(command, env=environment, check=False).returncode
    left = [folder for folder in folders if not is_synced(folder)]
    print(f"{len(folders) - len(left)} of {len(folders)} offline folders are uploaded")
    if code or left:
        print("".join(f"  not uploaded: {folder}\n" for folder in left), end="", file=sys.stderr)
        print(
            f"error: `wandb sync` ended with exit code {code}. It needs network access and a key: run `wandb login`, "
            "or set WANDB_API_KEY; then repeat this command",
            file=sys.stderr,
        )
    return 1 if code or left else 0
