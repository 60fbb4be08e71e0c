"""Layer reduction, half width and ternary weight splitting: what is copied, what is computed, what is left alone."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lowbit.modeling import Intervention, Plan, Rule, prepare
from lowbit.modeling.families import LAYER_ROLES, family_of
from lowbit.modeling.sizes import model_size
from lowbit.modeling.surgery import (
    SplitEmbedding,
    SplitLinear,
    narrow,
    reduce_layers,
    split_quantizer_state,
    split_ternary,
)
from lowbit.modeling.trace import FIELDS, LAYER_FIELDS
from lowbit.quantizers import QuantizerSpec, calibrate

DEPTH, WIDTH, HEADS, NEURONS = 3, 16, 2, 24


def rules(weight: str, input: QuantizerSpec | None = None) -> tuple[Rule, ...]:
    """BinaryBERT's: per tensor, the word embedding per row; no activation quantization by default."""
    return (
        Rule(LAYER_ROLES, weight=QuantizerSpec(weight), input=input),
        Rule(("pooler",), weight=QuantizerSpec(weight), input=input, required=False),
        Rule(("word_embedding",), weight=QuantizerSpec(weight, granularity="row"), required=False),
        *([] if input is None else [Rule(("attention",), bmm=input)]),
    )


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[key], second[key]) for key in first)


def layer_state(model: nn.Module, index: int) -> dict[str, Tensor]:
    return snapshot(family_of(model).layers_of(model)[index][1])


def wide(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}


@pytest.fixture
def zoo(uniform_zoo):
    """The families that can be cut; Swin has its own section at the end."""
    return uniform_zoo


@pytest.fixture(
    params=[
        lambda model: reduce_layers(model, [2, 0]),
        narrow,
        split_ternary,
        lambda model: split_ternary(narrow(reduce_layers(model, [1]))),
    ],
    ids=["reduce", "narrow", "split", "all"],
)
def operation(request: pytest.FixtureRequest) -> Callable[[nn.Module], nn.Module]:
    """Every operation in turn."""
    return request.param


# --- every operation ------------------------------------------------------------------------------------------------


def test_the_teacher_is_untouched_and_shares_nothing(zoo, operation):
    teacher, batch = zoo.eager(zoo.build()), zoo.batch()
    before, logits, config = snapshot(teacher), zoo.logits(teacher, batch), copy.deepcopy(vars(teacher).get("config"))
    student = operation(teacher)
    student.train()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert same(snapshot(teacher), before)
    assert torch.equal(zoo.logits(teacher, batch), logits)
    assert not any(module.training for module in teacher.modules())
    if config is not None:
        assert teacher.config.to_dict() == config.to_dict()


def test_students_run_plainly_instrumented_and_restored(zoo, operation, w2a8):
    student = operation(zoo.eager(zoo.build()))
    batch, state, depth = zoo.batch(), snapshot(student), len(family_of(student).layers_of(student))
    plain = zoo.logits(student, batch)
    instrument = prepare(student)
    trace = instrument.run(batch, FIELDS)
    torch.testing.assert_close(trace.logits, plain, rtol=1e-5, atol=1e-5)
    assert len(trace.layers) == depth
    assert all(getattr(layer, field) is not None for layer in trace.layers for field in LAYER_FIELDS)
    instrument.restore()
    quantized = prepare(student, w2a8())
    assert (quantized.run(batch, FIELDS).logits - plain).abs().max() > 1e-3
    quantized.restore()
    assert same(snapshot(student), state)
    torch.testing.assert_close(zoo.logits(student, batch), plain, rtol=1e-6, atol=1e-6)


def test_a_checkpoint_loads_into_a_model_rebuilt_by_the_same_operation(zoo, operation, tmp_path):
    first, second = operation(zoo.build(seed=1)), operation(zoo.build(seed=2))
    torch.save(first.state_dict(), tmp_path / "student.pt")
    second.load_state_dict(torch.load(tmp_path / "student.pt", weights_only=True), strict=True)
    assert torch.equal(zoo.logits(second, zoo.batch()), zoo.logits(first, zoo.batch()))


