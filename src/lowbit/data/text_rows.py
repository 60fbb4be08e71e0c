"""The rows of every part of a published text data set, read and not tokenised: what `fetch` and `check` go through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain

from lowbit.config.data_files import limit_rows
from lowbit.config.glue_files import description
from lowbit.config.glue_tasks import TRAIN
from lowbit.config.xglue_files import evaluated_languages, train_language, xglue_description
from lowbit.data.bad_rows import check_labels_differ
from lowbit.data.glue_rows import Rows, read_rows
from lowbit.data.squad_rows import Questions, read_questions
from lowbit.data.xglue_rows import Sentences, read_sentences, read_texts
from lowbit.hub import OutOfReachError
from lowbit.settings.data import DataConfig, DataKind


@dataclass(frozen=True)
class TextPart:
    """A part of a data set: what it is called, the setting that limits its rows, what reads them, names of labels."""

    name: str
    limit: str
    read: Callable[[], Rows | Sentences | Questions]
    names: tuple[str, ...] = ()


def text_parts(config: DataConfig) -> Iterator[TextPart]:
    """Yield the parts of a text data set, that of training first; nothing for data without text files."""
    match config.kind:
        case DataKind.glue:
            task = description(config)
            for split in task.splits:
                read = partial(read_rows, config, split)
                yield TextPart(split.split, _limit(split is TRAIN), read, task.label_names)
        case DataKind.squad:
            yield TextPart("train", _limit(True), partial(read_questions, config, "train"))
            yield TextPart("dev", _limit(False), partial(read_questions, config, "dev"))
        case DataKind.xglue:
            known = xglue_description(config)
            rows = read_sentences if known.tags else read_texts
            yield TextPart(
                "train", _limit(True), partial(rows, config, "train", train_language(config)), known.label_names
            )
            for language in evaluated_languages(config):
                yield TextPart(f"dev {language}", _limit(False), partial(rows, config, "dev", language))


def row_problems(config: DataConfig) -> Iterator[str]:
    """Yield what keeps the rows of each part from being used.

    Raises:
        OutOfReachError: rows of the hub that are not here.
    """
    for part in text_parts(config):
        try:
            rows = part.read()
            used = limit_rows(part.limit, getattr(config, part.limit), len(rows), config)
            if part.limit == "train_size":
                check_labels_differ(config, _labels(rows, used), part.names)
        except OutOfReachError:
            raise
        except ValueError as error:
            yield str(error)


def _labels(rows: Rows | Sentences | Questions, used: int) -> Iterable[float]:
    if isinstance(rows, Rows):
        return rows.labels[:used]
    return chain.from_iterable(rows.tags[:used]) if isinstance(rows, Sentences) else ()


def _limit(train: bool) -> str:
    return "train_size" if train else "eval_size"
