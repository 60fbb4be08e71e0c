"""Families against the installed libraries: other classes of a family, Swin's windows, and where names may be known."""

import ast
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from timm.models.swin_transformer import window_partition, window_reverse
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaForSequenceClassification

import lowbit
from lowbit.losses import attention_map_kl, score_mse
from lowbit.modeling import Intervention, Plan, Rule, prepare
from lowbit.modeling.families import FAMILIES, family_of
from lowbit.modeling.trace import FIELDS
from lowbit.quantizers import QuantConv2d, QuantizerSpec, QuantLinear

SOURCE = Path(lowbit.__file__).parent


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


# --- one place for names --------------------------------------------------------------------------------------------


def test_only_families_know_module_names():
    """Everything else asks a family by role, or a new model would need changes in many places."""
    names = {getattr(family.names, f.name) for family in FAMILIES for f in fields(family.names)}
    names |= {path for family in FAMILIES for paths in family.model_roles.values() for path in paths}
    names |= {family.layers for family in FAMILIES} - {"layers", "blocks"}
    dotted = {name for name in names if "." in name}
    assert len(dotted) > 20
    found = {}
    for path in SOURCE.rglob("*.py"):
        words = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)}
        known = {word for word in words if isinstance(word, str) and word in dotted}
        if known and path.parent.name != "families":
            found[str(path)] = known
    assert found == {}


# --- RoBERTa --------------------------------------------------------------------------------------------------------


def roberta(seed: int = 0, **changes: object) -> nn.Module:
    settings = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings |= {"intermediate_size": 24, "max_position_embeddings": 14, "type_vocab_size": 1, "num_labels": 3}
    torch.manual_seed(seed)
    return RobertaForSequenceClassification(RobertaConfig(**settings | changes)).eval()


@pytest.mark.parametrize("rows", [1, 2])
def test_roberta_reads_token_types_if_it_has_two(rows: int):
    """One row of embeddings leaves nothing to tell apart: BERT's second type would be out of range."""
    model = roberta(type_vocab_size=rows)
    batch = {"input_ids": torch.arange(4, 10)[None], "attention_mask": torch.ones(1, 6, dtype=torch.int64)}
    types = {"token_type_ids": torch.tensor([[0, 0, 0, 1, 1, 1]])}
    expected = model(**batch, **(types if rows == 2 else {})).logits
    assert torch.equal(family_of(model).call(model, batch | types), expected)
    assert torch.equal(expected, model(**batch).logits) == (rows == 1)


def test_roberta_is_of_the_family_of_xlm_r(w2a8):
    ids = torch.randint(4, 30, (3, 7), generator=torch.Generator().manual_seed(5))
    mask = torch.arange(7) < torch.tensor([[7], [4], [5]])
    batch = {"input_ids": ids.where(mask, 1), "attention_mask": mask.long()}
    model = roberta()
    model.set_attn_implementation("eager")
    expected = model(**batch, output_hidden_states=True)
    instrument = prepare(model)
    trace = instrument.run(batch, FIELDS)
    assert torch.equal(trace.logits, expected.logits)
    assert all(torch.equal(a.hidden, b) for a, b in zip(trace.layers, expected.hidden_states[1:], strict=True))
    instrument.restore()
    prepare(model, w2a8())
    assert type(model.classifier.dense) is QuantLinear
    assert type(model.classifier.out_proj) is nn.Linear


