"""SQuAD 1.1 and 2.0: find the answer to a question in a paragraph, scored on the development set.

The test sets are not public. Validation is therefore the development set, and there is no test split.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lowbit.config.data_files import file_digest, limit_rows
from lowbit.config.squad_files import Part, squad_description, squad_file, train_questions
from lowbit.data.bad_rows import cached_tokens, list_bad_rows
from lowbit.data.cache import Tensors, content_key
from lowbit.data.spans import SpanAnswers, SpanSplit
from lowbit.data.splits import Splits, fixed_width
from lowbit.data.squad_rows import read_questions
from lowbit.data.tokens import Tokens, tokenizer_state
from lowbit.data.windows import Windows, WindowSettings, cut_windows
from lowbit.settings.data import DataConfig, DataInfo

_FORMAT = 1  # of the cache; another number forgets every file


def squad_info(config: DataConfig) -> DataInfo:
    """Describe a version; `train_size` counts questions until a tokenizer has cut them into windows."""
    return DataInfo(
        name=config.name,
        modality="text",
        task="span",
        num_labels=2,
        metric="f1",
        train_size=limit_rows("train_size", config.train_size, train_questions(config), config),
        max_length=config.max_length,
        has_test=False,
    )


def squad_data(
    config: DataConfig, info: DataInfo, tokenizer: Any, cache: Path | None
) -> tuple[DataInfo, Callable[[], Splits]]:
    """Cut the training texts into windows, or take them from the cache; return what is then known, and the loader.

    Args:
        config: The data group.
        info: Of the same config.
        tokenizer: Fast Hugging Face tokenizer of the model.
        cache: Folder of the token files; None keeps nothing.
    """
    windows = _windows(config, tokenizer, cache, "train", config.train_size)
    pad_to = fixed_width(config)

    def load() -> Splits:
        found = _windows(config, tokenizer, cache, "dev", config.eval_size)
        rows = read_questions(config, "dev")
        answers = SpanAnswers(rows.contexts, rows.answers, found, squad_description(config).has_no_answer)
        return Splits(
            train=SpanSplit(windows, tokenizer.pad_token_id, pad_to),
            validation=SpanSplit(found, tokenizer.pad_token_id, pad_to, answers),
            test=None,
        )

    return replace(info, train_size=len(windows.tokens)), load


def _windows(config: DataConfig, tokenizer: Any, cache: Path | None, part: Part, size: int | None) -> Windows:
    """Return the windows of the first `size` questions."""
    name, build = _cache_name(config, tokenizer, part), partial(_tokenized, config, tokenizer, part)
    tensors = cached_tokens(config, cache, name, build, f"questions of {part}")
    questions = tensors["questions"]
    key = "train_size" if part == "train" else "eval_size"
    kept = int((questions < limit_rows(key, size, int(questions[-1]) + 1, config)).sum())
    tokens = Tokens(tensors["ids"], tensors["types"], tensors["starts"][: kept + 1])
    return Windows(tokens, tensors["labels"][:kept], questions[:kept], tensors["chars"])


def _tokenized(config: DataConfig, tokenizer: Any, part: Part) -> Tensors:
    rows = read_questions(config, part)
    print(f"tokenizing {config.name} {part}: {len(rows)} questions", flush=True)
    if rows.bad:
        print(f"  {list_bad_rows(rows.bad)}", flush=True)
    windows = cut_windows(tokenizer, rows, _settings(config))
    return {
        "ids": windows.tokens.ids,
        "types": windows.tokens.types,
        "starts": windows.tokens.starts,
        "labels": windows.labels,
        "questions": windows.questions,
        # Needed to read answers out of the text: 8 bytes per token that training never looks at.
        "chars": windows.chars if part == "dev" else torch.empty(0, 2, dtype=torch.int32),
        "skipped": torch.tensor(len(rows.bad)),
    }


def _settings(config: DataConfig) -> WindowSettings:
    assert config.max_length is not None
    assert config.doc_stride is not None
    assert config.max_question_length is not None
    return WindowSettings(config.max_length, config.doc_stride, config.max_question_length)


def _cache_name(config: DataConfig, tokenizer: Any, part: Part) -> str:
    assert config.version is not None
    file = squad_file(config, part)
    origin = f"hub {config.revision or squad_description(config).revision}" if file is None else file_digest(file)
    key = content_key(
        _FORMAT,
        config.version.name,
        part,
        origin,
        tokenizer_state(tokenizer),
        config.max_length,
        config.doc_stride,
        config.max_question_length,
        config.on_bad_row.name,
    )
    return f"squad_{config.version.name}-{part}-{key}"
