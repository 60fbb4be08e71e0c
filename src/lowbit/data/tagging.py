"""Labels of words: on the first word piece of each word, and the scores of tagged sentences.

Shape suffixes: B sentences, L tokens, C tags.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from lowbit.data.splits import Batch, TextSplit
from lowbit.data.tokens import Tokens

NO_TAG = -100  # what cross-entropy ignores: special tokens, padding, and all but the first piece of a word
_CHUNK = 4096  # sentences tokenised at once: bounds the memory that Python lists take
Entity = tuple[str, int, int]


class TagSplit(TextSplit):
    """Sentences with a tag on the first piece of each word; labels are BL, and `word_starts` says where they are."""

    def __init__(self, tokens: Tokens, labels: Tensor, pad_id: int, pad_to: int | None) -> None:
        """Keep the tokens, and one label for each of them."""
        super().__init__(tokens, labels.long(), pad_id, pad_to)

    def __len__(self) -> int:
        """Return the number of sentences."""
        return len(self.tokens)

    def _batch(self, rows: Tensor, step: int | None) -> Batch:
        width = self._width(rows)
        index_BL, mask_BL = self.tokens.places(rows, width)
        labels_BL = torch.where(mask_BL, self.labels[index_BL], NO_TAG)
        batch = self.tokens.padded(rows, width, self.pad_id)
        return {**batch, "labels": labels_BL, "word_starts": labels_BL != NO_TAG}


def tokenize_words(
    tokenizer: Any, words: Sequence[Sequence[str]], tags: Sequence[Sequence[int]], max_length: int | None
) -> tuple[Tokens, Tensor, int]:
    """Tokenise sentences word by word.

    Returns:
        The tokens, the label of each of them, and how many words have none: those cut off at `max_length`, and those
        that the tokenizer drops.

    Raises:
        ValueError: a tokenizer that does not say which words its tokens come from.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} does not number words: labels of words need a fast one")
    # RoBERTa's pieces of a word differ behind a blank, and every word but the first stands behind one.
    blank = " " if getattr(tokenizer, "add_prefix_space", None) is False else ""
    parts: list[Tokens] = []
    labels: list[int] = []
    for start in range(0, len(words), _CHUNK):
        chunk = [[blank + word for word in sentence] for sentence in words[start : start + _CHUNK]]
        found = tokenizer(
            chunk, is_split_into_words=True, truncation=max_length is not None, max_length=max_length, verbose=False
        )
        parts.append(Tokens.of(found["input_ids"], found.get("token_type_ids")))
        for row, given in enumerate(tags[start : start + _CHUNK]):
            labels += _first_pieces(found.word_ids(row), given)
    all_labels = torch.tensor(labels, dtype=torch.int16)
    return Tokens.joined(parts), all_labels, sum(map(len, tags)) - int((all_labels != NO_TAG).sum())


def _first_pieces(word_ids: Sequence[int | None], tags: Sequence[int]) -> Iterator[int]:
    previous = None
    for word in word_ids:
        yield NO_TAG if word is None or word == previous else tags[word]
        previous = word


class TagAccuracy(MulticlassAccuracy):
    """Share of the words whose tag is right."""

    def __init__(self, num_labels: int) -> None:
        """Count words of all tags alike."""
        super().__init__(num_labels, average="micro")

    def update(self, logits_BLC: Tensor, labels_BL: Tensor) -> None:
        """Add sentences; tokens without a label do not count."""
        is_word_BL = labels_BL != NO_TAG
        super().update(logits_BLC[is_word_BL], labels_BL[is_word_BL])


class EntityF1(Metric):
    """Precision, recall and F1 of whole entities, as `conlleval` and seqeval's default mode count them.

    An entity is right if its type, its first and its last word are. An I- tag that follows no tag of its type begins an
    entity. Without entities on either side a score is 0.
    """

    full_state_update = False
    right: Tensor
    predicted: Tensor
    true: Tensor

    def __init__(self, tags: Sequence[str]) -> None:
        """Keep the names of the tags in the order of their ids: O, and B- and I- of each type."""
        super().__init__()
        self.tags = tuple(tags)
        for state in ("right", "predicted", "true"):
            self.add_state(state, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits_BLC: Tensor, labels_BL: Tensor) -> None:
        """Add sentences; tokens without a label do not count."""
        for predicted_L, label_L in zip(logits_BLC.argmax(-1).cpu(), labels_BL.cpu(), strict=True):
            is_word_L = label_L != NO_TAG
            found, true = (entities([self.tags[i] for i in ids[is_word_L].tolist()]) for ids in (predicted_L, label_L))
            self.right += len(found & true)
            self.predicted += len(found)
            self.true += len(true)

    def compute(self) -> dict[str, Tensor]:
        """Return the three scores by name."""
        precision, recall = self.right / self.predicted.clamp(min=1), self.right / self.true.clamp(min=1)
        f1 = 2 * self.right / (self.predicted + self.true).clamp(min=1)
        return {"precision": precision, "recall": recall, "entity_f1": f1}


def entities(tags: Sequence[str]) -> set[Entity]:
    """Return the type, the first and the last word of each entity of a sentence."""
    found: set[Entity] = set()
    kind, begin = "", 0
    for place, tag in enumerate((*tags, "O")):
        prefix, _, here = tag.partition("-")
        if kind and (prefix != "I" or here != kind):
            found.add((kind, begin, place - 1))
            kind = ""
        if here and not kind:
            kind, begin = here, place
    return found
