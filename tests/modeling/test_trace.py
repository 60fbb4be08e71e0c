"""The trace: presence, shapes, agreement with the library's own outputs and between points."""

import pytest
import torch
from torch import Tensor, nn

from lowbit.modeling import Intervention, LayerTrace, Plan, Trace, prepare
from lowbit.modeling.trace import FIELDS, LAYER_FIELDS

DEPTH, HEADS, WIDTH = 3, 2, 16


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_only_what_was_asked_for_is_there(zoo, field: str):
    trace = prepare(zoo.build()).run(zoo.batch(), {field})
    present = {name for layer in trace.layers for name in LAYER_FIELDS if getattr(layer, name) is not None}
    assert present == ({field} - {"embeddings"})
    assert (trace.embeddings is not None) == (field == "embeddings")
    assert len(trace.layers) == DEPTH
    for layer in trace.layers:
        assert field == "embeddings" or getattr(layer, field) is not None


def test_nothing_is_recorded_by_default(zoo):
    instrument = prepare(zoo.build())
    instrument.run(zoo.batch(), FIELDS)
    trace = instrument.run(zoo.batch())
    assert trace.layers == (LayerTrace(),) * DEPTH
    assert trace.embeddings is None


def test_shapes(zoo):
    trace = prepare(zoo.build()).run(zoo.batch(), FIELDS)
    batch, tokens = {"hf_bert": (3, 7), "hf_xlmr": (3, 7), "timm_deit": (4, 6)}.get(zoo.name, (4, 5))
    sizes = [(batch, tokens, batch, tokens, HEADS, WIDTH)] * DEPTH
    if zoo.name == "timm_swin":  # windows and their tokens; images and their tokens
        sizes = [(16, 4, 4, 16, 2, 16), (16, 4, 4, 16, 2, 16), (4, 4, 4, 4, 4, 32)]
    for layer, (windows, inside, images, all_tokens, heads, width) in zip(trace.layers, sizes, strict=True):
        square, wide = (windows, heads, inside, inside), (images, all_tokens, width)
        shapes = {"scores": square, "probs": square, "context": (windows, heads, inside, width // heads)}
        shapes["attn_out"] = (windows, inside, width)
        for name in LAYER_FIELDS:
            assert getattr(layer, name).shape == shapes.get(name, wide), name
    assert trace.embeddings.shape == (sizes[0][2], sizes[0][3], WIDTH)
    assert trace.logits.shape == (batch, 3)


def test_the_key_mask_is_true_at_real_tokens(zoo):
    mask = prepare(zoo.build()).run(zoo.batch()).key_mask
    if zoo.name in ("hf_bert", "hf_xlmr"):
        assert mask.sum(-1).tolist() == [7, 4, 5]
        assert mask.dtype == torch.bool
    else:
        assert mask is None


def test_a_text_batch_without_a_mask_has_no_key_mask(bert_zoo):
    batch = {"input_ids": bert_zoo.batch()["input_ids"], "labels": torch.zeros(3)}
    trace = prepare(bert_zoo.build()).run(batch)
    assert trace.key_mask is None
    assert torch.equal(trace.logits, bert_zoo.eager(bert_zoo.build())(batch["input_ids"]).logits)


def test_hidden_states_and_maps_equal_those_that_transformers_returns(hf_zoo):
    trace = prepare(hf_zoo.build()).run(hf_zoo.batch(), FIELDS)
    model = hf_zoo.eager(hf_zoo.build())
    output = model(**hf_zoo.batch(), output_hidden_states=True, output_attentions=True)
    assert torch.equal(trace.embeddings, output.hidden_states[0])
    for layer, hidden, attention in zip(trace.layers, output.hidden_states[1:], output.attentions, strict=True):
        assert torch.equal(layer.hidden, hidden)
        assert torch.equal(layer.probs, attention)


def test_hidden_states_equal_those_that_timm_computes(timm_zoo):
    trace = prepare(timm_zoo.build()).run(timm_zoo.batch(), FIELDS)
    seen: list[Tensor] = []
    model = timm_zoo.build()
    for block in model.blocks:
        block.register_forward_hook(lambda _, inputs, output: seen.extend([inputs[0], output]))
    timm_zoo.logits(model, timm_zoo.batch())
    close(trace.embeddings, seen[0])
    for layer, hidden in zip(trace.layers, seen[1::2], strict=True):
        close(layer.hidden, hidden)


def test_the_points_of_a_layer_fit_together(uniform_zoo):
    """Each point follows from the one before by the family's own layer equations."""
    zoo = uniform_zoo
    model = zoo.build()
    trace = prepare(model).run(zoo.batch(), FIELDS)
    if zoo.name in ("hf_bert", "hf_xlmr"):
        norm_1 = [model.get_submodule(f"{layer}.attention.output.LayerNorm") for layer in zoo.layers]
        norm_2 = [model.get_submodule(f"{layer}.output.LayerNorm") for layer in zoo.layers]
    else:
        norm_1 = norm_2 = [nn.Identity()] * DEPTH
    inputs = trace.embeddings
    for index, layer in enumerate(trace.layers):
        scores = layer.scores
        if trace.key_mask is not None:
            scores = scores.masked_fill(~trace.key_mask[:, None, None, :], float("-inf"))
        close(layer.probs, scores.softmax(-1))
        weight, _ = zoo.weight(model, index, "attn_out")
        merged = layer.context.transpose(1, 2).flatten(2)
        bias = model.get_parameter(zoo.weight_name(index, "attn_out").replace("weight", "bias"))
        close(layer.attn_out, merged @ weight.T + bias)
        close(layer.attn_block, norm_1[index](inputs + layer.attn_out))
        close(layer.hidden, norm_2[index](layer.attn_block + layer.ffn_out))
        inputs = layer.hidden


def test_scores_are_scaled_products_of_query_and_key(bert_zoo):
    model = bert_zoo.build()
    trace = prepare(model).run(bert_zoo.batch(), {"scores", "embeddings"})
    attention = model.bert.encoder.layer[0].attention.self
    q, k = (m(trace.embeddings).unflatten(-1, (HEADS, -1)).transpose(1, 2) for m in (attention.query, attention.key))
    close(trace.layers[0].scores, q @ k.mT / 8**0.5)


def test_points_before_dropout_are_recorded_before_it(hf_zoo):
    dropout = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    expected = prepare(hf_zoo.build()).run(hf_zoo.batch(), FIELDS).layers[0]
    instrument = prepare(hf_zoo.build(**dropout).train())
    layer = instrument.run(hf_zoo.batch(), FIELDS).layers[0]
    assert torch.allclose(layer.probs.sum(-1), torch.ones(()))
    assert layer.probs.gt(0).sum() == expected.probs.gt(0).sum()
    assert layer.attn_out.ne(0).all()
    assert layer.ffn_out.ne(0).all()


# --- what is recorded under an intervention -------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["probs", "context", "attn_out", "ffn_out", "hidden"])
def test_the_students_own_tensors_are_recorded(zoo, site: str):
    teacher = prepare(zoo.build(seed=1)).run(zoo.batch(), FIELDS)
    student = prepare(zoo.build(seed=2))
    plain = student.run(zoo.batch(), FIELDS)
    trace = student.run(zoo.batch(), FIELDS, Plan(Intervention(frozenset({site}), frozenset({0})), teacher))
    order = ["scores", "probs", "context", "attn_out", "attn_block", "ffn_out", "hidden"]
    reach = order.index(site)
    for name in order[: reach + 1]:
        assert torch.equal(getattr(trace.layers[0], name), getattr(plain.layers[0], name)), name
    for name in order[reach + 1 :]:
        assert not torch.allclose(getattr(trace.layers[0], name), getattr(plain.layers[0], name)), name
    assert not torch.allclose(trace.layers[1].scores, plain.layers[1].scores)


def test_the_attention_block_contains_the_teachers_output_under_ti_o(bert_zoo):
    teacher = prepare(bert_zoo.build(seed=1)).run(bert_zoo.batch(), FIELDS)
    model = bert_zoo.build(seed=2)
    trace = prepare(model).run(bert_zoo.batch(), FIELDS, Plan(Intervention(frozenset({"attn_out"})), teacher))
    inputs = trace.embeddings
    for index, layer in enumerate(trace.layers):
        norm = model.bert.encoder.layer[index].attention.output.LayerNorm
        close(layer.attn_block, norm(inputs + teacher.layers[index].attn_out))
        inputs = layer.hidden


# --- select ---------------------------------------------------------------------------------------------------------


def test_select_takes_layers_by_map():
    layers = tuple(LayerTrace(hidden=torch.tensor(float(i))) for i in range(4))
    trace = Trace(torch.zeros(1, 2), layers, torch.ones(1))
    assert trace.select(None) is trace
    selected = trace.select([1, 3, 3])
    assert selected.layers == (layers[1], layers[3], layers[3])
    assert selected.logits is trace.logits
    assert selected.embeddings is trace.embeddings
