"""SQuAD 1.1 and 2.0: where the files lie, how many questions they hold, a hash of them (imports no torch)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from lowbit.config.data_files import file_digest, joined_digest, limit_rows, stamp
from lowbit.settings.data import DataConfig, DataSource, OnBadRow, SquadVersion

Part = Literal["train", "dev"]
# Where an entry stands, and its paragraph's text with the entry itself, or what keeps it from having them.
Entry = tuple[str, tuple[Any, Any] | str]
MOST_SPECIAL_TOKENS = 4  # around question and text, in RoBERTa; BERT has three


@dataclass(frozen=True)
class SquadDescription:
    """One version.

    Attributes:
        files: names of the official files.
        repository, revision: on the hub.
        train_questions: official number.
        has_no_answer: whether texts may not hold the answer.
    """

    files: dict[Part, str]
    repository: str
    revision: str
    train_questions: int
    has_no_answer: bool


# The commits are unverified, since they were written down without network access.
VERSIONS = {
    SquadVersion.v1_1: SquadDescription(
        files={"train": "train-v1.1.json", "dev": "dev-v1.1.json"},
        repository="rajpurkar/squad",
        revision="7b6d24c440a36b6815f21b70d25016731768db1f",
        train_questions=87_599,
        has_no_answer=False,
    ),
    SquadVersion.v2_0: SquadDescription(
        files={"train": "train-v2.0.json", "dev": "dev-v2.0.json"},
        repository="rajpurkar/squad_v2",
        revision="3ffb306f725f7d2ce8394bc1873b24868140c412",
        train_questions=130_319,
        has_no_answer=True,
    ),
}


def squad_description(config: DataConfig) -> SquadDescription:
    """Return the description of the config's version.

    Raises:
        ValueError: no version.
    """
    if config.version is None:
        raise ValueError(f"data.version: no value; choose one of {', '.join(known.name for known in VERSIONS)}")
    return VERSIONS[config.version]


def squad_file(config: DataConfig, part: Part) -> Path | None:
    """Return the file of a part; None if it comes from the hub.

    Raises:
        ValueError: saying which files to put where.
    """
    names = squad_description(config).files
    if config.source is DataSource.hub:
        return None
    root = Path("SQUAD_DIR" if config.dir is None else config.dir)
    files = " and ".join(str(root / name) for name in names.values())
    remedy = f"put the official files at {files}, or set data.source=hub on a machine with network access"
    if config.dir is None:
        raise ValueError(f"data.dir: no value; {remedy}, with data.dir=SQUAD_DIR")
    file = root.expanduser() / names[part]
    if not file.is_file():
        missing = f"no {names[part]} in it" if root.expanduser().is_dir() else "no such folder"
        raise ValueError(f"data.dir={config.dir}: {missing}; {remedy}")
    return file


def squad_problems(config: DataConfig) -> Iterator[str]:
    """Yield what is wrong with the window settings, and what is missing of the files."""
    for key, example in (("max_length", 384), ("doc_stride", 128), ("max_question_length", 64)):
        value = getattr(config, key)
        if value is None:
            yield f"data.{key}: no value; set it, for example data.{key}={example}"
    least = (config.max_question_length or 0) + MOST_SPECIAL_TOKENS + 1
    if config.max_length is not None and 0 < config.max_length < least:
        yield (
            f"data.max_length={config.max_length}: leaves no token for the text beside a question of "
            f"data.max_question_length={config.max_question_length}; set data.max_length to {least} or more"
        )
    try:
        questions = train_questions(config)
        squad_file(config, "dev")
        if not questions:
            yield f"data={config.name}: the training file holds no question"
        elif config.train_size is not None and config.on_bad_row is OnBadRow.error:
            limit_rows("train_size", config.train_size, questions, config)
    except (ValueError, OSError) as error:
        yield str(error)


def train_questions(config: DataConfig) -> int:
    """Return the training questions that the file holds, bad ones included; on the hub, the official number."""
    file = squad_file(config, "train")
    return squad_description(config).train_questions if file is None else _count(*stamp(file))


def squad_fingerprint(config: DataConfig) -> str | None:
    """Return a hash of everything that the config reads from files; None if it reads none.

    Raises:
        ValueError: files are missing.
    """
    found = [squad_file(config, part) for part in ("train", "dev")]
    parts = [file_digest(file) for file in found if file is not None]
    return joined_digest(parts) if parts else None


def entries(path: Path) -> Iterator[Entry]:
    """Yield every question of an official file with its text, or what is wrong with the part that should hold it.

    Raises:
        ValueError: no JSON, or JSON of something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # of the JSON or of its bytes
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    problem = _lacks(content, "data")
    if problem is not None:
        raise ValueError(f"{path}: {problem}; the official files hold a list `data` of articles")
    for i, article in enumerate(content["data"]):
        yield from _article(f"{path}: data[{i}]", article)


def _article(where: str, article: Any) -> Iterator[Entry]:
    problem = _lacks(article, "paragraphs")
    if problem is not None:
        yield where, problem
        return
    for i, paragraph in enumerate(article["paragraphs"]):
        here = f"{where}.paragraphs[{i}]"
        problem = _lacks(paragraph, "qas")
        if problem is not None:
            yield here, problem
            continue
        for j, entry in enumerate(paragraph["qas"]):
            yield f"{here}.qas[{j}]", (paragraph.get("context"), entry)


def _lacks(node: Any, key: str) -> str | None:
    """Return what keeps a node from having a list under `key`; None if it has."""
    if not isinstance(node, dict):
        return f"{json.dumps(node)[:40]} stands where an object with `{key}` should"
    if key not in node:
        return f"no field `{key}`"
    return None if isinstance(node[key], list) else f"`{key}` is no list"


@lru_cache
def _count(path: Path, modified: int, size: int) -> int:
    return sum(not isinstance(content, str) for _, content in entries(path))
