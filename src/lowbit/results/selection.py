"""Runs by what they are, not by the sweep that made them: found on disk, chosen by filters, labelled by differences."""

from __future__ import annotations

import datetime as dt
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lowbit.config.identity import NOT_IDENTITY
from lowbit.config.problems import nearest
from lowbit.results.collect import Cell
from lowbit.results.compare import flat
from lowbit.results.run_file import RUN_FILE, finished_run, get, read_run

COLUMNS = ("id", "name", "method", "data", "bits", "seed", "score", "state", "when")
_ID = re.compile("[0-9a-f]{12}")
# What names a choice comes first, so that a row is called by it and not by what follows from it.
_NAMES = ("data.name", "model.name", "method.name", "quantizer.name", "estimator.name", "correction.name")
_SHOWN = 8  # values or runs in a message
_NOT_LABELS = ("seed", *NOT_IDENTITY)


@dataclass(frozen=True)
class Found:
    """The folder of a run: `name` is DATA/METHOD unless the run was given another; `run` is None if it is unfinished.

    Attributes:
        damage: What is wrong with its run.json, or nothing.
        facts: The text of each of `COLUMNS` that it has.
    """

    folder: Path
    name: str
    run: dict[str, Any] | None
    damage: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)

    def value(self, key: str) -> str | None:
        """Return the text of a column, of a dotted key of the config, or of a choice's name; None if there is none."""
        if key in COLUMNS:
            return self.facts.get(key)
        found = get(self.run["config"], key) if self.run is not None else None
        if isinstance(found, dict):  # a group
            found = found.get("name", found.get("kind"))
        return None if found is None else str(found)


def choose_runs(outputs: Path, words: Sequence[str], state_of: Callable[[Path], str]) -> list[Found]:
    """Return the runs below a folder of outputs that words choose (see `is_chosen`), the oldest first.

    Raises:
        ValueError: there are runs, but none of them is chosen; says which of the words no run meets.
    """
    every = [_found(folder, outputs / "runs", state_of) for folder in _folders(outputs / "runs")]
    found = [one for one in every if is_chosen(one, words)]
    known = {*COLUMNS, *(key for one in every if one.run is not None for key in _keys(one.run["config"]))}
    unknown = [key for key, equals, _ in (word.partition("=") for word in words) if equals and key not in known]
    if every and (unknown or not found):
        raise ValueError(f"{' '.join(words)}: {_why(every, words, unknown, known)}")
    return sorted(found, key=lambda one: one.facts["when"])


def _why(every: Sequence[Found], words: Sequence[str], unknown: Sequence[str], known: Iterable[str]) -> str:
    """Say why no run is chosen."""
    if unknown:
        hint = nearest(unknown[0], known)
        return (
            f"no finished run has the key {unknown[0]!r}. {hint}Keys are {', '.join(COLUMNS)} and those of the config"
        )
    reason = "no run meets all of them"
    for word in words:
        if not any(is_chosen(one, [word]) for one in every):
            key, equals, _ = word.partition("=")
            values = sorted({value for one in every if (value := one.value(key)) is not None}) if equals else []
            reason = f"no run has {word}" + (f"; {key} is {', '.join(values[:_SHOWN])}" if values else "")
    damaged = sum(bool(one.damage) for one in every)
    return reason + (f". {damaged} runs are damaged: lowbit ls runs --filter state=damaged" if damaged else "")


