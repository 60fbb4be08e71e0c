"""Ternary weight splitting: its two identities, everywhere that weights can be."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowbit.quantizers.functional import bwn_binarize, twn_ternarize
from lowbit.quantizers.functional.splitting import ternary_split
from lowbit.quantizers.grid import reduction_dims

GRANULARITIES = pytest.mark.parametrize("granularity", ["tensor", "row"])
NUMBERS = st.one_of(st.floats(-10, 10), st.sampled_from([0.0, 0.25, -0.25, 1.0, -1.0, 8.0, -8.0]))
MATRICES = st.integers(1, 9).flatmap(
    lambda width: st.lists(st.lists(NUMBERS, min_size=width, max_size=width), min_size=1, max_size=3)
)


def check(w: Tensor, granularity: str) -> tuple[Tensor, Tensor]:
    """Check w1 + w2 = w, BWN(w1) + BWN(w2) = T(w), and both scales, to 1e-12 of the largest weight."""
    w = w.double()
    first, second = ternary_split(w, granularity=granularity)
    assert first.dtype == second.dtype == torch.float64
    assert first.shape == second.shape == w.shape
    assert first.isfinite().all()
    assert second.isfinite().all()
    ternary = twn_ternarize(w, granularity=granularity)
    binary = [bwn_binarize(half, granularity=granularity) for half in (first, second)]
    half_scale = ternary.abs().amax(reduction_dims(w, granularity), keepdim=True) / 2
    tolerance = 1e-12 * w.abs().max().item() + 1e-300
    torch.testing.assert_close(first + second, w, rtol=0, atol=tolerance)
    torch.testing.assert_close(binary[0] + binary[1], ternary, rtol=0, atol=tolerance)
    for half in binary:
        torch.testing.assert_close(half.abs(), half_scale.expand_as(half), rtol=0, atol=tolerance)
    return first, second


def published(w: Tensor) -> tuple[Tensor, Tensor]:
    """Split a tensor as `binary_model_init.py` does, written as in the paper's code, with max|T| for its scale."""
    ternary = twn_ternarize(w, granularity="tensor")
    kept, n, scale = ternary != 0, w.numel(), ternary.abs().max()
    positive, negative = ~kept & (w > 0), ~kept & (w <= 0)
    sums = [w[part].abs().sum() for part in (kept, positive, negative)]
    b = (n * scale - w.abs().sum()) / (2 * (~kept).sum())
    a = (sums[0] + sums[2] - sums[1]) / (2 * sums[0])
    first, second = a * w, (1 - a) * w
    first[positive], second[positive] = w[positive] + b, -b
    first[negative], second[negative] = b, w[negative] - b
    return first, second


# --- identities -----------------------------------------------------------------------------------------------------


@GRANULARITIES
def test_identities_on_normal_weights(granularity: str):
    check(torch.randn(40, 64, generator=torch.Generator().manual_seed(0)), granularity)


@GRANULARITIES
@given(MATRICES)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_identities_on_any_weights(granularity: str, rows: list[list[float]]):
    check(torch.tensor(rows, dtype=torch.float64), granularity)


@GRANULARITIES
@given(st.integers(2, 60), st.floats(1e-3, 0.69), st.booleans(), st.integers(1, 3))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_identities_on_weights_that_lean_to_one_side(
    granularity: str, width: int, small: float, flip: bool, large: int
):
    w = torch.full((2, width), small, dtype=torch.float64)
    w[:, : min(large, width)] = 0.5 * width
    check(-w if flip else w, granularity)


