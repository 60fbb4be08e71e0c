"""The labels that a checkpoint was trained on: compared with the data set's, and written beside the weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lowbit.data import DataInfo

CONFIG_FILE = "config.json"
# `LABEL_0` of transformers, `0`: no name. Such labels are taken to be in the data set's order.
_NAMELESS = re.compile(r"(label[ _]?)?\d+")
_WORDNET = re.compile(r"n\d{8}")  # ImageNet's folders; heads trained on them call the same classes by words


def check_labels(source: str, theirs: Mapping[int, str] | None, info: DataInfo) -> None:
    """Compare the names of a checkpoint's labels, in their order, with those of the data set.

    Raises:
        ValueError: with both, if they differ; names that only one of them has are not compared.
    """
    names = [theirs[index] for index in sorted(theirs)] if theirs else []
    if len(names) != info.num_labels or len(info.labels) != info.num_labels:
        return
    if any(map(_is_nameless, (*names, *info.labels))) or [*map(_plain, names)] == [*map(_plain, info.labels)]:
        return
    if all(map(_WORDNET.fullmatch, info.labels)) and not any(map(_WORDNET.fullmatch, names)):
        return
    raise ValueError(
        f"{source}: its head has the labels {_listed(names)}, data={info.name} has {_listed(info.labels)}, in this "
        "order; give a checkpoint of this task, or one without a head"
    )


def name_labels(model: nn.Module, info: DataInfo) -> None:
    """Write the names of the labels into a Hugging Face model's config, from where `save_pretrained` takes them."""
    config: Any = getattr(model, "config", None)
    if config is not None and len(info.labels) == info.num_labels:
        config.id2label = dict(enumerate(info.labels))
        config.label2id = {name: index for index, name in config.id2label.items()}


def save_description(model: nn.Module, folder: Path) -> None:
    """Write config.json, so that `from_pretrained` of plain transformers loads the folder; others need none."""
    config: Any = getattr(model, "config", None)
    if config is not None:
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)


def check_described(folder: Path, info: DataInfo) -> None:
    """Compare the labels in the config.json of a folder, if it has one, with the data set's.

    Raises:
        ValueError: they are other ones, or the file is no JSON.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        return
    try:
        labels = json.loads(file.read_text(encoding="utf-8")).get("id2label")
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error})") from error
    if labels and len(labels) != info.num_labels:
        raise ValueError(
            f"teacher.path={folder}: its head has {len(labels)} labels, data={info.name} has {info.num_labels}; give a "
            "teacher of this task"
        )
    check_labels(f"teacher.path={folder}", labels and {int(key): name for key, name in labels.items()}, info)


def _is_nameless(name: str) -> bool:
    return _NAMELESS.fullmatch(name.strip().lower()) is not None


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name.strip().lower())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
