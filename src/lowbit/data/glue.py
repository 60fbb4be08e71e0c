"""GLUE: nine tasks of English sentences and sentence pairs, scored on the development sets.

The official test labels are not public. Validation is therefore the development set, and there is no test split.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from lowbit.config.data_files import limit_rows
from lowbit.config.glue_files import description, digest, find_split, train_rows
from lowbit.config.glue_tasks import REVISION, TRAIN, SplitName
from lowbit.data.bad_rows import cached_tokens, check_labels_differ, list_bad_rows
from lowbit.data.cache import Tensors, content_key
from lowbit.data.glue_rows import read_rows
from lowbit.data.splits import Splits, TextSplit, fixed_width
from lowbit.data.tokens import Tokens, tokenize, tokenizer_state
from lowbit.settings.data import DataConfig, DataInfo, OnBadRow

_FORMAT = 2  # of the cache; another number forgets every file


def glue_info(config: DataConfig) -> DataInfo:
    """Describe a task; the rows are counted, and read only where bad ones are to be left out of the count."""
    task = description(config)
    rows = len(read_rows(config, TRAIN)) if config.on_bad_row is OnBadRow.skip else train_rows(config)
    return DataInfo(
        name=config.name,
        modality="text",
        task="classification" if task.labels else "regression",
        num_labels=len(task.labels) or 1,
        labels=task.label_names,
        metric=task.metric,
        train_size=limit_rows("train_size", config.train_size, rows, config),
        max_length=config.max_length,
        has_test=False,
        more_validation=tuple(name for name, _ in task.dev if name),
    )


def glue_splits(config: DataConfig, info: DataInfo, tokenizer: Any, cache: Path | None) -> Splits:
    """Read and tokenise the splits, or take the tokens from the cache.

    Args:
        config: The data group.
        info: Of the same config.
        tokenizer: Hugging Face tokenizer of the model.
        cache: Folder of the token files; None keeps nothing.
    """
    load = partial(_split, config, tokenizer, cache)
    validation = {name: load(split, "eval_size", config.eval_size) for name, split in description(config).dev}
    return Splits(
        train=load(TRAIN, "train_size", info.train_size),
        validation=validation.pop(""),
        test=None,
        more_validation=validation,
    )


def _split(
    config: DataConfig, tokenizer: Any, cache: Path | None, split: SplitName, key: str, size: int | None
) -> TextSplit:
    name, build = _cache_name(config, tokenizer, split), partial(_tokenized, config, tokenizer, split)
    tensors = cached_tokens(config, cache, name, build, f"rows of {split.split}")
    rows = limit_rows(key, size, len(tensors["labels"]), config)
    if split is TRAIN:
        labels = tensors["labels"][:rows].tolist()
        check_labels_differ(config, labels, description(config).label_names)
    starts = tensors["starts"][: rows + 1]
    tokens = Tokens(tensors["ids"], tensors["types"], starts)
    return TextSplit(tokens, tensors["labels"][:rows], tokenizer.pad_token_id, fixed_width(config))


def _tokenized(config: DataConfig, tokenizer: Any, split: SplitName) -> Tensors:
    rows = read_rows(config, split)
    print(f"tokenizing {config.name} {split.split}: {len(rows)} rows", flush=True)
    if rows.bad:
        print(f"  {list_bad_rows(rows.bad)}", flush=True)
    tokens = tokenize(tokenizer, rows.texts, config.max_length)
    number = torch.int64 if description(config).labels else torch.float32
    return {
        "ids": tokens.ids,
        "types": tokens.types,
        "starts": tokens.starts,
        "labels": torch.tensor(rows.labels).to(number),
        "skipped": torch.tensor(len(rows.bad)),
    }


def _cache_name(config: DataConfig, tokenizer: Any, split: SplitName) -> str:
    assert config.task is not None
    found = find_split(config, split)
    origin = f"hub {config.revision or REVISION}" if found is None else f"{found.format} {digest(found)}"
    key = content_key(
        _FORMAT,
        config.task.name,
        split.split,
        origin,
        tokenizer_state(tokenizer),
        config.max_length,
        config.on_bad_row.name,
    )
    return f"{config.task.name}-{split.split}-{key}"
