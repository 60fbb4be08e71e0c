"""prepare() changes nothing that was not asked for, and restore() undoes all of it."""

import copy
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel

from lowbit.modeling import Intervention, Plan, Rule, prepare
from lowbit.modeling.trace import FIELDS
from lowbit.quantizers import QuantEmbedding, QuantFusedLinear, QuantizerSpec, QuantLinear

DEPTH = 3


def picture(model: nn.Module) -> dict[str, Any]:
    """Everything about the modules that an instrument could leave behind."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        attributes = vars(module)
        hooks = {key: len(value) for key, value in attributes.items() if "hooks" in key and hasattr(value, "__len__")}
        children = {key: id(child) for key, child in module._modules.items()}
        config = getattr(module, "config", None)
        implementation = getattr(config, "_attn_implementation", None)
        found[name] = (id(module), type(module), sorted(attributes), hooks, children, id(config), implementation)
        found[name] += (module.training, {key: id(p) for key, p in module._parameters.items()})
    return found


def same_state(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[key], second[key]) for key in first)


# --- an unquantized instrument changes nothing ----------------------------------------------------------------------


def test_logits_equal_the_untouched_models(zoo):
    expected = zoo.logits(zoo.eager(zoo.build()), zoo.batch())
    instrument = prepare(zoo.build())
    for fields in ((), FIELDS):
        logits = instrument.run(zoo.batch(), fields).logits
        assert (logits - expected).abs().max() <= zoo.tolerance * expected.abs().max()
    assert expected.std() > 0.1  # the models tell examples apart


def test_the_prepared_model_may_be_called_directly(zoo):
    model = zoo.build()
    instrument = prepare(model)
    assert torch.equal(zoo.logits(model, zoo.batch()), instrument.run(zoo.batch()).logits)


def test_padding_is_masked(bert_zoo):
    instrument, batch = prepare(bert_zoo.build()), bert_zoo.batch()
    before = instrument.run(batch).logits
    batch["input_ids"][batch["attention_mask"] == 0] = 7
    assert torch.equal(instrument.run(batch).logits, before)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_it_does_not_matter_which_attention_the_model_had(hf_zoo, implementation: str):
    model = hf_zoo.build()
    model.set_attn_implementation(implementation)
    instrument = prepare(model)
    expected = hf_zoo.logits(hf_zoo.eager(hf_zoo.build()), hf_zoo.batch())
    assert torch.equal(instrument.run(hf_zoo.batch()).logits, expected)
    instrument.restore()
    assert model.config._attn_implementation == implementation


def test_train_mode_with_dropout_follows_the_same_random_numbers(hf_zoo):
    dropout = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}
    plain, instrument = hf_zoo.eager(hf_zoo.build(**dropout)).train(), prepare(hf_zoo.build(**dropout).train())
    torch.manual_seed(3)
    expected = hf_zoo.logits(plain, hf_zoo.batch())
    torch.manual_seed(3)
    assert torch.equal(instrument.run(hf_zoo.batch(), FIELDS).logits, expected)
    assert not torch.equal(instrument.run(hf_zoo.batch()).logits, expected)  # dropout is on


@pytest.mark.parametrize(
    "settings", [{"qk_norm": True}, {"qkv_bias": False}, {"attn_drop_rate": 0.5}, {"init_values": 0.1}]
)
def test_timm_variants_equal_the_untouched_model(timm_zoo, settings: dict[str, Any]):
    expected = timm_zoo.logits(timm_zoo.build(**settings), timm_zoo.batch())
    logits = prepare(timm_zoo.build(**settings)).run(timm_zoo.batch()).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_timm_attention_dropout_is_applied_in_train_mode(timm_zoo):
    instrument = prepare(timm_zoo.build(attn_drop_rate=0.5))
    plain = instrument.run(timm_zoo.batch()).logits
    instrument.model.train()
    assert (instrument.run(timm_zoo.batch()).logits - plain).abs().max() > 1e-3


# --- restore --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantized", [False, True])
def test_restore_is_the_identity(zoo, w2a8, quantized: bool):
    model, batch = zoo.build(), zoo.batch()
    before, logits = picture(model), zoo.logits(model, batch)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    instrument = prepare(model, w2a8() if quantized else ())
    assert picture(model) != before
    trace = instrument.run(batch, FIELDS)
    instrument.run(batch, FIELDS, Plan(Intervention(frozenset({"probs", "attn_out"})), trace))
    assert instrument.restore() is model
    assert picture(model) == before
    assert same_state(model.state_dict(), state)
    assert torch.equal(zoo.logits(model, batch), logits)


def test_restore_keeps_what_was_trained(zoo, w2a8):
    model = zoo.build()
    instrument = prepare(model.train(), w2a8())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    instrument.run(zoo.batch()).logits.square().sum().backward()
    optimizer.step()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.eval()
    instrument.restore()
    assert same_state(model.state_dict(), state)
    assert not any(module.training for module in model.modules())
    assert not same_state(state, zoo.build().state_dict())


def test_a_replaced_parameter_survives_restore(zoo, w2a8):
    model = zoo.build()
    instrument = prepare(model, w2a8())
    name = zoo.weight_name(1, "ffn_in")
    path, _, key = name.rpartition(".")
    replaced = nn.Parameter(torch.ones_like(model.get_parameter(name)))
    setattr(model.get_submodule(path), key, replaced)
    instrument.restore()
    assert model.get_parameter(name) is replaced


def test_a_restored_model_can_be_copied_and_prepared_again(zoo, w2a8):
    model = zoo.build()
    expected = zoo.logits(model, zoo.batch())
    first = prepare(model, w2a8())
    quantized = first.run(zoo.batch()).logits
    clone = copy.deepcopy(first.restore())
    assert torch.equal(zoo.logits(clone, zoo.batch()), expected)
    again = prepare(clone, w2a8())
    assert torch.equal(again.run(zoo.batch()).logits, quantized)
    assert torch.equal(zoo.logits(model, zoo.batch()), expected)


# --- state dict -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantized", [False, True])
def test_keys_and_parameters_stay_those_of_the_library(zoo, w2a8, quantized: bool):
    model = zoo.build()
    keys, parameters = list(model.state_dict()), dict(model.named_parameters())
    prepare(model, w2a8() if quantized else ())
    assert list(model.state_dict()) == keys
    assert list(dict(model.named_parameters())) == list(parameters)
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]


def test_a_checkpoint_of_the_prepared_model_loads_into_the_plain_one(zoo, w2a8, tmp_path):
    prepared = zoo.build(seed=1)
    prepare(prepared, w2a8())
    torch.save(prepared.state_dict(), tmp_path / "student.pt")
    plain = zoo.build(seed=2)
    plain.load_state_dict(torch.load(tmp_path / "student.pt", weights_only=True), strict=True)
    assert torch.equal(zoo.logits(plain, zoo.batch()), zoo.logits(zoo.build(seed=1), zoo.batch()))


def test_a_plain_checkpoint_loads_into_the_prepared_model(zoo, w2a8):
    first, second = prepare(zoo.build(seed=1), w2a8()), prepare(zoo.build(seed=2), w2a8())
    second.model.load_state_dict(zoo.build(seed=1).state_dict(), strict=True)
    assert torch.equal(second.run(zoo.batch()).logits, first.run(zoo.batch()).logits)


# --- models do not influence each other -----------------------------------------------------------------------------


def test_two_models_of_one_config_object_do_not_influence_each_other():
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    first, second = (BertForSequenceClassification(config).eval() for _ in range(2))
    assert first.config is second.config
    before, implementation = picture(second), config._attn_implementation
    instrument = prepare(first)
    assert picture(second) == before
    assert config._attn_implementation == implementation
    assert first.config._attn_implementation != implementation
    other = prepare(second, (Rule(("query",), weight=QuantizerSpec("twn")),))
    batch = {"input_ids": torch.tensor([[1, 2, 3]])}
    assert torch.equal(instrument.run(batch).logits, first(**batch).logits)
    other.restore()
    assert picture(second) == before
    assert first.config._attn_implementation != implementation
    instrument.restore()
    assert first.config is config


def test_a_prepared_student_leaves_the_traces_of_the_teacher_alone(zoo, w2a8):
    teacher, student = prepare(zoo.build(seed=1)), prepare(zoo.build(seed=1), w2a8())
    expected = teacher.run(zoo.batch(), {"scores"})
    student.run(zoo.batch(), {"scores"})
    again = teacher.run(zoo.batch(), {"scores"})
    assert torch.equal(again.logits, expected.logits)
    assert torch.equal(again.layers[1].scores, expected.layers[1].scores)


# --- quantization ---------------------------------------------------------------------------------------------------


def test_which_modules_are_quantized(zoo, w2a8):
    model = zoo.build()
    prepare(model, w2a8())
    counts = {
        kind: sum(type(m) is kind for m in model.modules()) for kind in (QuantLinear, QuantEmbedding, QuantFusedLinear)
    }
    expected = {"hf_bert": (19, 1, 0), "hf_xlmr": (19, 1, 0), "hf_vit": (18, 0, 0)}.get(zoo.name, (9, 0, 3))
    assert tuple(counts.values()) == expected
    assert type(model.get_submodule(zoo.classifier)) is nn.Linear


def test_quantization_changes_the_logits_and_8_bits_less_than_2(zoo, w2a8):
    plain = prepare(zoo.build()).run(zoo.batch()).logits
    int8 = QuantizerSpec("minmax_symmetric", bits=8, clip=None)
    roles = ("query", "key", "value", "attn_out", "ffn_in", "ffn_out")
    fine = prepare(zoo.build(), (Rule(roles, weight=int8, input=int8), Rule(("attention",), bmm=int8)))
    coarse = prepare(zoo.build(), w2a8())
    errors = [(i.run(zoo.batch()).logits - plain).abs().mean().item() for i in (fine, coarse)]
    assert 0 < errors[0] < 0.1 < errors[1]


@pytest.mark.parametrize("operand", ["query", "key", "probs", "value"])
def test_each_operand_of_the_attention_products_is_quantized_alone(zoo, operand: str):
    spec = QuantizerSpec("minmax_symmetric", bits=2, clip=None)
    rules = (Rule(("attention",), bmm=spec, operands=(operand,)),)
    plain = prepare(zoo.build()).run(zoo.batch(), FIELDS).layers[0]
    layer = prepare(zoo.build(), rules).run(zoo.batch(), FIELDS).layers[0]
    assert torch.equal(layer.scores, plain.scores) == (operand in ("probs", "value"))
    assert torch.equal(layer.probs, plain.probs) == (operand in ("probs", "value"))
    assert not torch.equal(layer.context, plain.context)
    if operand == "probs":
        q = plain.probs.abs().max()
        value = torch.linalg.lstsq(plain.probs.double(), plain.context.double()).solution  # probs is square
        expected = ((plain.probs / q).round() * q).double() @ value
        torch.testing.assert_close(layer.context.double(), expected, rtol=1e-3, atol=1e-3)


def test_probabilities_are_quantized_after_dropout(bert_zoo):
    spec = QuantizerSpec("minmax_symmetric", bits=2, clip=None)
    rules = (Rule(("attention",), bmm=spec, operands=("probs",)),)
    model = bert_zoo.build(attention_probs_dropout_prob=0.5)
    seen = []
    instrument = prepare(model.train(), rules)
    attention = model.get_submodule("bert.encoder.layer.0.attention.self")
    attention.get_submodule("p_bmm_quantizer").register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    probs = instrument.run(bert_zoo.batch(), {"probs"}).layers[0].probs
    kept = seen[0] != 0
    assert 0.2 < kept.float().mean() < 0.8
    torch.testing.assert_close(seen[0][kept], 2 * probs[kept])


def test_predictions_depend_on_the_batch_with_tensor_scales_and_not_with_token_scales(bert_zoo, w2a8):
    """A per-tensor scale is shared by the whole batch, padding included; a symmetric per-token one is not."""
    sentence = bert_zoo.batch()
    one = {key: value[1:2, :4] for key, value in sentence.items()}  # four real tokens, three padded
    logits = {}
    for granularity in ("tensor", "token"):
        instrument = prepare(bert_zoo.build().double(), w2a8(granularity))
        logits[granularity] = [instrument.run(batch).logits[row] for batch, row in ((one, 0), (sentence, 1))]
    torch.testing.assert_close(*logits["token"], rtol=1e-9, atol=1e-9)
    assert (logits["tensor"][0] - logits["tensor"][1]).abs().max() > 1e-3


# --- refusals -------------------------------------------------------------------------------------------------------


def test_preparing_twice_is_refused(zoo):
    model = zoo.build()
    instrument = prepare(model)
    with pytest.raises(ValueError, match=r"instrumented already: call restore\(\)"):
        prepare(model)
    instrument.restore()
    prepare(model)


def test_unknown_models_are_refused():
    with pytest.raises(ValueError, match="no model family for Linear: known classes are BertForSequenceClassification"):
        prepare(nn.Linear(2, 2))
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    with pytest.raises(ValueError, match="no model family for BertModel"):
        prepare(BertModel(config))


def test_a_class_of_the_same_name_from_elsewhere_is_refused():
    impostor = type("VisionTransformer", (nn.Module,), {"__module__": "elsewhere"})
    with pytest.raises(ValueError, match="no model family for VisionTransformer"):
        prepare(impostor())


def test_a_subclass_of_a_known_model_is_known(timm_zoo):
    model = timm_zoo.build()
    model.__class__ = type("MyVit", (VisionTransformer,), {})
    torch.testing.assert_close(
        prepare(model).run(timm_zoo.batch()).logits,
        timm_zoo.logits(timm_zoo.build(), timm_zoo.batch()),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("kind", ["gated", "other class"])
def test_other_timm_attention_is_refused_and_the_model_left_as_it_was(timm_zoo, w2a8, kind: str):
    model = timm_zoo.build()
    if kind == "gated":
        model.blocks[1].attn.gate = nn.Linear(16, 16)
        message = "timm attention 'gated Attention' is not supported"
    else:
        attention = model.blocks[1].attn
        attention.__class__ = type("DiffAttention", (type(attention),), {})
        message = "timm attention 'DiffAttention' is not supported"
    before = picture(model)
    with pytest.raises(ValueError, match=message):
        prepare(model, w2a8())
    assert picture(model) == before


def test_a_layer_that_cannot_be_quantized_is_refused_and_the_model_left_as_it_was(zoo, w2a8):
    model = zoo.build()
    name = zoo.weight_name(DEPTH - 1, "ffn_out").removesuffix(".weight")
    model.get_submodule(name).__class__ = type("LoraLinear", (nn.Linear,), {})
    before = picture(model)
    with pytest.raises(ValueError, match=rf"module '{name}' is a LoraLinear: plain Linear, Embedding and Conv2d"):
        prepare(model, w2a8())
    assert picture(model) == before


def test_an_input_quantizer_of_an_embedding_is_refused_and_the_model_left_as_it_was(bert_zoo, w2a8):
    model = bert_zoo.build()
    before = picture(model)
    with pytest.raises(ValueError, match="an embedding has no float input"):
        prepare(model, (*w2a8(), Rule(("word_embedding",), input=QuantizerSpec("minmax_symmetric", bits=8))))
    assert picture(model) == before


def test_masked_timm_attention_is_refused(timm_zoo):
    model = timm_zoo.build()
    prepare(model)
    with pytest.raises(ValueError, match="masked or causal timm attention is not supported"):
        model.blocks[0].attn(torch.zeros(1, 5, 16), is_causal=True)


def test_an_unknown_field_is_refused(timm_zoo):
    instrument = prepare(timm_zoo.build())
    with pytest.raises(ValueError, match="trace field 'attention': allowed are attn_block, attn_out, context"):
        instrument.run(timm_zoo.batch(), {"attention", "hidden"})
