"""What quantizers keep: saved, copied, converted, calibrated, averaged over steps, fed by the optimizer, compiled."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lowbit.quantizers import KINDS, QuantFusedLinear, QuantizerSpec, QuantLinear, begin_step, calibrate, end_step
from lowbit.quantizers.functional import lat_ternarize, lsq, static_range, twn_ternarize

SETTINGS: dict[str, dict[str, Any]] = {"ipq": {"block_size": 4, "centroids": 5}, "pact": {"clip": 0.3}}
LEARNED, RANGE = {"step_size", "floor", "initialized"}, {"low", "high", "initialized"}
KEYS: dict[str, set[str]] = {
    "lsq": LEARNED,
    "lsq offset": LEARNED | {"offset"},
    "seq": LEARNED,
    "elastic": LEARNED,
    "elastic shift": LEARNED | {"shift"},
    "pact": RANGE,
    "static": RANGE,
    "lat": {"second_moment", "initialized"},
    "ipq": {"centroids", "assignments", "initialized"},
}
FOR_WEIGHTS_ONLY = ("lat", "block_noise", "ipq")
NAMES = [*KINDS, "lsq offset", "elastic shift"]
SITES = [("weight", n) for n in NAMES] + [("input", n) for n in NAMES if n not in FOR_WEIGHTS_ONLY]
WAITING = ("lsq", "lsq offset", "seq", "elastic", "elastic shift", "static")
every_site = pytest.mark.parametrize(("side", "name"), SITES, ids=[f"{n}-{s}" for s, n in SITES])


def spec(name: str, **settings: Any) -> QuantizerSpec:
    kind, _, flag = name.partition(" ")
    bits = {} if KINDS[kind].bits else {"bits": 3}
    return QuantizerSpec(kind, **{**bits, **SETTINGS.get(kind, {}), **({flag: True} if flag else {}), **settings})


def linear(side: str, of: QuantizerSpec, heads: tuple[int, int] | None = None) -> QuantLinear:
    return QuantLinear.from_float(nn.Linear(8, 6), *((of, None) if side == "weight" else (None, of)), heads=heads)


def trained(side: str, name: str) -> QuantLinear:
    """Return a layer in evaluation mode whose state is not that of initialisation."""
    layer = linear(side, spec(name))
    calibrate(layer, [torch.randn(4, 8)], layer)
    quantizer: Any = getattr(layer, f"{side}_quantizer")
    if name == "lat":
        quantizer.set_curvature(torch.rand(6, 8) ** 4)
    with torch.no_grad():
        for tensor in (*quantizer.parameters(), *(b for b in quantizer.buffers() if b.is_floating_point())):
            tensor.mul_(0.8 + 0.1 * torch.rand(tensor.shape)).add_(0.01)
    return layer.eval()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("name", "published"), [("lsq", 1e-4), ("seq", 1e-5), ("elastic", 1e-5)])
def test_a_step_size_stays_above_the_published_floor_or_a_tenth_of_a_small_start(name: str, published: float):
    for scale in (1.0, 1e-6):
        source = nn.Linear(8, 6)
        with torch.no_grad():
            source.weight.mul_(scale)
        layer = QuantLinear.from_float(source, spec(name, granularity="row"), None)
        quantizer: Any = layer.weight_quantizer
        start = quantizer.step_size.detach().clone()
        with torch.no_grad():
            quantizer.step_size.sub_(1)  # an update at a large learning rate
        end_step(layer)
        expected = torch.full_like(start, published) if scale == 1 else start / 10
        torch.testing.assert_close(quantizer.step_size.detach(), expected)
        old = {key: value for key, value in layer.state_dict().items() if not key.endswith(".floor")}
        fresh = QuantLinear.from_float(nn.Linear(8, 6), spec(name, granularity="row"), None)
        assert fresh.load_state_dict(old).missing_keys == []  # written before floors were kept
        assert torch.equal(fresh.weight_quantizer.step_size, quantizer.step_size)


@every_site
def test_keys_and_round_trip(side: str, name: str):
    layer, x = trained(side, name), torch.randn(5, 8)
    prefix = f"{side}_quantizer."
    state = layer.state_dict()
    assert {key for key in state if key not in ("weight", "bias")} == {prefix + key for key in KEYS.get(name, set())}
    fresh = linear(side, spec(name)).eval()
    quantizer: Any = getattr(fresh, f"{side}_quantizer")
    if side == "input" and name in WAITING:
        assert not quantizer.is_ready
        with pytest.raises(RuntimeError, match=r"lowbit\.quantizers\.calibrate"):
            fresh(x)
    fresh.load_state_dict(state)
    assert quantizer.is_ready
    assert calibrate(fresh, [9 * torch.randn(4, 8)], fresh) == []
    assert torch.equal(fresh(x), layer(x))
    assert all(torch.equal(value, state[key]) for key, value in fresh.state_dict().items())


@every_site
def test_copies_are_equal_and_independent(side: str, name: str):
    layer, x = trained(side, name), torch.randn(5, 8)
    expected, twin = layer(x), copy.deepcopy(layer)
    assert torch.equal(twin(x), expected)
    with torch.no_grad():
        for tensor in (*twin.parameters(), *(b for b in twin.buffers() if b.is_floating_point())):
            tensor.mul_(1.7).add_(0.3)
    assert not torch.equal(twin(x), expected)
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@every_site
def test_scales_are_float32_or_wider(side: str, name: str, dtype: torch.dtype):
    layer = trained(side, name).to(dtype)
    state = getattr(layer, f"{side}_quantizer").state_dict()
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    assert {value.dtype for key, value in state.items() if key not in ("initialized", "assignments")} <= {wide}
    assert layer.weight.dtype == dtype
    y = layer.train()(torch.randn(5, 8, dtype=dtype, requires_grad=True))
    assert y.dtype == dtype
    y.sum().backward()
    assert all(p.grad is None or p.grad.dtype == p.dtype for p in layer.parameters())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].noise])
def test_noise_keeps_half_precision(kind: str):
    layer = linear("weight", spec(kind, noise="element", noise_rate=0.5)).half().train()
    assert layer.weight_quantizer(layer.weight).dtype == torch.float16


def test_half_precision_after_double_is_float32():
    layer = trained("input", "lsq").double().half()
    assert layer.input_quantizer.step_size.dtype == torch.float32


# --- calibration ----------------------------------------------------------------------------------------------------


def test_calibration_follows_the_forward_and_restores_every_mode():
    first, second = linear("input", spec("lsq", init="max")), QuantLinear.from_float(nn.Linear(6, 2), None, spec("lsq"))
    model = nn.Sequential(nn.Dropout(0.9), first, nn.Dropout(0.5), second).train()
    model[2].eval()
    x = torch.randn(7, 8)
    assert calibrate(model, [x], model) == ["1.input_quantizer", "3.input_quantizer"]
    assert [m.training for m in model] == [True, True, False, True]
    torch.testing.assert_close(first.input_quantizer.step_size, x.abs().max().reshape(1) / 3)
    seen = nn.functional.linear(
        lsq(x, first.input_quantizer.step_size, bits=3, grad_scale="lsq"), first.weight, first.bias
    )
    torch.testing.assert_close(second.input_quantizer.step_size, 2 * seen.abs().mean().reshape(1) / 3**0.5)
    before = copy.deepcopy(model.state_dict())
    assert calibrate(model, [5 * x], model) == []
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_calibration_averages_over_batches():
    layer, batches = linear("input", spec("lsq", init="max")), [torch.randn(4, 8) * k for k in (1, 2, 5)]
    calibrate(layer, batches, layer)
    expected = torch.stack([x.abs().max() / 3 for x in batches]).mean().reshape(1)
    torch.testing.assert_close(layer.input_quantizer.step_size, expected)


def test_calibration_names_a_quantizer_that_sees_nothing():
    model = nn.ModuleDict({"used": linear("input", spec("lsq")), "idle": linear("input", spec("static"))}).train()
    with pytest.raises(ValueError, match=r"1 quantizers saw no input, the first is idle\.input_quantizer"):
        calibrate(model, [torch.randn(4, 8)], model["used"])
    assert model["used"].training
    with pytest.raises(ValueError, match="2 quantizers saw no input, the first is used"):
        calibrate(nn.ModuleDict({"used": linear("input", spec("lsq")), "b": linear("input", spec("seq"))}), [], None)


X = torch.tensor([[-1.0, 0.9, 2.1, 0.4]])  # mean 0.6, mean magnitude 1.1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"kind": "lsq", "bits": 3, "init": "mean"}, 2 * 1.1 / 3**0.5),
        ({"kind": "lsq", "bits": 3, "init": "mean", "signed": False}, 2 * 1.1 / 7**0.5),
        ({"kind": "lsq", "bits": 3, "init": "max"}, 2.1 / 3),
        ({"kind": "lsq", "bits": 3, "init": "max", "signed": False}, 2.1 / 7),
        ({"kind": "lsq", "bits": 3, "init": "three_sigma"}, (0.6 + 3 * 1.2350**0.5) / 4),
        ({"kind": "lsq", "bits": 3, "init": "three_sigma", "signed": False}, (0.6 + 3 * 1.2350**0.5) / 4),
        ({"kind": "lsq", "bits": 3, "init": "mse"}, (1.0 + 0.9 + 3 * 2.1 + 0.4) / (1 + 1 + 9 + 1)),  # codes -1 1 3 1
        ({"kind": "elastic", "bits": 1}, 2 * 1.1),
        ({"kind": "elastic", "bits": 3}, 2 * 1.1 / 3**0.5),
        ({"kind": "elastic", "bits": 2, "signed": False}, 4 * 1.1 / 3**0.5),
        ({"kind": "elastic", "bits": 1, "init": "paper"}, 1.1),
        ({"kind": "elastic", "bits": 1, "signed": False, "init": "paper"}, (0.9 + 2.1) / 2),  # those of at least 0.5
        ({"kind": "seq", "bits": 2}, 2.1),
        ({"kind": "seq", "bits": 1.58, "init": "mean"}, 1.1),
    ],
    ids=str,
)
def test_first_scales(settings: dict[str, Any], expected: float):
    layer = QuantLinear.from_float(nn.Linear(4, 2), None, QuantizerSpec(**settings))
    calibrate(layer, [X], layer)
    assert layer.input_quantizer.step_size.item() == pytest.approx(expected, rel=2e-4)
    source = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        source.weight.copy_(X)
    weight = QuantLinear.from_float(source, QuantizerSpec(**settings, granularity="row"), None)
    assert weight.weight_quantizer.step_size.item() == pytest.approx(expected, rel=2e-4)


# --- ranges and curvature kept between steps ------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2])
def test_an_input_range_is_a_running_average_of_training_batches(every: int):
    layer = linear("input", spec("static", momentum=0.9, refresh_every=every, symmetric=False))
    quantizer, batches = layer.input_quantizer, [torch.randn(4, 8) * k for k in (1, 3, 2, 5)]
    calibrate(layer, batches[:2], layer)
    low, high = (torch.stack([f(x) for x in batches[:2]]) for f in (torch.min, torch.max))
    low, high = low.min(), high.max()
    for step, x in enumerate(batches):
        begin_step(layer.train(), step)
        if step % every == 0:
            low, high = 0.9 * low + 0.1 * x.min(), 0.9 * high + 0.1 * x.max()
        torch.testing.assert_close(quantizer(x), static_range(x, low, high, bits=3))
        torch.testing.assert_close(quantizer(x), static_range(x, low, high, bits=3))  # twice is once
        end_step(layer)
        torch.testing.assert_close(torch.cat([quantizer.low, quantizer.high]), torch.stack([low, high]))
        layer.eval()(100 * x)
        end_step(layer)
        torch.testing.assert_close(torch.cat([quantizer.low, quantizer.high]), torch.stack([low, high]))


def test_a_weight_range_is_looked_at_every_so_often():
    layer = linear("weight", spec("static", refresh_every=2, symmetric=False)).train()
    ends = []
    for step in range(3):
        begin_step(layer, step)
        layer(torch.randn(2, 8))
        end_step(layer)
        ends.append(layer.weight_quantizer.high.item() / layer.weight.max().item())
        with torch.no_grad():
            layer.weight.mul_(2)
    assert ends == [1, 0.5, 1]


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant: bool):
    source = nn.Sequential(linear("input", spec("static", symmetric=False)), nn.ReLU(), nn.Linear(6, 8))
    calibrate(source, [torch.randn(4, 8)], source)
    seen = []
    for recompute in (False, True):
        model, generator = copy.deepcopy(source).train(), torch.Generator().manual_seed(1)
        for step in range(3):
            x = (torch.randn(4, 8, generator=generator) * (step + 2)).requires_grad_()
            begin_step(model, step)
            y = checkpoint(model, x, use_reentrant=reentrant) if recompute else model(x)
            y.square().sum().backward()
            end_step(model)
            seen.append(
                [
                    x.grad,
                    *(p.grad.clone() for p in model.parameters()),
                    *map(torch.clone, model[0].input_quantizer.buffers()),
                ]
            )
    for plain, recomputed in zip(seen[:3], seen[3:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))
    assert not torch.equal(seen[0][-1], seen[2][-1])  # the range did move


@pytest.mark.parametrize("variant", ["approximate", "exact"])
def test_lat_takes_its_curvature_from_adam(variant: str):
    of = spec("lat", variant=variant)
    model = nn.Sequential(
        linear("weight", of), QuantFusedLinear.from_float(nn.Linear(6, 6), {"q": (of, None), "k": (of, None)})
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for step in range(3):
        begin_step(model, step, optimizer)
        for weight, quantizer, rows in (
            (model[0].weight, model[0].weight_quantizer, slice(None)),
            (model[1].weight, model[1].weight_quantizers["k"], slice(3, 6)),
        ):
            expected = twn_ternarize(weight[rows], granularity="tensor")
            if step:
                second = optimizer.state[weight]["exp_avg_sq"][rows]
                expected = lat_ternarize(weight[rows], second, granularity="tensor", variant=variant)
                assert torch.equal(quantizer.state_dict()["second_moment"], second)
            assert torch.equal(quantizer(weight[rows]), expected)
            assert quantizer.is_ready == (step > 0)
        model(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()


def test_compiled_models_train_alike():
    lsq_layer = QuantLinear.from_float(nn.Linear(8, 8), spec("lsq", granularity="row"), spec("lsq offset"))
    static = QuantLinear.from_float(nn.Linear(8, 8), spec("twn"), spec("static", symmetric=False))
    elastic = QuantLinear.from_float(nn.Linear(8, 6), spec("seq"), spec("elastic shift"))
    eager = nn.Sequential(lsq_layer, nn.Tanh(), static, elastic)
    calibrate(eager, [torch.randn(4, 8)], eager)
    twin = copy.deepcopy(eager)
    torch._dynamo.reset()
    compiled: Any = torch.compile(twin, backend="aot_eager")
    first = {name: p.detach().clone() for name, p in eager.named_parameters()}
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (eager, twin)]
    for step in range(3):
        x = 4 * torch.randn(4, 8)  # beyond the calibrated grid: offsets learn from what is clipped
        for run, model, optimizer in zip((eager, compiled), (eager, twin), optimizers, strict=True):
            begin_step(model.train(), step)
            optimizer.zero_grad()
            run(x).square().mean().backward()
            optimizer.step()
            end_step(model)
        for (name, ours), theirs in zip(eager.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(theirs.grad, ours.grad, msg=lambda m, n=name, s=step: f"{n}, step {s}: {m}")
            torch.testing.assert_close(theirs, ours)
    for (name, ours), theirs in zip(eager.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(theirs, ours, msg=lambda m, n=name: f"{n}: {m}")
    assert not [name for name, p in eager.named_parameters() if torch.equal(p, first[name])]
    assert not torch.equal(static.input_quantizer.low, torch.zeros(1))
