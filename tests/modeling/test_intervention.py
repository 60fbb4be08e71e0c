"""Teacher intervention: what the student computes with, and what no longer matters."""

import pytest
import torch

from lowbit.modeling import SITES, Instrument, Intervention, Plan, Trace, prepare
from lowbit.modeling.trace import FIELDS

MODES = {"TI-O": "attn_out", "TI-C": "context", "TI-M": "probs"}
UNUSED = {
    "TI-O": ("query", "key", "value", "attn_out"),
    "TI-C": ("query", "key", "value"),
    "TI-M": ("query", "key"),
}
STILL_USED = {"TI-O": ("ffn_in",), "TI-C": ("attn_out",), "TI-M": ("value",)}
ROLES = ("query", "key", "value", "attn_out", "ffn_in", "ffn_out")


def plan(teacher: Trace, *sites: str, **settings: object) -> Plan:
    return Plan(Intervention(frozenset(sites), **settings), teacher)


@torch.no_grad()
def teacher_of(zoo) -> Trace:
    return prepare(zoo.build(seed=1)).run(zoo.batch(), FIELDS)


def student_of(zoo, rules=()) -> Instrument:
    return prepare(zoo.build(seed=2), rules)


# --- identities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_the_logits_do_not_depend_on_weights_before_the_replaced_tensor(zoo, w2a8, mode: str, quantized: bool):
    teacher, student = teacher_of(zoo), student_of(zoo, w2a8() if quantized else ())
    intervened = plan(teacher, MODES[mode])
    before = student.run(zoo.batch(), plan=intervened).logits
    plain = student.run(zoo.batch()).logits
    assert (before - plain).abs().max() > 1e-3
    torch.manual_seed(0)
    for role in UNUSED[mode]:
        zoo.perturb(student.model, (role,))
        assert torch.equal(student.run(zoo.batch(), plan=intervened).logits, before), role
    assert (student.run(zoo.batch()).logits - plain).abs().max() > 1e-3
    zoo.perturb(student.model, STILL_USED[mode])
    assert (student.run(zoo.batch(), plan=intervened).logits - before).abs().max() > 1e-3


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("site", SITES)
def test_the_students_own_tensors_change_nothing(zoo, w2a8, site: str, quantized: bool):
    student = student_of(zoo, w2a8() if quantized else ())
    own = student.run(zoo.batch(), FIELDS)
    again = student.run(zoo.batch(), FIELDS, plan(own, site))
    assert torch.equal(again.logits, own.logits)
    assert torch.equal(again.layers[-1].hidden, own.layers[-1].hidden)


@pytest.mark.parametrize("site", SITES)
def test_a_student_with_the_teachers_weights_reproduces_its_logits(zoo, site: str):
    teacher = teacher_of(zoo)
    student = prepare(zoo.build(seed=1))
    zoo.perturb(
        student.model, {"attn_out": UNUSED["TI-O"], "context": UNUSED["TI-C"], "probs": UNUSED["TI-M"]}.get(site, ())
    )
    assert torch.equal(student.run(zoo.batch(), plan=plan(teacher, site)).logits, teacher.logits)


def test_the_last_hidden_state_decides_the_logits(zoo):
    teacher, student = teacher_of(zoo), prepare(zoo.build(seed=1))
    zoo.perturb(student.model, ROLES)
    last = frozenset({2})
    assert torch.equal(student.run(zoo.batch(), plan=plan(teacher, "hidden", layers=last)).logits, teacher.logits)
    assert not torch.allclose(student.run(zoo.batch()).logits, teacher.logits)


def test_the_plan_ends_with_its_forward_pass(zoo):
    """Regression test for defect 6 of the published code: flags left in a shared config."""
    teacher, student = teacher_of(zoo), student_of(zoo)
    plain = student.run(zoo.batch()).logits
    student.run(zoo.batch(), plan=plan(teacher, "attn_out"))
    assert torch.equal(student.run(zoo.batch()).logits, plain)


def test_dropout_acts_on_the_injected_map(bert_zoo):
    teacher = teacher_of(bert_zoo)
    student = prepare(bert_zoo.build(seed=2, attention_probs_dropout_prob=0.5))
    still = student.run(bert_zoo.batch(), ("context",), plan(teacher, "probs")).layers[0].context
    student.model.train()
    assert not torch.allclose(
        student.run(bert_zoo.batch(), ("context",), plan(teacher, "probs")).layers[0].context, still
    )


