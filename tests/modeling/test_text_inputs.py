"""Tokenizers against their models: token types for both sentences of a pair, ids and types that have embeddings."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lowbit.data import build_datamodule
from lowbit.modeling.inputs import build_tokenizer
from lowbit.settings.data import DataConfig, DataKind, GlueTask
from lowbit.settings.model import ModelConfig, ModelKind


@pytest.fixture
def folder(tiny_bert: Path, tmp_path: Path) -> Path:
    """A copy of the tiny BERT that a test may change."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "bert"))


def change(file: Path, **values: Any) -> None:
    """Set keys of a JSON file; None deletes one."""
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def tokenizer_of(folder: Path) -> Any:
    return build_tokenizer(ModelConfig("hf", ModelKind.hf, path=str(folder)))


@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer_class": "PreTrainedTokenizerFast"},
        {"model_input_names": ["input_ids", "attention_mask"]},
    ],
)
def test_pairs_have_two_token_types_whatever_the_tokenizer_lists(settings, folder: Path, glue: Path):
    """Issue: both sentences of a pair were of type 0, silently."""
    official = AutoTokenizer.from_pretrained(folder)
    change(folder / "tokenizer_config.json", **settings)
    assert "token_type_ids" not in AutoTokenizer.from_pretrained(folder)("a", "b")
    data = DataConfig("mrpc", DataKind.glue, task=GlueTask.mrpc, dir=str(glue), max_length=32, batch_size=4)
    batches = []
    for tokenizer in (official, tokenizer_of(folder)):
        module = build_datamodule(data, 0, tokenizer)
        batches.append(next(iter(module.train_dataloader())))
    assert batches[0]["token_type_ids"].any()
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])


@pytest.mark.parametrize("listed", [True, False])
def test_one_row_of_token_types(listed: bool, folder: Path):
    """Types that the model has no row for are an index out of range in training; those not asked for are none."""
    change(folder / "config.json", type_vocab_size=1)
    if listed:
        with pytest.raises(ValueError, match=r"gives token type 1 to the second sentence, and the model has 1 \("):
            tokenizer_of(folder)
    else:
        change(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
        tokenizer = tokenizer_of(folder)
        assert isinstance(tokenizer, PreTrainedTokenizerFast)
        assert "token_type_ids" not in tokenizer("a", "b")


def test_tokens_without_an_embedding_are_named(folder: Path):
    """Issue: `IndexError: index out of range in self` in the middle of training."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    first = len(tokenizer)
    tokenizer.add_tokens(["<a>", "<b>", "<c>", "<d>"])
    tokenizer.save_pretrained(folder)
    told = (
        rf"its tokenizer has {first + 4} tokens, the model has embeddings for ids 0 to {first - 1} .*; out of range: "
        rf"{first} \('<a>'\), {first + 1} \('<b>'\), {first + 2} \('<c>'\) and 1 more"
        rf".*resize_token_embeddings\({first + 4}\)"
    )
    with pytest.raises(ValueError, match=told):
        tokenizer_of(folder)
    change(folder / "config.json", vocab_size=first + 4)
    assert len(tokenizer_of(folder)) == first + 4


def test_a_tokenizer_without_padding_is_refused(folder: Path):
    change(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", pad_token=None)
    with pytest.raises(ValueError, match=r"has no padding token: set pad_token in tokenizer_config\.json"):
        tokenizer_of(folder)