def test_token_types_of_another_tokenizer_do_not_reach_a_model_of_one_type():
    instrument = prepare(roberta())
    ids = torch.tensor([[5, 6, 7]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = instrument.run(batch).logits
    assert torch.equal(instrument.run({**batch, "token_type_ids": torch.ones_like(ids)}).logits, expected)


def test_positions_do_not_depend_on_padding(xlmr_zoo):
    """RoBERTa counts positions from behind the padding id: a padded sentence keeps its positions."""
    instrument, batch = prepare(xlmr_zoo.build()), xlmr_zoo.batch()
    short = {key: value[1:2, :4] for key, value in batch.items()}
    close(instrument.run(short).logits, instrument.run(batch).logits[1:2])


# --- Swin -----------------------------------------------------------------------------------------------------------

# The zoo's model; one whose images do not divide into windows; dropout off in eval mode and no bias in its projections.
VARIANTS = {
    "even": {},
    "padded": {"img_size": 12, "window_size": 4},
    "plain": {"attn_drop_rate": 0.5, "qkv_bias": False},
}


def swin(swin_zoo, variant: str, seed: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    settings = VARIANTS[variant]
    size = settings.get("img_size", 8)
    images = torch.randn(4, 1, size, size, generator=torch.Generator().manual_seed(5))
    return swin_zoo.build(seed, **settings), {"pixel_values": images}


@pytest.mark.parametrize("variant", VARIANTS)
def test_instrumented_swin_is_the_plain_model_forward_and_backward(swin_zoo, variant: str):
    plain, batch = swin(swin_zoo, variant)
    model, _ = swin(swin_zoo, variant)
    expected = plain(batch["pixel_values"])
    logits = prepare(model).run(batch, FIELDS).logits
    assert (logits - expected).abs().max() <= swin_zoo.tolerance * expected.abs().max()
    expected.square().sum().backward()
    logits.square().sum().backward()
    for (name, mine), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        scale = theirs.grad.abs().max().clamp(min=1.0)
        assert (mine.grad - theirs.grad).abs().max() <= 1e-5 * scale, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_points_of_a_window_fit_together(swin_zoo, variant: str):
    """Each point follows from the one before; attention is merged from shifted windows as timm does it."""
    model, batch = swin(swin_zoo, variant)
    trace = prepare(model).run(batch, FIELDS)
    hidden = trace.embeddings
    for (name, block), layer in zip(family_of(model).layers_of(model), trace.layers, strict=True):
        if name == "layers.1.blocks.0":  # patch merging between the stages
            side = int(hidden.shape[1] ** 0.5)
            hidden = model.layers[1].downsample(hidden.unflatten(1, (side, side))).flatten(1, 2)
        side, window, shift = int(hidden.shape[1] ** 0.5), block.window_size, block.shift_size
        padded = -(-side // window[0]) * window[0]
        inputs = block.norm1(hidden.unflatten(1, (side, side)))
        rolled = torch.roll(inputs, (-shift[0], -shift[1]), dims=(1, 2))
        rolled = nn.functional.pad(rolled, (0, 0, 0, padded - side, 0, padded - side))
        tokens = window_partition(rolled, window).flatten(1, 2)
        qkv = nn.functional.linear(tokens, block.attn.qkv.weight, block.attn.qkv.bias)
        query, key, value = qkv.unflatten(-1, (3, block.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scores = query @ key.mT * block.attn.scale + block.attn._get_rel_pos_bias()
        mask = 0.0 if block.attn_mask is None else block.attn_mask.repeat(4, 1, 1)[:, None]
        close(layer.probs, (scores + mask).softmax(-1))
        close(layer.scores, scores if block.attn_mask is None else scores.masked_fill(mask != 0, 0.0))
        close(layer.context, layer.probs @ value)
        close(layer.attn_out, block.attn.proj(layer.context.transpose(1, 2).flatten(2)))
        merged = window_reverse(layer.attn_out.unflatten(1, window), window, padded, padded)[:, :side, :side]
        attended = torch.roll(merged, shift, dims=(1, 2)).flatten(1, 2)
        close(layer.attn_block, hidden + attended)
        close(layer.hidden, layer.attn_block + layer.ffn_out)
        hidden = layer.hidden


def test_some_windows_of_the_zoo_are_shifted(swin_zoo):
    """What the tests above rely on: a layer with a mask, and one without."""
    model = swin_zoo.build()
    blocks = [block for _, block in family_of(model).layers_of(model)]
    assert [block.attn_mask is not None for block in blocks] == [False, True, False]
    assert [block.attn.num_heads for block in blocks] == [2, 2, 4]


def test_pairs_that_a_shift_separates_are_no_part_of_the_losses(swin_zoo):
    """Tokens of opposite image borders share a window but never see each other."""
    student, teacher = prepare(swin_zoo.build(seed=1)), prepare(swin_zoo.build(seed=2))
    mine, theirs = (i.run(swin_zoo.batch(), {"scores", "probs"}).layers[1] for i in (student, teacher))
    apart = student.model.layers[0].blocks[1].attn_mask.repeat(4, 1, 1)[:, None].expand_as(mine.scores) != 0
    assert 0 < apart.float().mean() < 1
    assert not mine.scores[apart].any()
    assert not theirs.scores[apart].any()
    assert mine.probs[apart].max() < 1e-6
    expected = (mine.scores - theirs.scores)[~apart].square().sum() / apart.numel()
    close(score_mse(mine.scores, theirs.scores), expected)
    assert attention_map_kl(mine.probs, theirs.probs).isfinite()


@pytest.mark.parametrize("site", ["probs", "context", "attn_out"])
def test_a_tensor_of_windows_takes_the_place_of_the_students(swin_zoo, site: str):
    """With the teacher's tensor in every layer of attention, what the attention layers hold no longer matters."""
    teacher = prepare(swin_zoo.build(seed=1)).run(swin_zoo.batch(), FIELDS)
    student = prepare(swin_zoo.build(seed=2))
    plan = Plan(Intervention(frozenset({site})), teacher)
    before = student.run(swin_zoo.batch(), plan=plan).logits
    with torch.no_grad():
        for _, block in student.family.layers_of(student.model):
            block.attn.relative_position_bias_table.normal_()
    assert torch.equal(student.run(swin_zoo.batch(), plan=plan).logits, before)
    assert not torch.allclose(student.run(swin_zoo.batch()).logits, before)


def test_patch_merging_is_a_role(swin_zoo):
    model = swin_zoo.build()
    spec = QuantizerSpec("minmax_symmetric", bits=8, clip=None, granularity="row")
    instrument = prepare(model, (Rule(("patch_merging", "patch_embed"), weight=spec),))
    assert instrument.resolved.report == [
        "patch_merging: 1 linear: weight 8b minmax_symmetric/row",
        "patch_embed: 1 conv2d: weight 8b minmax_symmetric/row",
    ]
    assert type(model.layers[1].downsample.reduction) is QuantLinear
    assert type(model.patch_embed.proj) is QuantConv2d


def test_other_window_attention_is_refused(swin_zoo):
    model = swin_zoo.build()
    attention = model.layers[0].blocks[1].attn
    attention.__class__ = type("WindowAttentionV2", (type(attention),), {})
    with pytest.raises(ValueError, match="'WindowAttentionV2' is not supported: allowed is the plain timm WindowAtt"):
        prepare(model)
