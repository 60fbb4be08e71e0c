"""CAGE and dampening: their strength over time, what they add, what they leave alone."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lowbit.quantizers import QuantConv2d, QuantEmbedding, QuantFusedLinear, QuantizerSpec, QuantLinear, weight_sites
from lowbit.quantizers.corrections import Cage, Correction, Dampening, check_correctable

LSQ = QuantizerSpec("lsq", bits=3)
LATE = {"step": 1000, "steps": 1000}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def linear(spec: QuantizerSpec, *, heads: tuple[int, int] | None = None, outliers: bool = True) -> QuantLinear:
    source = nn.Linear(8, 6, dtype=torch.float64)
    layer = QuantLinear.from_float(source, spec, None, heads)
    if outliers:  # beyond any learned range, after the scale was set
        with torch.no_grad():
            layer.weight[0, :2] = torch.tensor([9.0, -9.0])
    return layer


def fused(spec: QuantizerSpec) -> QuantFusedLinear:
    specs = {"query": (spec, None), "key": (None, None), "value": (spec, None)}
    return QuantFusedLinear.from_float(nn.Linear(8, 12, dtype=torch.float64), specs)


def conv(spec: QuantizerSpec) -> QuantConv2d:
    return QuantConv2d.from_float(nn.Conv2d(3, 4, 2, dtype=torch.float64), spec, None)


def with_gradients(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# --- settings and schedules -----------------------------------------------------------------------------------------


def test_base_correction_does_nothing():
    layer = with_gradients(linear(LSQ))
    before, grads = copy.deepcopy(layer.state_dict()), gradients(layer)
    sites = list(weight_sites(layer))
    Correction().before_step(sites, 0, 10)
    Correction().after_step(sites, 0, 10, lambda p: 1.0)
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())
    assert all(torch.equal(grads[k], v) for k, v in gradients(layer).items())


@pytest.mark.parametrize(
    ("correction", "expected"),
    [
        (Cage(), {0: 0, 799: 0, 800: 0, 801: 0.05, 900: 5, 1000: 10}),
        (Cage(strength=2, silence=0), {0: 0, 1: 0.002, 500: 1, 1000: 2}),
        (Cage(silence=1), {0: 0, 999: 0, 1000: 0}),
        (Cage(schedule="constant"), {799: 0, 800: 10, 1000: 10}),
        (Dampening(), {0: 0, 249: 0, 250: 0, 500: 0.025, 625: 0.05, 1000: 0.1}),
        (Dampening(strength=4, start=0), {0: 0, 500: 2, 1000: 4}),
    ],
)
def test_strength_over_time(correction: Cage | Dampening, expected: dict[int, float]):
    assert {step: correction.weight_at(step, 1000) for step in expected} == pytest.approx(expected)


def test_cage_ramp_in_a_stage_shorter_than_its_end_part():
    assert Cage().weight_at(1, 1) == pytest.approx(10 * 0.2)  # max(1, 0.2) in the divisor, as published


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Cage(strength=-1), r"strength=-1: must be at least 0 and finite"),
        (lambda: Cage(strength=float("inf")), r"strength=inf: must be at least 0 and finite"),
        (lambda: Cage(strength=float("nan")), r"strength=nan"),
        (lambda: Cage(silence=1.5), r"silence=1.5: must be between 0 and 1"),
        (lambda: Cage(schedule="cosine"), r"schedule='cosine': allowed are linear_ramp, constant"),
        (lambda: Dampening(strength=-0.1), r"strength=-0.1: must be at least 0"),
        (lambda: Dampening(start=-0.1), r"start=-0.1: must be between 0 and 1"),
        (lambda: Dampening(aggregation="max"), r"aggregation='max': allowed are sum, mean, kernel_mean"),
    ],
)
def test_settings_out_of_range_are_refused(build: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("kind", ["ipq", "block_noise"])
@pytest.mark.parametrize("correction", [Cage(), Cage(coupled=True), Dampening()])
def test_kinds_without_a_grid_are_refused_at_the_first_use(kind: str, correction: Correction):
    model = nn.ModuleDict({"one": linear(LSQ), "two": linear(QuantizerSpec(kind, block_size=2))})
    sites = list(weight_sites(model))
    for use in (
        lambda: check_correctable(sites),
        lambda: correction.before_step(sites, 0, 1000),
    ):
        with pytest.raises(ValueError, match=rf"two: .* kind '{kind}' does not have"):
            use()


def test_cage_refuses_them_after_the_step_too():
    sites = list(weight_sites(linear(QuantizerSpec("ipq", block_size=2))))
    with pytest.raises(ValueError, match="kind 'ipq'"):
        Cage().after_step(sites, 0, 1000, lambda p: 0.1)


def test_a_learned_shift_is_refused():
    sites = list(weight_sites(linear(QuantizerSpec("elastic", bits=2, shift=True))))
    with pytest.raises(ValueError, match="kind 'elastic' with a learned shift"):
        check_correctable(sites)


# --- CAGE -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [LSQ, QuantizerSpec("lsq", bits=4, granularity="row"), QuantizerSpec("seq", bits=2, granularity="row")],
    ids=str,
)
def test_decoupled_cage_shrinks_the_distance_to_a_fixed_grid(spec: QuantizerSpec):
    layer = with_gradients(linear(spec))
    (site,) = weight_sites(layer)
    distance, level = site.weight - site.quantized(), site.quantized()
    Cage().after_step([site], 900, 1000, lambda p: 1e-2)
    assert torch.equal(site.quantized(), level)
    torch.testing.assert_close(site.weight - level, distance * (1 - 1e-2 * 5))


def test_decoupled_cage_uses_the_quantized_value_of_the_new_weight():
    layer = linear(LSQ, outliers=False)
    (site,) = weight_sites(layer)
    optimizer = torch.optim.SGD([layer.weight], lr=0.05)
    before = site.weight.clone()
    layer.weight.grad = torch.randn_like(layer.weight) * 5
    expected = before - 0.05 * layer.weight.grad
    old_level, new_level = site.quantized(), layer.weight_quantizer(expected).detach()
    assert not torch.equal(old_level, new_level)
    optimizer.step()
    Cage(strength=4).after_step([site], **LATE, lr={layer.weight: 0.05})
    torch.testing.assert_close(site.weight, expected - 0.05 * 4 * (expected - new_level))


def test_cage_ignores_quantization_noise():
    layer = with_gradients(linear(QuantizerSpec("lsq", bits=3, noise="element", noise_rate=0.0))).train()
    (site,) = weight_sites(layer)
    before = site.weight.clone()
    Cage().after_step([site], **LATE, lr=lambda p: 0.05)  # under noise of rate 0, Q(w) = w and nothing would move
    assert (site.weight != before).any()
    assert layer.weight_quantizer.training


def run(layer: QuantLinear, correction: Correction | None, build: Callable[..., torch.optim.Optimizer]) -> Tensor:
    (site,) = weight_sites(layer)
    optimizer = build([layer.weight])
    generator = torch.Generator().manual_seed(3)
    layer.weight.grad = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64) * 1e-3
    if correction is not None:
        correction.before_step([site], **LATE)
    optimizer.step()
    if correction is not None:
        correction.after_step([site], **LATE, lr=lambda p: optimizer.param_groups[0]["lr"])
    return site.weight


def test_coupled_and_decoupled_agree_for_one_sgd_step_and_differ_under_adamw():
    layer = linear(LSQ, outliers=False)

    def sgd(parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1e-3)

    def adamw(parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=1e-3)

    results = {}
    for build in (sgd, adamw):
        for name, correction in {"off": None, "de": Cage(strength=5), "co": Cage(strength=5, coupled=True)}.items():
            results[build.__name__, name] = run(copy.deepcopy(layer), correction, build)
    # Q of the old weight against Q of the new: the same level, so they differ in second order of lr * lambda only.
    torch.testing.assert_close(results["sgd", "de"], results["sgd", "co"], rtol=0, atol=1e-3 * 5 * 1e-3 * 5e-3)
    assert (results["sgd", "de"] - results["sgd", "off"]).abs().max() > 1e-4
    assert (results["adamw", "de"] - results["adamw", "co"]).abs().max() > 1e-4


@pytest.mark.parametrize("correction", [Cage(), Cage(coupled=True), Dampening()])
def test_nothing_happens_before_the_start(correction: Correction):
    layer = with_gradients(linear(LSQ))
    sites, before, grads = list(weight_sites(layer)), layer.weight.detach().clone(), layer.weight.grad.clone()
    correction.before_step(sites, 10, 1000)
    correction.after_step(sites, 10, 1000, lambda p: 1e9)
    assert torch.equal(layer.weight, before)
    assert torch.equal(layer.weight.grad, grads)


def test_each_way_of_cage_acts_at_its_own_place():
    layer = with_gradients(linear(LSQ))
    sites, before, grads = list(weight_sites(layer)), layer.weight.detach().clone(), layer.weight.grad.clone()
    Cage().before_step(sites, **LATE)
    Cage(coupled=True).after_step(sites, **LATE, lr=lambda p: 0.01)
    assert torch.equal(layer.weight, before)
    assert torch.equal(layer.weight.grad, grads)
    Cage(coupled=True).before_step(sites, **LATE)
    torch.testing.assert_close(layer.weight.grad, grads + 10 * (before - sites[0].quantized()))


def test_cage_refuses_steps_that_reach_the_level():
    layer = with_gradients(linear(LSQ))
    sites, before = list(weight_sites(layer)), layer.weight.detach().clone()
    message = r"lr=0.1 with strength=10: lr \* lambda = 1, must be < 1"
    with pytest.raises(ValueError, match=message):
        Cage().after_step(sites, **LATE, lr=lambda p: 0.1)
    assert torch.equal(layer.weight, before)
    with pytest.raises(ValueError, match=message):
        Cage().rate(0.1)
    assert Cage().rate(0.0999) == pytest.approx(0.999)
    Cage().after_step(sites, 900, 1000, lambda p: 0.1)  # lambda is 5 there
    Cage(coupled=True).after_step(sites, **LATE, lr=lambda p: 0.1)


# --- dampening ------------------------------------------------------------------------------------------------------


def explicit_loss(site, aggregation: str) -> Tensor:
    """The published loss by autograd, heads split by hand."""
    quantizer, parameter = site.quantizer, site.parameter
    w = site.of(parameter)
    if quantizer.target.heads is None:
        view = w
    elif quantizer.target.heads[1] == 0:
        view = w.reshape(quantizer.target.heads[0], -1)
    else:
        view = w.reshape(w.shape[0], quantizer.target.heads[0], -1).transpose(0, 1)
    with torch.no_grad():
        level, grid = quantizer.put_on_grid(view)
        low, high = (grid.low + grid.shift) * grid.step, (grid.high + grid.shift) * grid.step
    square = (torch.clamp(view, low, high) - level).square()
    if aggregation == "mean":
        return square.mean()
    return square.mean((2, 3)).sum() if aggregation == "kernel_mean" and view.ndim == 4 else square.sum()


MODELS = {
    "lsq": lambda: linear(LSQ),
    "lsq row": lambda: linear(QuantizerSpec("lsq", bits=2, granularity="row")),
    "lsq head rows": lambda: linear(QuantizerSpec("lsq", bits=2, granularity="head"), heads=(2, 0)),
    "lsq head columns": lambda: linear(QuantizerSpec("lsq", bits=2, granularity="head"), heads=(4, 1)),
    "twn": lambda: linear(QuantizerSpec("twn"), outliers=False),
    "twn row": lambda: linear(QuantizerSpec("twn", granularity="row")),
    "twn head columns": lambda: linear(QuantizerSpec("twn", granularity="head"), heads=(2, 1)),
    "seq": lambda: linear(QuantizerSpec("seq", bits=2, granularity="row")),
    "seq ternary": lambda: linear(QuantizerSpec("seq", bits=1.58)),
    "bwn": lambda: linear(QuantizerSpec("bwn")),
    "statsq": lambda: linear(QuantizerSpec("statsq", bits=2, granularity="row")),
    "fused": lambda: fused(LSQ),
    "fused twn row": lambda: fused(QuantizerSpec("twn", granularity="row")),
    "conv": lambda: conv(LSQ),
    "embedding": lambda: QuantEmbedding.from_float(nn.Embedding(5, 4, dtype=torch.float64), LSQ, None),
}


@pytest.mark.parametrize("aggregation", ["sum", "mean", "kernel_mean"])
@pytest.mark.parametrize("name", MODELS)
def test_dampening_adds_the_gradient_of_the_explicit_loss(name: str, aggregation: str):
    model = with_gradients(MODELS[name]())
    before, sites = gradients(model), list(weight_sites(model))
    expected = {}
    for site in sites:
        (grad,) = torch.autograd.grad(explicit_loss(site, aggregation), site.parameter)
        expected[id(site.parameter)] = expected.get(id(site.parameter), 0) + grad
    correction = Dampening(strength=0.3, start=0.2, aggregation=aggregation)
    correction.before_step(sites, 60, 100)
    for key, parameter in model.named_parameters():
        added = correction.weight_at(60, 100) * expected[id(parameter)] if id(parameter) in expected else 0
        torch.testing.assert_close(parameter.grad, before[key] + added)
        if id(parameter) in expected:
            assert added.abs().max() > 1e-4


def test_clipped_weights_are_pulled_by_cage_and_not_by_dampening():
    layer = with_gradients(linear(LSQ))
    (site,), before = weight_sites(layer), layer.weight.grad.clone()
    Dampening().before_step([site], **LATE)
    clipped = torch.zeros_like(before, dtype=torch.bool)
    clipped[0, :2] = True
    assert torch.equal((layer.weight.grad == before), clipped)
    Cage().after_step([site], **LATE, lr=lambda p: 0.01)
    step = layer.weight_quantizer.step_size.item()
    expected = torch.tensor([9 - 0.1 * (9 - 3 * step), -9 - 0.1 * (-9 + 4 * step)], dtype=torch.float64)
    torch.testing.assert_close(layer.weight[0, :2].detach(), expected)


# --- what is left alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("correction", [Cage(), Cage(coupled=True), Dampening()])
def test_full_precision_and_frozen_parameters_are_not_touched(correction: Correction):
    model = nn.ModuleDict(
        {"fused": fused(LSQ), "plain": nn.Linear(3, 3), "norm": nn.LayerNorm(3), "still": linear(LSQ)}
    )
    with_gradients(model)
    for parameter in model["still"].parameters():
        parameter.grad = None
    before, grads = {k: p.detach().clone() for k, p in model.named_parameters()}, gradients(model)
    sites = list(weight_sites(model))
    assert [site.name for site in sites] == ["fused.query", "fused.value", "still"]
    correction.before_step(sites, **LATE)
    correction.after_step(sites, **LATE, lr=lambda p: 0.01)
    after = {k: p.detach().clone() for k, p in model.named_parameters()}
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    changed |= {k for k, grad in gradients(model).items() if not torch.equal(grads[k], grad)}
    assert changed == {"fused.weight"}
    for tensors in (
        (before["fused.weight"], after["fused.weight"]),
        (grads["fused.weight"], model["fused"].weight.grad),
    ):
        same = (tensors[0] == tensors[1]).all(1)
        assert same[4:8].all()  # the key's rows are full precision
    assert set(gradients(model)) == set(grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("correction", [Cage(), Cage(coupled=True), Dampening()])
def test_other_dtypes_and_all_zero_weights_give_finite_numbers(correction: Correction, dtype: torch.dtype):
    for spec in (LSQ, QuantizerSpec("twn", granularity="row"), QuantizerSpec("minmax_symmetric", bits=4)):
        layer = QuantLinear.from_float(nn.Linear(8, 6, dtype=dtype), spec, None)
        with torch.no_grad():
            layer.weight[:3] = 0
        with_gradients(layer)
        sites = list(weight_sites(layer))
        correction.before_step(sites, **LATE)
        correction.after_step(sites, **LATE, lr=lambda p: 0.01)
        assert layer.weight.dtype is layer.weight.grad.dtype is dtype
        assert layer.weight.isfinite().all()
        assert layer.weight.grad.isfinite().all()
        assert not layer.weight[:3].any()


def test_training_with_dampening_or_cage_brings_weights_closer_to_the_grid():
    def trained(correction: Correction) -> float:
        torch.manual_seed(1)
        layer = QuantLinear.from_float(nn.Linear(16, 16), replace(LSQ, init="mean"), None)
        (site,) = weight_sites(layer)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
        x = torch.randn(64, 16)
        target = x @ torch.randn(16, 16) * 0.2
        for step in range(150):
            optimizer.zero_grad()
            (layer(x) - target).square().mean().backward()
            correction.before_step([site], step, 150)
            optimizer.step()
            correction.after_step([site], step, 150, lambda p: 1e-3)
        return ((site.weight - site.quantized()).norm() / site.weight.norm()).item()

    plain = trained(Correction())
    assert trained(Cage(strength=100, silence=0.5)) < 0.5 * plain
    assert trained(Dampening(strength=1.0)) < 0.9 * plain
