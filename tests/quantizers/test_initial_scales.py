"""Where learned scales start: least squares on sorted values, offsets that use the whole grid, defaults by target."""

import pytest
import torch
from torch import Tensor

from lowbit.quantizers import QuantizerSpec, QuantLinear, Target, build_quantizer
from lowbit.quantizers.functional.initial import levels, mse_step, mse_step_and_offset


def naive_mse_step(x: Tensor, low: int, high: int) -> Tensor:
    """Lloyd's iteration as the specification writes it, over all elements."""
    x = x.double()
    step = x.abs().max() / high
    for _ in range(5000):
        codes = (x / step).clamp(low, high).round()
        fitted = (x * codes).sum() / (codes * codes).sum()
        done = (fitted - step).abs() / fitted < 1e-5
        step = fitted
        if done:
            break
    return step


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_least_squares_on_sorted_values_is_the_iteration_over_elements(bits: int, signed: bool):
    generator = torch.Generator().manual_seed(bits)
    x_GN = torch.randn(5, 300, generator=generator) * torch.tensor([[1e-3], [0.1], [1.0], [7.0], [100.0]])
    x_GN = x_GN if signed else x_GN.abs()
    low, high = levels(bits, signed)
    steps = mse_step(x_GN, low, high)
    for x, step in zip(x_GN, steps, strict=True):
        torch.testing.assert_close(step.double(), naive_mse_step(x, low, high), rtol=1e-6, atol=0)


def test_groups_of_one_value_have_a_step_and_groups_of_zeros_have_none():
    x_GN = torch.stack([torch.zeros(8), torch.full((8,), 3.0), torch.full((8,), -3.0)])
    steps = mse_step(x_GN, -4, 3)
    assert torch.isfinite(steps).all()
    assert (steps > 0).tolist() == [False, True, True]
    steps, offsets = mse_step_and_offset(x_GN, -4, 3)
    assert (steps > 0).tolist() == [False, True, True]
    torch.testing.assert_close(offsets - 4 * steps, x_GN[:, 0])


LEARNED = {
    "lsq": QuantizerSpec("lsq", bits=4),
    "lsq row": QuantizerSpec("lsq", bits=8, granularity="row", init="mean"),
    "lsq max": QuantizerSpec("lsq", bits=8, granularity="row", init="max"),
    "lsq sigma": QuantizerSpec("lsq", bits=8, init="three_sigma"),
    "lsq+": QuantizerSpec("lsq", bits=8, offset=True),
    "lsq+ row": QuantizerSpec("lsq", bits=3, offset=True, granularity="row"),
    "seq": QuantizerSpec("seq", bits=4, granularity="row"),
    "seq mean": QuantizerSpec("seq", bits=1.58, init="mean"),
    "elastic": QuantizerSpec("elastic", bits=2),
    "elastic unsigned": QuantizerSpec("elastic", bits=2, signed=False),
}
EVERY = pytest.mark.parametrize("spec", LEARNED.values(), ids=LEARNED)


def started(spec: QuantizerSpec, w: Tensor) -> list[Tensor]:
    quantizer = build_quantizer(spec, Target(tuple(w.shape), w, weight=True))
    quantizer.initialize(w)
    return [number.detach().clone() for number in quantizer.parameters()]


@EVERY
def test_weights_that_are_zero_start_as_evenly_spaced_ones_of_a_usual_layer(spec: QuantizerSpec):
    usual = torch.linspace(0.0 if spec.signed is False else -0.25, 0.25, 257).repeat(3, 1)  # 1 / sqrt(16 inputs)
    for of_zeros, expected in zip(started(spec, torch.zeros(3, 16)), started(spec, usual), strict=True):
        torch.testing.assert_close(of_zeros, expected, rtol=1e-4, atol=1e-6)


@EVERY
def test_a_row_of_zeros_starts_with_the_mean_of_the_others(spec: QuantizerSpec):
    w = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)) * 0.02
    w[1] = 0
    for numbers in started(spec, w):
        if len(numbers) == 4:
            torch.testing.assert_close(numbers[1], numbers[[0, 2, 3]].mean())
        assert (numbers.abs() < 0.2).all()


@EVERY
@pytest.mark.parametrize("power", [-40, -13, 17, 40])
def test_the_start_scales_with_the_weights(spec: QuantizerSpec, power: int):
    w = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    w[1] = 0
    if spec.signed is False:
        w = w.abs()
    for small, usual in zip(started(spec, w * 2.0**power), started(spec, w), strict=True):
        assert torch.equal(small, usual * 2.0**power)


