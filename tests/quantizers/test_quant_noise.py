"""Quant-Noise: part of the weights is quantized, or dropped, in training; evaluation has no noise."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lowbit.quantizers import QuantEmbedding, QuantFusedLinear, QuantizerSpec, QuantLinear
from lowbit.quantizers.fake_quantizer import FakeQuantizer, Target
from lowbit.quantizers.functional import drop_blocks, quant_noise, static_range
from lowbit.quantizers.stateful import StatefulQuantizer, build_quantizer

HOSTS = {
    "minmax_symmetric": {"bits": 4},
    "minmax_asymmetric": {"bits": 4},
    "static": {"bits": 4},
    "lsq": {"bits": 3, "init": "max"},
    "seq": {"bits": 1.58},
    "twn": {},
    "bwn": {},
    "lat": {},
    "statsq": {"bits": 2},
    "bitnet": {},
    "xtc": {"bits": 4},
    "pact": {"bits": 4},
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def host(kind: str, weight: Tensor, noise: str | None = "element", rate: float = 0.5, **settings) -> FakeQuantizer:
    noisy = {} if noise is None else {"noise": noise, "noise_rate": rate}
    spec = QuantizerSpec(kind, **HOSTS[kind], **noisy, **settings)
    quantizer = build_quantizer(spec, Target(tuple(weight.shape), weight, weight=True))
    quantizer.initialize(weight)
    return quantizer


def gradient(y: Tensor, of: Tensor) -> Tensor:
    """Return the gradient for an upstream of ones."""
    return torch.autograd.grad(y.sum(), of)[0]


# --- scalar noise: values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HOSTS)
def test_each_element_is_either_quantized_or_the_weight(kind: str):
    w = torch.randn(40, 50) * 0.5
    noisy = host(kind, w, rate=0.3)
    full = host(kind, w, noise=None)(w)
    y = noisy(w)
    selected = y != w
    assert torch.equal(y, torch.where(selected, full, w))
    share = (selected | (full == w)).float().mean().item()
    floor = (full == w).float().mean().item()  # elements that lie on the grid look selected
    assert share == pytest.approx(0.3 + 0.7 * floor, abs=5 * math.sqrt(0.21 / w.numel()))


@pytest.mark.parametrize("kind", HOSTS)
def test_rate_one_is_full_quantization_and_rate_zero_is_the_weight(kind: str):
    w = torch.randn(8, 6) * 0.5
    full = host(kind, w, noise=None)(w)
    assert torch.equal(host(kind, w, rate=1.0)(w), full)
    assert torch.equal(host(kind, w, rate=0.0)(w), w)


@pytest.mark.parametrize("kind", HOSTS)
@pytest.mark.parametrize("noise", ["element", "row"])
def test_evaluation_quantizes_all_and_draws_nothing(kind: str, noise: str):
    w = torch.randn(8, 6)
    state = torch.get_rng_state()
    y = host(kind, w, noise=noise, rate=0.2).eval()(w)
    assert torch.equal(y, host(kind, w, noise=None).eval()(w))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("shape", [(60, 12), (60, 3, 2, 2)])
def test_row_noise_is_constant_along_a_row(shape: tuple[int, ...]):
    w = torch.randn(shape)
    y, full = host("minmax_symmetric", w, noise="row")(w), host("minmax_symmetric", w, noise=None)(w)
    quantized = (y == full).flatten(1).all(1)
    kept = (y == w).flatten(1).all(1)
    assert (quantized ^ kept).all()
    assert 15 <= quantized.sum() <= 45


def test_the_range_clamps_before_the_noise_and_not_after():
    # Defect N2: the published code gives 0.8 for W = 1.2 and a range up to 1.0.
    w = torch.tensor([[-1.0, 1.0]])
    for rate in (0.0, 0.5, 1.0):
        static = host("static", w, rate=rate, refresh_every=2)
        static.looks = False  # as in a step between two looks at the range
        assert static(torch.tensor([[1.2, -1.2]])).tolist() == [[1.0, -1.0]]
        assert static.eval()(torch.tensor([[1.2, -1.2]])).tolist() == [[1.0, -1.0]]
    clipped = host("minmax_symmetric", w, rate=1.0, clip=1.0)
    assert clipped(torch.tensor([[1.2, -1.2]])).tolist() == [[1.0, -1.0]]


def test_rate_zero_is_the_weight_inside_a_static_range_and_its_end_outside():
    static = host("static", torch.tensor([[-1.0, 1.0]]), rate=0.0, symmetric=False)
    static.looks = False
    w = torch.tensor([[0.123, -0.77, 1.5]], requires_grad=True)
    y = static(w)
    assert torch.equal(y, torch.tensor([[0.123, -0.77, 1.0]]))
    assert gradient(y, w).tolist() == [[1.0, 1.0, 0.0]]


@pytest.mark.parametrize("kind", ["static", "pact", "lsq"])
def test_half_precision_weights_stay_half(kind: str):
    w = torch.randn(4, 6).bfloat16()
    assert host(kind, w)(w).dtype is torch.bfloat16
    end = torch.ones(4, 1)
    assert quant_noise(w, w, w > 0, low=-end, high=end).dtype is torch.bfloat16


# --- scalar noise: gradients ----------------------------------------------------------------------------------------


def test_unselected_weights_have_the_exact_gradient_and_selected_ones_the_quantizers():
    w = torch.tensor([[-2.0, 0.1, 0.4, 2.0]], requires_grad=True)
    low, high = torch.tensor(-1.0), torch.tensor(1.0)
    selected = torch.tensor([True, True, False, False])
    y = quant_noise(w, static_range(w, low, high, bits=4) * 3, selected, low=low, high=high)
    assert gradient(y, w).tolist() == [[0.0, 3.0, 1.0, 0.0]]
    y = quant_noise(w, static_range(w, low, high, bits=4) * 3, selected)
    assert gradient(y, w).tolist() == [[0.0, 3.0, 1.0, 1.0]]


@pytest.mark.parametrize("kind", [kind for kind in HOSTS if kind != "pact"])
def test_the_gradient_through_unselected_weights_is_the_identity(kind: str):
    w = (torch.randn(20, 30) * 0.5).requires_grad_()
    y = host(kind, w.detach())(w)
    kept = y == w
    assert 200 < kept.sum() < 400
    assert (gradient(y, w)[kept] == 1).all()


def test_a_learned_step_hears_from_selected_weights_only():
    w = torch.randn(10, 12)
    noisy, plain = host("lsq", w), host("lsq", w, noise=None)
    y = noisy(w)
    expected = torch.autograd.grad(plain(w), plain.step_size, (y != w).float())[0]
    torch.testing.assert_close(gradient(y, noisy.step_size), expected)


def test_a_seed_makes_the_mask_and_checkpointing_repeats_it():
    spec = QuantizerSpec("minmax_symmetric", bits=2, noise="element", noise_rate=0.5)
    layers = nn.Sequential(*(QuantLinear.from_float(nn.Linear(6, 6), spec, None) for _ in range(3)))
    x = torch.randn(4, 6, requires_grad=True)
    results = []
    for run in (layers, layers, lambda x: checkpoint(layers, x, use_reentrant=False)):
        torch.manual_seed(7)
        y = run(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, *layers.parameters()))))
    for direct, again, recomputed in zip(*results, strict=True):
        assert torch.equal(direct, again)
        assert torch.equal(direct, recomputed)
    assert not torch.equal(layers(x), layers(x))


# --- scalar noise: layers and state ---------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["tensor", "row"])
def test_layers_pass_noise_in_training_and_none_in_evaluation(granularity: str):
    spec = QuantizerSpec("minmax_symmetric", bits=2, granularity=granularity, noise="row", noise_rate=0.5)
    plain = QuantizerSpec("minmax_symmetric", bits=2, granularity=granularity)
    source = nn.Embedding(30, 8)
    ids = torch.arange(30).repeat(2)
    first, second = QuantEmbedding.from_float(source, spec, None)(ids).chunk(2)
    assert torch.equal(first, second)  # a row that occurs twice has one mask
    full = QuantEmbedding.from_float(source, plain, None)(ids[:30])
    quantized = (first == full).all(1)
    assert 5 < quantized.sum() < 25
    assert torch.equal(first[~quantized], source.weight[~quantized])
    fused, blocks = nn.Linear(8, 24), ("query", "key", "value")
    x = torch.randn(2, 8)
    layer = QuantFusedLinear.from_float(fused, dict.fromkeys(blocks, (spec, None)))
    expected = QuantFusedLinear.from_float(fused, dict.fromkeys(blocks, (plain, None)))(x)
    assert not torch.equal(layer(x), expected)
    assert torch.equal(layer.eval()(x), expected)


@pytest.mark.parametrize("kind", ["static", "lsq", "pact"])
def test_scales_survive_saving(kind: str):
    # Defect N5.
    w, other = torch.randn(4, 6), torch.randn(4, 6) * 7
    saved, fresh = host(kind, w), host(kind, other)
    fresh.load_state_dict(saved.state_dict())
    assert isinstance(fresh, StatefulQuantizer)
    assert torch.equal(fresh.eval()(other), saved.eval()(other))
    assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in saved.state_dict().items())


def test_noise_with_scales_per_head_is_per_element_only():
    w = torch.randn(8, 6)
    target = Target((8, 6), w, weight=True, heads=(2, 0))
    settings = {"kind": "minmax_symmetric", "bits": 4, "granularity": "head", "noise_rate": 0.5}
    with pytest.raises(ValueError, match="noise 'row' and granularity 'head' do not go together"):
        FakeQuantizer(QuantizerSpec(noise="row", **settings), target)
    noisy = FakeQuantizer(QuantizerSpec(noise="element", **settings), target)
    y, full = noisy(w), noisy.eval()(w)
    assert torch.equal(y, torch.where(y != w, full, w))
    assert 10 < (y != w).sum() < 38


# --- block noise ----------------------------------------------------------------------------------------------------


def block_noise(weight: Tensor, rate: float = 0.25, size: int = 4) -> FakeQuantizer:
    spec = QuantizerSpec("block_noise", block_size=size, noise_rate=rate)
    return build_quantizer(spec, Target(tuple(weight.shape), weight, weight=True))


def test_fifty_forwards_leave_the_stored_weight_as_it_was():
    # Defect N1: the published hook leaves 99.5 % zeros.
    source = nn.Linear(16, 8)
    before = source.weight.detach().clone()
    layer = QuantLinear.from_float(source, QuantizerSpec("block_noise", block_size=4, noise_rate=0.1), None)
    outputs = [layer(torch.ones(1, 16)) for _ in range(50)]
    assert layer.weight is source.weight
    assert torch.equal(layer.weight, before)
    assert len({output.sum().item() for output in outputs}) > 25
    assert torch.equal(layer.eval()(torch.ones(1, 16)), source(torch.ones(1, 16)))
    assert list(layer.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_whole_blocks_are_dropped_and_the_expected_value_is_the_weight(dtype: torch.dtype):
    w = (torch.randn(6, 2, 2, 4) + 3).to(dtype)  # a convolution's: blocks are cut from the flattened row
    quantizer, draws = block_noise(w), 4000
    total = torch.zeros(w.shape, dtype=torch.float64)
    for _ in range(draws):
        y = quantizer(w)
        assert y.dtype is dtype
        dropped = (y == 0).reshape(6, 4, 4)
        assert torch.equal(dropped.any(2), dropped.all(2))
        total += y
    error = w.double().abs() * math.sqrt(0.25 / 0.75 / draws)
    assert ((total / draws - w.double()).abs() < 5 * error).all()
    survivors = y[y != 0].double() / w[y != 0].double()
    torch.testing.assert_close(survivors, torch.full_like(survivors, 4 / 3), rtol=torch.finfo(dtype).eps * 2, atol=0)


@pytest.mark.parametrize("granularity", ["tensor", "row"])
def test_block_noise_of_an_embedding_and_its_gradient(granularity: str):
    spec = QuantizerSpec("block_noise", block_size=4, noise_rate=0.5, granularity=granularity)
    layer = QuantEmbedding.from_float(nn.Embedding(6, 8, padding_idx=0), spec, None)
    ids = torch.tensor([0, 3, 3, 5])
    y = layer(ids)
    assert torch.equal(y[1], y[2])
    grad = gradient(y, layer.weight)
    assert set(grad[3].tolist()) <= {0.0, 4.0}
    assert set(grad[5].tolist()) <= {0.0, 2.0}
    assert not grad[[0, 1, 2, 4]].any()
    assert torch.equal(layer.eval()(ids), layer.weight[ids])


def test_block_noise_rates():
    w = torch.randn(3, 8)
    assert torch.equal(block_noise(w, rate=0.0)(w), w)
    default = QuantizerSpec("block_noise", block_size=4, granularity="row")
    table = QuantEmbedding.from_float(nn.Embedding(500, 4), default, None)
    assert 20 < (table(torch.arange(500)) == 0).all(1).sum() < 90  # a tenth
    with pytest.raises(ValueError, match="noise_rate=1 drops every block"):
        block_noise(w, rate=1.0)
    with pytest.raises(ValueError, match="rate=1: must be at least 0 and below 1"):
        drop_blocks(w, torch.ones(3, 2, dtype=torch.bool), rate=1)


def test_block_noise_refuses_what_it_cannot_do():
    with pytest.raises(
        ValueError, match="block_size=4 does not divide the 6 elements of a row: allowed are 1, 2, 3, 6"
    ):
        block_noise(torch.randn(3, 6))
    with pytest.raises(ValueError, match="product quantization is for weights"):
        build_quantizer(QuantizerSpec("block_noise"), Target((8,)))
    with pytest.raises(ValueError, match="has no grid"):
        block_noise(torch.randn(3, 8)).codes(torch.randn(3, 8))
    assert QuantizerSpec("block_noise").packed_bits(100, 1) == 3200
