"""Hugging Face checkpoints: complete ones load, and nothing but the head may be random."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
)

from lowbit.config.schema import ModelConfig, ModelKind
from lowbit.data import DataInfo
from lowbit.modeling.build import build_model, build_tokenizer

INFO = DataInfo("made_up", "text", "classification", 3, "accuracy", 10)
CONFIG = BertConfig(
    vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3
)

ROBERTA = RobertaConfig(
    **(CONFIG.to_dict() | {"model_type": "roberta", "max_position_embeddings": 30, "pad_token_id": 1})
)


def config(folder: Path) -> ModelConfig:
    return ModelConfig(name="hf", kind=ModelKind.hf, path=str(folder))


def test_a_fine_tuned_checkpoint_loads_completely(tmp_path: Path):
    saved = BertForSequenceClassification(CONFIG)
    saved.save_pretrained(tmp_path)
    loaded = build_model(config(tmp_path), INFO, seed=1).state_dict()
    assert loaded.keys() == saved.state_dict().keys()
    assert all(torch.equal(loaded[key], value) for key, value in saved.state_dict().items())


def test_an_encoder_gets_a_head_that_its_seed_decides(tmp_path: Path):
    saved = BertModel(CONFIG)
    saved.save_pretrained(tmp_path)
    models = [build_model(config(tmp_path), INFO, seed) for seed in (1, 1, 2)]
    assert torch.equal(models[0].bert.pooler.dense.weight, saved.pooler.dense.weight)
    first, again, other = (model.classifier.weight for model in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_checkpoint_that_lacks_encoder_weights_is_refused(tmp_path: Path):
    """Teacher Intervention, defect 17: missing keys were ignored."""
    BertForSequenceClassification(CONFIG).save_pretrained(tmp_path)
    file, lost = tmp_path / "model.safetensors", "bert.encoder.layer.1.attention.self.query.weight"
    weights = load_file(file)
    del weights[lost]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks 1 tensors of a BertForSequenceClassification, such as {lost}"):
        build_model(config(tmp_path), INFO, seed=1)


@pytest.mark.parametrize(("saved", "room"), [(BertModel(CONFIG), 512), (RobertaModel(ROBERTA), 28)])
def test_sequences_longer_than_the_positions_are_refused(saved: PreTrainedModel, room: int, tmp_path: Path):
    """RoBERTa counts from behind its padding id."""
    saved.save_pretrained(tmp_path)
    build_model(config(tmp_path), replace(INFO, max_length=room), seed=1)
    with pytest.raises(ValueError, match=f"data.max_length={room + 1}: .* has {room} positions; set {room} or less"):
        build_model(config(tmp_path), replace(INFO, max_length=room + 1), seed=1)


def test_another_number_of_labels_is_refused_with_both(tmp_path: Path):
    BertForSequenceClassification(CONFIG).save_pretrained(tmp_path)
    message = r"classifier\.\w+ is \(3.*\) in the checkpoint, but \(2.*\) for the 2 labels of data=made_up"
    with pytest.raises(ValueError, match=message):
        build_model(config(tmp_path), replace(INFO, num_labels=2), seed=1)


@pytest.mark.parametrize("made_up", [CONFIG, ROBERTA])
def test_a_folder_without_a_vocabulary_is_refused(made_up: PretrainedConfig, tmp_path: Path):
    """Transformers would make up a tokenizer from the config alone, to which every word is unknown."""
    made_up.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"model.path={tmp_path}: no tokenizer files there, such as tokenizer.json"):
        build_tokenizer(config(tmp_path))


def test_a_tokenizer_out_of_reach_is_named():
    with pytest.raises(ValueError, match=r"path=no/such: its tokenizer cannot be loaded \(.+\); run `lowbit fetch"):
        build_tokenizer(config(Path("no/such")))


def test_a_failure_without_words_is_named_by_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def load(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", load)
    with pytest.raises(ValueError, match=r"it cannot be loaded \(TimeoutError\); run `lowbit fetch"):
        build_model(config(tmp_path), INFO, seed=1)
