"""Quantization rules: matching, precedence, errors, and the published module list of BERT-base."""

from functools import cache

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

from lowbit.config.compose import choices, compose, hydra_session, to_config
from lowbit.modeling import Rule, prepare
from lowbit.modeling.sizes import model_size
from lowbit.quantizers import QuantConv2d, QuantEmbedding, QuantizerSpec, QuantLinear, calibrate, quantizers_of
from lowbit.quantizers.functional import minmax_symmetric, twn_ternarize
from lowbit.recipes import build_rules

with hydra_session():
    SCHEMES = choices("quantizer")
NARROW = {"ipq": ("quantizer.weight.centroids=4", "quantizer.embedding.centroids=4")}  # the zoo's models are tiny
TWN = QuantizerSpec("twn", clip=2.5)
INT8 = QuantizerSpec("minmax_symmetric", bits=8, clip=2.5)
INT4 = QuantizerSpec("minmax_symmetric", bits=4, clip=2.5)


@cache  # composing takes longer than the rest of a test
def shipped(name: str, *overrides: str) -> tuple[Rule, ...]:
    config = to_config(compose([f"quantizer={name}", *overrides]))
    return build_rules(config.quantizer, config.estimator)


# --- errors ---------------------------------------------------------------------------------------------------------


def test_an_entry_that_matches_nothing_is_named_with_the_nearest_role(zoo):
    with pytest.raises(ValueError, match=r"rules\[1\]: match 'atn_out' matches no module.*Did you mean 'attn_out'\?"):
        prepare(zoo.build(), (Rule(("query",), weight=TWN), Rule(("atn_out",), weight=TWN)))


def test_all_problems_are_listed_at_once(timm_zoo):
    rules = (
        Rule(("querry",), weight=TWN),
        Rule(("word_embedding", "ffn_in"), weight=TWN),
        Rule(("ffn_in",), bmm=INT8),
        Rule(("attention",), weight=TWN),
        Rule(("attention",), bmm=INT8, operands=("query", "keys")),
        Rule(("no.such.*",), weight=TWN),
    )
    with pytest.raises(ValueError, match="quantizer rules do not fit the model") as error:
        prepare(timm_zoo.build(), rules)
    lines = str(error.value).splitlines()[1:]
    expected = [
        "rules[0]: match 'querry' matches no module of timm_vit. Did you mean 'query'?",
        "rules[1]: match 'word_embedding' matches no module of timm_vit.",
        "rules[2]: `bmm` is for match: [attention], not 'ffn_in'",
        "rules[3]: match 'attention' takes `bmm`, not `weight` or `input`",
        "rules[4]: operand 'keys': allowed are query, key, probs, value",
        "rules[5]: match 'no.such.*' matches no module of timm_vit.",
    ]
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.strip().startswith(start)
    assert "Set `required: false`" in lines[1]


def test_a_refused_rule_leaves_the_model_alone(zoo):
    model = zoo.build()
    modules = dict(model.named_modules())
    with pytest.raises(ValueError, match="matches no module"):
        prepare(model, (Rule(("query",), weight=TWN), Rule(("nothing",), weight=TWN)))
    assert dict(model.named_modules()) == modules
    prepare(model)


def test_an_optional_entry_that_matches_nothing_is_reported(timm_zoo):
    resolved = prepare(timm_zoo.build(), (Rule(("word_embedding",), weight=TWN, required=False),)).resolved
    assert resolved.report == ["word_embedding: not in this family, skipped"]
    assert resolved.slots == set()


def test_what_matched_is_reported(bert_zoo, w2a8):
    report = "\n".join(prepare(bert_zoo.build(), w2a8()).resolved.report)
    assert "query: 3 linear: weight twn/tensor, input 8b minmax_symmetric/tensor" in report
    assert "attention: 3 modules: query, key, probs, value 8b minmax_symmetric/tensor" in report
    assert "word_embedding: 1 embedding: weight twn/row" in report


# --- precedence and patterns ----------------------------------------------------------------------------------------


def test_later_rules_win_and_none_keeps_what_earlier_ones_said(bert_zoo):
    rules = (
        Rule(("ffn_in", "ffn_out"), weight=TWN, input=INT8),
        Rule(("*.layer.1.*",), weight=INT4),
        Rule(("ffn_out",), input="off"),
    )
    model = bert_zoo.build()
    prepare(model, rules)
    layers = model.bert.encoder.layer
    assert layers[0].intermediate.dense.weight_quantizer.spec == TWN
    assert layers[1].intermediate.dense.weight_quantizer.spec == INT4
    assert layers[1].intermediate.dense.input_quantizer.spec == INT8
    assert layers[1].attention.self.query.weight_quantizer.spec == INT4
    assert layers[1].attention.self.query.input_quantizer is None
    assert layers[2].output.dense.weight_quantizer.spec == TWN
    assert layers[2].output.dense.input_quantizer is None
    assert type(layers[0].attention.self.query) is torch.nn.Linear


