"""The labels of a trained head: compared with the data set's, put into their order, and saved with the weights."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from lowbit.config.model_files import MODEL_CONFIG
from lowbit.files import write_text
from lowbit.modeling.families import family_of
from lowbit.settings.data import DataInfo

# `LABEL_0` of transformers and `0` are no names, only the index of a label.
_NUMBERED = re.compile(r"(?:label[ _]?)?(\d+)")
_WORDNET = re.compile(r"n\d{8}")  # ImageNet's folders; heads trained on them name the same classes by words
_SHOWN = 20  # labels in a message
_AGREEMENT = 0.5  # share of such words that must agree, because not everyone spells WordNet's words alike


def label_order(source: str, theirs: Mapping[int, str] | None, info: DataInfo) -> list[int] | None:
    """Return which output of a checkpoint's head is each label of the data set; None if the order is the same.

    If only one of the two has names, the order counts as the same, unless the head numbers its outputs in another
    order: `LABEL_1`, `LABEL_0`.

    Raises:
        ValueError: If both have names, and not the same ones.
    """
    names = [theirs[index] for index in sorted(theirs)] if theirs else []
    if not (len(names) == len(info.labels) == info.num_labels):
        return None
    for spell in (_compose, _simplify):
        found, wanted = [*map(spell, names)], [*map(spell, info.labels)]
        if set(found) == set(wanted) and len(set(found)) == len(found):
            return None if found == wanted else [found.index(name) for name in wanted]
    if names == list(info.labels):  # two labels have one name
        return None
    numbers, ours = _numbers(names), _numbers(info.labels)
    if numbers is not None and ours is None and numbers != sorted(numbers):
        return [numbers.index(number) for number in sorted(numbers)]
    if (numbers is None) != (ours is None) or (numbers is not None and numbers == sorted(numbers)):
        return None
    if _are_words_of(info.labels, names) or _are_words_of(names, info.labels):
        return None
    raise ValueError(
        f"{source}: its head has the labels {_list(names)}, but data={info.name} has {_list(info.labels)}. Give a "
        "checkpoint of these labels or one without a head, or correct id2label in its config.json"
    )


def order_head(source: str, model: nn.Module, labels: Mapping[int, str] | None, info: DataInfo) -> None:
    """Put the outputs of a trained head into the order of the data set's labels, in place."""
    order = label_order(source, labels, info)
    if order is None:
        return
    for name in family_of(model).role_names(model)["classifier"]:
        head = cast("nn.Linear", model.get_submodule(name))
        with torch.no_grad():
            for tensor in (head.weight, head.bias):
                if tensor is not None:
                    tensor.copy_(tensor[order].clone())


def name_labels(model: nn.Module, info: DataInfo) -> None:
    """Write the names of the labels into a Hugging Face model's config, from where `save_pretrained` takes them."""
    config = getattr(model, "config", None)
    if config is not None:
        named = len(info.labels) == info.num_labels
        names = info.labels if named else [f"LABEL_{index}" for index in range(info.num_labels)]
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in config.id2label.items()}


def save_description(model: nn.Module, info: DataInfo, folder: Path) -> None:
    """Write config.json: for transformers' `from_pretrained`, or, for other models, the labels as timm names them."""
    config = getattr(model, "config", None)
    if config is not None:
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
    elif info.labels:
        facts = {"num_classes": info.num_labels, "label_names": list(info.labels)}
        write_text(folder / MODEL_CONFIG, json.dumps(facts, indent=2, ensure_ascii=False))


def saved_labels(folder: Path) -> Mapping[int, str] | None:
    """Return the labels in the config.json that timm or lowbit wrote beside timm weights; None without names."""
    file = folder / MODEL_CONFIG
    return timm_labels(json.loads(file.read_bytes())) if file.is_file() else None


def timm_labels(facts: Mapping[str, Any], *, guess: bool = False) -> Mapping[int, str] | None:
    """Return the labels in the facts that timm keeps of a model; None if it has no names.

    With `guess`, a model that has as many classes as ImageNet counts as a model of ImageNet, as in timm.
    """
    names = facts.get("label_names") or facts.get("pretrained_cfg", {}).get("label_names")
    if not names and guess:
        from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

        subset = infer_imagenet_subset(dict(facts))
        names = subset and ImageNetInfo(subset).label_names()  # type: ignore[no-untyped-call]
    if not names:
        return None
    return {int(key): name for key, name in names.items()} if isinstance(names, dict) else dict(enumerate(names))


def _are_words_of(labels: Sequence[str], names: Sequence[str]) -> bool:
    """Whether labels are ids of WordNet, and names their words in the same order, but for the spelling."""
    if not all(map(_WORDNET.fullmatch, labels)):
        return False
    from timm.data.imagenet_info import ImageNetInfo

    known = ImageNetInfo("imagenet-1k")
    every: list[str] = known.label_names()  # type: ignore[no-untyped-call]
    words = {label: known.label_name_to_description(label) for label in every}
    pairs = zip(labels, names, strict=True)
    alike = [not _synonyms(words.get(label, "")).isdisjoint(_synonyms(name)) for label, name in pairs]
    return sum(alike) > _AGREEMENT * len(alike)


def _synonyms(words: str) -> set[str]:
    return {_simplify(word) for word in words.split(",")}


def _numbers(names: Sequence[str]) -> list[int] | None:
    """Return the numbers of labels without names; None if they have names."""
    found = [_NUMBERED.fullmatch(name.strip().lower()) for name in names]
    return None if None in found else [int(number[1]) for number in found if number]


def _compose(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # file systems do not agree on how to store accented letters


def _simplify(name: str) -> str:
    return re.sub(r"[\W_]+", "_", _compose(name).strip().lower())


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(map(str, names[:_SHOWN]))
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