def test_modes_and_frozen_parameters_are_kept(zoo, operation):
    model = zoo.build().requires_grad_(False).train()
    student = operation(model)
    assert all(module.training for module in student.modules())
    assert not any(parameter.requires_grad for parameter in student.parameters())


def test_instrumented_models_are_refused(zoo, operation):
    instrument = prepare(zoo.build())
    with pytest.raises(ValueError, match=r"is instrumented: call restore\(\)"):
        operation(instrument.model)


# --- layer reduction ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [[1], [0, 2], [2, 0], [0, 1, 2], [1, 1], [2, 2, 0, 1]])
def test_student_layer_i_is_teacher_layer_layers_i(zoo, layers: list[int]):
    teacher = zoo.build()
    student = reduce_layers(teacher, layers)
    assert len(family_of(student).layers_of(student)) == len(layers)
    for index, source in enumerate(layers):
        assert same(layer_state(student, index), layer_state(teacher, source))
    prefix = f"{family_of(teacher).layers}."
    others = {key: value for key, value in teacher.state_dict().items() if not key.startswith(prefix)}
    assert same({key: value for key, value in student.state_dict().items() if not key.startswith(prefix)}, others)


def test_every_second_layer_as_published(bert_zoo):
    teacher = bert_zoo.build(num_hidden_layers=6)
    student = reduce_layers(teacher, [1, 3, 5])
    assert list(student.state_dict()) == list(bert_zoo.build(num_hidden_layers=3).state_dict())
    assert student.config.num_hidden_layers == student.bert.config.num_hidden_layers == 3
    assert [layer.attention.self.layer_idx for layer in student.bert.encoder.layer] == [0, 1, 2]
    for index, source in enumerate([1, 3, 5]):
        assert same(layer_state(student, index), layer_state(teacher, source))