def test_off_takes_a_layer_and_an_operand_back_to_full_precision(zoo, w2a8):
    roles = ("query", "key", "value", "attn_out", "ffn_in", "ffn_out")
    off = (
        Rule(roles, weight="off", input="off"),
        Rule(("attention",), bmm="off"),
        Rule(("word_embedding", "pooler"), weight="off", input="off", required=False),
    )
    instrument = prepare(zoo.build(), (*w2a8(), *off))
    assert instrument.resolved.slots == set()
    assert torch.equal(instrument.run(zoo.batch()).logits, prepare(zoo.build()).run(zoo.batch()).logits)


def test_one_operand_off_leaves_the_others(bert_zoo):
    rules = (Rule(("attention",), bmm=INT8), Rule(("attention",), bmm="off", operands=("probs", "key")))
    model = bert_zoo.build()
    prepare(model, rules)
    names = {name for name, _ in model.bert.encoder.layer[0].attention.self.named_children()}
    assert names & {f"{o}_bmm_quantizer" for o in "qkpv"} == {"q_bmm_quantizer", "v_bmm_quantizer"}


def test_patterns_match_names(bert_zoo, timm_zoo):
    model = bert_zoo.build()
    prepare(model, (Rule(("bert.encoder.layer.?.attention.*",), weight=TWN), Rule(("classifier",), weight=INT8)))
    quantized = {name for name, module in model.named_modules() if isinstance(module, QuantLinear)}
    attention = [f"attention.{n}" for n in ("self.query", "self.key", "self.value", "output.dense")]
    assert quantized == {f"bert.encoder.layer.{i}.{n}" for i in range(3) for n in attention} | {"classifier"}
    model = timm_zoo.build()
    prepare(model, (Rule(("patch_embed.*",), weight=TWN), Rule(("blocks.0.attn.qkv",), weight=TWN)))
    assert type(model.patch_embed.proj) is QuantConv2d
    assert list(model.blocks[0].attn.qkv.weight_quantizers) == ["query", "key", "value"]


ONE_MATRIX = ("query", "key", "value", "attn_out", "ffn_in", "ffn_out")


@pytest.mark.parametrize("role", ONE_MATRIX)
def test_each_role_switches_one_matrix_type(zoo, role: str):
    """Regression test for defect 4 of the published code: `qkv` also switched the attention output."""
    model = zoo.build()
    instrument = prepare(model, (Rule((role,), weight=TWN),))
    trace = instrument.run(zoo.batch(), ("scores", "context", "attn_out", "ffn_out"))
    plain = prepare(zoo.build()).run(zoo.batch(), ("scores", "context", "attn_out", "ffn_out"))
    changed = {
        name: not torch.allclose(getattr(trace.layers[0], name), getattr(plain.layers[0], name), atol=1e-5)
        for name in ("scores", "context", "attn_out", "ffn_out")
    }
    first = {"query": "scores", "key": "scores", "value": "context", "attn_out": "attn_out"}.get(role, "ffn_out")
    names = list(changed)
    assert changed == {name: names.index(name) >= names.index(first) for name in names}
    by_hand = zoo.build()
    with torch.no_grad():
        for layer in range(3):
            parameter, rows = zoo.weight(by_hand, layer, role)
            parameter[rows] = twn_ternarize(parameter[rows], granularity="tensor", clip=2.5)
    torch.testing.assert_close(trace.logits, prepare(by_hand).run(zoo.batch()).logits, rtol=1e-4, atol=1e-4)


def test_every_role_of_the_model_can_be_matched(zoo):
    model = zoo.build()
    text = ("word_embedding", "position_embedding", "token_type_embedding", "pooler", "classifier")
    roles = {"hf_bert": text, "hf_xlmr": text, "timm_swin": ("patch_embed", "patch_merging", "classifier")}
    extra = roles.get(zoo.name, ("patch_embed", "classifier"))
    prepare(model, (Rule((*ONE_MATRIX, *extra), weight=TWN),))
    floats = [n for n, m in model.named_modules() if type(m) in (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv2d)]
    assert floats == []


# --- fused qkv ------------------------------------------------------------------------------------------------------


