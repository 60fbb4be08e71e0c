"""Exact match and F1 as the official SQuAD scripts count them, and the best span of several windows."""

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.text import squad as torchmetrics_squad

from lowbit.data import DataInfo, build_metric
from lowbit.data.spans import SpanAnswers, SpanScores, SpanSplit, best_spans, exact_match, f1, normalized
from lowbit.data.tokens import Tokens
from lowbit.data.windows import Windows

NO = -20.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Old Mill.", "old mill"),
        ("  a   baker,  an oven  ", "baker oven"),
        ("1742-1801", "17421801"),  # punctuation goes without a blank
        ("$60", "60"),
        ("theatre anthem", "theatre anthem"),  # articles are whole words
        ("The, a. AN!", ""),
        ("Café «Marin»", "café «marin»"),  # punctuation is ASCII's
        ("a-b", "ab"),  # punctuation goes first, so this is no article
    ],
)
def test_normalization(text: str, expected: str):
    assert normalized(text) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "overlap"),
    [
        ("the old mill", ["Old mill!"], 1, 1),
        ("old mill", ["mill"], 0, 2 / 3),  # precision 1/2, recall 1
        ("a baker from the north", ["baker from north Farnby"], 0, 6 / 7),  # 3 of 3 and 3 of 4
        ("mill mill river", ["mill river river"], 0, 2 / 3),  # each word counts as often as it is in both
        ("barley", ["rye", "rye and barley", "barley, rye"], 0, 2 / 3),  # the best of several answers
        ("rye", ["rye and barley", "Rye"], 1, 1),
        ("river", ["mill"], 0, 0),
        ("", [], 1, 1),  # no answer, as it should be
        ("mill", [], 0, 0),
        ("", ["mill"], 0, 0),
        ("the", [], 1, 1),  # nothing is left of it
        ("mill", ["the", "a mill"], 1, 1),  # an answer without words does not count beside others
    ],
)
def test_scores_worked_out_by_hand(prediction: str, answers: list[str], exact: float, overlap: float):
    assert exact_match(prediction, answers) == exact
    assert f1(prediction, answers) == pytest.approx(overlap)


def test_scores_of_answers_are_those_of_torchmetrics():
    """It follows the script of 1.1, which knows no questions without answer."""
    golds = [["rye and barley", "barley"], ["Anna Berg"], ["in the wet spring of 1801", "1801"], ["school"]]
    found = ["the barley.", "Berg, a baker", "spring of 1801", "a barn"]
    preds = [{"prediction_text": text, "id": str(i)} for i, text in enumerate(found)]
    target = [{"answers": {"answer_start": [0] * len(g), "text": g}, "id": str(i)} for i, g in enumerate(golds)]
    expected = torchmetrics_squad(preds, target)
    pairs = list(zip(found, golds, strict=True))
    assert 100 * sum(exact_match(*pair) for pair in pairs) / 4 == pytest.approx(expected["exact_match"].item())
    assert 100 * sum(f1(*pair) for pair in pairs) / 4 == pytest.approx(expected["f1"].item())


def logits(width: int, start: dict[int, float], end: dict[int, float]) -> Tensor:
    """Return the logits of one window, SL; -20 where nothing is said."""
    rows = torch.full((2, width), NO)
    for row, values in zip(rows, (start, end), strict=True):
        for place, value in values.items():
            row[place] = value
    return rows


def test_the_best_span_ends_after_its_begin_inside_the_text():
    """Alone, 5 and 2 are the best ends; the end lies before the begin. 9 and 9 are no text."""
    row = logits(10, {5: 4.0, 1: 3.0, 9: 50.0}, {2: 4.0, 6: 1.0, 9: 50.0})
    found = best_spans(row[None], torch.arange(10)[None] < 9)
    assert [part.item() for part in found] == [3.0 + 4.0, 1, 2]
    nothing = best_spans(row[None], torch.zeros(1, 10, dtype=torch.bool))
    assert nothing.values.item() == -torch.inf


@pytest.mark.parametrize(("end", "expected"), [(29, (0, 29)), (30, (0, 3))])
def test_an_answer_has_at_most_30_tokens(end: int, expected: tuple[int, int]):
    row = logits(40, {0: 5.0}, {end: 5.0, 3: 1.0})
    found = best_spans(row[None], torch.ones(1, 40, dtype=torch.bool))
    assert (found.first.item(), found.last.item()) == expected


