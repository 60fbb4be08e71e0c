"""Quantizer functions by hand and by published tables; gradients, degenerate tensors, granularities, dtypes."""

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lowbit.quantizers import functional as F
from lowbit.quantizers.functional import minmax_asymmetric, minmax_symmetric, twn_ternarize

Function = Callable[..., Tensor]


def sym(x: Tensor, *, granularity: str, clip: float | None = None) -> Tensor:
    return minmax_symmetric(x, bits=8, granularity=granularity, clip=clip)


def asym(x: Tensor, *, granularity: str, clip: float | None = None) -> Tensor:
    return minmax_asymmetric(x, bits=8, granularity=granularity, clip=clip)


FUNCTIONS = pytest.mark.parametrize("function", [twn_ternarize, sym, asym], ids=["twn", "sym", "asym"])


def value_and_grad(function: Function, x: Tensor, upstream: Tensor | None = None, **kwargs: object):
    x = x.clone().requires_grad_()
    y = function(x, **kwargs)
    y.backward(torch.ones_like(y) if upstream is None else upstream)
    assert x.grad is not None
    return y.detach(), x.grad


def close(actual: Tensor, expected: list) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=1e-6, atol=1e-7)


# --- values ---------------------------------------------------------------------------------------------------------


def test_twn_by_hand():
    # mean |w| = 0.8, Delta = 0.56: kept are -0.6 and 2.0, alpha = 1.3
    close(twn_ternarize(torch.tensor([0.1, -0.6, 2.0, 0.5]), granularity="tensor"), [0.0, -1.3, 1.3, 0.0])


def test_twn_clips_before_it_takes_the_mean():
    # clamped at 1: mean 0.55, Delta 0.385, kept 0.6, 1.0, 0.5 -> alpha 0.7
    close(twn_ternarize(torch.tensor([0.1, -0.6, 2.0, 0.5]), granularity="tensor", clip=1.0), [0.0, -0.7, 0.7, 0.7])


def test_twn_threshold_is_strict_and_settable():
    # mean 0.5, threshold 1 -> Delta 0.5: an entry at exactly Delta becomes zero
    close(twn_ternarize(torch.tensor([0.5, -0.5, 0.75, 0.25]), granularity="tensor", threshold=1.0), [0, 0, 0.75, 0])


def test_twn_by_row():
    w = torch.tensor([[0.1, -0.6, 2.0, 0.5], [10.0, 0.0, 0.0, -30.0]])
    close(twn_ternarize(w, granularity="row"), [[0.0, -1.3, 1.3, 0.0], [20.0, 0.0, 0.0, -20.0]])


def test_symmetric_by_hand():
    # 3 bits: n = 3, max 1.5, s = 2: codes 0.5 -> 0 (ties to even), 1, 3, -2
    y = minmax_symmetric(torch.tensor([0.25, 0.4, 1.5, -1.2]), bits=3, granularity="tensor")
    close(y, [0.0, 0.5, 1.5, -1.0])


def test_symmetric_scale_comes_from_the_larger_side_after_the_clip():
    y = minmax_symmetric(torch.tensor([-9.0, 1.0, 0.2, 2.5]), bits=2, granularity="tensor", clip=2.5)
    close(y, [-2.5, 0.0, 0.0, 2.5])
    close(minmax_symmetric(torch.tensor([-4.0, 1.0]), bits=2, granularity="tensor"), [-4.0, 0.0])


def test_asymmetric_by_hand():
    # 2 bits: lo = -1, r = 3, codes 0, 1.2 -> 1, 1.6 -> 2, 3
    y = minmax_asymmetric(torch.tensor([-1.0, 0.2, 0.6, 2.0]), bits=2, granularity="tensor")
    close(y, [-1.0, 0.0, 1.0, 2.0])


def test_asymmetric_one_bit_has_the_two_ends():
    close(minmax_asymmetric(torch.tensor([1.0, 2.0, 4.9, 5.0]), bits=1, granularity="tensor"), [1.0, 1.0, 5.0, 5.0])


