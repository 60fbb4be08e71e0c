"""Where the published losses send gradients under each mode (specification of Teacher Intervention, section 6)."""

import pytest
import torch
from torch import Tensor

from lowbit.losses import score_mse
from lowbit.modeling import Instrument, Intervention, Plan, Rule, Trace, prepare
from lowbit.modeling.trace import FIELDS
from lowbit.quantizers import QuantizerSpec
from tests.helpers.losses import loss_of

SITES = {"none": None, "TI-O": "attn_out", "TI-C": "context", "TI-M": "probs"}
LOSSES = ("logits", "hidden", "scores", "attn_block")
ROLES = ("query", "key", "value", "attn_out", "norm", "ffn_in", "ffn_out")
UNREACHED = {"none": (), "TI-O": ("value", "attn_out"), "TI-C": ("value",), "TI-M": ()}
Grads = dict[str, Tensor | None]


@torch.no_grad()
def teacher_of(zoo) -> Trace:
    return prepare(zoo.build(seed=1)).run(zoo.batch(), FIELDS)


def backward(zoo, rules: tuple, mode: str, losses: tuple[str, ...], **settings: object) -> tuple[Instrument, Grads]:
    """Return the student, and the gradient of every role's rows in layer 1."""
    teacher = teacher_of(zoo)
    student = prepare(zoo.build(seed=2).train(), rules)
    site = SITES[mode]
    plan = None if site is None else Plan(Intervention(frozenset({site}), **settings), teacher)
    trace = student.run(zoo.batch(), FIELDS, plan)
    sum(loss_of(kind)(trace, teacher, None) for kind in losses).backward()
    return student, reach(zoo, student, 1)


def reach(zoo, student: Instrument, layer: int) -> Grads:
    found: Grads = {}
    for role in ROLES:
        parameter, rows = zoo.weight(student.model, layer, role)
        found[role] = None if parameter.grad is None else parameter.grad[rows]
    return found


def reached(zoo, grad: Tensor | None) -> bool:
    """Whether a weight is trained.

    Unreached weights of transformers have no gradient, and BertAdam skips them. timm's Q, K and V are rows of one
    Parameter: what does not reach some of them is a gradient of exact zeros.
    """
    if zoo.is_hf:
        assert grad is None or grad.any()
        return grad is not None
    return grad is not None and bool(grad.any())


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "w2a8"])
@pytest.mark.parametrize("mode", SITES)
def test_reach_of_the_published_losses_together(zoo, w2a8, mode: str, quantized: bool):
    student, grads = backward(zoo, w2a8() if quantized else (), mode, LOSSES)
    assert {role: reached(zoo, grad) for role, grad in grads.items()} == {
        role: role not in UNREACHED[mode] for role in ROLES
    }
    assert student.model.get_parameter(zoo.embedding).grad.any()
    assert student.model.get_parameter(f"{zoo.classifier}.weight").grad.any()


@pytest.mark.parametrize("mode", SITES)
def test_only_the_score_loss_reaches_query_and_key_under_intervention(zoo, w2a8, mode: str):
    teacher, student = teacher_of(zoo), prepare(zoo.build(seed=2).train(), w2a8())
    site = SITES[mode]
    plan = None if site is None else Plan(Intervention(frozenset({site})), teacher)
    trace = student.run(zoo.batch(), FIELDS, plan)
    found = {}
    for kind in LOSSES:
        student.model.zero_grad(set_to_none=True)
        loss_of(kind)(trace, teacher, None).backward(retain_graph=True)
        grads = reach(zoo, student, 1)
        found[kind] = [reached(zoo, grads[role]) for role in ("query", "key")]
    assert found == {kind: [mode == "none" or kind == "scores"] * 2 for kind in LOSSES}


