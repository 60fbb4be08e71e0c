"""Gradient estimators: closed values, limits in which they agree, what they refuse, what they leave alone."""

import inspect
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lowbit.quantizers import estimators, functional
from lowbit.quantizers.estimators import (
    EWGS,
    LARGEST_AMPLITUDE,
    STE,
    ClippedSTE,
    Estimator,
    StableQAT,
    ValueClippedSTE,
)

SHAPE = (4, 3, 5, 6)
ALPHA = torch.linspace(0.4, 1.2, 4).reshape(4, 1, 1, 1)
OFFSET = torch.linspace(-0.3, 0.3, 4).reshape(4, 1, 1, 1)
LOW, HIGH = torch.tensor(-1.1), torch.tensor(1.4)
F = functional
UNIFORM: dict[str, Callable[..., Tensor]] = {
    "bitnet": lambda x, e: F.bitnet_ternarize(x, estimator=e),
    "bwn": lambda x, e: F.bwn_binarize(x, granularity="row", estimator=e),
    "bwn_centred": lambda x, e: F.bwn_binarize(x, granularity="row", center=True, estimator=e),
    "bwn_zero": lambda x, e: F.bwn_binarize(x, granularity="tensor", sign_of_zero=0, estimator=e),
    "statsq": lambda x, e: F.statsq(x, bits=3, estimator=e),
    "minmax_symmetric": lambda x, e: F.minmax_symmetric(x, bits=3, granularity="head", clip=1.5, estimator=e),
    "minmax_asymmetric": lambda x, e: F.minmax_asymmetric(x, bits=2, granularity="token", clip=1.5, estimator=e),
    "xtc": lambda x, e: F.xtc_symmetric(x, bits=4, granularity="row", estimator=e),
    "static": lambda x, e: F.static_range(x, LOW, HIGH, bits=3, estimator=e),
    "static_symmetric": lambda x, e: F.static_range(x, LOW, HIGH, bits=3, symmetric=True, estimator=e),
    "lat": lambda x, e: F.lat_ternarize(x, torch.ones_like(x), granularity="row", estimator=e),
    "lat_exact": lambda x, e: F.lat_ternarize(x, x * x, granularity="tensor", variant="exact", estimator=e),
}
LEARNED: dict[str, Callable[..., Tensor]] = {
    "lsq": lambda x, a, e: F.lsq(x, a, bits=2, grad_scale="lsq", estimator=e),
    "lsq_offset": lambda x, a, e: F.lsq(x, a, bits=3, offset=OFFSET, grad_scale="l1", estimator=e),
    "lsq_unsigned": lambda x, a, e: F.lsq(x, a, bits=2, signed=False, grad_scale="none", estimator=e),
    "seq_2": lambda x, a, e: F.seq(x, a, bits=2, estimator=e),
    "seq_1.58": lambda x, a, e: F.seq(x, a, bits=1.58, estimator=e),
    "elastic_1": lambda x, a, e: F.elastic_signed(x, a, bits=1, estimator=e),
    "elastic_3": lambda x, a, e: F.elastic_signed(x, a, bits=3, estimator=e),
    "elastic_unsigned_1": lambda x, a, e: F.elastic_unsigned(x, a, bits=1, estimator=e),
    "elastic_unsigned_2": lambda x, a, e: F.elastic_unsigned(x, a, bits=2, estimator=e),
}
EVERY = {**UNIFORM, **{key: lambda x, e, f=f: f(x, ALPHA, e) for key, f in LEARNED.items()}}
X = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
UPSTREAM = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


def gradient(function: Callable[[Tensor, Estimator | None], Tensor], estimator: Estimator | None) -> Tensor:
    x = X.clone().requires_grad_()
    function(x, estimator).backward(UPSTREAM)
    assert x.grad is not None
    return x.grad


def unit_lsq(values: list[float], estimator: Estimator, upstream: list[float] | None = None) -> list[float]:
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    y = F.lsq(x, torch.tensor(1.0, dtype=torch.float64), bits=3, grad_scale="none", estimator=estimator)
    y.backward(torch.ones_like(x) if upstream is None else torch.tensor(upstream, dtype=torch.float64))
    assert x.grad is not None
    return x.grad.tolist()


# --- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("neutral", [StableQAT(amplitude=0.0), StableQAT(amplitude=0.0, terms=2), EWGS(0.0)], ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_without_amplitude_or_delta_it_is_the_clipped_straight_through_estimator(name: str, neutral: Estimator):
    assert torch.equal(gradient(EVERY[name], neutral), gradient(EVERY[name], ClippedSTE()))


