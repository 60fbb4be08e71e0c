"""Answers as spans of a text: from the logits of windows to exact match and F1, as the official SQuAD scripts count.

Shape suffixes: B windows, S ends of a span (first and last token), L tokens, K candidates, W windows of a split.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from lowbit.data.splits import Batch, TextSplit
from lowbit.data.windows import Windows

CANDIDATES = 20  # best first and best last tokens that are combined, of each window; published
LONGEST_ANSWER = 30  # in tokens; published
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class SpanAnswers:
    """What the answers of a split are scored with, by question and by window.

    Attributes:
        contexts: Text of each question.
        answers: Accepted answers of each question; none if the text does not hold it.
        windows: The windows that the texts were cut into.
        has_no_answer: Whether questions may have none (SQuAD 2.0).
    """

    contexts: Sequence[str]
    answers: Sequence[Sequence[str]]
    windows: Windows
    has_no_answer: bool

    def __deepcopy__(self, memo: dict[int, Any]) -> SpanAnswers:
        """Return itself: every evaluation copies the metric, and this never changes."""
        return self

    def chars_of(self, rows: Tensor, width: int) -> Tensor:
        """Return the characters of each token of some windows, (B, `width`, 2); -1 where it is not of the text."""
        windows = self.windows
        place_L = torch.arange(width)
        index_BL = (windows.tokens.starts[rows][:, None] + place_L).clamp_(max=len(windows.chars) - 1)
        inside_BL = place_L < windows.tokens.lengths_of(rows)[:, None]
        return torch.where(inside_BL[..., None], windows.chars[index_BL], -1)


class SpanSplit(TextSplit):
    """Windows with the answer's first and last token as labels, BS; `rows` of a batch are their numbers."""

    def __init__(self, windows: Windows, pad_id: int, pad_to: int | None, answers: SpanAnswers | None = None) -> None:
        """Keep the windows; `answers` are needed for scores."""
        super().__init__(windows.tokens, windows.labels, pad_id, pad_to)
        self.answers = answers

    def _batch(self, rows: Tensor, step: int | None) -> Batch:
        return {**super()._batch(rows, step), "rows": rows}


class BestSpans(NamedTuple):
    """The best span of each window: sum of its two logits (-inf if there is none), first and last token."""

    values: Tensor
    first: Tensor
    last: Tensor


def best_spans(logits_BSL: Tensor, is_text_BL: Tensor) -> BestSpans:
    """Return the best span of at most `LONGEST_ANSWER` tokens among the `CANDIDATES` best ends on either side.

    Candidates are tokens of the text; the published code spends some of them on other tokens and drops these later.
    """
    width = logits_BSL.shape[-1]
    logits_BSL = logits_BSL.masked_fill(~is_text_BL[:, None], -torch.inf)
    values_BSK, places_BSK = logits_BSL.topk(min(CANDIDATES, width))
    first_BK, last_BK = places_BSK.unbind(1)
    lengths_BKK = last_BK[:, None, :] - first_BK[:, :, None] + 1
    allowed_BKK = (lengths_BKK >= 1) & (lengths_BKK <= LONGEST_ANSWER)
    sums_BKK = values_BSK[:, 0, :, None] + values_BSK[:, 1, None, :]
    values_B, chosen_B = sums_BKK.masked_fill(~allowed_BKK, -torch.inf).flatten(1).max(1)
    rank_first_B, rank_last_B = chosen_B // last_BK.shape[1], chosen_B % last_BK.shape[1]
    window_B = torch.arange(len(values_B))
    return BestSpans(values_B, first_BK[window_B, rank_first_B], last_BK[window_B, rank_last_B])


class SpanScores(Metric):
    """Exact match and F1, from 0 to 1, of the best answer to each question over all of its windows.

    Where a question may have no answer, it gets none if the windows' lowest sum of the [CLS] logits is above the best
    span's sum (difference threshold 0).
    """

    full_state_update = False
    values: list[Tensor]
    found: list[Tensor]

    def __init__(self, answers: SpanAnswers) -> None:
        """Keep what the answers are compared with."""
        super().__init__()
        self.answers = answers
        self.add_state("values", [], dist_reduce_fx="cat")  # of the best span and of [CLS]
        self.add_state("found", [], dist_reduce_fx="cat")  # question, first and last-plus-one character

    def update(self, logits_BSL: Tensor, rows_B: Tensor) -> None:
        """Add windows by their numbers in the split."""
        logits_BSL, rows_B = logits_BSL.detach().cpu().double(), rows_B.cpu()
        chars_BL2 = self.answers.chars_of(rows_B, logits_BSL.shape[-1])
        values_B, first_B, last_B = best_spans(logits_BSL, chars_BL2[..., 0] >= 0)
        window_B = torch.arange(len(rows_B))
        begin_B, end_B = chars_BL2[window_B, first_B, 0], chars_BL2[window_B, last_B, 1]
        self.values.append(torch.stack([values_B, logits_BSL[:, :, 0].sum(1)], 1))
        self.found.append(torch.stack([self.answers.windows.questions[rows_B], begin_B, end_B], 1))

    def predictions(self) -> dict[int, str]:
        """Return the answer to each question seen so far, by its number; empty for none."""
        best: dict[int, tuple[float, str]] = {}
        nothing: dict[int, float] = {}
        values = torch.cat(self.values).tolist()
        for (value, null), (question, begin, end) in zip(values, torch.cat(self.found).tolist(), strict=True):
            nothing[question] = min(null, nothing.get(question, null))
            if question not in best or value > best[question][0]:
                text = "" if value == -torch.inf else self.answers.contexts[question][begin:end]
                best[question] = (value, text)
        may_lack = self.answers.has_no_answer
        return {q: "" if may_lack and nothing[q] > value else text for q, (value, text) in best.items()}

    def compute(self) -> dict[str, Tensor]:
        """Return both means over the questions."""
        found = self.predictions()
        exact = [exact_match(text, self.answers.answers[question]) for question, text in found.items()]
        overlap = [f1(text, self.answers.answers[question]) for question, text in found.items()]
        return {"exact_match": torch.tensor(exact).mean(), "f1": torch.tensor(overlap).mean()}


def normalized(text: str) -> str:
    """Return a text in lower case without punctuation, articles and superfluous blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if the prediction is one of the answers, else 0; no prediction is right where there is no answer."""
    return float(normalized(prediction) in {normalized(answer) for answer in _accepted(answers)})


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Return the best harmonic mean of precision and recall, in words, over the answers."""
    return max(_f1(normalized(prediction).split(), normalized(answer).split()) for answer in _accepted(answers))


def _f1(prediction: list[str], answer: list[str]) -> float:
    if not prediction or not answer:
        return float(prediction == answer)
    common = (Counter(prediction) & Counter(answer)).total()
    return 2 * common / (len(prediction) + len(answer))


def _accepted(answers: Sequence[str]) -> Sequence[str]:
    """Return the answers that have words, as the script of SQuAD 2.0 does; an empty one where there is none."""
    return [answer for answer in answers if normalized(answer)] or [""]
