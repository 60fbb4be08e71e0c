"""The rows of every part of a published text data set, read and not tokenised: what `fetch` and `check` go through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from lowbit.config.data_files import limit_rows
from lowbit.config.glue_files import description
from lowbit.config.glue_tasks import TRAIN
from lowbit.config.schema import DataConfig, DataKind
from lowbit.config.xglue_files import evaluated_languages, train_language, xglue_description
from lowbit.data.glue_rows import Rows, read_rows
from lowbit.data.hub import OutOfReachError
from lowbit.data.squad_rows import Questions, read_questions
from lowbit.data.xglue_rows import Sentences, read_sentences, read_texts


@dataclass(frozen=True)
class TextPart:
    """A part of a data set: what it is called, the setting that limits its rows, and what reads them."""

    name: str
    limit: str
    read: Callable[[], Rows | Sentences | Questions]


def text_parts(config: DataConfig) -> Iterator[TextPart]:
    """Yield the parts of a text data set, that of training first; nothing for data without text files."""
    match config.kind:
        case DataKind.glue:
            for split in description(config).splits:
                yield TextPart(split.split, _limit(split is TRAIN), partial(read_rows, config, split))
        case DataKind.squad:
            yield TextPart("train", _limit(True), partial(read_questions, config, "train"))
            yield TextPart("dev", _limit(False), partial(read_questions, config, "dev"))
        case DataKind.xglue:
            read = read_sentences if xglue_description(config).tags else read_texts
            yield TextPart("train", _limit(True), partial(read, config, "train", train_language(config)))
            for language in evaluated_languages(config):
                yield TextPart(f"dev {language}", _limit(False), partial(read, config, "dev", language))


def row_problems(config: DataConfig) -> Iterator[str]:
    """Yield what keeps the rows of each part from being used.

    Raises:
        OutOfReachError: rows of the hub that are not here.
    """
    for part in text_parts(config):
        try:
            rows = part.read()
            limit_rows(part.limit, getattr(config, part.limit), len(rows), config)
        except OutOfReachError:
            raise
        except ValueError as error:
            yield str(error)


def _limit(train: bool) -> str:
    return "train_size" if train else "eval_size"
