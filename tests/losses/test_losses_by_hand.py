"""Every loss of every method on tensors small enough for pencil and paper: the numbers are worked out in the comments.

ln 2 = 0.6931471806, ln 3 = 1.0986122887, ln 4 = 1.3862943611, ln 4/3 = 0.2876820724, ln 3/2 = 0.4054651081.
"""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowbit.quantizers import Dampening, QuantizerSpec, QuantLinear, weight_sites
from lowbit.settings.losses import LossKind
from tests.helpers.losses import loss_of

LN3 = math.log(3)


def wide(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def trace(mask: list[bool] | None = None, **fields: Any) -> Any:
    """Return a trace; a field of layers is a list with one entry per layer, the rest is None."""
    own = {name: wide(fields.pop(name)) if name in fields else None for name in ("logits", "embeddings")}
    depth = max((len(values) for values in fields.values()), default=0)
    layers = [SimpleNamespace(**{name: wide(values[i]) for name, values in fields.items()}) for i in range(depth)]
    return SimpleNamespace(**own, layers=layers, key_mask=None if mask is None else torch.tensor([mask]))


# --- losses of the outputs ------------------------------------------------------------------------------------------

# Teacher (3/4, 1/4) twice. Student (1/2, 1/2): cross-entropy ln 2. Student (1/4, 3/4): 3/4 ln 4 + 1/4 ln 4/3 =
# 1.0397207708 + 0.0719205181 = 1.1116412889. Mean over the batch: 1.8047884695 / 2.
TEACHER, STUDENT = trace(logits=[[LN3, 0], [LN3, 0]]), trace(logits=[[0, 0], [0, LN3]])
# At temperature 2 twice these logits are these distributions, and the loss is multiplied by 4.
TEACHER_2, STUDENT_2 = trace(logits=[[2 * LN3, 0], [2 * LN3, 0]]), trace(logits=[[0, 0], [0, 2 * LN3]])
# Regression: (1 - 0.5)^2 = 0.25 and (3 - 5)^2 = 4.
NUMBERS = trace(logits=[[1], [3]]), trace(logits=[[0.5], [5]])


@pytest.mark.parametrize(
    ("term", "student", "teacher", "expected"),
    [
        (loss_of("logits"), STUDENT, TEACHER, 0.9023942348),  # TI, KD-QAT, BinaryBERT, variation-aware: the sum
        (loss_of("logits", reduction="mean"), STUDENT, TEACHER, 0.4511971174),  # TernaryBERT, XTC, BiT: over classes
        (loss_of("logits", temperature=2.0), STUDENT_2, TEACHER_2, 3.6095769390),  # SDQ
        (loss_of("logits"), *NUMBERS, 2.125),  # STS-B
        (loss_of("logits", reduction="mean", temperature=2.0), *NUMBERS, 2.125),  # which takes neither
    ],
)
def test_logits(term: Any, student: Any, teacher: Any, expected: float):
    assert term(student, teacher, None).item() == pytest.approx(expected, rel=1e-9)


def test_task():
    """Probabilities (1/4, 3/4) and (1/2, 1/2), labels 1 and 0: (ln 4/3 + ln 2) / 2 = 0.9808292530 / 2."""
    student = trace(logits=[[0, LN3], [0, 0]])
    assert loss_of("task")(student, None, torch.tensor([1, 0])).item() == pytest.approx(0.4904146265, rel=1e-9)
    numbers = trace(logits=[[1], [2]])  # (1 - 2)^2 = 1 and (2 - 5)^2 = 9
    assert loss_of("task")(numbers, None, wide([2, 5])).item() == 5


def test_soft_labels():
    """1/2 ln 4 + 1/2 ln 4/3 = 0.8369882168 under (1/2, 1/2); ln 2 under (1, 0); their mean."""
    student = trace(logits=[[0, LN3], [0, 0]])
    value = loss_of("soft_labels")(student, None, None, soft_labels=wide([[0.5, 0.5], [1, 0]]))
    assert value.item() == pytest.approx(0.7650676987, rel=1e-9)


# --- losses inside of layers ----------------------------------------------------------------------------------------

# Two layers, one sentence of two tokens, the second of which is padding in the cases of `valid`.
STATES = {
    "embeddings": [[[1], [2]]],  # squares 1 and 4: mean 2.5, first token alone 1
    "hidden": [[[[3], [0]]], [[[0], [2]]]],  # 9 and 0: 4.5, 9; 0 and 4: 2, 0
    "attn_block": [[[[2], [4]]], [[[1], [1]]]],  # 4 and 16: 10, 4; 1 and 1: 1, 1
    "attn_out": [[[[5], [1]]], [[[0], [4]]]],  # 25 and 1: 13, 25; 0 and 16: 8, 0
}
ZEROS = {name: (wide(values) * 0).tolist() for name, values in STATES.items()}


@pytest.mark.parametrize(
    ("kind", "full", "valid"),
    [("hidden", 2.5 + 4.5 + 2, 1 + 9 + 0), ("attn_block", 10 + 1, 4 + 1), ("attn_out", 13 + 8, 25 + 0)],
)
def test_squared_errors_of_states(kind: str, full: float, valid: float):
    student, teacher = trace([True, False], **STATES), trace([True, False], **ZEROS)
    assert loss_of(kind)(student, teacher, None).item() == full
    assert loss_of(kind, mask="valid")(student, teacher, None).item() == valid
    parts = 3 if kind == "hidden" else 2  # the embeddings count as a layer
    assert loss_of(kind, layers="mean")(student, teacher, None).item() == pytest.approx(full / parts)


def test_scores():
    """Padded keys count 0, padded queries do; scores of -100 and less count as 0 in both networks."""
    student = [[[[1, 50], [2, 60]]]]
    nothing = (wide(student) * 0).tolist()
    pair = [trace([True, False], scores=[[s[0]]]) for s in (student, nothing)]
    assert loss_of("scores")(*pair, None).item() == 1.25  # (1 + 0 + 4 + 0) / 4
    assert loss_of("scores", mask="valid")(*pair, None).item() == 1  # the one pair of real tokens
    # z() makes (0, 1, 0, 3) of the student and (5, 1, 2, 0) of the teacher: (25 + 0 + 4 + 9) / 4.
    low = trace(scores=[[[[[-150, 1], [-100, 3]]]]]), trace(scores=[[[[[5, 1], [2, -101]]]]])
    assert loss_of("scores")(*low, None).item() == 9.5
    two = [trace([True, False], scores=[[s[0]], [s[0]]]) for s in (student, nothing)]
    assert loss_of("scores")(*two, None).item() == 2.5  # the sum over layers


# Teacher rows (3/4, 1/4) and (1/2, 1/2), student rows (1/2, 1/2) and (1/4, 3/4):
# 3/4 ln 3/2 - 1/4 ln 2 = 0.3040988311 - 0.1732867951 = 0.1308120359 and 1/2 ln 2 - 1/2 ln 3/2 = 0.1438410362.
MAPS = [[[[0.5, 0.5], [0.25, 0.75]]]], [[[[0.75, 0.25], [0.5, 0.5]]]]


def test_maps():
    """KL by row, mean over tokens, heads and sentences: (0.1308120359 + 0.1438410362) / 2 = 0.1373265361."""
    student, teacher = (trace(probs=maps) for maps in MAPS)
    assert loss_of("maps")(student, teacher, None).item() == pytest.approx(0.1373265361, rel=1e-8)
    padded = []
    for maps, noise in zip(MAPS, (0.9, 0.2), strict=True):
        wider = torch.zeros(1, 1, 1, 3, 3, dtype=torch.float64)
        wider[..., :2, :2], wider[..., 2, 0] = wide(maps), noise
        padded.append(trace([True, True, False], probs=wider.tolist()))
    assert loss_of("maps")(*padded, None).item() == pytest.approx(0.1373265361, rel=1e-8)
    # A zero is clamped at 1e-8: -ln 1e-8 = 18.4206807440 in the first of two rows, less 1e-8 of that.
    student, teacher = trace(probs=[[[[0.0, 1.0], [1.0, 0.0]]]]), trace(probs=[[[[1.0, 0.0], [1.0, 0.0]]]])
    assert loss_of("maps")(student, teacher, None).item() == pytest.approx(18.4206807440 / 2, rel=1e-7)
    # Two heads, the second of which agrees: half of it; two layers, `layers: mean`: the same.
    heads = [trace(probs=2 * [[[[*maps[0][0]], [[0.5, 0.5], [0.5, 0.5]]]]]) for maps in MAPS]
    assert loss_of("maps", layers="mean")(*heads, None).item() == pytest.approx(0.1373265361 / 2, rel=1e-8)


def test_maps_mse():
    """Every difference is 1/4: squares of 1/16; a second head that agrees halves them."""
    heads = [trace(probs=[[[maps[0][0], [[0.5, 0.5], [0.5, 0.5]]]]]) for maps in MAPS]
    assert loss_of("maps_mse")(*heads, None).item() == 1 / 32
    student = trace([True, False], probs=[[[[[0.5, 9.0], [9.0, 9.0]]]]])
    teacher = trace([True, False], probs=[[[[[0.75, 0.0], [0.0, 0.0]]]]])
    assert loss_of("maps_mse")(student, teacher, None).item() == 1 / 16  # padded pairs count nothing


# --- losses of the weights ------------------------------------------------------------------------------------------

# 2 bits at step 1/2: codes -2 to 1. In steps: 1.2, .8, .2, -.6, -4, 6; codes 1, 1, 0, -1, -2, 1; clipped weights
# .5, .4, .1, -.3, -1, .5; levels .5, .5, 0, -.5, -1, .5; distances 0, -.1, .1, .2, 0, 0: sum of squares .06.
# Bin 1 holds .5, .4, .5 with mean 1.4/3: (2 * (.1/3)^2 + (.2/3)^2) / 2 = .02/6; the other bins hold one weight each.
WEIGHTS = [[0.6, 0.4, 0.1], [-0.3, -2.0, 3.0]]
VARIANCE = 0.02 / 6


def site_of(bits: int = 2, values: Any = WEIGHTS) -> Any:
    linear = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(wide(values))
    (site,) = weight_sites(QuantLinear.from_float(linear, QuantizerSpec("lsq", bits=bits, grad_scale="none"), None))
    with torch.no_grad():
        site.quantizer.step_size.fill_(0.5)
    return site


@pytest.mark.parametrize(("aggregation", "distance"), [("mean", 0.01), ("sum", 0.06), ("norm", 0.2449489743)])
@pytest.mark.parametrize("detach", [True, False])
def test_obr(aggregation: str, distance: float, detach: bool):
    term = loss_of("obr", aggregation=aggregation, detach_step=detach)
    value = term(trace(), None, None, None, [site_of()])
    assert value.item() == pytest.approx(distance + VARIANCE, rel=1e-8)


def test_obr_sums_over_weights_and_leaves_out_wide_ones():
    """An 8-bit weight at step 1/2 clips nothing: distances .1, -.1, .1, .2, 0, 0 and bins of one or two weights.

    Bin 1 holds .6 and .4: variance 2 * .1^2 = .02. Together with the sum of squares .07: .09.
    """
    narrow, eight = site_of(), site_of(bits=8)
    together = loss_of("obr", aggregation="sum")
    assert together(trace(), None, None, None, [narrow, eight]).item() == pytest.approx(
        0.06 + VARIANCE + 0.09, rel=1e-9
    )
    low = loss_of("obr", aggregation="sum", max_bits=4)
    assert low(trace(), None, None, None, [narrow, eight]).item() == pytest.approx(0.06 + VARIANCE, rel=1e-9)


def test_gradients_of_obr():
    """2 r + 2 (w - m) / (n - 1) inside of the grid: .4 gets -.2 - .2/3, .1 gets .2, -.3 gets .4; outside nothing.

    The step, if not detached, hears from clipped weights in bin 1, two of code 1: 2 * (.1/3) = .2/3.
    """
    site = site_of()
    loss_of("obr", aggregation="sum", detach_step=False)(trace(), None, None, None, [site]).backward()
    assert site.parameter.grad.flatten().tolist() == pytest.approx([0, -0.8 / 3, 0.2, 0.4, 0, 0], abs=1e-12)
    assert site.quantizer.step_size.grad.item() == pytest.approx(0.2 / 3)


@pytest.mark.parametrize(("aggregation", "count"), [("sum", 1), ("mean", 6), ("kernel_mean", 1)])
def test_dampening(aggregation: Any, count: int):
    """Half-way lambda is half of .1: gradients 2 * .05 * (w - Q(w)) inside of the grid, over 6 weights for the mean."""
    site = site_of()
    site.parameter.grad = torch.zeros_like(site.parameter)
    Dampening(strength=0.1, start=0.0, aggregation=aggregation).before_step([site], step=5, steps=10)
    expected = [0, -0.01, 0.01, 0.02, 0, 0]
    assert site.parameter.grad.flatten().tolist() == pytest.approx([g / count for g in expected], abs=1e-12)


# --- weights over time ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ramp", "start", "expected"),
    [
        ("linear", 0.0, [0, 0.25, 0.5, 0.75, 1]),
        ("linear", 0.4, [0, 0, 0, 0.5, 1]),  # of 5 steps, from step 2 to step 4
        ("cosine", 0.0, [0, 0.1464466094, 0.5, 0.8535533906, 1]),  # (1 - cos 45 degrees) / 2
        ("cosine", 0.5, [0, 0, 0, 0.25, 1]),  # from 2.5 to 4: step 3 is a third, (1 - cos 60 degrees) / 2
    ],
)
def test_ramps(ramp: str, start: float, expected: list[float]):
    term = loss_of("obr", weight=0.0, weight_end=0.01, ramp=ramp, start=start)
    found = [term.settings.weight_at(step, 5) for step in range(5)]
    assert found == pytest.approx([0.01 * value for value in expected], abs=1e-11)


def test_no_loss_is_without_a_number():
    """A new kind of loss needs a case here."""
    by_hand = {"logits", "task", "soft_labels", "hidden", "attn_block", "attn_out", "scores", "maps", "maps_mse", "obr"}
    assert {kind.name for kind in LossKind} == by_hand