def _keys(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def _folders(runs: Path) -> Iterator[Path]:
    for path, folders, _ in os.walk(runs):
        yield from (Path(path, name) for name in folders if _ID.fullmatch(name))
        folders[:] = [name for name in folders if not _ID.fullmatch(name)]


def _found(folder: Path, runs: Path, state_of: Callable[[Path], str]) -> Found:
    run, damage = finished_run(folder)
    name = folder.parent.relative_to(runs).as_posix()
    if run is None:
        parts = name.split("/")  # as runs are called unless they are given a name
        data, method = parts if len(parts) == 2 else (None, None)
        shown: dict[str, Any] = {"data": data, "method": method, "when": _time(folder.stat().st_mtime)}
    else:
        metric, config = run["primary_metric"], run["config"]
        shown = {
            "data": get(config, "data.name"),
            "method": get(config, "method.name"),
            "bits": run["size"]["bits"],
            "seed": get(config, "seed"),
            "score": f"{metric} {run['metrics'][metric]:.4f}",
            "when": _time((folder / RUN_FILE).stat().st_mtime),
        }
    texts = {key: str(value) for key, value in shown.items() if value is not None}
    state = "done" if run is not None else state_of(folder)
    return Found(folder, name, run, damage, {"id": folder.name, "name": name, "state": state, **texts})


def _time(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def is_chosen(found: Found, words: Sequence[str]) -> bool:
    """Whether a run meets a filter of every key, and one of the words without a key, where there are any.

    Args:
        found: The run.
        words: `KEY=VALUE` (a column, or a dotted key of the config; of one key several values may be given, also with
            commas; `*` and `?` stand for anything), the beginning of an id, or `NAME/ID` with `*` and `?`.
    """
    wanted: dict[str, list[str]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        wanted.setdefault(key if equals else "", []).extend(value.split(",") if equals else [word])
    places = wanted.pop("", None)
    if places is not None and not any(_is_meant(found, place) for place in places):
        return False
    return all(any(_equal(found.value(key), value) for value in values) for key, values in wanted.items())


def _is_meant(found: Found, word: str) -> bool:
    whole = f"{found.name}/{found.folder.name}"
    return found.folder.name.startswith(word) or any(fnmatchcase(text, word) for text in (whole, found.name))


def _equal(actual: str | None, wanted: str) -> bool:
    if actual is None:
        return wanted in ("null", "None")
    if fnmatchcase(actual, wanted) or actual.lower() == wanted.lower():
        return True
    try:
        return float(actual) == float(wanted)
    except ValueError:
        return False


def find_run(outputs: Path, word: str) -> tuple[Path, dict[str, Any]]:
    """Return folder and run.json of one run: `word` is its folder or run.json, or begins its id, or `DATA/METHOD/ID`.

    Raises:
        ValueError: no run or several are meant, or the run has not finished, or its file is damaged.
    """
    given = Path(word).expanduser()
    given = given.parent if given.name == RUN_FILE else given
    if given.is_dir():
        run = read_run(given)
        if run is None:
            raise ValueError(f"{word}: no {RUN_FILE} in this folder: it is no run's, or the run has not finished")
        return given, run
    names = {folder.relative_to(outputs / "runs").as_posix(): folder for folder in sorted(_folders(outputs / "runs"))}
    meant = [name for name, folder in names.items() if name.startswith(word) or folder.name.startswith(word)]
    finished = [name for name in names if (names[name] / RUN_FILE).is_file()]
    found = [name for name in meant if name in finished]
    if len(found) > 1:
        raise ValueError(f"{word}: {len(found)} runs begin so: {_listed(found)}. Give more of the id.")
    if found and (run := read_run(names[found[0]])) is not None:
        return names[found[0]], run
    if meant:
        raise ValueError(f"{word}: {_listed(meant)} has not finished: it has no {RUN_FILE} yet")
    there = f"Finished runs: {_listed(finished)}." if finished else "No run has finished there."
    raise ValueError(
        f"{word}: no such run below {outputs / 'runs'}, and no such folder; paths.outputs=DIR looks elsewhere. {there}"
    )


def _listed(names: Sequence[str]) -> str:
    more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join([*names[:_SHOWN], *more])


def cells_of_runs(found: Iterable[Found]) -> list[Cell]:
    """Return cells of a table, labelled by as few settings as tell all runs apart but for their seeds."""
    runs = list(found)
    configs = [dict(flat(one.run["config"])) for one in runs if one.run is not None]
    labels = [{"method": str(config.get("method.name"))} for config in configs]
    keys = dict.fromkeys([*_NAMES, *(key for config in configs for key in config)])
    for key in (key for key in keys if not _is_no_label(key)):
        groups: dict[tuple[str, ...], set[str]] = {}
        for label, config in zip(labels, configs, strict=True):
            groups.setdefault(tuple(label.values()), set()).add(str(config.get(key)))
        if any(len(values) > 1 for values in groups.values()):
            for label, config in zip(labels, configs, strict=True):
                label[key] = str(config.get(key))
    known = iter(labels)  # a damaged run is called by the name of its folder
    cells = []
    for one in runs:
        label = {"method": one.name} if one.run is None else next(known)
        command = f"lowbit ls runs --filter id={one.folder.name}"
        cells.append(Cell(one.folder, {**label, "seed": one.facts.get("seed", "")}, command))
    return cells


def _is_no_label(key: str) -> bool:
    return any(key == other or key.startswith(f"{other}.") for other in _NOT_LABELS)
