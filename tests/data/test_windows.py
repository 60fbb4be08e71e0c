"""Windows of a text behind its question: where they begin, which tokens answer, and the way back to the text."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from lowbit.data.squad_rows import Questions
from lowbit.data.windows import Windows, WindowSettings, answer_tokens, cut_windows

# 12 tokens of the fixtures' vocabulary behind a question of 3.
TEXT = "The old mill was built by Anna Berg, a baker."
QUESTION = "Who built it"
ANSWER = "Anna Berg"


@pytest.fixture(scope="module")
def tokenizer(tiny_bert: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_bert)


def rows(text: str = TEXT, question: str = QUESTION, answer: str | None = ANSWER) -> Questions:
    if answer is None:
        return Questions([question], [text], [[]], [(-1, -1)])
    start = text.index(answer)
    return Questions([question], [text], [[answer]], [(start, start + len(answer))])


def cut(tokenizer: Any, found: Questions, *settings: int) -> Windows:
    return cut_windows(tokenizer, found, WindowSettings(*settings))


def words(tokenizer: Any, windows: Windows) -> list[str]:
    """Return the text part of every window, as words."""
    parts = []
    for begin, end in zip(windows.tokens.starts[:-1], windows.tokens.starts[1:], strict=True):
        ids, chars = windows.tokens.ids[begin:end], windows.chars[begin:end]
        parts.append(" ".join(tokenizer.convert_ids_to_tokens(ids[chars[:, 0] >= 0].tolist())))
    return parts


def labelled(windows: Windows, texts: list[str]) -> list[str]:
    """Return what the labels of every window stand for in its text; nothing for [CLS]."""
    found = []
    for window, (first, last) in enumerate(windows.labels.tolist()):
        start = int(windows.tokens.starts[window])
        begin, end = int(windows.chars[start + first, 0]), int(windows.chars[start + last, 1])
        found.append("" if begin < 0 else texts[int(windows.questions[window])][begin:end])
    return found


def test_windows_begin_a_stride_apart(tokenizer: Any):
    """12 tokens in all leave 12 - 3 - 3 = 6 for the text; the last window ends with the text."""
    windows = cut(tokenizer, rows(), 12, 4, 8)
    assert words(tokenizer, windows) == ["the old mill was built by", "built by anna berg , a", ", a baker ."]
    assert windows.questions.tolist() == [0, 0, 0]
    assert windows.tokens.lengths.tolist() == [12, 12, 10]
    ids = windows.tokens.ids[:12].tolist()
    assert tokenizer.convert_ids_to_tokens(ids)[:5] == ["[CLS]", "who", "built", "it", "[SEP]"]
    assert windows.tokens.types[:12].tolist() == [0] * 5 + [1] * 7


def test_the_stride_does_not_depend_on_the_question(tokenizer: Any):
    """As published: Hugging Face's `stride` is the overlap, which would make windows begin 2 and 4 tokens apart."""
    both = rows()
    long = rows(question="Who built the old mill")
    for part in ("questions", "contexts", "answers", "spans"):
        getattr(both, part).extend(getattr(long, part))
    windows = cut(tokenizer, both, 12, 4, 8)
    parts = words(tokenizer, windows)
    assert windows.questions.tolist() == [0, 0, 0, 1, 1, 1]
    assert [part.split()[0] for part in parts] == ["the", "built", ",", "the", "built", ","]
    assert [len(part.split()) for part in parts] == [6, 6, 4, 4, 4, 4]


def test_a_stride_above_the_room_skips_nothing(tokenizer: Any):
    windows = cut(tokenizer, rows(), 12, 100, 8)
    assert " ".join(words(tokenizer, windows)) == "the old mill was built by anna berg , a baker ."


def test_an_answer_split_by_the_border_belongs_to_no_window_but_the_whole_one(tokenizer: Any):
    """With windows of 7 tokens the first one ends with `anna`."""
    windows = cut(tokenizer, rows(), 13, 4, 8)
    parts = words(tokenizer, windows)
    assert parts[0].endswith("by anna")
    assert "anna berg" in parts[1]
    assert labelled(windows, [TEXT]) == ["", ANSWER, *[""] * (len(parts) - 2)]
    assert windows.labels[0].tolist() == [0, 0]
    apart = cut(tokenizer, rows(), 13, 7, 8)
    assert words(tokenizer, apart) == ["the old mill was built by anna", "berg , a baker ."]
    assert labelled(apart, [TEXT]) == ["", ""], "no window holds it, and both point to [CLS]"


