"""XGLUE understanding: trained on one language, scored on the development sets of several.

Validation is the development set of the training language, further languages are more validation splits. The labels of
the test sets were not public when the benchmark came out, and there is no test split.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowbit.config.data_files import limit_rows
from lowbit.config.glue_files import digest
from lowbit.config.xglue_files import evaluated_languages, find_part, xglue_description, xglue_train_rows
from lowbit.config.xglue_tasks import REPOSITORY, REVISION, Part
from lowbit.data.bad_rows import cached_tokens, check_labels_differ, list_bad_rows
from lowbit.data.cache import Tensors, content_key
from lowbit.data.ranking import RankedSplit, numbered
from lowbit.data.splits import Splits, TextSplit, fixed_width
from lowbit.data.tagging import NO_TAG, TagSplit, tokenize_words
from lowbit.data.tokens import Tokens, tokenize, tokenizer_state
from lowbit.data.xglue_rows import Sentences, read_sentences, read_texts
from lowbit.settings.data import DataConfig, DataInfo, DataSource, OnBadRow

_FORMAT = 2  # of the cache; another number forgets every file


def xglue_info(config: DataConfig) -> DataInfo:
    """Describe a task; the rows are counted, and read only where bad ones are to be left out of the count."""
    task = xglue_description(config)
    first, *others = evaluated_languages(config)
    if config.on_bad_row is OnBadRow.skip:
        rows = len((read_sentences if task.tags else read_texts)(config, "train", first))
    else:
        rows = xglue_train_rows(config)
    return DataInfo(
        name=config.name,
        modality="text",
        task="tagging" if task.tags else "classification",
        num_labels=len(task.labels),
        metric=task.metric,
        train_size=limit_rows("train_size", config.train_size, rows, config),
        max_length=config.max_length,
        has_test=False,
        more_validation=tuple(others),
        averaged=bool(others),
        labels=task.label_names,
    )


def xglue_splits(config: DataConfig, info: DataInfo, tokenizer: Any, cache: Path | None) -> Splits:
    """Read and tokenise the parts, or take the tokens from the cache.

    Args:
        config: The data group.
        info: Of the same config.
        tokenizer: Hugging Face tokenizer of the model.
        cache: Folder of the token files; None keeps nothing.
    """
    load = partial(_split, config, tokenizer, cache)
    first, *others = evaluated_languages(config)
    return Splits(
        train=load("train", first, "train_size", info.train_size),
        validation=load("dev", first, "eval_size", config.eval_size),
        test=None,
        more_validation={language: load("dev", language, "eval_size", config.eval_size) for language in others},
    )


def _split(
    config: DataConfig, tokenizer: Any, cache: Path | None, part: Part, language: str, key: str, size: int | None
) -> TextSplit:
    task = xglue_description(config)
    name = _cache_name(config, tokenizer, part, language)
    build = partial(_tokenized, config, tokenizer, part, language)
    tensors = cached_tokens(config, cache, name, build, f"rows of {part} in {language}")
    unlabelled = int(tensors["unlabelled"])
    if unlabelled:
        warnings.warn(
            f"data={config.name}: {unlabelled} words of {part} in {language} have no token, and are neither trained on "
            f"nor scored; most are beyond data.max_length={config.max_length}",
            stacklevel=2,
        )
    held = len(tensors["starts"]) - 1
    if part == "train":
        _check_official(config, held)
    rows = limit_rows(key, size, held, config)
    tokens = Tokens(tensors["ids"], tensors["types"], tensors["starts"][: rows + 1])
    if part == "train":
        labels = tensors["labels"][: int(tokens.starts[-1]) if task.tags else rows]
        check_labels_differ(config, labels[labels != NO_TAG].tolist(), task.label_names)
    pad: tuple[int, int | None] = (tokenizer.pad_token_id, fixed_width(config))
    if task.tags:
        return TagSplit(tokens, tensors["labels"], *pad)
    if task.metric == "ndcg":
        return RankedSplit(tokens, tensors["labels"][:rows], tensors["queries"][:rows], *pad)
    return TextSplit(tokens, tensors["labels"][:rows], *pad)


def _check_official(config: DataConfig, held: int) -> None:
    """Refuse another number of rows on the hub than steps were planned with, instead of training on some of them."""
    planned = config.train_size is None and config.on_bad_row is OnBadRow.error and config.source is DataSource.hub
    if planned and held != xglue_train_rows(config):
        raise ValueError(
            f"data.source=hub: {REPOSITORY} at revision {config.revision or REVISION} has {held} training rows of "
            f"{config.name}, not {xglue_train_rows(config)}: set data.on_bad_row=skip to train on those, or another "
            "data.revision"
        )


def _tokenized(config: DataConfig, tokenizer: Any, part: Part, language: str) -> Tensors:
    rows = (read_sentences if xglue_description(config).tags else read_texts)(config, part, language)
    print(f"tokenizing {config.name} {part} {language}: {len(rows)} rows", flush=True)
    if rows.bad:
        print(f"  {list_bad_rows(rows.bad)}", flush=True)
    more: dict[str, Tensor] = {}
    if isinstance(rows, Sentences):
        tokens, labels, unlabelled = tokenize_words(tokenizer, rows.words, rows.tags, config.max_length)
    else:
        tokens, unlabelled = tokenize(tokenizer, rows.texts, config.max_length), 0
        labels, more["queries"] = torch.tensor(rows.labels), numbered(rows.texts[0])
    return {
        "ids": tokens.ids,
        "types": tokens.types,
        "starts": tokens.starts,
        "labels": labels,
        "skipped": torch.tensor(len(rows.bad)),
        "unlabelled": torch.tensor(unlabelled),
        **more,
    }


def _cache_name(config: DataConfig, tokenizer: Any, part: Part, language: str) -> str:
    assert config.xglue_task is not None
    found = find_part(config, part, language)
    origin = f"hub {config.revision or REVISION}" if found is None else f"{found.format} {digest(found)}"
    task = config.xglue_task.name
    key = content_key(
        *(_FORMAT, task, part, language, origin, tokenizer_state(tokenizer), config.max_length, config.on_bad_row.name)
    )
    return f"xglue_{task}-{part}-{language}-{key}"
