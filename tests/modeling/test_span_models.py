"""Models that look for a span: BERT's and RoBERTa's question-answering heads as members of their families."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    RobertaConfig,
    RobertaForQuestionAnswering,
    XLMRobertaConfig,
    XLMRobertaForQuestionAnswering,
)

from lowbit.data import DataInfo
from lowbit.modeling import prepare
from lowbit.modeling.build import build_model
from lowbit.modeling.families import family_of
from lowbit.modeling.trace import FIELDS
from lowbit.quantizers import QuantLinear, quantizers_of
from lowbit.settings.model import ModelConfig, ModelKind

CLASSES = {
    "bert": (BertForQuestionAnswering, BertConfig),
    "roberta": (RobertaForQuestionAnswering, RobertaConfig),
    "xlmr": (XLMRobertaForQuestionAnswering, XLMRobertaConfig),
}
INFO = DataInfo("squad", "text", "span", 2, "f1", 10)


@pytest.fixture(params=CLASSES)
def make(request: pytest.FixtureRequest) -> Callable[[], nn.Module]:
    cls, config = CLASSES[request.param]
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}

    def build() -> nn.Module:
        torch.manual_seed(0)
        return cls(config(vocab_size=30, max_position_embeddings=14, type_vocab_size=2, **sizes)).eval()

    return build


@pytest.fixture
def batch() -> dict[str, Tensor]:
    ids = torch.randint(4, 30, (3, 7), generator=torch.Generator().manual_seed(5))
    mask = torch.arange(7) < torch.tensor([[7], [4], [5]])
    return {"input_ids": ids.where(mask, 1), "attention_mask": mask.long()}


def test_the_instrumented_model_is_the_plain_one(make, batch: dict[str, Tensor]):
    plain = make()
    plain.set_attn_implementation("eager")
    expected = plain(**batch, output_hidden_states=True)
    model = make()
    instrument = prepare(model)
    trace = instrument.run({**batch, "labels": torch.zeros(3, 2), "rows": torch.arange(3)}, FIELDS)
    assert trace.logits.shape == (3, 2, 7)
    assert torch.equal(trace.logits, torch.stack([expected.start_logits, expected.end_logits], 1))
    assert all(torch.equal(a.hidden, b) for a, b in zip(trace.layers, expected.hidden_states[1:], strict=True))
    assert torch.equal(trace.key_mask, batch["attention_mask"].bool())
    expected.start_logits.square().sum().backward()
    trace.logits[:, 0].square().sum().backward()
    for (name, mine), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), name
        assert mine.grad is None or torch.allclose(mine.grad, theirs.grad), name
    assert instrument.restore().state_dict().keys() == plain.state_dict().keys()


def test_the_head_is_the_classifier_and_stays_full_precision(make, w2a8):
    model = make()
    roles = family_of(model).role_names(model)
    assert roles["classifier"] == ["qa_outputs"]
    assert "pooler" not in roles, "spans are read from every token"
    instrument = prepare(model, w2a8())
    assert type(model.qa_outputs) is nn.Linear
    assert sum(isinstance(module, QuantLinear) for module in model.modules()) == 2 * 6
    assert quantizers_of(model)
    assert "pooler: not in this family, skipped" in instrument.resolved.report


def test_span_data_give_the_head_of_spans(make, tmp_path: Path):
    """From an encoder without a head, whose weights stay; the head's are drawn from the seed."""
    model = make()
    model.base_model.save_pretrained(tmp_path)
    config = ModelConfig("hf", ModelKind.hf, path=str(tmp_path))
    one, same, other = (build_model(config, INFO, seed) for seed in (1, 1, 2))
    assert type(one) is type(model)
    assert torch.equal(one.qa_outputs.weight, same.qa_outputs.weight)
    assert not torch.equal(one.qa_outputs.weight, other.qa_outputs.weight)
    for name, value in model.base_model.state_dict().items():
        assert torch.equal(one.base_model.state_dict()[name], value)
