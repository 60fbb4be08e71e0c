"""Published values: the records of conf/paper, which runs each is compared with, and how a difference is judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lowbit.results.run_file import get
from lowbit.results.scores import Published

ANY = "*"  # in a `match`: any value but null
# A run on a part of the published data is compared with nothing.
_WHOLE = ("data.train_size", "data.eval_size")
_REQUIRED = ("table", "model", "dataset", "split", "metric", "method", "bits", "value", "source")
_KNOWN = {*_REQUIRED, "std", "note", "assumed", "not_comparable", "score", "match"}
# The loader in C takes a tenth of a second for all papers, the one in Python a whole one.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Record:
    """One published number, in the unit of its source; `low` and `high` differ for a published range.

    Attributes:
        paper: Stem of the file in conf/paper.
        title: Name of the paper.
        fields: What the source says: table, model, dataset, split, metric, method, bits, source, note.
        low, high: The value.
        std: Published standard deviation.
        score: Metric of `run.json` that the value is compared with, or `size/mib`, `size/compression`; None: with none.
        match: What the config of a run must hold, by dotted key.
        not_comparable: Why it is compared with no run.
        assumed: What the comparison takes for granted.
    """

    paper: str
    title: str
    fields: Mapping[str, str]
    low: float
    high: float
    std: float | None
    score: str | None
    match: Mapping[str, Any]
    not_comparable: str | None
    assumed: str | None


def read_papers(folders: Iterable[Path]) -> list[Record]:
    """Read every record of the papers in these folders; a file of a later folder replaces one of the same name.

    Raises:
        ValueError: a record lacks a field, has an unknown one, or says neither what it is compared with nor why not.
    """
    files = {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}
    return [record for path in files.values() for record in _read(path, path.stat().st_mtime_ns)]


@cache
def _read(path: Path, modified: int) -> tuple[Record, ...]:  # a changed file is read again
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  # the safe loader, in C
    if not isinstance(content, dict) or not {"title", "tables"} <= content.keys():
        raise ValueError(f"{path}: needs `title` and `tables`; docs/tables.md shows the format")
    records = []
    for number, table in enumerate(content["tables"], 1):
        shared = {key: value for key, value in table.items() if key != "values"}
        for value in table.get("values", []):
            entry = {**shared, **value}
            entry["match"] = {**shared.get("match", {}), **value.get("match", {})}
            where = f"{path}: tables.{number}, value {entry.get('value')}"
            records.append(_record(path.stem, str(content["title"]), entry, where))
    return tuple(records)


def _record(paper: str, title: str, entry: dict[str, Any], where: str) -> Record:
    missing = [key for key in _REQUIRED if entry.get(key) is None]
    unknown = sorted(entry.keys() - _KNOWN)
    if missing or unknown:
        raise ValueError(f"{where}: lacks {missing or 'nothing'}, unknown fields {unknown or 'none'}")
    comparable = bool(entry.get("score")) and bool(entry["match"])
    if comparable == bool(entry.get("not_comparable")):
        raise ValueError(f"{where}: give `score` and `match`, or say why it is `not_comparable`")
    ends = entry["value"] if isinstance(entry["value"], list) else [entry["value"]] * 2
    return Record(
        paper=paper,
        title=title,
        fields={key: str(entry.get(key) or "") for key in (*_REQUIRED, "note") if key != "value"},
        low=float(ends[0]),
        high=float(ends[1]),
        std=None if entry.get("std") is None else float(entry["std"]),
        score=entry.get("score"),
        match=entry["match"],
        not_comparable=entry.get("not_comparable"),
        assumed=entry.get("assumed"),
    )


def find(records: Iterable[Record], config: Mapping[str, Any], score: str) -> Published | None:
    """Return what is published for the runs of a config, or None.

    Where sources differ, it is the range that they span.
    """
    if any(get(config, key) is not None for key in _WHOLE):
        return None
    found = [record for record in records if record.score == score and matches(config, record.match)]
    if not found:
        return None
    values = {(record.low, record.high, record.std) for record in found}
    return Published(
        low=min(record.low for record in found),
        high=max(record.high for record in found),
        std=found[0].std if len(values) == 1 else None,
        sources=_distinct(f"{record.title}, {record.fields['table']}" for record in found),
        assumed=_distinct(record.assumed for record in found if record.assumed),
    )


def as_teacher(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config that would train the teacher of a run as a run: fine-tuned, at full precision."""
    plain = {"method": {"name": "finetune"}, "quantizer": {"name": "none"}}
    return {**config, **plain, "data": {**config.get("data", {}), "train_file": None}}


def matches(config: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Say whether a config holds all of the wanted values; of a list one is enough, `*` is any but null."""
    return all(_allows(value, get(config, key)) for key, value in wanted.items())


def _allows(wanted: Any, actual: Any) -> bool:
    if wanted == ANY:
        return actual is not None
    return bool(actual == wanted) or (isinstance(wanted, list) and actual in wanted)


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))