def test_quantizers_act_on_injected_tensors(bert_zoo, w2a8):
    """TI-C: the input quantizer of the output projection sees the teacher's context."""
    teacher, student = teacher_of(bert_zoo), student_of(bert_zoo, w2a8())
    dense = student.model.bert.encoder.layer[0].attention.output.dense
    layer = student.run(bert_zoo.batch(), ("attn_out",), plan(teacher, "context")).layers[0]
    merged = teacher.layers[0].context.transpose(1, 2).flatten(2)
    expected = dense.input_quantizer(merged) @ dense.weight_quantizer(dense.weight).T + dense.bias
    torch.testing.assert_close(layer.attn_out, expected, rtol=1e-5, atol=1e-5)


# --- settings -------------------------------------------------------------------------------------------------------


def test_every_site_has_its_own_mix(hf_zoo):
    teacher, student = teacher_of(hf_zoo), student_of(hf_zoo)
    settings = {"attn_out": 0.25, "hidden": 0.0}
    trace = student.run(hf_zoo.batch(), FIELDS, plan(teacher, *settings, site_mix=settings))
    expected = student.run(hf_zoo.batch(), FIELDS, plan(teacher, "attn_out", mix=0.25))
    assert torch.equal(trace.logits, expected.logits)


@pytest.mark.parametrize("site", SITES)
def test_a_mix_of_0_is_the_plain_student(zoo, site: str):
    """Gradients included: a site that has faded out stops none."""
    teacher, student = teacher_of(zoo), student_of(zoo)
    results = []
    for given in (None, plan(teacher, site, mix=0.0)):
        student.model.zero_grad()
        trace = student.run(zoo.batch(), ("scores",), given)
        (trace.logits.sum() + trace.layers[-1].scores.clamp_min(-1e2).sum()).backward()
        grads = {name: p.grad.clone() for name, p in student.model.named_parameters() if p.grad is not None}
        results.append((trace.logits, grads))
    (plain, grads), (mixed, mixed_grads) = results
    assert torch.equal(mixed, plain)
    assert mixed_grads.keys() == grads.keys()
    assert all(torch.equal(mixed_grads[name], grad) for name, grad in grads.items())


@pytest.mark.parametrize("mix", [0.5, 0.25])
def test_mix_computes_with_part_of_both(hf_zoo, mix: float):
    teacher, student = teacher_of(hf_zoo), student_of(hf_zoo)
    trace = student.run(hf_zoo.batch(), FIELDS, plan(teacher, "attn_out", mix=mix))
    own, theirs = trace.layers[0].attn_out, teacher.layers[0].attn_out
    block = trace.embeddings + (1 - mix) * own + mix * theirs
    if hf_zoo.name != "hf_vit":
        block = student.model.get_submodule(f"{hf_zoo.layers[0]}.attention.output.LayerNorm")(block)
    torch.testing.assert_close(trace.layers[0].attn_block, block, rtol=1e-5, atol=1e-5)


def test_mix_keeps_the_students_gradient(zoo):
    teacher, student = teacher_of(zoo), student_of(zoo)
    intervened = plan(teacher, "attn_out", mix=0.5, stop_gradient=False)
    student.run(zoo.batch(), plan=intervened).logits.square().sum().backward()
    parameter, rows = zoo.weight(student.model, 1, "value")
    assert parameter.grad[rows].any()


def test_only_the_layers_named_are_intervened(zoo):
    teacher, student = teacher_of(zoo), student_of(zoo)
    plain = student.run(zoo.batch(), FIELDS)
    trace = student.run(zoo.batch(), FIELDS, plan(teacher, "attn_out", layers=frozenset({1})))
    assert torch.equal(trace.layers[0].hidden, plain.layers[0].hidden)
    assert torch.equal(trace.layers[1].attn_out, plain.layers[1].attn_out)
    assert not torch.allclose(trace.layers[1].attn_block, plain.layers[1].attn_block)
    everywhere = student.run(zoo.batch(), plan=plan(teacher, "attn_out"))
    assert not torch.allclose(everywhere.logits, trace.logits)