def test_only_the_20_best_ends_are_combined():
    """The one good end, 5, lies before the best begins: begin 0 with 1 + 9 is found if it is the 20th best of them."""
    everything = torch.ones(1, 31, dtype=torch.bool)
    row = logits(31, {**dict.fromkeys(range(11, 31), 2.0), 0: 1.0}, {5: 9.0})[None]
    found = best_spans(row, everything)
    assert (found.values.item(), found.first.item() >= 11) == (2.0 + NO, True)
    row[:, 0, 30] = NO
    found = best_spans(row, everything)
    assert [part.item() for part in found] == [1.0 + 9.0, 0, 5]


# Two texts of one letter per token. Question 0 has the windows 0 (tokens 1 to 3: a b c) and 1 (tokens 1 to 2: c d),
# question 1 has window 2 (tokens 1 to 2: e f). Token 0 is [CLS].
CHARS = [[(-1, -1), (0, 1), (1, 2), (2, 3)], [(-1, -1), (2, 3), (3, 4)], [(-1, -1), (0, 1), (1, 2)]]
TEXTS = ["abcd", "ef"]


def scores(answers: list[list[str]], *, has_no_answer: bool = True) -> SpanScores:
    tokens = Tokens.of([[7] * len(chars) for chars in CHARS])
    flat = torch.tensor([span for chars in CHARS for span in chars], dtype=torch.int32)
    windows = Windows(tokens, torch.zeros(3, 2, dtype=torch.int64), torch.tensor([0, 0, 1]), flat)
    split = SpanSplit(windows, 0, None, SpanAnswers(TEXTS, answers, windows, has_no_answer))
    return build_metric(DataInfo("squad", "text", "span", 2, "f1", 3), split)


def test_the_best_window_answers():
    metric = scores([["bc"], ["e"]])
    metric.update(torch.stack([logits(4, {2: 2.0}, {3: 2.0}), logits(4, {1: 1.0}, {2: 1.0})]), torch.tensor([0, 1]))
    metric.update(logits(3, {1: 1.0}, {2: 1.0})[None], torch.tensor([2]))
    assert metric.predictions() == {0: "bc", 1: "ef"}
    assert {name: value.item() for name, value in metric.compute().items()} == {"exact_match": 0.5, "f1": 0.5}


def test_the_order_of_the_windows_does_not_matter():
    both = torch.stack([logits(4, {2: 2.0}, {3: 2.0}), logits(4, {1: 3.0}, {2: 3.0})])
    for order in ([0, 1], [1, 0]):
        metric = scores([["bc"], ["e"]])
        metric.update(both[order], torch.tensor(order))
        assert metric.predictions() == {0: "cd"}


def test_padding_is_no_text():
    metric = scores([["bc"], ["e"]])
    metric.update(logits(6, {1: 1.0, 5: 9.0}, {2: 1.0, 5: 9.0})[None], torch.tensor([2]))
    assert metric.predictions() == {1: "ef"}


@pytest.mark.parametrize("has_no_answer", [True, False])
@pytest.mark.parametrize(("lowest", "expected"), [(1.9, "ef"), (2.1, "")])
def test_no_answer_where_cls_is_above_the_best_span(has_no_answer: bool, lowest: float, expected: str):
    """The span has 1 + 1. In SQuAD 1.1 there is always an answer."""
    metric = scores([["bc"], []], has_no_answer=has_no_answer)
    metric.update(logits(3, {0: lowest / 2, 1: 1.0}, {0: lowest / 2, 2: 1.0})[None], torch.tensor([2]))
    assert metric.predictions() == {1: expected if has_no_answer else "ef"}


def test_one_window_that_is_sure_of_an_answer_is_enough():
    """The lowest [CLS] sum of a question's windows counts: -40 of the second one."""
    metric = scores([["c"], []])
    sure = torch.stack([logits(4, {0: 9.0, 2: 1.0}, {0: 9.0, 3: 1.0}), logits(4, {1: 0.0}, {1: 0.0})])
    metric.update(sure, torch.tensor([0, 1]))
    assert metric.predictions() == {0: "bc"}


def test_the_metric_starts_anew_and_copies_share_the_texts():
    metric = scores([["bc"], ["e"]])
    copy = metric.clone()
    assert copy.answers is metric.answers
    copy.update(logits(3, {1: 1.0}, {1: 1.0})[None], torch.tensor([2]))
    assert copy.compute()["f1"] == 1
    copy.reset()
    copy.update(logits(3, {2: 1.0}, {2: 1.0})[None], torch.tensor([2]))
    assert copy.compute()["f1"] == 0


def test_without_the_answers_there_is_no_metric():
    with pytest.raises(ValueError, match="needs the split whose answers are scored"):
        build_metric(DataInfo("squad", "text", "span", 2, "f1", 3))