@pytest.mark.parametrize("estimator", [ClippedSTE(), EWGS(0.4), StableQAT()], ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_the_clipped_estimators_are_zero_at_the_same_elements(name: str, estimator: Estimator):
    passes = gradient(EVERY[name], ClippedSTE()) != 0
    assert 0 < passes.sum() < X.numel()
    assert (gradient(EVERY[name], estimator)[~passes] == 0).all()


@pytest.mark.parametrize("name", EVERY)
def test_the_slope_of_stableqat_lies_between_zero_and_one(name: str):
    slope = gradient(EVERY[name], StableQAT()) / UPSTREAM
    assert slope.min() >= 0
    assert slope.max() <= 1 + 1e-5


@pytest.mark.parametrize("name", EVERY)
def test_straight_through_passes_everything(name: str):
    assert torch.equal(gradient(EVERY[name], STE()), UPSTREAM)


@pytest.mark.parametrize("name", LEARNED)
def test_gradients_of_the_scale_do_not_depend_on_the_estimator(name: str):
    grads = []
    for estimator in (None, STE(), ClippedSTE(), ValueClippedSTE(0.3), EWGS(0.5), StableQAT()):
        x, alpha = X.clone().requires_grad_(), ALPHA.clone().requires_grad_()
        LEARNED[name](x, alpha, estimator).backward(UPSTREAM)
        grads.append(alpha.grad)
    assert grads[0].abs().min() > 0
    assert all(torch.equal(grad, grads[0]) for grad in grads[1:])


# --- StableQAT ------------------------------------------------------------------------------------------------------


def test_stableqat_slopes_at_centre_quarter_and_threshold():
    slopes = unit_lsq([0.0, 1.0, -2.0, 0.25, 0.75, -1.25, 0.5, 1.5, 0.499999], StableQAT())
    assert slopes[:3] == pytest.approx([0.035] * 3, abs=5e-4)
    assert slopes[3:6] == pytest.approx([0.205] * 3, abs=5e-4)
    assert slopes[6:] == pytest.approx([1.0] * 3, abs=1e-5)


def test_stableqat_has_the_published_mean_and_variance():
    slopes = torch.tensor(unit_lsq([(k + 0.5) / 1000 - 0.5 for k in range(1000)], StableQAT()))
    assert slopes.mean().item() == pytest.approx(0.302, abs=5e-4)
    assert slopes.var().item() == pytest.approx(0.072, abs=5e-4)


@pytest.mark.parametrize("estimator", [StableQAT(terms=1), StableQAT(0.1, terms=2), StableQAT(amplitudes=(0.2, 0.02))])
def test_stableqat_with_terms_equals_the_formula_of_the_paper(estimator: StableQAT):
    values = [-3.7, -1.2, 0.3, 0.49, 1.51, 2.9]
    series = [
        sum(a * math.cos((2 * m + 1) * math.pi * (v + round(v))) for m, a in enumerate(estimator.coefficients))
        for v in values
    ]
    c = [math.sqrt(2) * math.pi * s for s in series]
    assert unit_lsq(values, estimator) == pytest.approx([(1 - k) / (1 + k) for k in c], rel=1e-9)


def test_stableqat_terms_have_alternating_signs():
    assert StableQAT(0.3 * LARGEST_AMPLITUDE, terms=2).coefficients == pytest.approx(
        [0.3 * LARGEST_AMPLITUDE, -0.1 * LARGEST_AMPLITUDE, 0.06 * LARGEST_AMPLITUDE]
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"amplitude": 0.2252},
        {"amplitude": 0.2866},
        {"amplitude": -LARGEST_AMPLITUDE},
        {"amplitude": math.nan},
        {"amplitudes": (0.21, 0.07)},  # the signs of the terms forgotten
        {"amplitudes": (0.1, 0.0, 0.2)},
        {"amplitude": 0.25, "terms": 1},
        {"terms": -1},
    ],
    ids=str,
)
def test_stableqat_refuses_what_goes_uphill(settings: dict):
    with pytest.raises(ValueError, match=r"StableQAT amplitudes .* negative|terms=-1"):
        StableQAT(**settings)


@pytest.mark.parametrize(
    "settings", [{"amplitude": LARGEST_AMPLITUDE}, {"amplitude": 0.225}, {"amplitudes": (0.21, -0.07)}, {"terms": 4}]
)
def test_stableqat_accepts_what_does_not(settings: dict):
    grid = [k / 500 - 3 for k in range(3001)]
    assert min(unit_lsq(grid, StableQAT(**settings))) >= -1e-9


# --- EWGS, value clip, grid clip ------------------------------------------------------------------------------------


