"""Where learned scales start: least squares on sorted values, offsets that use the whole grid, defaults by target."""

import pytest
import torch
from torch import Tensor

from lowbit.quantizers import QuantizerSpec, Target, build_quantizer
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


def test_groups_of_zeros_and_of_one_value_have_a_finite_step():
    x_GN = torch.stack([torch.zeros(8), torch.full((8,), 3.0), torch.full((8,), -3.0)])
    steps = mse_step(x_GN, -4, 3)
    assert torch.isfinite(steps).all()
    assert (steps > 0).all()
    steps, offsets = mse_step_and_offset(x_GN, -4, 3)
    assert torch.isfinite(steps).all()
    assert (steps > 0).all()
    assert torch.isfinite(offsets).all()


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
