"""XGLUE: which languages count, where their files lie, how many rows they hold, a hash of them (imports no torch)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from lowbit.config.data_files import joined_digest, length_problem, limit_rows, stamp
from lowbit.config.glue_files import SplitFiles, count_rows, digest, split_files
from lowbit.config.xglue_tasks import XGLUE_TASKS, Part, XglueDescription, split_name
from lowbit.settings.data import DataConfig, DataSource, OnBadRow

BLANKS = " \t\r\n"  # of a line without a word


def xglue_description(config: DataConfig) -> XglueDescription:
    """Return the description of the config's task.

    Raises:
        ValueError: no task.
    """
    if config.xglue_task is None:
        raise ValueError(f"data.xglue_task: no value; choose one of {', '.join(task.name for task in XGLUE_TASKS)}")
    return XGLUE_TASKS[config.xglue_task]


def train_language(config: DataConfig) -> str:
    """Return the language of the training rows.

    Raises:
        ValueError: none, or one that the task does not have.
    """
    known = xglue_description(config).languages
    if config.language not in known:
        raise ValueError(f"data.language={config.language}: {config.name} has {', '.join(known)}")
    return config.language


def evaluated_languages(config: DataConfig) -> tuple[str, ...]:
    """Return the languages whose development sets score a model, that of the training rows first.

    Raises:
        ValueError: languages that the task does not have, or without that of the training rows.
    """
    first, known = train_language(config), xglue_description(config).languages
    chosen = known if config.languages is None else tuple(config.languages)
    strange = [language for language in chosen if language not in known]
    if strange:
        raise ValueError(f"data.languages: {config.name} has no {', '.join(strange)}; it has {', '.join(known)}")
    if first not in chosen:
        raise ValueError(
            f"data.languages={list(chosen)}: lacks data.language={first}, whose development set is always scored; "
            "add it, or set data.languages=null for all"
        )
    return (first, *(language for language in dict.fromkeys(chosen) if language != first))


def find_part(config: DataConfig, part: Part, language: str) -> SplitFiles | None:
    """Return the files of a part in one language; None if it comes from the hub.

    Raises:
        ValueError: saying which file to put where.
    """
    if config.source is DataSource.hub:
        return None
    task = xglue_description(config)
    name, split = task.file(part, language), split_name(part, language)
    if config.dir is None:
        raise ValueError(f"data.dir: no value; {_remedy('XGLUE_DIR/' + name)}, with data.dir=XGLUE_DIR")
    root = Path(config.dir).expanduser()
    if not root.is_dir():
        raise ValueError(f"data.dir={config.dir}: no such folder; {_remedy(root / name)}")
    # On the hub `train` is English: it must not be taken for another language's.
    found = split_files(root / name, root / task.folder if part == "dev" or language == "en" else None, split)
    if found is None:
        others = "" if part == "train" else ", or set data.languages to the languages that you have"
        raise ValueError(
            f"data.dir={config.dir}: no {name}, and no {split}.parquet or save_to_disk split in {root / task.folder}; "
            f"{_remedy(root / name)}{others}"
        )
    return found


def xglue_problems(config: DataConfig) -> Iterator[str]:
    """Yield what is missing of the task, its languages and their files."""
    try:
        task = xglue_description(config)
        # A token of each text beside RoBERTa's 2 or 4 special ones.
        yield from length_problem(config, 3 if task.tags else 6)
        if config.source is DataSource.hub and train_language(config) != "en":
            yield f"data.language={config.language}: on the hub only en has training rows; set data.source=folder"
        for part, language in _parts(config):
            find_part(config, part, language)
        rows = xglue_train_rows(config)
        if not rows:
            yield f"data={config.name}: the training file holds no row"
        elif config.train_size is not None and config.on_bad_row is OnBadRow.error:
            limit_rows("train_size", config.train_size, rows, config)
    except (ValueError, OSError) as error:
        yield str(error)


def xglue_train_rows(config: DataConfig) -> int:
    """Return the training rows that the files hold, bad ones included; on the hub, the official number."""
    task = xglue_description(config)
    found = find_part(config, "train", train_language(config))
    if found is None:
        return task.train_rows
    if found.format != "tsv":
        return count_rows(found)
    return _sentences(*stamp(found.files[0])) if task.tags else _rows(*stamp(found.files[0]))


def xglue_fingerprint(config: DataConfig) -> str | None:
    """Return a hash of everything that the config reads from files; None if it reads none.

    Raises:
        ValueError: files are missing.
    """
    found = [find_part(config, *part) for part in _parts(config)]
    parts = [digest(files) for files in found if files is not None]
    return joined_digest(parts) if parts else None


def is_header(cells: Sequence[str]) -> bool:
    """Whether a first line names the columns: no label of a task has these words in it."""
    return any(word in cells[-1].lower() for word in ("label", "category"))


def _parts(config: DataConfig) -> Iterator[tuple[Part, str]]:
    yield "train", train_language(config)
    yield from (("dev", language) for language in evaluated_languages(config))


def _remedy(file: Path | str) -> str:
    return f"put the official XGLUE file at {file}"


@lru_cache
def _rows(path: Path, modified: int, size: int) -> int:
    with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as file:
        first = next(file, "")
        rows = sum(1 for line in file if line.strip("\r\n"))
    return rows + int(bool(first.strip("\r\n")) and not is_header(first.rstrip("\r\n").split("\t")))


@lru_cache
def _sentences(path: Path, modified: int, size: int) -> int:
    count, inside = 0, False
    with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as file:
        for line in file:
            begins = bool(line.strip(BLANKS))
            count += begins and not inside
            inside = begins
    return count
