"""Properties that hold for every input, searched by hypothesis."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowbit.quantizers import minmax_asymmetric, minmax_symmetric, twn_ternarize

WIDTH = 6
NUMBERS = st.floats(-10, 10, width=32)
ROWS = st.lists(st.lists(NUMBERS, min_size=WIDTH, max_size=WIDTH), min_size=1, max_size=4).map(torch.tensor)
CLIPS = st.sampled_from([None, 0.5, 2.5])
FAST = settings(max_examples=60, deadline=None, derandomize=True)


def levels(y: Tensor) -> int:
    return max(len(row.unique()) for row in y)


@FAST
@given(x=ROWS, bits=st.integers(2, 8), clip=CLIPS, granularity=st.sampled_from(["tensor", "row"]))
def test_symmetric_grids_are_idempotent(x: Tensor, bits: int, clip: float | None, granularity: str):
    once = minmax_symmetric(x, bits=bits, granularity=granularity, clip=clip)
    twice = minmax_symmetric(once, bits=bits, granularity=granularity, clip=clip)
    torch.testing.assert_close(twice, once, rtol=1e-6, atol=0)


@FAST
@given(w=ROWS, clip=CLIPS)
def test_twn_is_idempotent(w: Tensor, clip: float | None):
    once = twn_ternarize(w, granularity="row", clip=clip)
    torch.testing.assert_close(twn_ternarize(once, granularity="row", clip=clip), once, rtol=1e-6, atol=0)


@FAST
@given(w=ROWS, clip=CLIPS, granularity=st.sampled_from(["tensor", "row"]))
def test_twn_has_three_levels_with_one_magnitude(w: Tensor, clip: float | None, granularity: str):
    y = twn_ternarize(w, granularity=granularity, clip=clip)
    for group in y if granularity == "row" else y[None]:
        assert len(group.unique()) <= 3
        assert len(group[group != 0].abs().unique()) <= 1
    assert torch.equal(y.sign() * w.sign(), y.sign().abs())


@FAST
@given(x=ROWS, bits=st.integers(2, 4), clip=CLIPS)
def test_symmetric_grids_have_odd_symmetry_and_few_levels(x: Tensor, bits: int, clip: float | None):
    y = minmax_symmetric(x, bits=bits, granularity="row", clip=clip)
    assert levels(y) <= 2**bits - 1
    assert torch.equal(minmax_symmetric(-x, bits=bits, granularity="row", clip=clip), -y)


@FAST
@given(x=ROWS, bits=st.integers(1, 3), clip=CLIPS)
def test_asymmetric_grids_have_few_levels_between_the_ends(x: Tensor, bits: int, clip: float | None):
    y = minmax_asymmetric(x, bits=bits, granularity="row", clip=clip)
    assert levels(y) <= 2**bits
    bound = x if clip is None else x.clamp(-clip, clip)
    slack = 1e-7 + 1e-6 * bound.abs().amax(-1)
    assert (y.amax(-1) <= bound.amax(-1) + slack).all()
    assert (y.amin(-1) >= bound.amin(-1) - slack).all()


@FAST
@given(x=ROWS, bits=st.integers(2, 8))
def test_the_rounding_error_is_at_most_half_a_step(x: Tensor, bits: int):
    limit = x.abs().amax(-1, keepdim=True)
    symmetric = minmax_symmetric(x, bits=bits, granularity="row")
    assert ((symmetric - x).abs() <= limit / (2 ** (bits - 1) - 1) * 0.5001 + 1e-30).all()
    width = x.amax(-1, keepdim=True) - x.amin(-1, keepdim=True) + 1e-8
    asymmetric = minmax_asymmetric(x, bits=bits, granularity="row")
    assert ((asymmetric - x).abs() <= width / (2**bits - 1) * 0.5001 + 1e-6 * limit).all()


@pytest.mark.parametrize("granularity", ["row", "token"])
@FAST
@given(x=ROWS, other=st.lists(NUMBERS, min_size=WIDTH, max_size=WIDTH), bits=st.integers(2, 8))
def test_a_row_does_not_depend_on_the_others(granularity: str, x: Tensor, other: list[float], bits: int):
    alone = torch.cat([x[:1], torch.tensor([other])])
    together = torch.cat([x[:1], torch.tensor([other]).neg() * 3])
    for y, z in (
        (twn_ternarize(alone, granularity=granularity), twn_ternarize(together, granularity=granularity)),
        (
            minmax_symmetric(alone, bits=bits, granularity=granularity),
            minmax_symmetric(together, bits=bits, granularity=granularity),
        ),
        (
            minmax_asymmetric(alone, bits=bits, granularity=granularity),
            minmax_asymmetric(together, bits=bits, granularity=granularity),
        ),
    ):
        assert torch.equal(y[0], z[0])