@pytest.mark.parametrize("answer", ["The old mill", "built", "Anna Berg", "Berg, a baker", "baker.", TEXT])
def test_characters_to_tokens_and_back(answer: str, tokenizer: Any):
    assert labelled(cut(tokenizer, rows(answer=answer), 30, 10, 8), [TEXT]) == [answer]


def test_an_answer_inside_a_token_is_the_whole_token(tokenizer: Any):
    assert labelled(cut(tokenizer, rows(answer="bake"), 30, 10, 8), [TEXT]) == ["baker"]


def test_without_an_answer_every_window_points_to_cls(tokenizer: Any):
    assert cut(tokenizer, rows(answer=None), 12, 4, 8).labels.tolist() == [[0, 0]] * 3


def test_a_long_question_is_cut(tokenizer: Any):
    windows = cut(tokenizer, rows(question="Who built the old mill at the river"), 30, 10, 4)
    ids = windows.tokens.ids.tolist()
    assert tokenizer.convert_ids_to_tokens(ids)[:7] == ["[CLS]", "who", "built", "the", "old", "[SEP]", "the"]
    assert labelled(windows, [TEXT]) == [ANSWER]


def test_unknown_characters_keep_their_place(tokenizer: Any):
    text = "☃☃ The mill 漢 was built by Anna Berg."
    assert labelled(cut(tokenizer, rows(text=text), 30, 10, 8), [text]) == [ANSWER]


def test_many_questions_stay_in_order(tokenizer: Any):
    """More than are tokenised at once, of several lengths."""
    many = Questions()
    for number in range(1030):
        one = rows(question=" ".join(["built"] * (number % 3 + 1)), answer=["old mill", "Anna Berg", None][number % 3])
        for part in ("questions", "contexts", "answers", "spans"):
            getattr(many, part).extend(getattr(one, part))
    windows = cut(tokenizer, many, 30, 10, 8)
    assert windows.questions.tolist() == list(range(1030))
    assert labelled(windows, many.contexts)[1020:] == [["old mill", "Anna Berg", ""][n % 3] for n in range(1020, 1030)]
    assert torch.equal(windows.tokens.lengths, torch.arange(1030) % 3 + 1 + 3 + 12)


def test_tokens_that_an_answer_touches():
    chars = [(2, 5), (6, 7), (7, 10)]  # a blank before the first one and between the first two
    assert answer_tokens(chars, (2, 5)) == (0, 0)
    assert answer_tokens(chars, (4, 8)) == (0, 2)
    assert answer_tokens(chars, (7, 10)) == (2, 2)
    assert answer_tokens(chars, (0, 5)) is None, "it begins before the window"
    assert answer_tokens(chars, (7, 11)) is None, "it ends behind the window"
    assert answer_tokens(chars, (5, 6)) is None, "a blank only"
    assert answer_tokens(chars, (-1, -1)) is None
    assert answer_tokens([], (0, 1)) is None


def test_a_tokenizer_without_offsets_is_refused():
    slow = type("SlowTokenizer", (), {"is_fast": False})()
    with pytest.raises(ValueError, match="SlowTokenizer has no character offsets"):
        cut(slow, rows(), 12, 4, 8)


def test_a_tokenizer_of_bytes_with_four_special_tokens():
    """RoBERTa's kind: no token types, two separators, and blanks that belong to the token behind them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: number for number, word in enumerate(["<s>", "</s>", "<pad>", *letters])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    separator, begin = ("</s>", 1), ("<s>", 0)
    backend.post_processor = processors.RobertaProcessing(separator, begin, trim_offsets=True, add_prefix_space=False)
    roberta = PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="<s>", sep_token="</s>", pad_token="<pad>", model_input_names=["input_ids"]
    )
    text = "A café by Anna Berg."
    windows = cut(roberta, rows(text=text, question="Who?", answer="café"), 4 + 4 + 12, 6, 8)
    assert windows.tokens.lengths.tolist() == [20, 20, 17], "21 bytes in windows of 12, 6 apart"
    assert labelled(windows, [text]) == ["café", "", ""]
    assert not windows.tokens.types.any()
