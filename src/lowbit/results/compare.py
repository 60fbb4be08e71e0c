"""Two runs side by side: what differs in their configs, scores, sizes, costs and circumstances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.results.run_file import RUN_FILE, read_run

ABSENT = "(none)"
_SHOWN = 8
_COSTS = ("steps", "seconds")
_CIRCUMSTANCES = ("status", "sweep", "device", "threads", "commit", "started", "finished")


@dataclass(frozen=True)
class Difference:
    """One key whose values differ; `change` is right minus left, of numbers."""

    key: str
    left: Any
    right: Any

    @property
    def change(self) -> float | None:
        """Right minus left."""
        numbers = [value for value in (self.left, self.right) if isinstance(value, int | float)]
        flags = isinstance(self.left, bool) or isinstance(self.right, bool)
        return None if flags or len(numbers) < 2 else numbers[1] - numbers[0]


def find_run(outputs: Path, word: str) -> Path:
    """Return the folder of a run: `word` is that folder or its run.json, or begins a run id, or `DATA/METHOD/ID`.

    Raises:
        ValueError: no run or several are meant, or the run has not finished.
    """
    given = Path(word).expanduser()
    if given.name == RUN_FILE and given.is_file():
        return given.parent
    if (given / RUN_FILE).is_file():
        return given
    runs = outputs / "runs"
    if given.is_dir():
        raise ValueError(f"{word}: no {RUN_FILE} in this folder: it is no run's, or the run has not finished")
    known = sorted(path.parent for path in runs.rglob(RUN_FILE))
    found = [folder for folder in known if _is_meant(folder, runs, word)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{word}: {len(found)} runs begin so: {_listed(found, runs)}. Give more of the id.")
    begun = [path for path in runs.rglob(f"{'[0-9a-f]' * 12}") if path.is_dir() and _is_meant(path, runs, word)]
    if begun:
        raise ValueError(f"{word}: {_listed(begun, runs)} has not finished: it has no {RUN_FILE} yet")
    there = f"Finished runs: {_listed(known, runs)}." if known else "No run has finished there."
    raise ValueError(
        f"{word}: no such run below {runs}, and no such folder; paths.outputs=DIR looks elsewhere. {there}"
    )


def load_run(folder: Path) -> dict[str, Any]:
    """Return the run.json of a folder that `find_run` has found."""
    run = read_run(folder)
    if run is None:
        raise ValueError(f"{folder}: no {RUN_FILE}")
    return run


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, list[Difference]]:
    """Return what differs between two runs (contents of run.json), by section; a section may be empty.

    A mapping that only one of them has is one difference; a setting that is null is the same as one that is not there.
    """
    sections = {
        "config": (left["config"], right["config"]),
        "metrics": (left["metrics"], right["metrics"]),
        "size": (left["size"], right["size"]),
        "cost": (_chosen(left, _COSTS), _chosen(right, _COSTS)),
        "teacher": (left["teacher"] or {}, right["teacher"] or {}),
        "versions": (left.get("versions", {}), right.get("versions", {})),
        "circumstances": (_chosen(left, _CIRCUMSTANCES), _chosen(right, _CIRCUMSTANCES)),
    }
    return {name: list(_differing(a, b)) for name, (a, b) in sections.items()}


def _is_meant(folder: Path, runs: Path, word: str) -> bool:
    return folder.name.startswith(word) or folder.relative_to(runs).as_posix().startswith(word)


def _listed(folders: list[Path], runs: Path) -> str:
    names = [folder.relative_to(runs).as_posix() for folder in folders]
    more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join([*names[:_SHOWN], *more])


def _chosen(run: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: run[key] for key in keys if key in run}


def _differing(left: Any, right: Any, key: str = "") -> Iterator[Difference]:
    ours, theirs = _items(left), _items(right)
    if ours is not None and theirs is not None:
        for name in dict.fromkeys([*ours, *theirs]):
            inner = f"{key}.{name}" if key else name
            yield from _differing(ours.get(name, ABSENT), theirs.get(name, ABSENT), inner)
    elif left != right and not (left != left and right != right) and {str(left), str(right)} != {"None", ABSENT}:
        yield Difference(key, left, right)  # nan equals nan here


def _items(value: Any) -> dict[str, Any] | None:
    """Return what is in a mapping, or in a list of more than plain values, by name; None of anything else."""
    if isinstance(value, Mapping):
        return {str(name): item for name, item in value.items()}
    if isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        return {str(number): item for number, item in enumerate(value)}
    return None


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested builtins by dotted key; a list of plain values is a leaf."""
    items = _items(value)
    if items is None:
        yield prefix, value
    else:
        for key, item in items.items():
            yield from flat(item, f"{prefix}.{key}" if prefix else key)
