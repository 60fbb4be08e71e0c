"""The files of a run folder: `run.json`, which the tables read, and who holds the run, how it ended, how far it is."""

from __future__ import annotations

import csv
import io
import math
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from lowbit.files import DamagedFileError, is_alive, read_json, write_json

SCHEMA = 1
RUN_FILE = "run.json"
LOCK_FILE = ".lock"
HOLDER_FILE = "holder.json"
ERROR_FILE = "error.log"
METRICS_FILE = "metrics.csv"
LOG_FILE = "job.log"  # what the job of a sweep prints
ATTEMPT_FILE = "attempt.json"
PROGRESS_FILE = "progress.json"
STAGE_FILE = "stage.json"  # of a finished stage, in the stage's folder

# What the tables read; a file that lacks one of these cannot become a row.
_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "status": str,
    "config": dict,
    "primary_metric": str,
    "metrics": dict,
    "teacher": (dict, type(None)),
    "size": dict,
    "steps": int,
    "seconds": (int, float),
}
_REQUIRED_SIZE = ("float_bytes", "simulated_bytes", "compression", "bits")
_REQUIRED_TEACHER = ("id", "metrics", "size", "steps", "seconds")


def read_run(run_dir: Path) -> dict[str, Any] | None:
    """Return the `run.json` of `run_dir`, or None if the run has not written one.

    Raises:
        ValueError: the file is not JSON, of another schema, or lacks what a table row needs.
    """
    path = run_dir / RUN_FILE
    try:
        payload = read_json(path)
        if payload is None and not path.exists():
            return None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}). Make it readable.") from error
    problem = _problem(payload)
    if problem is not None:
        raise ValueError(f"{path} {problem}. Delete that file and run the same command again to rewrite it.")
    run: dict[str, Any] = payload
    return run


def finished_run(run_dir: Path) -> tuple[dict[str, Any] | None, str]:
    """Return the `run.json` of a finished run, or what is wrong with that file; None and nothing of any other run."""
    try:
        run = read_run(run_dir)
    except ValueError as error:
        return None, str(error)
    return (run if run is not None and run["status"] == "finished" else None), ""


def remedy(run_dir: Path) -> str:
    """Return what to do about a file of a finished run, or of its teacher, that is damaged or missing."""
    return f"Delete {run_dir / RUN_FILE} and run its command again, twice if it says so: it repairs what is not whole."


def _problem(payload: Any) -> str | None:
    """Say what keeps `payload` from being a run, or None."""
    if not isinstance(payload, dict):
        return f"holds a {type(payload).__name__}, expected an object"
    if payload.get("schema") != SCHEMA:
        return f"has schema {payload.get('schema')!r}, this version of lowbit reads schema {SCHEMA}"
    missing = [key for key in _REQUIRED if key not in payload]
    if missing:
        return f"lacks {', '.join(missing)}"
    wrong = [f"{key}={payload[key]!r}" for key, kind in _REQUIRED.items() if not isinstance(payload[key], kind)]
    if wrong:
        return f"has values of the wrong type: {', '.join(wrong)}"
    missing = [f"size.{key}" for key in _REQUIRED_SIZE if key not in payload["size"]]
    if payload["teacher"] is not None:
        missing += missing_of_teacher(payload["teacher"])
    if missing:
        return f"lacks {', '.join(missing)}"
    primary = payload["primary_metric"]
    if not isinstance(payload["metrics"].get(primary), int | float):
        return f"has no number for its primary metric {primary!r} (metrics: {', '.join(payload['metrics']) or 'none'})"
    return None


def missing_of_teacher(facts: dict[str, Any]) -> list[str]:
    """Return the names of the facts of a teacher that a table needs and that are not there."""
    missing = [f"teacher.{key}" for key in _REQUIRED_TEACHER if key not in facts]
    size = facts.get("size")
    return missing if isinstance(size, dict) and "float_bytes" in size else [*missing, "teacher.size.float_bytes"]


def get(config: Mapping[str, Any], dotted: str) -> Any:
    """Return the value of a dotted key, None where there is none."""
    node: Any = config
    for key in dotted.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


# What JSON makes of the fields' types.
_PLAIN: dict[Any, Any] = {float: (int, float), dict[str, float]: dict, dict[str, str]: dict}
_Record = TypeVar("_Record", "Attempt", "Progress", "Holder", "StageRecord")


@dataclass(frozen=True)
class StageRecord:
    """What a finished stage leaves: its numbers, and the SHA-256 of each file in its folder.

    Earlier versions recorded no files.
    """

    name: str
    steps: int
    seconds: float
    metrics: dict[str, float]
    files: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of run.json."""
        return dict(vars(self))


@dataclass(frozen=True)
class Holder:
    """The process that took the run's lock last."""

    pid: int
    host: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_gone(self) -> bool:
        """Whether it surely runs no more: it was of this machine, and there is no such process."""
        return self.host == socket.gethostname() and not is_alive(self.pid)