def test_a_batch_of_zeros_tells_nothing_of_an_input():
    zeros, x = torch.zeros(5, 6), torch.randn(5, 6, generator=torch.Generator().manual_seed(0)) * 1e-3

    def step(spec: QuantizerSpec, *batches: Tensor) -> Tensor:
        quantizer = build_quantizer(spec, Target((6,), x))
        for batch in batches:
            quantizer.observe(batch)
        return quantizer.step_size.detach()

    for spec in (QuantizerSpec("lsq", bits=8), QuantizerSpec("elastic", bits=1)):
        assert torch.equal(step(spec, zeros, x, zeros), step(spec, x))
        torch.testing.assert_close(step(spec, x, zeros, 3 * x), 2 * step(spec, x))
        unit = torch.linspace(-1, 1, 257).repeat(6, 1)  # one that stays zero starts as a normalized input
        torch.testing.assert_close(step(spec, zeros), step(spec, unit))


def test_an_unsigned_elastic_input_below_one_half_starts_from_its_upper_half():
    quantizer = build_quantizer(QuantizerSpec("elastic", bits=1, signed=False, init="paper"), Target((4,)))
    quantizer.observe(torch.tensor([[0.001, 0.002, 0.03, 0.02]]))
    assert quantizer.step_size.item() == pytest.approx(0.025)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_static_range_of_zeros_is_replaced_by_the_first_one_that_is_not(symmetric: bool):
    quantizer = build_quantizer(QuantizerSpec("static", bits=8, symmetric=symmetric), Target((4,)))
    quantizer.observing = True
    quantizer(torch.zeros(2, 4))
    quantizer.observing = False
    quantizer.finish_observing()
    x = torch.tensor([[0.5, -0.25, 0.0, 1.0]])
    assert torch.equal(quantizer.eval()(x), torch.zeros(1, 4))  # clipped to what calibration has seen
    quantizer.train()(x)
    quantizer.end_step()
    assert (quantizer.low.item(), quantizer.high.item()) == (-0.25, 1.0)
    quantizer(2 * x)
    quantizer.end_step()
    assert quantizer.high.item() == pytest.approx(0.95 + 0.05 * 2)


@pytest.mark.parametrize("spec", [LEARNED["lsq"], LEARNED["lsq row"], LEARNED["lsq+"], LEARNED["seq"]], ids=str)
def test_a_head_of_zeros_trains_as_under_min_max(spec: QuantizerSpec):
    draw = torch.Generator().manual_seed(0)
    x, true = torch.randn(256, 64, generator=draw), torch.randn(10, 64, generator=draw)
    y = (x @ true.T).argmax(1)

    def loss_after(spec: QuantizerSpec) -> float:
        head = torch.nn.Linear(64, 10)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        layer = QuantLinear.from_float(head, spec, None)
        optimizer = torch.optim.Adam(layer.parameters(), 1e-3)
        for _ in range(100):
            loss = torch.nn.functional.cross_entropy(layer(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    assert loss_after(spec) == pytest.approx(loss_after(QuantizerSpec("minmax_symmetric", bits=8)), abs=0.05)


def error(x: Tensor, spec: QuantizerSpec) -> tuple[float, int]:
    quantizer = build_quantizer(spec, Target((x.shape[-1],), x))
    quantizer.observe(x)
    quantizer.mark_ready()
    y = quantizer(x)
    return float((y.detach() - x).square().mean() / x.var()), len(y.unique())


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("shift", [0.0, 0.5, -3.0])
def test_a_learned_offset_starts_on_the_whole_grid_and_is_no_worse_than_none(bits: int, signed: bool, shift: float):
    x = torch.randn(64, 100, generator=torch.Generator().manual_seed(1)) + shift
    with_offset, used = error(x, QuantizerSpec("lsq", bits=bits, signed=signed, offset=True, init="mse"))
    without, _ = error(x, QuantizerSpec("lsq", bits=bits, signed=signed, init="mse"))
    assert used == 2**bits
    assert with_offset <= without * 1.01


def test_weights_start_from_least_squares_and_inputs_from_the_mean_unless_told():
    w = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    low, high = levels(2, signed=True)
    weight = build_quantizer(QuantizerSpec("lsq", bits=2), Target((20, 30), w, weight=True))
    weight.initialize(w)
    torch.testing.assert_close(weight.step_size.detach(), mse_step(w.reshape(1, -1), low, high))
    given = build_quantizer(QuantizerSpec("lsq", bits=2), Target((30,), w))
    given.observe(w)
    torch.testing.assert_close(given.step_size.detach(), 2 * w.abs().mean().reshape(1))


def test_pact_from_a_meta_device_is_not_ready_before_it_has_its_clip_values():
    with torch.device("meta"):
        quantizer = build_quantizer(QuantizerSpec("pact", bits=4), Target((8,), torch.empty(8, 8)))
    quantizer.to_empty(device="cpu")
    with pytest.raises(RuntimeError, match="calibrate"):
        quantizer(torch.randn(2, 8))
    quantizer.finish_observing()
    assert (quantizer.low.item(), quantizer.high.item()) == (-2.5, 2.5)
    assert torch.isfinite(quantizer(torch.randn(2, 8))).all()