def test_asymmetric_grid_of_a_tensor_outside_the_clip():
    close(minmax_asymmetric(torch.tensor([3.0, 4.0]), bits=8, granularity="tensor", clip=2.5), [2.5, 2.5])


@pytest.mark.parametrize("granularity", ["tensor", "row", "token", "head"])
@FUNCTIONS
def test_a_scale_belongs_to_its_group(function: Function, granularity: str):
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    flat = {"tensor": (0, 4), "row": (1, 4), "token": (3, 4), "head": (2, 4)}[granularity]
    groups = x.reshape(-1, *x.shape[flat[0] :]) if granularity != "tensor" else x[None]
    expected = torch.stack([function(group, granularity="tensor") for group in groups]).reshape(x.shape)
    torch.testing.assert_close(function(x, granularity=granularity), expected, rtol=1e-6, atol=1e-7)


# --- gradients ------------------------------------------------------------------------------------------------------


@FUNCTIONS
def test_the_gradient_stops_at_exactly_the_clip(function: Function):
    edge, upstream = 2.5, torch.tensor([3.0, 3.0, -2.0, 5.0, 7.0, 11.0])
    inside = torch.nextafter(torch.tensor(edge), torch.tensor(0.0)).item()
    x = torch.tensor([edge, -edge, inside, -inside, 3.0, 0.1])
    _, grad = value_and_grad(function, x, upstream, granularity="tensor", clip=edge)
    assert grad.tolist() == [0.0, 0.0, -2.0, 5.0, 0.0, 11.0]


@FUNCTIONS
def test_without_a_clip_the_gradient_passes_unchanged(function: Function):
    upstream = torch.tensor([1.0, -2.0, 3.0])
    _, grad = value_and_grad(function, torch.tensor([100.0, -2.5, 0.0]), upstream, granularity="tensor")
    assert torch.equal(grad, upstream)


@FUNCTIONS
def test_the_input_is_left_alone(function: Function):
    x = torch.randn(3, 4)
    before = x.clone()
    function(x, granularity="row", clip=0.5)
    assert torch.equal(x, before)


# --- degenerate tensors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, 2.5])
@pytest.mark.parametrize("granularity", ["tensor", "row"])
@FUNCTIONS
def test_zeros_stay_zero(function: Function, granularity: str, clip: float | None):
    y, grad = value_and_grad(function, torch.zeros(3, 4), granularity=granularity, clip=clip)
    assert torch.equal(y, torch.zeros(3, 4))
    assert torch.equal(grad, torch.ones(3, 4))


@FUNCTIONS
def test_a_zero_row_stays_zero_and_leaves_the_others_alone(function: Function):
    x = torch.tensor([[0.0, 0.0, 0.0], [1.0, -0.5, 0.2]])
    y, grad = value_and_grad(function, x, granularity="row", clip=2.5)
    assert y[0].tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(y[1], function(x[1], granularity="tensor", clip=2.5))
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("value", [0.3, -1.7, 1e-20, 1e20])
@FUNCTIONS
def test_a_constant_tensor_is_returned(function: Function, value: float):
    x = torch.full((2, 5), value)
    y, grad = value_and_grad(function, x, granularity="row")
    torch.testing.assert_close(y, x, rtol=1e-6, atol=0)
    assert torch.equal(grad, torch.ones_like(x))


@pytest.mark.parametrize("largest", [1e-45, 1e-38, 1e-36])
@FUNCTIONS
def test_the_smallest_floats_give_no_nan(function: Function, largest: float):
    y, _ = value_and_grad(function, torch.tensor([largest, 0.0, -largest / 2]), granularity="tensor")
    assert torch.isfinite(y).all()
    assert y.abs().max() <= 2 * largest + 1e-44


# --- granularity and width errors, dtypes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "granularity"), [((4,), "row"), ((2, 3), "head"), ((2, 3, 4), "head"), ((2, 3), "channel")]
)
@FUNCTIONS
def test_a_granularity_that_does_not_fit_is_refused(function: Function, shape: tuple[int, ...], granularity: str):
    with pytest.raises(ValueError, match=rf"granularity='{granularity}'.*allowed are tensor, row, token, head"):
        function(torch.zeros(shape), granularity=granularity)


