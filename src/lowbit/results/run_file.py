"""`run.json`: the one file that a finished run leaves for the tables."""

from pathlib import Path
from typing import Any

from lowbit.files import read_json

SCHEMA = 1
RUN_FILE = "run.json"

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
        raise ValueError(_message(path, problem))
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
    return (
        f"Delete {run_dir / RUN_FILE} and run its command again, twice if it says so: it makes anew what is not whole."
    )


def _message(path: Path, problem: str) -> str:
    return f"{path} {problem}. Delete that file and run the same command again to rewrite it."


def _problem(payload: Any) -> str | None:
    """Say what keeps `payload` from being a run, or None."""
    if not isinstance(payload, dict):
        return f"holds a {type(payload).__name__}, expected an object"
    if payload.get("schema") != SCHEMA:
        return f"has schema {payload.get('schema')!r}, this version of lowbit reads schema {SCHEMA}"
    missing = [key for key in _REQUIRED if key not in payload]
    if missing:
        return f"lacks {', '.join(missing)}"
    wrong = [key for key, kind in _REQUIRED.items() if not isinstance(payload[key], kind)]
    if wrong:
        return "has values of the wrong type: " + ", ".join(f"{key}={payload[key]!r}" for key in wrong)
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