def test_ewgs_equals_a_naive_implementation():
    delta, alpha, beta = 0.3, 0.7, -0.2
    expected = []
    for x, g in zip(X.flatten().tolist(), UPSTREAM.flatten().tolist(), strict=True):
        v = (x - beta) / alpha
        q = round(min(max(v, -4), 3))
        expected.append(g * (1 + delta * math.copysign(1, g) * (v - q)) if -4 <= v <= 3 else 0.0)
    x = X.double().requires_grad_()
    scale, offset = torch.tensor(alpha, dtype=torch.float64), torch.tensor(beta, dtype=torch.float64)
    F.lsq(x, scale, bits=3, offset=offset, grad_scale="lsq", estimator=EWGS(delta)).backward(UPSTREAM.double())
    torch.testing.assert_close(x.grad.flatten(), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("granularity", ["tensor", "row"])
def test_ewgs_on_centred_binary_weights_measures_from_the_centred_grid(granularity: str):
    w = X.double()
    dims = (0, 1, 2, 3) if granularity == "tensor" else (1, 2, 3)
    centred, alpha = w - w.mean(), w.abs().mean(dims, keepdim=True)
    distance = (centred - alpha * centred.sign()) / (2 * alpha)
    g = UPSTREAM.double()
    expected = torch.where(centred.abs() <= alpha, g + 0.5 * g.abs() * distance, 0)
    x = w.clone().requires_grad_()
    F.bwn_binarize(x, granularity=granularity, center=True, estimator=EWGS(0.5)).backward(g)
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("shape", [(1024, 300), (300_000,), (3, 300, 400), (100, 100, 100)])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_mask_taken_by_pieces_is_the_whole_mask(shape: tuple[int, ...], transposed: bool):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x = x.transpose(0, -1) if transposed else x
    assert torch.equal(estimators.zero_outside_(x.clone(), x.abs() < 1), x * (x.abs() < 1))


@pytest.mark.parametrize("delta", [-1e-9, 2.1, math.nan])
def test_ewgs_refuses_a_delta_that_flips_gradients(delta: float):
    with pytest.raises(ValueError, match="delta="):
        EWGS(delta)


def test_the_value_clip_is_strict_at_its_bound():
    edge = 2.0
    below = math.nextafter(edge, 0)
    values = [edge, -edge, below, -below, 0.0, 3.0]
    assert unit_lsq(values, ValueClippedSTE(edge)) == [0.0, 0.0, 1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan])
def test_the_value_clip_refuses_an_empty_interval(bound: float):
    with pytest.raises(ValueError, match="bound="):
        ValueClippedSTE(bound)


def test_the_grid_of_binary_weights_ends_at_their_mean_magnitude():
    w = torch.tensor([1.0, -1.0, 0.5, -1.5, 0.25, 1.75], requires_grad=True)  # alpha = 1
    F.bwn_binarize(w, granularity="tensor", estimator=ClippedSTE()).sum().backward()
    assert w.grad.tolist() == [1.0, 1.0, 1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("bits", [1.58, 2, 3, 4])
def test_the_grid_of_seq_ends_at_99_hundredths(bits: float):
    w = torch.tensor([[0.9899, -0.9899, 0.9901, -0.9901, 1.0, 0.0]], requires_grad=True)
    F.seq(w, torch.ones(1, 1), bits=bits, estimator=ClippedSTE()).sum().backward()
    assert w.grad[0].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0, 1.0]


# --- pairs, identity, documentation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [EWGS(0.1), StableQAT()], ids=str)
def test_twn_refuses_estimators_that_read_distances(estimator: Estimator):
    with pytest.raises(ValueError, match=rf"{type(estimator).__name__} needs thresholds half-way"):
        F.twn_ternarize(X, granularity="tensor", estimator=estimator)


@pytest.mark.parametrize(
    "make",
    [STE, ClippedSTE, lambda: ValueClippedSTE(2.5), lambda: EWGS(0.2), lambda: StableQAT(amplitudes=[0.2, -0.05])],
)
def test_estimators_are_values(make: Callable[[], Estimator]):
    assert make() == make()
    assert len({make(), make()}) == 1
    assert make() not in {EWGS(0.3), StableQAT(0.2), ValueClippedSTE(1.0)}


@pytest.mark.parametrize("cls", Estimator.__subclasses__())
def test_every_estimator_shows_a_forward_and_a_backward(cls: type[Estimator]):
    assert cls.__module__ == estimators.__name__
    assert ">>>" in inspect.getdoc(cls)
    assert ".backward(" in inspect.getdoc(cls)