def test_the_split_is_the_published_one_where_that_is_exact():
    w = torch.randn(30, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for actual, expected in zip(ternary_split(w, granularity="tensor"), published(w), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)


def test_the_published_formula_fails_where_the_dropped_weights_lean_too_far():
    w = torch.full((100,), 0.5, dtype=torch.float64)
    w[0] = 24.0  # the only weight above 0.7 mean|w|; the dropped ones add up to twice as much
    halves = published(w)
    wrong = sum(bwn_binarize(half, granularity="tensor") for half in halves) - twn_ternarize(w, granularity="tensor")
    assert wrong.abs().max() > 1
    first, _ = check(w, "tensor")
    assert 0 < first[0] < 24


def test_rows_are_split_independently():
    w = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    w[3] = w[3].abs() ** 6  # leans to one side
    together = ternary_split(w, granularity="row")
    for row in range(5):
        alone = ternary_split(w[row], granularity="tensor")
        for half, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(half[row], expected, rtol=1e-12, atol=1e-14)


# --- edge rows ------------------------------------------------------------------------------------------------------


@GRANULARITIES
@pytest.mark.parametrize(
    "row",
    [
        [-3.0, -2.0, 0.1, 0.2],  # kept weights all negative (T3)
        [1.0, -1.0, 1.0, -1.0],  # nothing dropped (T3)
        [0.9, -1.1, 1.0, -1.0],  # nothing dropped, magnitudes differ
        [0.0, 0.0, 2.0, -3.0],  # zeros among the dropped
        [0.0, 0.0, 0.0, 5.0],
        [-5.0, 0.0, 0.0, 0.0],
        [1e-30, -2e-30, 1e-31, 0.0],
        [1e30, -2e30, 1e29, 0.0],
    ],
)
def test_edge_rows(granularity: str, row: list[float]):
    check(torch.tensor([row]), granularity)
    check(torch.tensor([row, [0.3, -0.1, 0.0, 0.7]]), granularity)


@GRANULARITIES
def test_nothing_dropped_gives_equal_halves(granularity: str):
    w = torch.tensor([[0.9, -1.1, 1.0, -1.0]])
    first, second = check(w, granularity)
    assert torch.equal(first, w.double() / 2)
    assert torch.equal(second, w.double() / 2)


def test_all_zero_rows_stay_zero():
    first, second = check(torch.tensor([[0.0, 0.0], [1.0, -0.2]]), "row")
    assert not first[0].any()
    assert not second[0].any()
    check(torch.zeros(2, 2), "tensor")


def test_a_single_weight():
    check(torch.tensor([[-0.7]]), "tensor")
    check(torch.tensor([[-0.7], [2.0]]), "row")


# --- precision and refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_weights_are_split_in_float64_as_they_were_ternarized(dtype: torch.dtype):
    # Mean 2.5: 1.75 lies on the threshold of float32 and of float64; the kept set is that of the weights' own dtype.
    w = torch.tensor([[1.75, 4.0, 1.75, -2.5]], dtype=dtype)
    first, second = ternary_split(w, granularity="row")
    total = sum(bwn_binarize(half, granularity="row") for half in (first, second))
    assert first.dtype == torch.float64
    torch.testing.assert_close(total, twn_ternarize(w.float(), granularity="row").double(), rtol=1e-6, atol=0)


def test_signs_survive_the_cast_to_float32():
    w = torch.randn(20, 50, generator=torch.Generator().manual_seed(3))
    halves = [half.float() for half in ternary_split(w, granularity="row")]
    total = sum(bwn_binarize(half, granularity="row") for half in halves)
    torch.testing.assert_close(total, twn_ternarize(w, granularity="row"), rtol=1e-5, atol=1e-6)


def test_no_graph_and_no_change_of_the_input():
    w = torch.randn(3, 4, requires_grad=True)
    before = w.detach().clone()
    assert not any(half.requires_grad for half in ternary_split(w, granularity="row"))
    assert torch.equal(w.detach(), before)


@pytest.mark.parametrize("granularity", ["token", "head", "rows"])
def test_other_granularities_are_refused(granularity: str):
    with pytest.raises(ValueError, match=rf"granularity='{granularity}': allowed are 'tensor' and 'row'"):
        ternary_split(torch.ones(2, 2), granularity=granularity)


def test_rows_need_a_matrix():
    with pytest.raises(ValueError, match="'row' needs two dimensions"):
        ternary_split(torch.ones(2), granularity="row")
