"""Models that tag words: BERT's and RoBERTa's token-classification heads as members of their families."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForTokenClassification,
    RobertaConfig,
    RobertaForTokenClassification,
    XLMRobertaConfig,
    XLMRobertaForTokenClassification,
)

from lowbit.data import DataInfo
from lowbit.modeling import prepare
from lowbit.modeling.build import build_model
from lowbit.modeling.families import family_of
from lowbit.quantizers import QuantLinear
from lowbit.settings.model import ModelConfig, ModelKind

CLASSES = {
    "bert": (BertForTokenClassification, BertConfig),
    "roberta": (RobertaForTokenClassification, RobertaConfig),
    "xlmr": (XLMRobertaForTokenClassification, XLMRobertaConfig),
}
INFO = DataInfo("pos", "text", "tagging", 5, "accuracy", 10)


@pytest.fixture(params=CLASSES)
def make(request: pytest.FixtureRequest) -> Callable[[], nn.Module]:
    cls, config = CLASSES[request.param]
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}

    def build() -> nn.Module:
        torch.manual_seed(0)
        return cls(config(vocab_size=30, max_position_embeddings=14, num_labels=5, **sizes)).eval()

    return build


def test_the_instrumented_model_is_the_plain_one(make):
    mask = (torch.arange(7) < torch.tensor([[7], [4], [5]])).long()
    ids = torch.randint(4, 30, (3, 7), generator=torch.Generator().manual_seed(5)).where(mask.bool(), 1)
    plain = make()
    plain.set_attn_implementation("eager")
    expected = plain(input_ids=ids, attention_mask=mask).logits
    starts = torch.rand(3, 7, generator=torch.Generator().manual_seed(1)) < 0.5
    instrument = prepare(make())
    trace = instrument.run({"input_ids": ids, "attention_mask": mask, "labels": starts.long(), "word_starts": starts})
    assert trace.logits.shape == (3, 7, 5)
    assert torch.equal(trace.logits, expected)
    assert torch.equal(trace.at_tokens(starts).logits, expected[starts])


def test_the_head_is_the_classifier_and_stays_full_precision(make, w2a8):
    model = make()
    assert family_of(model).role_names(model)["classifier"] == ["classifier"]
    instrument = prepare(model, w2a8())
    assert type(model.classifier) is nn.Linear
    assert sum(isinstance(module, QuantLinear) for module in model.modules()) == 2 * 6
    assert "pooler: not in this family, skipped" in instrument.resolved.report


def test_tagging_data_give_the_head_of_tags(make, tmp_path: Path):
    """From an encoder without a head, whose weights stay."""
    model = make()
    model.base_model.save_pretrained(tmp_path)
    built = build_model(ModelConfig("hf", ModelKind.hf, path=str(tmp_path)), INFO, 1)
    assert type(built) is type(model)
    assert built.classifier.out_features == 5
    for name, value in model.base_model.state_dict().items():
        assert torch.equal(built.base_model.state_dict()[name], value)
