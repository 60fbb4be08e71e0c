"""Ragged token arrays against padding by hand, and against the tokenizer's own padding."""

from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertweetTokenizer

from lowbit.data import tokens as module
from lowbit.data.tokens import Tokens, tokenize, tokenizer_state

SENTENCES = ["The gardener watered the roses.", "Whose kettle?", 'He said "late and left.', "a b c d e f g h i j"]
OTHERS = ["Roses.", "The kettle whistled so loudly before noon.", "Late", "k l"]


@pytest.fixture(scope="module")
def tokenizer(tiny_bert: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_bert)


def test_padded_rows_by_hand():
    tokens = Tokens.of([[5, 6, 7], [8], [9, 10]], [[0, 0, 1], [0], [0, 1]])
    assert len(tokens) == 3
    assert tokens.lengths.tolist() == [3, 1, 2]
    batch = tokens.padded(torch.tensor([2, 0]), width=4, pad_id=99)
    assert batch["input_ids"].tolist() == [[9, 10, 99, 99], [5, 6, 7, 99]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]
    assert {value.dtype for value in batch.values()} == {torch.int64}


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("texts", [[SENTENCES], [SENTENCES, OTHERS]], ids=["sentences", "pairs"])
@pytest.mark.parametrize("max_length", [None, 8])
def test_batches_are_those_of_the_tokenizer(chunk, texts, max_length, tokenizer, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    found = tokenize(tokenizer, texts, max_length)
    limit = {"truncation": max_length is not None, "max_length": max_length}
    expected = tokenizer(*texts, padding="longest", return_tensors="pt", **limit)
    batch = found.padded(torch.arange(4), int(found.lengths.max()), tokenizer.pad_token_id)
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) for name in batch)
    assert batch["token_type_ids"].any() == (len(texts) == 2)


def test_the_state_is_that_of_the_tokenizer_and_not_of_its_last_call(tokenizer, tiny_bert: Path):
    state = tokenizer_state(tokenizer)
    tokenizer(["a b c"], truncation=True, max_length=3, padding="max_length")
    assert tokenizer_state(tokenizer) == state
    assert tokenizer_state(AutoTokenizer.from_pretrained(tiny_bert)) == state
    tokenizer_with_more = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer_with_more.add_tokens(["gardener's"])
    assert tokenizer_state(tokenizer_with_more) != state


@pytest.mark.parametrize(
    "setting",
    [
        {"truncation_side": "left"},
        {"model_input_names": ["input_ids", "attention_mask"]},
        {"split_special_tokens": True},
        {"do_lower_case": False},
    ],
)
def test_what_changes_the_tokens_is_part_of_the_state(setting: dict[str, Any], tokenizer, tiny_bert: Path):
    other = AutoTokenizer.from_pretrained(tiny_bert, **setting)
    texts = [[*SENTENCES, "a [SEP] b"], [*OTHERS, "c"]]
    found = [tokenize(cutting, texts, 6) for cutting in (tokenizer, other)]
    assert not all(torch.equal(*values) for values in zip(*map(astuple, found), strict=True))
    assert tokenizer_state(tokenizer) != tokenizer_state(other)


def test_merges_of_a_tokenizer_in_python_are_part_of_the_state_and_its_folder_is_not(tmp_path: Path):
    """Its vocabulary does not show them."""
    states = []
    for name, merges in (("one", "w o 9"), ("same", "w o 9"), ("other", "o r</w> 9")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "vocab.txt").write_text("word 1\n")
        (folder / "bpe.codes").write_text(f"{merges}\n")
        states.append(tokenizer_state(BertweetTokenizer(str(folder / "vocab.txt"), str(folder / "bpe.codes"))))
    assert states[0] == states[1] != states[2]
