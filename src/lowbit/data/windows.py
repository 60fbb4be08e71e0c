"""Windows of long texts behind a question, as BERT reads SQuAD."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowbit.data.squad_rows import Questions
from lowbit.data.tokens import Tokens

_CHUNK = 1024  # questions tokenised at once: bounds the memory that Python lists take
Span = tuple[int, int]


@dataclass(frozen=True)
class WindowSettings:
    """How texts are cut: tokens of a window in all, tokens from one window's begin to the next, tokens of a question.

    `doc_stride` counts as in the published code. That of Hugging Face's example script is the overlap instead.
    """

    max_length: int
    doc_stride: int
    max_question_length: int


@dataclass(frozen=True)
class Windows:
    """The windows of all questions in order.

    Attributes:
        tokens: Ids and types.
        labels: Number of the answer's first and last token in its window, WS; [CLS], 0, where it is not whole inside.
        questions: Whose window each one is, W.
        chars: First and last-plus-one character of each token in its text, int32, one row per entry of `tokens.ids`;
            -1 where a token is not of the text.
    """

    tokens: Tokens
    labels: Tensor
    questions: Tensor
    chars: Tensor


def cut_windows(tokenizer: Any, rows: Questions, settings: WindowSettings) -> Windows:
    """Tokenise questions with their texts.

    Raises:
        ValueError: a tokenizer that does not say which characters its tokens come from.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} has no character offsets: SQuAD needs a model with a fast one")
    parts, labels, questions, chars = [], [], [], []
    for first in range(0, len(rows), _CHUNK):
        found = list(_chunk(tokenizer, rows, range(first, min(first + _CHUNK, len(rows))), settings))
        types = None if found[0].types is None else [window.types or [] for window in found]
        parts.append(Tokens.of([window.ids for window in found], types))
        labels += [window.label for window in found]
        questions += [window.question for window in found]
        chars.append(torch.tensor([span for window in found for span in window.chars], dtype=torch.int32))
    return Windows(Tokens.joined(parts), torch.tensor(labels), torch.tensor(questions), torch.cat(chars))


def answer_tokens(chars: Sequence[Span], answer: Span) -> Span | None:
    """Return the first and last token that an answer touches; None if there is none, or it is not whole inside.

    Args:
        chars: characters of the tokens of the text in a window, in order.
        answer: its characters; (-1, -1) for none.
    """
    start, end = answer
    if start < 0 or not chars or start < chars[0][0] or end > chars[-1][1]:
        return None
    first = bisect_right(chars, start, key=lambda span: span[1])
    last = bisect_left(chars, end, key=lambda span: span[0]) - 1
    return (first, last) if first <= last else None


@dataclass(frozen=True)
class _Window:
    question: int
    ids: list[int]
    types: list[int] | None
    label: Span
    chars: list[Span]


def _chunk(tokenizer: Any, rows: Questions, numbers: range, settings: WindowSettings) -> Iterator[_Window]:
    # The tokenizer takes one overlap per call, and it depends on the length of the question.
    by_length: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for number, (length, question) in zip(numbers, _cut_questions(tokenizer, rows, numbers, settings), strict=True):
        by_length[length].append((number, question))
    found: dict[int, list[_Window]] = defaultdict(list)
    for length, group in by_length.items():
        room = settings.max_length - length - tokenizer.num_special_tokens_to_add(pair=True)
        encoded = tokenizer(
            [question for _, question in group],
            [rows.contexts[number] for number, _ in group],
            truncation="only_second",
            max_length=settings.max_length,
            stride=max(room - settings.doc_stride, 0),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        for index, place in enumerate(encoded["overflow_to_sample_mapping"]):
            number = group[place][0]
            found[number].append(_window(encoded, index, number, rows.spans[number]))
    for number in numbers:
        yield from found[number]


def _cut_questions(
    tokenizer: Any, rows: Questions, numbers: range, settings: WindowSettings
) -> Iterator[tuple[int, str]]:
    """Yield the tokens and the text of each question, cut to the longest one allowed."""
    texts = rows.questions[numbers.start : numbers.stop]
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    for text, chars in zip(texts, encoded["offset_mapping"], strict=True):
        kept = chars[: settings.max_question_length]
        yield len(kept), text if len(kept) == len(chars) else text[: kept[-1][1]]


def _window(encoded: Any, index: int, number: int, answer: Span) -> _Window:
    parts = encoded.sequence_ids(index)
    first = parts.index(1) if 1 in parts else len(parts)
    length = parts.count(1)
    context = [tuple(span) for span in encoded["offset_mapping"][index][first : first + length]]
    touched = answer_tokens(context, answer)
    chars = [(-1, -1)] * len(parts)
    chars[first : first + length] = context
    types = encoded.get("token_type_ids")
    return _Window(
        question=number,
        ids=encoded["input_ids"][index],
        types=None if types is None else types[index],
        label=(0, 0) if touched is None else (first + touched[0], first + touched[1]),
        chars=chars,
    )