def test_several_sites_at_once(zoo):
    teacher, student = teacher_of(zoo), student_of(zoo)
    both = student.run(zoo.batch(), plan=plan(teacher, "probs", "ffn_out")).logits
    one = [student.run(zoo.batch(), plan=plan(teacher, site)).logits for site in ("probs", "ffn_out")]
    assert not torch.allclose(both, one[0])
    assert not torch.allclose(both, one[1])


def test_the_teacher_gets_no_gradient(zoo):
    teacher = prepare(zoo.build(seed=1))
    trace = teacher.run(zoo.batch(), FIELDS)  # without no_grad, on purpose
    assert trace.layers[0].attn_out.requires_grad
    student = student_of(zoo)
    student.run(zoo.batch(), plan=plan(trace, "attn_out", "hidden", mix=0.5)).logits.sum().backward()
    assert all(p.grad is None for p in teacher.model.parameters())


def test_the_teachers_tensor_takes_the_students_dtype(zoo):
    teacher = teacher_of(zoo)
    student = prepare(zoo.build(seed=2).double())
    batch = {key: v.double() if v.is_floating_point() else v for key, v in zoo.batch().items()}
    assert student.run(batch, plan=plan(teacher, "probs", "hidden")).logits.dtype == torch.float64


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", SITES)
def test_missing_teacher_tensors_are_named(bert_zoo, site: str):
    """Regression test for defect 5 of the published code: TI-C and TI-M fell back silently."""
    trace = prepare(bert_zoo.build()).run(bert_zoo.batch(), FIELDS - {site})
    with pytest.raises(ValueError, match=f"intervention on '{site}' needs the teacher's '{site}' of layer 0.*add it"):
        plan(trace, site)


def test_a_trace_without_layers_is_refused(bert_zoo):
    with pytest.raises(ValueError, match="its trace has no layers"):
        plan(Trace(torch.zeros(1, 2)), "probs")


def test_a_teacher_of_fewer_layers_is_refused(bert_zoo):
    shallow = prepare(bert_zoo.build(num_hidden_layers=2)).run(bert_zoo.batch(), FIELDS)
    with pytest.raises(ValueError, match=r"'probs', layer 2: the teacher's trace has 2 layers.*layer_map"):
        student_of(bert_zoo).run(bert_zoo.batch(), plan=plan(shallow, "probs"))
    mapped = plan(shallow.select([0, 1, 1]), "probs")
    assert torch.isfinite(student_of(bert_zoo).run(bert_zoo.batch(), plan=mapped).logits).all()


def test_only_the_layers_that_are_intervened_are_needed(bert_zoo):
    teacher = teacher_of(bert_zoo)
    layers = (teacher.layers[0], prepare(bert_zoo.build()).run(bert_zoo.batch()).layers[1], teacher.layers[2])
    partial = Trace(teacher.logits, layers)
    plan(partial, "probs", layers=frozenset({0, 2}))
    with pytest.raises(ValueError, match="layer 1"):
        plan(partial, "probs", layers=frozenset({0, 1}))


def test_shapes_that_differ_are_refused(bert_zoo):
    teacher = prepare(bert_zoo.build(seed=1, num_attention_heads=4)).run(bert_zoo.batch(), FIELDS)
    student = student_of(bert_zoo)
    with pytest.raises(ValueError, match=r"'probs', layer 0: teacher \(3, 4, 7, 7\) and student \(3, 2, 7, 7\) differ"):
        student.run(bert_zoo.batch(), plan=plan(teacher, "probs"))
    student.run(bert_zoo.batch(), plan=plan(teacher, "attn_out"))  # where they agree it works


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sites": frozenset({"scores"})}, "intervention site 'scores': allowed are probs, context, attn_out, ffn_out"),
        ({"sites": frozenset({"probs"}), "mix": -0.5}, r"mix=-0\.5: allowed is a number from 0 to 1"),
        ({"sites": frozenset({"probs"}), "mix": 1.5}, r"mix=1\.5"),
        ({"sites": frozenset({"probs"}), "site_mix": {"probs": 2.0}}, r"mix=2\.0"),
        ({"sites": frozenset({"probs"}), "site_mix": {"hidden": 1.0}}, "site_mix names 'hidden', the sites are probs"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Intervention(**settings)