@pytest.mark.parametrize("bits", [-1, 0, 1, 17])
def test_symmetric_refuses_widths_without_a_grid(bits: int):
    with pytest.raises(ValueError, match=f"bits={bits}: this grid takes 2 to 16"):
        minmax_symmetric(torch.zeros(2), bits=bits, granularity="tensor")


@pytest.mark.parametrize("bits", [-1, 0, 17])
def test_asymmetric_refuses_widths_without_a_grid(bits: int):
    with pytest.raises(ValueError, match=f"bits={bits}: this grid takes 1 to 16"):
        minmax_asymmetric(torch.zeros(2), bits=bits, granularity="tensor")


def test_a_half_precision_sum_beyond_the_half_range_does_not_overflow():
    w = torch.full((70_000,), 2.0, dtype=torch.float16)
    assert torch.equal(twn_ternarize(w, granularity="tensor"), w)


def test_double_precision_stays_double():
    x = torch.tensor([1.0, 1.0 / 3.0], dtype=torch.float64)
    y = minmax_symmetric(x, bits=16, granularity="tensor")
    assert y.dtype == torch.float64
    assert y[1].item() == round(32767 / 3) / 32767


# --- published tables ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "x", "expected"),
    [
        (
            lambda x: F.xtc_symmetric(x, bits=8, granularity="tensor"),
            [1, -1, 0.5, 0.1],
            [0.9921875, -1, 0.5, 0.1015625],
        ),
        (lambda x: F.xtc_symmetric(x, bits=4, granularity="tensor"), [1, -1, 0.5, 0.1], [0.875, -1, 0.5, 0.125]),
        (lambda x: twn_ternarize(x, granularity="tensor"), [0.1, -0.2, 0.3, -0.4], [0, -0.3, 0.3, -0.3]),
        (lambda x: F.bwn_binarize(x, granularity="tensor"), [0.1, -0.2, 0.3, -0.4], [0.25, -0.25, 0.25, -0.25]),
    ],
    ids=["xtc 8", "xtc 4", "ternary", "binary"],
)
def test_the_published_table_of_xtc(function: Function, x: list, expected: list):
    close(function(torch.tensor(x, dtype=torch.float32)), [float(v) for v in expected])


@pytest.mark.parametrize(
    ("function", "count"),
    [
        *((lambda w, b=b: F.seq(w, torch.ones(1, 1), bits=b), n) for b, n in ((1.58, 3), (2, 4), (3, 8), (4, 16))),
        *((lambda w, b=b: F.statsq(w, bits=b), 2**b) for b in (2, 3, 4)),
        (F.bitnet_ternarize, 3),
    ],
)
def test_symmetric_grids_have_the_published_number_of_evenly_spaced_levels(function: Function, count: int):
    levels = function(torch.linspace(-1.2, 1.2, 10_001).unsqueeze(0)).unique()
    assert len(levels) == count
    torch.testing.assert_close(levels, torch.linspace(levels[0].item(), levels[-1].item(), count))
    torch.testing.assert_close(levels, -levels.flip(0))


@pytest.mark.parametrize(("bits", "end"), [(1.58, 2 / 3), (2, 3 / 4), (3, 7 / 8), (4, 15 / 16)])
def test_seq_maps_its_range_to_the_end_level(bits: float, end: float):
    alpha = torch.tensor([[0.8], [2.0]])
    y = F.seq(torch.cat([alpha, -alpha, 5 * alpha], 1), alpha, bits=bits)
    torch.testing.assert_close(y, alpha * torch.tensor([end, -end, end]))


@pytest.mark.parametrize("bits", range(2, 9))
def test_statsq_maps_its_statistic_to_the_top_level(bits: int):
    w = torch.tensor([[2.0, -2.0, 0.0, 0.0]])  # S = 2 mean|w| = 2
    assert F.statsq(w, bits=bits)[0, :2].tolist() == [2 * (1 - 0.5**bits), -2 * (1 - 0.5**bits)]