@dataclass(frozen=True)
class Attempt:
    """How the last process of a run ended, as the sweep saw it.

    `seconds` is its wall time; `whole` says that it began at step 0.
    """

    exit_code: int
    seconds: float
    whole: bool


@dataclass(frozen=True)
class Progress:
    """Where a stage is: its phase, `step` of `steps`, and the newest values by name."""

    stage: str
    phase: str
    step: int
    steps: int
    values: dict[str, float] = field(default_factory=dict)


def read_stage(folder: Path) -> StageRecord | None:
    """Return the record of a finished stage, None where the stage is not finished.

    Raises:
        DamagedFileError: the file is damaged.
        ValueError: see `read_json`.
    """
    path = folder / STAGE_FILE
    content = read_json(path)
    if content is None and not path.exists():
        return None
    record = _made(content, StageRecord)
    if record is None:
        raise DamagedFileError(
            path, f"{path} is not the record of a stage", "Delete that file and run the same command again."
        )
    return record


def write_holder(folder: Path) -> None:
    """Record that this process holds the run."""
    write_json(folder / HOLDER_FILE, asdict(Holder(os.getpid(), socket.gethostname())))


def read_holder(folder: Path) -> Holder | None:
    """Return who took the run's lock last, or None where it was never taken or the record cannot be read."""
    return _record(folder / HOLDER_FILE, Holder)


def write_attempt(folder: Path, attempt: Attempt) -> None:
    """Record how a process of the run ended."""
    write_json(folder / ATTEMPT_FILE, asdict(attempt))


def read_attempt(folder: Path) -> Attempt | None:
    """Return how the last process ended, or None where no sweep has run it to an end."""
    return _record(folder / ATTEMPT_FILE, Attempt)


def write_progress(folder: Path, progress: Progress) -> None:
    """Replace the stage's progress; not synced to disk, since a lost one is written again a second later."""
    finite = {name: value for name, value in progress.values.items() if math.isfinite(value)}
    write_json(folder / PROGRESS_FILE, {**asdict(progress), "values": finite}, sync=False)


def read_progress(folder: Path) -> Progress | None:
    """Return the progress of the stage that is being trained in a run folder (or a teacher's), or None."""
    files = [*folder.glob(f"stages/*/{PROGRESS_FILE}"), *folder.glob(PROGRESS_FILE)]
    dated = sorted((found for found in map(_dated, files) if found is not None), key=lambda pair: pair[0])
    return _record(dated[-1][1], Progress) if dated else None


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a metrics.csv without their empty cells; none where there is no such file.

    Raises:
        DamagedFileError: the file is not one that a run wrote.
    """
    if not path.exists():
        return []
    try:
        return rows_of(path.read_bytes().decode())
    except (ValueError, csv.Error) as error:
        raise DamagedFileError(path, f"{path} is damaged ({error})", "Move it away") from error


def rows_of(text: str) -> list[dict[str, str]]:
    """Return the rows of the text of a metrics.csv, each with a stage, a step and numbers.

    Raises:
        ValueError: saying what is wrong; csv.Error: the same.
    """
    rows: list[dict[str, str]] = []
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    if text and not {"stage", "step"} <= set(reader.fieldnames or ()):
        raise ValueError("the first line does not name the columns")
    for row in reader:
        cells: dict[str, str] = {key: value for key, value in row.items() if value != ""}
        if None in row or None in row.values() or not {"stage", "step"} <= cells.keys():
            raise ValueError(f"row {len(rows) + 1} does not have the columns of the first line")
        int(cells["step"])
        for value in (value for key, value in cells.items() if key != "stage"):
            float(value)
        rows.append(cells)
    return rows


def _dated(path: Path) -> tuple[float, Path] | None:
    try:
        return path.stat().st_mtime, path
    except FileNotFoundError:  # its stage has just ended
        return None


def _record(path: Path, kind: type[_Record]) -> _Record | None:
    """Return a record that only helps to show a run; one that cannot be read is as good as none."""
    try:
        return _made(read_json(path), kind)
    except (ValueError, OSError):
        return None


def _made(content: Any, kind: type[_Record]) -> _Record | None:
    """Return the record of a file's content, or None if that lacks something or has something of another type."""
    types = get_type_hints(kind)
    if not isinstance(content, dict) or content.keys() - types.keys():
        return None
    try:
        found = kind(**content)
    except TypeError:  # something is missing
        return None
    fits = all(isinstance(getattr(found, name), _PLAIN.get(expected, expected)) for name, expected in types.items())
    return found if fits else None
