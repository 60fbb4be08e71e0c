"""Properties that hold for every input, searched by hypothesis.

Entries are quarters of integers: sums of them are exact in float32, whatever their order, so that properties of the
mathematics hold bit for bit.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowbit.quantizers import functional as F
from lowbit.quantizers.functional import minmax_asymmetric, minmax_symmetric, twn_ternarize

WIDTH = 6
NUMBERS = st.floats(-10, 10, width=32)
ROWS = st.lists(st.lists(NUMBERS, min_size=WIDTH, max_size=WIDTH), min_size=1, max_size=4).map(torch.tensor)
CLIPS = st.sampled_from([None, 0.5, 2.5])
FAST = settings(max_examples=60, deadline=None, derandomize=True)
QUICK = settings(max_examples=25, deadline=None, derandomize=True)
QUARTERS = st.integers(-40, 40).map(lambda k: k / 4)
ROW = st.lists(QUARTERS, min_size=WIDTH, max_size=WIDTH)
MATRIX = st.lists(ROW, min_size=3, max_size=3).map(torch.tensor)


@dataclass(frozen=True)
class Law:
    """A row-wise quantizer f(x, c): c multiplies its scales and ranges, so that Q(c x; c) = c Q(x; 1).

    Attributes:
        levels: largest number of levels of a row.
        idempotent: whether Q(Q(x)) = Q(x). The others shrink or move: a statistic of their own output differs from that
            of the input (StatsQ, BitNet, XTC's clipped maximum, BWN with zeros).
        alone: whether a row depends on no other.
    """

    call: Callable[[Tensor, float], Tensor]
    levels: int
    idempotent: bool = True
    alone: bool = True


def number(value: float, c: float) -> Tensor:
    return torch.tensor([value * c])


def rows(x: Tensor, c: float) -> Tensor:
    return (torch.arange(1, x.shape[0] + 1, dtype=x.dtype) * 0.75 * c).unsqueeze(1)


def curved(x: Tensor, variant: str) -> Tensor:
    return F.lat_ternarize(x, torch.ones_like(x), granularity="row", variant=variant, iterations=50)


LAWS = {
    "twn": Law(lambda x, c: F.twn_ternarize(x, granularity="row"), 3),
    "lat": Law(lambda x, c: curved(x, "approximate"), 3),
    "lat exact": Law(lambda x, c: curved(x, "exact"), 3),
    "bwn": Law(lambda x, c: F.bwn_binarize(x, granularity="row"), 2),
    "bwn zero": Law(lambda x, c: F.bwn_binarize(x, granularity="row", sign_of_zero=0), 3, idempotent=False),
    "bwn centred": Law(
        lambda x, c: F.bwn_binarize(x, granularity="row", center=True), 2, idempotent=False, alone=False
    ),
    "bitnet": Law(lambda x, c: F.bitnet_ternarize(x, granularity="row"), 3, idempotent=False),
    "statsq 2": Law(lambda x, c: F.statsq(x, bits=2), 4, idempotent=False),
    "statsq 3": Law(lambda x, c: F.statsq(x, bits=3), 8, idempotent=False),
    "symmetric 2": Law(lambda x, c: F.minmax_symmetric(x, bits=2, granularity="row"), 3),
    "symmetric 3": Law(lambda x, c: F.minmax_symmetric(x, bits=3, granularity="token", clip=2.5 * c), 7),
    "asymmetric 1": Law(lambda x, c: F.minmax_asymmetric(x, bits=1, granularity="row"), 2),
    "asymmetric 2": Law(lambda x, c: F.minmax_asymmetric(x, bits=2, granularity="token", clip=2.5 * c), 4),
    "xtc 3": Law(lambda x, c: F.xtc_symmetric(x, bits=3, granularity="row"), 8, idempotent=False),
    "lsq 2": Law(lambda x, c: F.lsq(x, rows(x, c), bits=2, grad_scale="lsq"), 4),
    "lsq unsigned": Law(lambda x, c: F.lsq(x, rows(x, c), bits=2, signed=False, grad_scale="none"), 4),
    "lsq offset": Law(
        lambda x, c: F.lsq(x, rows(x, c), bits=2, offset=number(0.5, c), grad_scale="none"), 4, idempotent=True
    ),
    "seq 1.58": Law(lambda x, c: F.seq(x, rows(x, c), bits=1.58), 3),
    "seq 2": Law(lambda x, c: F.seq(x, rows(x, c), bits=2), 4),
    "seq 3": Law(lambda x, c: F.seq(x, rows(x, c), bits=3), 8),
    "elastic 1": Law(lambda x, c: F.elastic_signed(x, number(0.75, c), bits=1), 2),
    "elastic 2": Law(lambda x, c: F.elastic_signed(x, number(0.75, c), bits=2), 4),
    "elastic unsigned 1": Law(lambda x, c: F.elastic_unsigned(x, number(0.75, c), bits=1), 2),
    "elastic unsigned 2": Law(lambda x, c: F.elastic_unsigned(x, number(0.75, c), bits=2), 4, alone=False),
    "pact": Law(lambda x, c: F.pact(x, number(-2, c), number(2, c), bits=3, granularity="row"), 7),
    "pact asymmetric": Law(
        lambda x, c: F.pact(x, number(-2, c), number(1.5, c), bits=2, granularity="row", symmetric=False), 4
    ),
    "static": Law(lambda x, c: F.static_range(x, number(-2, c), number(1.75, c), bits=2), 4),
    "static symmetric": Law(lambda x, c: F.static_range(x, number(-2, c), number(1, c), bits=3, symmetric=True), 7),
}
EVERY = pytest.mark.parametrize("name", LAWS)


def levels(y: Tensor) -> int:
    return max(len(row.unique()) for row in y)


def test_every_quantizer_has_a_law():
    assert len(LAWS) >= len(F.__all__) - 3  # quant_noise, drop_blocks, lsq_mse_init: no quantizers


@pytest.mark.parametrize("name", [name for name, law in LAWS.items() if law.idempotent])
@QUICK
@given(x=MATRIX)
def test_quantizing_twice_is_quantizing_once(name: str, x: Tensor):
    once = LAWS[name].call(x, 1.0)
    torch.testing.assert_close(LAWS[name].call(once, 1.0), once, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", [name for name, law in LAWS.items() if not law.idempotent])
def test_the_exceptions_to_idempotence_are_real(name: str):
    x = torch.tensor([[0.0, 0.25, -0.5, 4.0, 1.0, 10.0]] * 3) + (0.25 if name == "bwn centred" else 0)
    once = LAWS[name].call(x, 1.0)
    twice = LAWS[name].call(once, 1.0)
    if name != "bwn centred":  # idempotent unless rounding moves the mean of equal rows beyond their value
        assert (twice - once).abs().max() > 0.1
    else:
        torch.testing.assert_close(twice, once)


@EVERY
@QUICK
@given(x=MATRIX)
def test_a_row_has_no_more_levels_than_its_width_gives(name: str, x: Tensor):
    assert levels(LAWS[name].call(x, 1.0)) <= LAWS[name].levels


@EVERY
def test_all_levels_are_reached(name: str):
    x = torch.cat([torch.linspace(-3, 3, 4001), torch.zeros(1)]).repeat(3, 1)
    assert levels(LAWS[name].call(x, 1.0)) == LAWS[name].levels


@EVERY
@QUICK
@given(x=MATRIX, power=st.integers(-40, 40))
def test_a_scaled_tensor_gives_scaled_levels(name: str, x: Tensor, power: int):
    c = 2.0**power
    if "asymmetric" in name:  # what the published code adds to the range shows, but not where nothing lies half-way
        x = x + 0.0137 * (1 + torch.arange(WIDTH)) ** 1.5
        torch.testing.assert_close(LAWS[name].call(c * x, c) / c, LAWS[name].call(x, 1.0), rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(LAWS[name].call(c * x, c), c * LAWS[name].call(x, 1.0))


@EVERY
@QUICK
@given(x=MATRIX, order=st.permutations(range(WIDTH)))
def test_a_permutation_within_a_row_permutes_the_result(name: str, x: Tensor, order: list[int]):
    assert torch.equal(LAWS[name].call(x[:, order], 1.0), LAWS[name].call(x, 1.0)[:, order])


@pytest.mark.parametrize("name", [name for name, law in LAWS.items() if law.alone])
@QUICK
@given(x=MATRIX, other=ROW)
def test_a_row_does_not_depend_on_the_others(name: str, x: Tensor, other: list[float]):
    results = []
    for last in (x[-1], torch.tensor(other)):
        matrix = torch.cat([x[:-1], last.unsqueeze(0)]).requires_grad_()
        y = LAWS[name].call(matrix, 1.0)
        y.backward(torch.arange(1.0, 1 + x.numel()).reshape(x.shape))
        results.append((y.detach()[:-1], matrix.grad[:-1]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", [name for name, law in LAWS.items() if not law.alone])
def test_the_exceptions_to_row_independence_are_real(name: str):
    x = torch.tensor([[0.0, 0.25, -0.5, 4.0, 1.0, 10.0]] * 3)
    far = torch.cat([x[:-1], -20.25 * torch.ones(1, WIDTH)])
    assert not torch.equal(LAWS[name].call(x, 1.0)[:-1], LAWS[name].call(far, 1.0)[:-1])


@QUICK
@given(x=MATRIX, other=ROW)
def test_the_gradient_of_a_row_scale_does_not_depend_on_other_rows(x: Tensor, other: list[float]):
    for function in (
        lambda w, a: F.lsq(w, a, bits=2, grad_scale="lsq"),
        lambda w, a: F.lsq(w, a, bits=2, grad_scale="none", offset=a / 4),
        lambda w, a: F.seq(w, a, bits=2),
    ):
        grads = []
        for last in (x[-1], torch.tensor(other)):
            alpha = rows(x, 1.0).requires_grad_()
            function(torch.cat([x[:-1], last.unsqueeze(0)]), alpha).square().sum().backward()
            grads.append(alpha.grad[:-1])
        assert torch.equal(*grads)


# --- any floats -----------------------------------------------------------------------------------------------------


@FAST
@given(x=ROWS, bits=st.integers(2, 8), clip=CLIPS, granularity=st.sampled_from(["tensor", "row"]))
def test_symmetric_grids_are_idempotent(x: Tensor, bits: int, clip: float | None, granularity: str):
    once = minmax_symmetric(x, bits=bits, granularity=granularity, clip=clip)
    twice = minmax_symmetric(once, bits=bits, granularity=granularity, clip=clip)
    torch.testing.assert_close(twice, once, rtol=1e-6, atol=0)


@FAST
@given(w=ROWS, clip=CLIPS)
def test_twn_is_idempotent(w: Tensor, clip: float | None):
    # Its threshold is 0.7 alpha times the share of kept weights, below alpha: the same weights are kept again.
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


@FAST
@given(x=ROWS)
def test_the_ends_of_a_static_range_pass_the_gradient(x: Tensor):
    for symmetric in (True, False):
        latent = x.clone().requires_grad_()
        F.static_range(latent, x.min(), x.max(), bits=4, symmetric=symmetric).sum().backward()
        assert (latent.grad == 1).all()