@pytest.mark.parametrize(("bits", "published"), [(2, 0.150), (3, 0.0408), (4, 0.0119)])
def test_the_least_squares_step_has_the_published_error_on_a_gaussian(bits: int, published: float):
    w = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    step = F.lsq_mse_init(w, bits=bits)
    error = (F.lsq(w, step, bits=bits, grad_scale="none") - w).square().mean() / w.square().mean()
    assert error.item() == pytest.approx(published, rel=0.02)
    if bits == 2:
        assert step.item() == pytest.approx(1.0505, rel=0.01)


@pytest.mark.parametrize("signed", [True, False])
def test_the_least_squares_step_is_a_fixed_point(signed: bool):
    w = torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = F.lsq_mse_init(w, bits=3, signed=signed)
    codes = F.lsq(w, step, bits=3, signed=signed, grad_scale="none") / step
    torch.testing.assert_close(((w * codes).sum() / codes.square().sum()).reshape(1), step, rtol=2e-5, atol=0)


# --- loss-aware ternarization ---------------------------------------------------------------------------------------


def lat_cases() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    return [(torch.randn(7, generator=generator), torch.rand(7, generator=generator) ** 4) for _ in range(40)]


def objective(w: Tensor, v: Tensor, y: Tensor) -> Tensor:
    return ((v.sqrt() + 1e-8) * (w - y).square()).sum()


def brute_force(w: Tensor, v: Tensor) -> Tensor:
    """Return the smallest sum D (w - alpha b)^2 over all b in {-1, 0, 1}^n, each with its best alpha >= 0."""
    b = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * w.numel())
    curvature = v.sqrt() + 1e-8
    alpha = ((b * w * curvature).sum(1) / (b.abs() * curvature).sum(1).clamp(min=1e-30)).clamp(min=0)
    return (curvature * (w - alpha.unsqueeze(1) * b).square()).sum(1).min()


@pytest.mark.parametrize("constant", [True, False])
def test_exact_lat_is_the_best_of_all_ternarizations(constant: bool):
    for w, v in lat_cases():
        moment = torch.full_like(v, 0.25) if constant else v
        y = F.lat_ternarize(w, moment, granularity="tensor", variant="exact")
        torch.testing.assert_close(objective(w, moment, y), brute_force(w, moment), rtol=1e-5, atol=1e-9)


def test_approximate_lat_ends_in_a_fixed_point_that_exact_lat_does_not_miss():
    worse = 0
    for w, v in lat_cases():
        y = F.lat_ternarize(w, v, granularity="tensor", iterations=50)
        alpha, kept, curvature = y.abs().max(), y != 0, v.sqrt() + 1e-8
        torch.testing.assert_close(alpha, (curvature * w.abs())[kept].sum() / curvature[kept].sum())
        assert torch.equal(y, alpha * w.sign() * (w.abs() > alpha / 2))
        exact = F.lat_ternarize(w, v, granularity="tensor", variant="exact")
        assert objective(w, v, exact) <= objective(w, v, y) * (1 + 1e-6)
        worse += bool(objective(w, v, exact) < 0.999 * objective(w, v, y))
    assert worse > 0  # the alternation does stop in local optima


@pytest.mark.parametrize("variant", ["approximate", "exact"])
def test_lat_treats_rows_alone(variant: str):
    w, v = (torch.stack(tensors) for tensors in zip(*lat_cases(), strict=True))
    alone = [F.lat_ternarize(a, b, granularity="tensor", variant=variant) for a, b in zip(w, v, strict=True)]
    torch.testing.assert_close(F.lat_ternarize(w, v, granularity="row", variant=variant), torch.stack(alone))


# --- settings and documentation -------------------------------------------------------------------------------------


def test_a_threshold_beyond_the_clip_keeps_nothing():
    assert twn_ternarize(torch.full((3,), 9.0), granularity="tensor", threshold=2.0, clip=2.5).tolist() == [0.0] * 3


@pytest.mark.parametrize("name", F.__all__)
def test_every_function_shows_a_forward_and_a_backward(name: str):
    documentation = inspect.getdoc(getattr(F, name)) or ""
    assert ">>>" in documentation
    assert ".backward(" in documentation or name == "lsq_mse_init"  # which has no gradient