def test_forward_composes_the_selected_layers(zoo):
    """The student's hidden states are what the teacher's layers, called one after another, make of the embeddings."""
    teacher, layers = zoo.build(), [2, 0]
    family = family_of(teacher)
    trace = prepare(reduce_layers(teacher, layers)).run(zoo.batch(), {"hidden", "embeddings"})
    mask = zoo.batch().get("attention_mask")
    additive = None if mask is None else (1 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
    hidden = trace.embeddings
    for index, source in enumerate(layers):
        layer = family.layers_of(zoo.eager(teacher))[source][1]
        output = layer(hidden) if additive is None else layer(hidden, additive)
        hidden = output[0] if isinstance(output, tuple) else output
        torch.testing.assert_close(trace.layers[index].hidden, hidden, rtol=1e-5, atol=1e-5)


def test_a_repeated_layer_has_parameters_of_its_own_and_the_attention_of_all(zoo):
    student = reduce_layers(zoo.build(), [1, 1])
    first, second = (dict(layer.named_parameters()) for _, layer in family_of(student).layers_of(student))
    assert all(first[name] is not second[name] for name in first)
    if zoo.is_hf:
        configs = {id(module.config) for module in student.modules() if hasattr(module, "config")}
        assert len(configs) == 1
    assert prepare(student).run(zoo.batch(), {"scores"}).layers[1].scores is not None


def test_timm_knows_its_new_depth(timm_zoo):
    student = reduce_layers(timm_zoo.build(), [0, 2])
    assert [entry["module"] for entry in student.feature_info] == ["blocks.0", "blocks.1"]


@pytest.mark.parametrize("layers", [[], [3], [-1], [0, 7]])
def test_layers_that_the_teacher_lacks_are_refused(zoo, layers: list[int]):
    with pytest.raises(ValueError, match=r"name one layer or more, each from 0 to 2"):
        reduce_layers(zoo.build(), layers)


# --- half width -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["largest", "first"])
def test_a_share_of_one_changes_nothing(zoo, keep: str):
    model = zoo.build()
    assert same(snapshot(narrow(model, 1.0, keep)), snapshot(model))


def test_shapes_of_half_width(zoo):
    student = narrow(zoo.build())
    family = family_of(student)
    rows = WIDTH // 2 * (3 if family.fused_qkv else 1)
    wanted = {"attn_out": (WIDTH, WIDTH // 2), "ffn_in": (NEURONS // 2, WIDTH), "ffn_out": (WIDTH, NEURONS // 2)}
    for name, layer in family.layers_of(student):
        assert family.heads_of(layer) == (HEADS // 2, WIDTH // HEADS)
        for role in LAYER_ROLES:
            module = student.get_submodule(f"{name}.{getattr(family.names, role)}")
            assert tuple(module.weight.shape) == wanted.get(role, (rows, WIDTH))
            assert (module.out_features, module.in_features) == tuple(module.weight.shape)
            assert module.bias.shape[0] == module.out_features


@pytest.mark.parametrize("idle_head", [0, 1])
def test_idle_heads_and_neurons_can_be_removed_without_effect(zoo, idle_head: int):
    """Heads and neurons with no outgoing weight are the ones to go, and nothing changes but rounding."""
    model, head = zoo.build().double(), WIDTH // HEADS
    with torch.no_grad():
        for layer in range(DEPTH):
            zoo.weight(model, layer, "attn_out")[0][:, idle_head * head : (idle_head + 1) * head] = 0
            zoo.weight(model, layer, "ffn_out")[0][:, idle_head::2] = 0
    batch = wide(zoo.batch())
    student = narrow(model)
    torch.testing.assert_close(zoo.logits(student, batch), zoo.logits(model, batch), rtol=1e-10, atol=1e-10)
    kept = zoo.weight(student, 1, "ffn_in")[0]
    assert torch.equal(kept, zoo.weight(model, 1, "ffn_in")[0][1 - idle_head :: 2])  # in their order


def test_first_keeps_the_first(bert_zoo):
    model = bert_zoo.build()
    student, head = narrow(model, keep="first"), WIDTH // HEADS
    for role in ("query", "key", "value"):
        assert torch.equal(bert_zoo.weight(student, 1, role)[0], bert_zoo.weight(model, 1, role)[0][:head])
    assert torch.equal(bert_zoo.weight(student, 1, "attn_out")[0], bert_zoo.weight(model, 1, "attn_out")[0][:, :head])
    assert torch.equal(bert_zoo.weight(student, 1, "ffn_in")[0], bert_zoo.weight(model, 1, "ffn_in")[0][:12])


def test_traces_of_a_narrow_model_have_fewer_heads_at_the_same_scale(zoo):
    model = zoo.build()
    full = prepare(model).run(zoo.batch(), {"scores", "context"}).layers[0]
    half = prepare(narrow(zoo.build(), keep="first")).run(zoo.batch(), {"scores", "context"}).layers[0]
    assert half.context.shape[1] == 1
    torch.testing.assert_close(half.scores, full.scores[:, :1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(half.context, full.context[:, :1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("share", [0.01, 0.49])
def test_at_least_one_head_stays(zoo, share: float):
    student = narrow(zoo.build(), share)
    family = family_of(student)
    assert family.heads_of(family.layers_of(student)[0][1])[0] == 1


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_impossible_shares_are_refused(timm_zoo, share: float):
    with pytest.raises(ValueError, match="must be greater than 0 and at most 1"):
        narrow(timm_zoo.build(), share)
    with pytest.raises(ValueError, match="keep='last': allowed are 'largest' and 'first'"):
        narrow(timm_zoo.build(), keep="last")  # type: ignore[arg-type]


def test_query_and_key_norms_are_shared_by_heads_and_stay(timm_zoo):
    student = narrow(timm_zoo.build(qk_norm=True))
    assert student(timm_zoo.batch()["pixel_values"]).isfinite().all()


@pytest.mark.parametrize("settings", [{"scale_attn_norm": True}, {"scale_mlp_norm": True}])
def test_layers_with_other_parts_of_that_width_are_refused(timm_zoo, settings: dict[str, object]):
    with pytest.raises(ValueError, match=r"layer 'blocks\.0' cannot be narrowed: (attn|mlp)\.norm\.weight of shape"):
        narrow(timm_zoo.build(**settings))


# --- ternary weight splitting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("activations", [None, QuantizerSpec("minmax_symmetric", bits=8, granularity="token")])
def test_the_binary_model_computes_what_the_ternary_one_does(zoo, activations: QuantizerSpec | None):
    half, batch = narrow(zoo.build().double()), wide(zoo.batch())
    instrument = prepare(half, rules("twn", activations))
    ternary = instrument.run(batch, FIELDS)
    instrument.restore()
    split = split_ternary(half)
    binary = prepare(split, rules("bwn", activations)).run(batch, FIELDS)
    torch.testing.assert_close(binary.logits, ternary.logits, rtol=1e-10, atol=1e-10)
    for mine, wanted in zip(binary.layers, ternary.layers, strict=True):
        for field in LAYER_FIELDS:
            torch.testing.assert_close(getattr(mine, field), getattr(wanted, field), rtol=1e-10, atol=1e-10)
    assert (ternary.logits - zoo.logits(half, batch)).abs().max() > 1e-3  # quantization does something


def test_in_float32_the_models_agree_to_rounding(zoo):
    half = narrow(zoo.build())
    ternary = prepare(half, rules("twn"))
    expected = ternary.run(zoo.batch()).logits
    split = split_ternary(ternary.restore())
    assert {parameter.dtype for parameter in split.parameters()} == {torch.float32}
    torch.testing.assert_close(prepare(split, rules("bwn")).run(zoo.batch()).logits, expected, rtol=1e-4, atol=1e-4)


def test_unquantized_the_split_model_is_the_model(zoo):
    model, batch = zoo.build().double(), wide(zoo.batch())
    torch.testing.assert_close(
        zoo.logits(split_ternary(model), batch), zoo.logits(model, batch), rtol=1e-10, atol=1e-10
    )


def test_what_is_split_and_what_is_copied(bert_zoo):
    model = bert_zoo.build()
    split = split_ternary(model)
    kinds = [type(module) for module in split.modules()]
    assert kinds.count(SplitLinear) == 6 * DEPTH + 1
    assert kinds.count(SplitEmbedding) == 1
    state, before = split.state_dict(), model.state_dict()
    assert all(torch.equal(state[key], before[key]) for key in state.keys() & before.keys())
    gone = {key.rpartition(".")[0] for key in before.keys() - state.keys()}
    assert gone == {name for name, module in split.named_modules() if isinstance(module, SplitLinear | SplitEmbedding)}
    for name in gone - {"bert.embeddings.word_embeddings"}:
        for half in ("first", "second"):
            assert torch.equal(state[f"{name}.{half}.bias"], before[f"{name}.bias"] / 2)
    assert split.bert.embeddings.word_embeddings.first.padding_idx == 0
    assert not {"classifier.weight", "bert.embeddings.position_embeddings.weight"} - state.keys()


def test_rules_address_both_halves(zoo):
    split = split_ternary(zoo.build())
    roles = family_of(split).role_names(split)
    for role in LAYER_ROLES:
        assert len(roles[role]) == 2 * DEPTH
        assert [name.rpartition(".")[2] for name in roles[role]] == ["first", "second"] * DEPTH
    assert len(roles["attention"]) == DEPTH
    instrument = prepare(split, rules("bwn"))
    names = {name for name, _ in instrument.resolved.slots}
    assert {name.rpartition(".")[2] for name in names} == {"first", "second"}
    assert "linear" in " ".join(instrument.resolved.report)


def test_both_halves_train(zoo):
    split = split_ternary(narrow(zoo.build())).train()
    prepare(split, rules("bwn")).run(zoo.batch()).logits.square().sum().backward()
    gradients = {key: p.grad for key, p in split.named_parameters() if ".first." in key or ".second." in key}
    assert gradients
    assert all(gradient is not None and gradient.any() for key, gradient in gradients.items() if "key" not in key)


@pytest.mark.parametrize("site", ["probs", "attn_out", "ffn_out", "hidden"])
def test_interventions_replace_whole_projections(hf_zoo, site: str):
    model = hf_zoo.build()
    teacher = prepare(hf_zoo.build(seed=4)).run(hf_zoo.batch(), FIELDS)
    plan = Plan(Intervention(frozenset({site})), teacher)
    expected = prepare(model).run(hf_zoo.batch(), FIELDS, plan)
    actual = prepare(split_ternary(hf_zoo.build())).run(hf_zoo.batch(), FIELDS, plan)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-4, atol=1e-4)


def test_a_stopped_gradient_reaches_neither_half(hf_zoo):
    split = split_ternary(hf_zoo.build())
    teacher = prepare(hf_zoo.build(seed=4)).run(hf_zoo.batch(), {"probs"})
    plan = Plan(Intervention(frozenset({"probs"})), teacher)
    seen = []
    query = split.get_submodule(family_of(split).role_names(split)["query"][0].removesuffix(".first"))
    instrument = prepare(split, rules("bwn"))
    query.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].requires_grad))
    instrument.run(hf_zoo.batch(), (), plan)
    assert seen == [False]


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize(
    ("site", "stopped"), [("probs", ("query", "key")), ("context", ("query", "key", "value")), ("ffn_out", ())]
)
def test_a_stopped_gradient_of_a_split_fused_qkv_reaches_what_it_reaches_unsplit(
    timm_zoo, site: str, stopped: tuple[str, ...], quantized: bool
):
    """The input gets no gradient through the stopped blocks of either half; the weights of all blocks get theirs."""
    teacher = prepare(timm_zoo.build(seed=4)).run(timm_zoo.batch(), {site})
    plan = Plan(Intervention(frozenset({site}), layers=frozenset({1})), teacher)
    split = split_ternary(timm_zoo.build())
    trace = prepare(split, rules("bwn") if quantized else ()).run(timm_zoo.batch(), {"scores", "context"}, plan)
    halves = [split.get_parameter(f"blocks.1.attn.qkv.{half}.weight") for half in ("first", "second")]
    below = split.get_parameter("blocks.0.mlp.fc2.first.weight")
    reached = {}
    for field, roles in (("scores", ("query", "key")), ("context", ("value",))):
        grads = torch.autograd.grad(
            getattr(trace.layers[1], field).square().sum(), (*halves, below), retain_graph=True, allow_unused=True
        )
        reached[field] = grads[2] is not None and bool(grads[2].any())
        for grad in grads[:2]:
            rows = dict(zip(("query", "key", "value"), grad.chunk(3), strict=True))
            assert all(rows[role].any() for role in roles)
    # Under `probs` the context is the teacher's map times the student's values, which keep their gradient.
    assert reached == {"scores": "query" not in stopped, "context": "value" not in stopped}


@pytest.mark.parametrize("site", ["probs", "context"])
def test_interventions_on_a_split_fused_qkv_compute_what_they_do_unsplit(timm_zoo, site: str):
    teacher = prepare(timm_zoo.build(seed=4)).run(timm_zoo.batch(), {site})
    plan = Plan(Intervention(frozenset({site})), teacher)
    expected = prepare(timm_zoo.build()).run(timm_zoo.batch(), {"scores"}, plan)
    trace = prepare(split_ternary(timm_zoo.build())).run(timm_zoo.batch(), {"scores"}, plan)
    torch.testing.assert_close(trace.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(trace.layers[1].scores, expected.layers[1].scores, rtol=1e-4, atol=1e-4)


def test_size_of_the_layers_is_that_of_a_full_width_binary_model(bert_zoo):
    """Half and half: as many weights; twice the scales, and the biases of the three full-width outputs twice."""
    full, split = bert_zoo.build(), split_ternary(narrow(bert_zoo.build()))
    sizes = {}
    for name, model in (("full", full), ("split", split)):
        sizes[name] = model_size(prepare(model, rules("bwn")), "bert.encoder.")
        assert sizes[name].bits == "1-1-32"
    assert sizes["split"].float_bytes - sizes["full"].float_bytes == 4 * DEPTH * 2 * WIDTH
    assert sizes["split"].simulated_bytes - sizes["full"].simulated_bytes == 4 * DEPTH * (2 * WIDTH + 6)


def test_roles_can_be_left_whole(bert_zoo):
    split = split_ternary(bert_zoo.build(), {"ffn_in": "row"})
    assert {name.rpartition(".layer.")[2][2:] for name, m in split.named_modules() if isinstance(m, SplitLinear)} == {
        "intermediate.dense"
    }
    weight, expected = QuantizerSpec("twn", granularity="row"), QuantizerSpec("bwn", granularity="row")
    ternary = prepare(bert_zoo.build(), (Rule(("ffn_in",), weight=weight),)).run(bert_zoo.batch()).logits
    binary = prepare(split, (Rule(("ffn_in",), weight=expected),)).run(bert_zoo.batch()).logits
    torch.testing.assert_close(binary, ternary, rtol=1e-4, atol=1e-4)


def test_roles_that_cannot_be_split_are_refused(bert_zoo, timm_zoo):
    for role in ("attention", "querry"):
        with pytest.raises(ValueError, match=f"role '{role}' cannot be split"):
            split_ternary(bert_zoo.build(), {role: "tensor"})
    with pytest.raises(ValueError, match="is a Conv2d: only Linear and Embedding"):
        split_ternary(timm_zoo.build(), {"patch_embed": "tensor"})
    with pytest.raises(ValueError, match="has one qkv: split query, key and value, or none"):
        split_ternary(timm_zoo.build(), {"query": "tensor"})


def test_a_split_model_is_not_split_or_narrowed_again(zoo):
    split = split_ternary(zoo.build())
    for again in (split_ternary, narrow):
        with pytest.raises(ValueError, match="is split already"):
            again(split)


def test_learned_input_quantizers_pass_to_both_halves(hf_zoo):
    half, batch = narrow(hf_zoo.build().double()), wide(hf_zoo.batch())
    learned = QuantizerSpec("lsq", bits=8)
    ternary = prepare(half, rules("twn", learned))
    calibrate(half, [batch], ternary.run)
    expected, state = ternary.run(batch).logits, ternary.quantizer_state()
    split = split_ternary(ternary.restore())
    passed = split_quantizer_state(split, state)
    binary = prepare(split, rules("bwn", learned))
    binary.load_quantizer_state(passed)
    torch.testing.assert_close(binary.run(batch).logits, expected, rtol=1e-10, atol=1e-10)


# --- Swin -----------------------------------------------------------------------------------------------------------


def test_models_of_stages_are_neither_reduced_nor_narrowed_and_left_as_they_were(swin_zoo):
    model = swin_zoo.build()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"timm_swin has stages of \[2, 1\] layers.*method\.layer_map"):
        reduce_layers(model, [0, 2])
    with pytest.raises(ValueError, match=r"timm_swin has stages of \[2, 1\] layers.*heads cannot be removed"):
        narrow(model)
    assert same(snapshot(model), before)


@pytest.mark.parametrize("activations", [None, QuantizerSpec("minmax_symmetric", bits=8, granularity="token")])
def test_ternary_weights_of_swin_are_split_exactly(swin_zoo, activations: QuantizerSpec | None):
    model, batch = swin_zoo.build().double(), wide(swin_zoo.batch())
    instrument = prepare(model, rules("twn", activations))
    ternary = instrument.run(batch, FIELDS)
    binary = prepare(split_ternary(instrument.restore()), rules("bwn", activations)).run(batch, FIELDS)
    torch.testing.assert_close(binary.logits, ternary.logits, rtol=1e-10, atol=1e-10)
    for mine, wanted in zip(binary.layers, ternary.layers, strict=True):
        torch.testing.assert_close(mine.hidden, wanted.hidden, rtol=1e-10, atol=1e-10)
