"""Read the rows of an XGLUE part from the official files, Parquet files or the hub; name bad rows.

Files are lines of cells between tabs; quotation marks are characters like any other. The two tasks that label words
have a word and its tag per line, and a blank line between sentences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from lowbit.config.xglue_files import BLANKS, find_part, is_header, xglue_description
from lowbit.config.xglue_tasks import REPOSITORY, REVISION, Part, XglueDescription, split_name
from lowbit.data.bad_rows import check_rows, text_problem
from lowbit.data.glue_rows import Record, Rows, hub_rows, table_rows
from lowbit.hub import hub_split
from lowbit.settings.data import DataConfig


@dataclass
class Sentences:
    """The usable sentences as words with the ids of their tags, and one line for each of the others."""

    words: list[list[str]] = field(default_factory=list)
    tags: list[list[int]] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """Return the number of usable sentences."""
        return len(self.words)


def read_texts(config: DataConfig, part: Part, language: str) -> Rows:
    """Return the rows of a part as pairs: a task of three texts joins the last two by a blank.

    Raises:
        ValueError: bad rows that are not to be skipped, or none that is good.
    """
    task = xglue_description(config)
    rows = Rows(texts=[[], []])
    for where, cells in _records(config, task, part, language):
        problem = cells if isinstance(cells, str) else _take_texts(rows, task, cells)
        if problem is not None:
            rows.bad.append(f"{where}: {problem}")
    check_rows(config, rows.bad, len(rows), f"the part {part} in {language} has no usable row")
    return rows


def read_sentences(config: DataConfig, part: Part, language: str) -> Sentences:
    """Return the sentences of a part.

    Raises:
        ValueError: bad sentences that are not to be skipped, or none that is good.
    """
    task = xglue_description(config)
    rows = Sentences()
    for where, cells in _records(config, task, part, language):
        problem = cells if isinstance(cells, str) else _take_sentence(rows, task, *cells)
        if problem is not None:
            rows.bad.append(f"{where}: {problem}")
    check_rows(config, rows.bad, len(rows), f"the part {part} in {language} has no usable sentence")
    return rows


def _take_texts(rows: Rows, task: XglueDescription, cells: Sequence[Any]) -> str | None:
    """Append a row and return None, or return what is wrong with it."""
    *texts, label = cells
    first, *rest = ("" if text is None else str(text).strip() for text in texts)
    pair = (first, " ".join(filter(None, rest)))
    names = (task.columns[0], " and ".join(task.columns[1:-1]))
    problem = next(filter(None, map(text_problem, names, pair)), None)
    value = _label(task, label)
    if problem is None and value is None:
        problem = f"label {label!r}, expected one of {', '.join(task.labels)}"
    if problem is not None:
        return problem
    assert value is not None
    for column, text in zip(rows.texts, pair, strict=True):
        column.append(text)
    rows.labels.append(value)
    return None


def _take_sentence(rows: Sentences, task: XglueDescription, words: Any, tags: Any) -> str | None:
    """Append a sentence and return None, or return what is wrong with it."""
    if not words or not isinstance(words, list):
        return "no words"
    if not isinstance(tags, list):
        return "no tags"
    if len(words) != len(tags):
        return f"{len(words)} words with {len(tags)} tags"
    ids = [_label(task, tag) for tag in tags]
    for number, (word, tag, value) in enumerate(zip(words, tags, ids, strict=True), start=1):
        problem = text_problem("the word", word)
        if problem is None and value is None:
            problem = f"tag {tag!r}, expected one of {', '.join(task.labels)}"
        if problem is not None:
            return f"word {number}: {problem}"
    rows.words.append(list(words))
    rows.tags.append([value for value in ids if value is not None])
    return None


def _label(task: XglueDescription, label: Any) -> int | None:
    """Return the id of a label that a file spells, or that a table holds as a number; None for any other."""
    if isinstance(label, str):
        name = dict(task.aliases).get(label.strip(), label.strip())
        for known in (task.labels, task.names):
            if name in known:
                return known.index(name)
        label = int(name) if name.isdecimal() else None
    return label if isinstance(label, int) and 0 <= label < len(task.labels) else None


def _records(config: DataConfig, task: XglueDescription, part: Part, language: str) -> Iterator[Record]:
    found = find_part(config, part, language)
    if found is None:
        return _hub(config, task, part, language)
    if found.format != "tsv":
        return table_rows(found, task.columns)
    return (_tagged if task.tags else _lines)(found.files[0], task)


def _text(path: Path) -> Iterator[tuple[int, str]]:
    # Lines end where the file says so, not at the other marks that Unicode counts as line ends.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            yield number, line.rstrip("\r\n")


def _lines(path: Path, task: XglueDescription) -> Iterator[Record]:
    """Yield the cells of each line; the first line may name the columns, and says whether the rows are numbered."""
    expected = len(task.columns)
    for number, line in _text(path):
        if not line:
            continue
        cells = line.split("\t")
        if number == 1:
            expected += task.numbered and len(cells) == len(task.columns) + 1
            if is_header(cells):
                continue
        if len(cells) == expected:
            yield f"{path}:{number}", cells[-len(task.columns) :]
        else:
            yield f"{path}:{number}", f"{len(cells)} columns, expected {expected}"


def _tagged(path: Path, task: XglueDescription) -> Iterator[Record]:
    """Yield words and tags of each sentence, or the first line of it that does not hold one of each."""
    words: list[str] = []
    tags: list[str] = []
    first, problem = 0, ""
    for number, line in chain(_text(path), [(0, "")]):
        if line.strip(BLANKS):
            first = first or number
            # Words may hold other blanks, such as the narrow ones in French numbers.
            cells = [cell for cell in line.replace("\t", " ").split(" ") if cell]
            if len(cells) == 2:
                words.append(cells[0])
                tags.append(cells[1])
            else:
                problem = problem or f"line {number} has {len(cells)} cells, expected a word and its tag"
        elif first:
            yield f"{path}:{first}", problem or (words, tags)
            words, tags, first, problem = [], [], 0, ""


def _hub(config: DataConfig, task: XglueDescription, part: Part, language: str) -> Iterator[Record]:
    split, revision = split_name(part, language), config.revision or REVISION
    files = [task.file(part, language)]
    try:
        data = hub_split(
            REPOSITORY,
            task.hub,
            split=split,
            revision=revision,
            root="XGLUE_DIR",
            files=files,
            choice=config.name,
        )
    except RuntimeError as error:
        raise ValueError(
            f"data.source=hub: {REPOSITORY} at revision {revision} cannot be read ({error}): `datasets` 4 and later "
            f"run no loading scripts. Set data.revision={REVISION}, or put the official file at XGLUE_DIR/{files[0]} "
            "and set data.source=folder data.dir=XGLUE_DIR"
        ) from error
    return hub_rows(data, task.columns, f"{REPOSITORY}, {task.hub}, {split}")