def test_a_fused_projection_has_a_scale_per_role(timm_zoo):
    model = timm_zoo.build()
    qkv = model.blocks[0].attn.qkv
    with torch.no_grad():
        qkv.weight.copy_(torch.randn(48, 16) * torch.tensor([0.1, 0.3, 0.8]).repeat_interleave(16)[:, None])
    weight, bias, x = qkv.weight, qkv.bias, torch.randn(2, 5, 16)
    prepare(model, (Rule(("query", "key"), weight=TWN), Rule(("value",), input=INT8)))
    y = model.blocks[0].attn.qkv(x)
    rows = [slice(0, 16), slice(16, 32), slice(32, 48)]
    for index in (0, 1):
        by_role = twn_ternarize(weight[rows[index]], granularity="tensor", clip=2.5)
        torch.testing.assert_close(y[..., rows[index]], F.linear(x, by_role, bias[rows[index]]))
    quantized = minmax_symmetric(x, bits=8, granularity="tensor", clip=2.5)
    torch.testing.assert_close(y[..., rows[2]], F.linear(quantized, weight[rows[2]], bias[rows[2]]))


# --- shipped files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEMES)
def test_one_rule_file_fits_every_family(zoo, name: str):
    instrument = prepare(zoo.build(), shipped(name, *NARROW.get(name, ())))
    calibrate(instrument.model, [zoo.batch()], instrument.run)
    instrument.model.train()
    logits = instrument.run(zoo.batch()).logits
    logits.square().sum().backward()
    assert torch.isfinite(logits).all()
    learned = [p for quantizer in quantizers_of(instrument.model).values() for p in quantizer.parameters()]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in learned)
    assert all(
        quantizer.is_ready or quantizer.spec.kind == "lat" for quantizer in quantizers_of(instrument.model).values()
    )
    size = model_size(instrument)
    assert (size.compression > 1) == (name not in ("none", "ipq_noise", "sdq_ipq"))


@pytest.mark.parametrize(("name", "operands"), [("w2a8", 12), ("w8a8", 12), ("none", 0)])
def test_the_foundation_schemes_quantize_what_they_say(zoo, name: str, operands: int):
    instrument = prepare(zoo.build(), shipped(name))
    linears = {"none": 0}.get(name, {"hf_bert": 20, "hf_xlmr": 20}.get(zoo.name, 18))
    assert len(instrument.resolved.weights) == linears  # 3 layers x 6 roles; text: pooler and word embedding
    assert len(instrument.resolved.operands) == operands


def test_the_shipped_rules_are_those_of_the_specification(w2a8):
    assert shipped("w2a8") == w2a8()
    assert shipped("w2a8", "quantizer.activation.granularity=token") == w2a8("token")


def meta_bert_base() -> BertForSequenceClassification:
    with torch.device("meta"):
        return BertForSequenceClassification(BertConfig())


def test_bert_base_has_the_published_modules_and_size():
    model = meta_bert_base()
    instrument = prepare(model, shipped("w2a8"))
    assert sum(type(module) is QuantLinear for module in model.modules()) == 73
    assert sum(type(module) is QuantEmbedding for module in model.modules()) == 1
    assert type(model.classifier) is torch.nn.Linear
    size = model_size(instrument, prefix="bert.")
    assert round(size.simulated_bytes / 2**20, 2) == 28.07
    assert round(size.compression, 2) == 14.88
    assert size.float_bytes == 4 * 109_482_240
    assert size.bits == "2-2-8"
    assert model_size(instrument).float_bytes == size.float_bytes + 4 * (2 * 768 + 2)


@pytest.mark.parametrize(
    ("rule", "mebibytes"),
    [
        (Rule(("pooler",), weight="off", input="off"), 30.2),
        (Rule(("position_embedding",), weight=QuantizerSpec("twn", granularity="row")), 26.7),
    ],
)
def test_the_size_tells_module_lists_apart(rule: Rule, mebibytes: float):
    size = model_size(prepare(meta_bert_base(), (*shipped("w2a8"), rule)), prefix="bert.")
    assert round(size.simulated_bytes / 2**20, 1) == mebibytes


def test_sizes_of_grids_and_of_part_of_a_fused_projection(timm_zoo):
    model = timm_zoo.build()
    plain = model_size(prepare(timm_zoo.build()))
    assert plain.compression == 1
    assert plain.bits == "32-32"
    assert plain.float_bytes == 4 * sum(p.numel() for p in model.parameters())
    grid = QuantizerSpec("minmax_asymmetric", bits=4, granularity="row")
    size = model_size(prepare(model, (Rule(("query",), weight=grid), Rule(("value",), weight=TWN))))
    saved = 3 * ((32 - 4) * 256 - 16 * 64 + (32 - 2) * 256 - 32)  # three layers, 16 x 16 weights, scales and offsets
    assert size.simulated_bytes == plain.float_bytes - saved // 8
    assert size.bits == "2/4-32"
    assert size.as_dict() == {
        "float_bytes": size.float_bytes,
        "simulated_bytes": size.simulated_bytes,
        "compression": size.float_bytes / size.simulated_bytes,
        "bits": "2/4-32",
    }
