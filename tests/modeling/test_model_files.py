"""Every conf/model file names a model that its family knows, whose layers are as many as it says and all have roles."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from lowbit.config.compose import choices, compose, hydra_session, to_config
from lowbit.data import DataInfo
from lowbit.modeling import Rule, prepare
from lowbit.modeling.build import build_model
from lowbit.modeling.families import LAYER_ROLES, ROLES, family_of
from lowbit.modeling.sizes import model_size
from lowbit.quantizers import QuantEmbedding, QuantFusedLinear, QuantizerSpec, QuantLinear
from lowbit.recipes import build_rules
from lowbit.settings.model import ModelConfig, ModelKind

with hydra_session():
    MODELS = choices("model")
WITHOUT_A_MODEL = {"hf", "timm"}  # any model that `model.path` or `model.timm_name` names
TEXT = DataInfo("text", "text", "classification", 2, "accuracy", 100, vocab_size=50, max_length=16)
IMAGES = DataInfo("images", "image", "classification", 1000, "accuracy", 100, image_size=224, channels=3)
PIXELS = DataInfo("digits", "image", "classification", 10, "accuracy", 100, image_size=8, channels=1)

# What the checkpoints on the hub say of themselves, as far as it differs from the class's defaults.
_BERT = (BertForSequenceClassification, BertConfig)
_XLMR = (XLMRobertaForSequenceClassification, XLMRobertaConfig, {"vocab_size": 250_002, "type_vocab_size": 1})
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_SMALL = {"hidden_size": 312, "num_hidden_layers": 4, "num_attention_heads": 12, "intermediate_size": 1200}
_MINI = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
CHECKPOINTS = {
    "bert_base": (*_BERT, {}),
    "bert_large": (*_BERT, _LARGE),
    "tinybert_4l": (*_BERT, _SMALL),
    "tinybert_6l": (*_BERT, {"num_hidden_layers": 6}),
    "minilm": (*_BERT, _MINI),
    "xlmr_base": _XLMR,
    "infoxlm_base": _XLMR,
    "roberta_base": (RobertaForSequenceClassification, RobertaConfig, {"vocab_size": 50_265, "type_vocab_size": 1}),
}
# Millions of parameters with a head of 1,000 classes (images) or 2 (text), as the papers and model cards round them.
MILLIONS = {
    "bert_base": 109.5,
    "bert_large": 335.1,
    "tinybert_4l": 14.4,
    "tinybert_6l": 67.0,
    "minilm": 22.7,
    "xlmr_base": 278.0,
    "infoxlm_base": 278.0,
    "roberta_base": 124.6,
    "vit_base": 86.6,
    "vit_small": 22.1,
    "deit_tiny": 5.7,
    "deit_small": 22.1,
    "deit_tiny_distilled": 5.9,
    "swin_tiny": 28.3,
    "swin_small": 49.6,
}


def config_of(name: str) -> ModelConfig:
    return to_config(compose([f"model={name}"])).model


def instantiate(name: str) -> nn.Module:
    """Build the model of a file on the meta device."""
    with torch.device("meta"):
        if name in CHECKPOINTS:
            model, config, settings = CHECKPOINTS[name]
            return model(config(**settings))
        config = config_of(name)
        info = TEXT if config.kind is ModelKind.bert else PIXELS if config.kind is ModelKind.timm_vit else IMAGES
        return build_model(config, info, 0)


NAMED = [name for name in MODELS if name not in WITHOUT_A_MODEL]


def test_the_tables_above_name_files_that_exist():
    assert {*CHECKPOINTS, *MILLIONS} <= set(NAMED)
    loaded = {name for name in NAMED if config_of(name).kind in (ModelKind.hf, ModelKind.timm)}
    assert loaded == set(MILLIONS)


@pytest.mark.parametrize("name", NAMED)
def test_every_linear_layer_has_a_role(name: str):
    """The role audit: quantizing every role leaves no linear layer, embedding or convolution out."""
    model = instantiate(name)
    roles = tuple(role for role in ROLES if role != "attention")
    optional = tuple(Rule((role,), weight=QuantizerSpec("twn"), required=False) for role in roles)
    instrument = prepare(model, optional)
    found = family_of(model).role_names(model)
    floats = [n for n, m in model.named_modules() if type(m) in (nn.Linear, nn.Embedding, nn.Conv2d)]
    assert floats == []
    assert {*LAYER_ROLES, "attention", "classifier"} <= found.keys()
    assert all(len(found[role]) == instrument.depth for role in LAYER_ROLES)


@pytest.mark.parametrize("name", sorted(MILLIONS))
def test_depth_and_size_are_those_that_the_file_says(name: str):
    model = instantiate(name)
    assert family_of(model).depths(model) == config_of(name).depths
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == MILLIONS[name]


# Linear layers of the Transformer layers and the pooler (qkv counts once in timm), and word embeddings.
QUANTIZED = {
    "bert_base": (73, 1),
    "bert_large": (145, 1),
    "tinybert_4l": (25, 1),
    "tinybert_6l": (37, 1),
    "xlmr_base": (73, 1),
    "infoxlm_base": (73, 1),
    "roberta_base": (73, 1),
    "vit_base": (48, 0),
    "vit_small": (48, 0),
    "deit_tiny": (48, 0),
    "deit_small": (48, 0),
    "deit_tiny_distilled": (48, 0),
    "swin_tiny": (48, 0),
    "swin_small": (96, 0),
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_what_ternarybert_quantizes(name: str):
    model, config = instantiate(name), to_config(compose(["quantizer=w2a8"]))
    instrument = prepare(model, build_rules(config.quantizer, config.estimator))
    kinds = [type(module) for module in model.modules()]
    assert (kinds.count(QuantLinear) + kinds.count(QuantFusedLinear), kinds.count(QuantEmbedding)) == QUANTIZED[name]
    assert model_size(instrument).bits == ("2-2-8" if QUANTIZED[name][1] else "2-8")


def test_a_depth_that_is_not_the_models_is_refused():
    config = replace(config_of("deit_tiny"), depths=[6], pretrained=False)
    with torch.device("meta"), pytest.raises(ValueError, match=r"model.depths=\[6\]: this Vision.* has \[12\] layers"):
        build_model(config, IMAGES, 0)


def test_dropout_of_a_model_without_positions():
    """timm's Swin takes no rate for them."""
    with torch.device("meta"):
        model = build_model(replace(config_of("swin_tiny"), dropout=0.25), IMAGES, 0)
    rates = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    assert rates == {0.0, 0.25}


def test_weights_that_are_out_of_reach_are_named(monkeypatch: pytest.MonkeyPatch):
    import timm

    def fail(*_: object, **__: object) -> nn.Module:
        raise FileNotFoundError("no connection\nand a long explanation")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ValueError, match=r"deit_tiny.*\(no connection\); run `lowbit fetch model=deit_tiny`"):
        build_model(config_of("deit_tiny"), IMAGES, 0)