@pytest.mark.parametrize("mode", ["TI-O", "TI-C", "TI-M"])
def test_the_score_loss_reaches_nothing_else_under_intervention(zoo, w2a8, mode: str):
    student, grads = backward(zoo, w2a8(), mode, ("scores",))
    assert {role for role, grad in grads.items() if reached(zoo, grad)} == {"query", "key"}
    assert not reached(zoo, student.model.get_parameter(zoo.embedding).grad)


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("mode", SITES)
def test_a_layers_score_loss_stays_in_its_layer_under_intervention(zoo, mode: str, stop_gradient: bool):
    teacher = teacher_of(zoo)
    student = prepare(zoo.build(seed=2))
    site = SITES[mode]
    plan = None if site is None else Plan(Intervention(frozenset({site}), stop_gradient=stop_gradient), teacher)
    trace = student.run(zoo.batch(), FIELDS, plan)
    score_mse(trace.layers[2].scores, teacher.layers[2].scores, trace.key_mask).backward()
    own = reach(zoo, student, 2)
    assert reached(zoo, own["query"])
    assert reached(zoo, own["key"])
    flows = mode == "none" or not stop_gradient
    for layer in (0, 1):
        assert any(reached(zoo, grad) for grad in reach(zoo, student, layer).values()) == flows
    assert reached(zoo, student.model.get_parameter(zoo.embedding).grad) == flows


def test_only_ti_m_lets_a_loss_on_the_attention_output_into_the_layer_below(zoo):
    """TI-M stops the inputs of query and key only; TI-O and TI-C stop that of value too."""
    teacher = teacher_of(zoo)
    below, value = {}, {}
    for mode in ("TI-O", "TI-C", "TI-M"):
        student = prepare(zoo.build(seed=2))
        trace = student.run(zoo.batch(), FIELDS, Plan(Intervention(frozenset({SITES[mode]})), teacher))
        parameter, rows = zoo.weight(student.model, 1, "value")
        loss = trace.layers[1].attn_out.square().sum()
        grads = torch.autograd.grad(loss, (trace.layers[0].hidden, parameter), allow_unused=True)
        below[mode] = grads[0] is not None and bool(grads[0].any())
        value[mode] = grads[1] is not None and bool(grads[1][rows].any())
    assert below == {"TI-O": False, "TI-C": False, "TI-M": True}
    assert value == {"TI-O": True, "TI-C": False, "TI-M": True}


def test_an_uncovered_layer_keeps_its_gradients(zoo):
    _, grads = backward(zoo, (), "TI-O", ("hidden",), layers=frozenset({0, 2}))
    assert all(reached(zoo, grad) for role, grad in grads.items())


@pytest.mark.parametrize("rules", ["none", "value only"])
def test_a_fused_projection_that_is_partly_or_not_quantized_stops_the_same_gradients(timm_zoo, rules: str):
    chosen = () if rules == "none" else (Rule(("value",), weight=QuantizerSpec("twn", threshold=0.0, clip=None)),)
    _, grads = backward(timm_zoo, chosen, "TI-M", LOSSES)
    assert all(reached(timm_zoo, grads[role]) for role in ("query", "key", "value"))
    _, grads = backward(timm_zoo, chosen, "TI-C", LOSSES)
    assert [reached(timm_zoo, grads[role]) for role in ("query", "key", "value")] == [True, True, False]


# --- gradient checkpointing -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("mode", SITES)
def test_gradient_checkpointing_gives_the_same_gradients(hf_zoo, w2a8, mode: str):
    teacher = teacher_of(hf_zoo)
    found, calls = [], []
    for checkpointing in (False, True):
        dropout = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
        model = hf_zoo.build(seed=2, **dropout).train()
        student = prepare(model, w2a8())
        if checkpointing:
            model.gradient_checkpointing_enable()
        name = hf_zoo.weight_name(1, "ffn_in").removesuffix(".weight")
        model.get_submodule(name).register_forward_pre_hook(lambda *_, now=checkpointing: calls.append(now))
        site = SITES[mode]
        torch.manual_seed(4)
        plan = None if site is None else Plan(Intervention(frozenset({site})), teacher)
        trace = student.run(hf_zoo.batch(), FIELDS, plan)
        sum(loss_of(kind)(trace, teacher, None) for kind in LOSSES).backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert calls == [False, True, True]  # the second run of the layer is the backward's
    for name, grad in found[0].items():
        if grad is None:
            assert found[1][name] is None, name
        else:
            torch.testing.assert_close(found[1][name], grad, rtol=1e-6, atol=1e-7, msg=name)
