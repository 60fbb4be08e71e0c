"""Tags on the first pieces of words, and the scores of tagged sentences."""

from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score
from transformers import BertTokenizer, RobertaTokenizer, XLMRobertaTokenizer

from lowbit.data.tagging import NO_TAG, EntityF1, TagAccuracy, TagSplit, entities, tokenize_words
from lowbit.data.tokens import Tokens

N = NO_TAG
WORDS = [["the", "player", "plays"], ["player"]]
TAGS = [[3, 1, 2], [4]]


def bert() -> Any:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "play", "##er", "##s"]
    return BertTokenizer({piece: index for index, piece in enumerate(pieces)})


def xlmr() -> Any:
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁the", "▁play", "er", "s"]
    return XLMRobertaTokenizer(vocab=[(piece, -1.0 * (index > 3)) for index, piece in enumerate(pieces)])


@pytest.mark.parametrize("make", [bert, xlmr])
def test_the_first_piece_of_a_word_has_its_tag(make: Any):
    tokens, labels, unlabelled = tokenize_words(make(), WORDS, TAGS, None)
    assert labels.tolist() == [N, 3, 1, N, 2, N, N, N, 4, N, N]
    assert tokens.starts.tolist() == [0, 7, 11]
    assert unlabelled == 0
    tokens, labels, unlabelled = tokenize_words(make(), WORDS, TAGS, 4)
    assert labels.tolist() == [N, 3, 1, N, N, 4, N, N]
    assert unlabelled == 1


def test_roberta_reads_words_as_they_stand_in_a_text():
    """Without the blank before it a word has the pieces of the inside of a longer word."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", "t", "h", "e", "th", "the", "Ġthe"]
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the")]
    tokenizer = RobertaTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=merges)
    tokens, labels, _ = tokenize_words(tokenizer, [["the", "the"]], [[1, 2]], None)
    assert tokenizer.convert_ids_to_tokens(tokens.ids.tolist()) == ["<s>", "Ġthe", "Ġthe", "</s>"]
    assert labels.tolist() == [N, 1, 2, N]


def test_padding_has_no_label():
    tokens = Tokens.of([[2, 5, 6, 3], [2, 5, 3]])
    split = TagSplit(tokens, torch.tensor([N, 1, 2, N, N, 0, N], dtype=torch.int16), pad_id=0, pad_to=6)
    assert len(split) == 2
    batch = split.__getitems__([1, 0])
    assert batch["labels"].tolist() == [[N, 0, N, N, N, N], [N, 1, 2, N, N, N]]
    assert batch["labels"].dtype == torch.int64
    assert torch.equal(batch["word_starts"], batch["labels"] >= 0)
    assert batch["input_ids"].tolist() == [[2, 5, 3, 0, 0, 0], [2, 5, 6, 3, 0, 0]]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", set()),
        ("B-PER I-PER O B-LOC", {("PER", 0, 1), ("LOC", 3, 3)}),
        ("B-PER B-PER", {("PER", 0, 0), ("PER", 1, 1)}),
        ("B-PER I-LOC I-LOC", {("PER", 0, 0), ("LOC", 1, 2)}),  # I- of another type begins an entity
        ("I-PER I-PER O I-PER", {("PER", 0, 1), ("PER", 3, 3)}),  # and so does one after O or at the start
        ("O B-ORG I-ORG", {("ORG", 1, 2)}),
    ],
)
def test_entities_as_conlleval_finds_them(tags: str, expected: set[Any]):
    assert entities(tags.split()) == expected


NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def logits_of(ids: list[list[int]]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(ids), len(NAMES)).float()


def test_entity_f1_counts_over_all_sentences():
    """True: PER 0-1, LOC 3, and LOC 0-1. Found: PER 0-1, PER 3 (its type is wrong), LOC 0 (too short), PER 2."""
    metric = EntityF1(NAMES)
    metric.update(logits_of([[1, 2, 0, 1, 4]]), torch.tensor([[1, 2, 0, 3, N]]))
    metric.update(logits_of([[4, 3, 4, 0, 1]]), torch.tensor([[N, 3, 4, 0, 0]]))
    found = metric.compute()
    # The second sentence, without its first token: LOC 0-1 is right after all, and PER 3 is one too many.
    assert found["precision"].item() == pytest.approx(2 / 4)
    assert found["recall"].item() == pytest.approx(2 / 3)
    assert found["entity_f1"].item() == pytest.approx(4 / 7)


def test_without_entities_the_scores_are_zero():
    metric = EntityF1(NAMES)
    metric.update(logits_of([[0, 0]]), torch.tensor([[0, N]]))
    assert {name: value.item() for name, value in metric.compute().items()} == {
        "precision": 0,
        "recall": 0,
        "entity_f1": 0,
    }


def test_tag_accuracy_is_that_of_scikit_learn_over_the_words():
    generator = torch.Generator().manual_seed(0)
    metric = TagAccuracy(5)
    predicted, true = [], []
    for _ in range(3):
        logits, labels = torch.randn(4, 7, 5, generator=generator), torch.randint(5, (4, 7), generator=generator)
        labels[torch.rand(4, 7, generator=generator) < 0.4] = NO_TAG
        metric.update(logits, labels)
        predicted += logits.argmax(-1)[labels >= 0].tolist()
        true += labels[labels >= 0].tolist()
    assert metric.compute().item() == pytest.approx(accuracy_score(true, predicted))
