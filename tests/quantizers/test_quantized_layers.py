"""FakeQuantizer, QuantizerSpec and the layers: same Parameters, same numbers as quantizing by hand."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit.quantizers import (
    FakeQuantizer,
    QuantConv2d,
    QuantEmbedding,
    QuantFusedLinear,
    QuantizerSpec,
    QuantLinear,
    begin_step,
)
from lowbit.quantizers.functional import minmax_asymmetric, minmax_symmetric, twn_ternarize

TWN = QuantizerSpec("twn", clip=0.4)
ROW = QuantizerSpec("twn", granularity="row", clip=0.4)
INT8 = QuantizerSpec("minmax_symmetric", bits=8, clip=2.5)
INT4 = QuantizerSpec("minmax_asymmetric", bits=4, granularity="token")
ROLES = ("query", "key", "value")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def grads(y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=y.dtype)
    return torch.autograd.grad(y, inputs, upstream)


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "nf4"}, "quantizer kind 'nf4': allowed are bitnet, block_noise, bwn, .*, xtc"),
        ({"kind": "twn", "bits": 2}, "kind 'twn' has one width only: remove bits=2"),
        ({"kind": "minmax_symmetric"}, "kind 'minmax_symmetric' needs bits"),
        ({"kind": "statsq", "bits": 2, "clip": 1.0}, "kind 'statsq' takes no clip: remove clip=1.0"),
    ],
)
def test_settings_that_contradict_are_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        QuantizerSpec(**settings)


def test_storage_of_the_kinds():
    # elements * width, and 32 bits for each number of each group
    assert (TWN.storage_bits, TWN.packed_bits(100, 3)) == (2, 200 + 3 * 32)
    assert (INT8.storage_bits, INT8.packed_bits(100, 3)) == (8, 800 + 3 * 32)
    assert (INT4.storage_bits, INT4.packed_bits(100, 3)) == (4, 400 + 3 * 2 * 32)


def test_a_fake_quantizer_passes_every_setting_on():
    x = torch.randn(3, 5) * 2
    spec = QuantizerSpec("twn", granularity="row", threshold=1.1, clip=0.9)
    assert torch.equal(FakeQuantizer(spec)(x), twn_ternarize(x, granularity="row", threshold=1.1, clip=0.9))
    spec = QuantizerSpec("minmax_symmetric", bits=3, granularity="token", clip=0.9)
    assert torch.equal(FakeQuantizer(spec)(x), minmax_symmetric(x, bits=3, granularity="token", clip=0.9))
    spec = QuantizerSpec("minmax_asymmetric", bits=3, granularity="token")
    assert torch.equal(FakeQuantizer(spec)(x), minmax_asymmetric(x, bits=3, granularity="token"))


def test_a_fake_quantizer_has_no_state_and_says_what_it_does():
    quantizer = FakeQuantizer(INT8)
    assert quantizer.state_dict() == {}
    assert "8b minmax_symmetric/tensor" in repr(quantizer)
    assert str(ROW) == "twn/row"


# --- adoption -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("source", "layer"),
    [
        (lambda bias: nn.Linear(4, 6, bias=bias), QuantLinear),
        (lambda bias: nn.Conv2d(2, 6, 3, stride=2, padding=1, bias=bias), QuantConv2d),
        (lambda bias: nn.Embedding(5, 4), QuantEmbedding),
        (lambda bias: nn.Linear(4, 6, bias=bias), "fused"),
    ],
    ids=["linear", "conv", "embedding", "fused"],
)
def test_layers_adopt_the_parameters_and_the_mode(source, layer, bias: bool):
    original = source(bias).eval()
    if layer == "fused":
        swapped = QuantFusedLinear.from_float(original, dict.fromkeys(ROLES, (TWN, None)))
    else:
        swapped = layer.from_float(original, TWN, None)
    assert isinstance(swapped, type(original))
    assert list(swapped.state_dict()) == list(original.state_dict())
    for (name, adopted), (own, parameter) in zip(swapped.named_parameters(), original.named_parameters(), strict=True):
        assert name == own
        assert adopted is parameter
    assert not swapped.training


# --- linear and convolution -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_quantizing_by_hand(bias: bool):
    source = nn.Linear(5, 4, bias=bias)
    x = (torch.randn(2, 3, 5) * 2).requires_grad_()
    layer = QuantLinear.from_float(source, TWN, INT8)
    expected = F.linear(
        minmax_symmetric(x, bits=8, granularity="tensor", clip=2.5),
        twn_ternarize(source.weight, granularity="tensor", clip=0.4),
        source.bias,
    )
    y = layer(x)
    assert torch.equal(y, expected)
    assert not torch.equal(y, source(x))
    inputs = (x, *source.parameters())
    for ours, theirs in zip(grads(y, *inputs), grads(expected, *inputs), strict=True):
        assert torch.equal(ours, theirs)


def test_absent_quantizers_leave_a_side_alone():
    source, x = nn.Linear(5, 4), torch.randn(3, 5)
    assert torch.equal(QuantLinear.from_float(source, None, None)(x), source(x))
    only_weight = QuantLinear.from_float(source, TWN, None)
    assert only_weight.input_quantizer is None
    assert torch.equal(only_weight(x), F.linear(x, only_weight.weight_quantizer(source.weight), source.bias))


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 2, "stride": 2},
        {"kernel_size": 3, "padding": 1, "dilation": 2, "groups": 2, "bias": False},
        {"kernel_size": (3, 1), "padding": (1, 0), "padding_mode": "circular"},
    ],
)
def test_convolution_equals_quantizing_by_hand(settings: dict):
    source = nn.Conv2d(2, 4, **settings)
    x = torch.randn(2, 2, 6, 6)
    layer = QuantConv2d.from_float(source, ROW, INT8)
    by_hand = copy.deepcopy(source)
    with torch.no_grad():
        by_hand.weight.copy_(twn_ternarize(source.weight, granularity="row", clip=0.4))
    assert torch.equal(layer(x), by_hand(minmax_symmetric(x, bits=8, granularity="tensor", clip=2.5)))


# --- embedding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_idx", [None, 0])
@pytest.mark.parametrize("spec", [ROW, TWN, QuantizerSpec("minmax_asymmetric", bits=4, granularity="row", clip=0.4)])
def test_embedding_equals_quantizing_the_whole_table(spec: QuantizerSpec, padding_idx: int | None):
    source = nn.Embedding(9, 6, padding_idx=padding_idx)
    with torch.no_grad():
        source.weight.copy_(torch.randn(9, 6) * 0.4)  # the padding row too: fine-tuned tables have one
    ids = torch.tensor([[0, 3, 3, 8], [1, 0, 3, 0]])
    table = FakeQuantizer(spec)(source.weight)
    expected = F.embedding(ids, table, padding_idx)
    y = QuantEmbedding.from_float(source, spec, None)(ids)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=0)
    (ours,), (theirs,) = grads(y, source.weight), grads(expected, source.weight)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    assert theirs[3].any()
    assert (theirs == 0).logical_and(source.weight.abs() >= 0.4)[3].any()  # the clip mask is at work
    assert not theirs[2].any()
    assert bool(ours[0].any()) == (padding_idx is None)


def test_embedding_keeps_its_settings():
    source = nn.Embedding(4, 3, scale_grad_by_freq=True)
    ids = torch.tensor([1, 1, 2])
    y = QuantEmbedding.from_float(source, QuantizerSpec("twn", granularity="row"), None)(ids)
    (grad,) = torch.autograd.grad(y.sum(), source.weight)
    torch.testing.assert_close(grad[1:3], torch.ones(2, 3))  # two look-ups of row 1 count once


def test_embedding_refuses_input_quantizers_and_renormalisation():
    with pytest.raises(ValueError, match="no float input: remove `input`"):
        QuantEmbedding.from_float(nn.Embedding(4, 3), ROW, INT8)
    with pytest.raises(ValueError, match="max_norm cannot be quantized"):
        QuantEmbedding.from_float(nn.Embedding(4, 3, max_norm=1.0), ROW, None)


# --- one scale per head ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 1], ids=["query", "attn_out"])
@pytest.mark.parametrize("name", ["lsq", "seq", "static", "minmax_asymmetric", "statsq", "twn", "lat", "bwn"])
def test_each_head_of_a_weight_has_its_own_scale(name: str, dim: int):
    bits = None if name in ("twn", "lat", "bwn") else 3
    of, whole = (QuantizerSpec(name, bits=bits, granularity=g) for g in ("head", "tensor"))
    layer = QuantLinear.from_float(nn.Linear(8, 6), of, None, heads=(2, dim))
    quantizer: Any = layer.weight_quantizer
    blocks = layer.weight.detach().split(layer.weight.shape[dim] // 2, dim)
    alone = [QuantLinear.from_float(nn.Linear(8, 6), None, None) for _ in blocks]
    for part, block in zip(alone, blocks, strict=True):
        part.weight = nn.Parameter(block.clone())
    apart = [QuantLinear.from_float(part, whole, None).weight_quantizer(part.weight) for part in alone]
    y = quantizer(layer.weight)
    torch.testing.assert_close(y, torch.cat(apart, dim))
    assert torch.equal(quantizer.heads_back(quantizer.heads_first(layer.weight), layer.weight), layer.weight)
    y.narrow(dim, 0, y.shape[dim] // 2).square().sum().backward()  # head 0 alone
    if name in ("lsq", "seq"):
        assert quantizer.step_size.grad[0] != 0
        assert quantizer.step_size.grad[1] == 0
    with torch.no_grad():
        layer.weight.narrow(dim, 0, y.shape[dim] // 2).mul_(3)
    begin_step(layer.train(), 0)
    moved = quantizer(layer.weight)
    half = y.shape[dim] // 2
    assert torch.equal(moved.narrow(dim, half, half), y.narrow(dim, half, half))
    assert not torch.equal(moved.narrow(dim, 0, half), y.narrow(dim, 0, half))


# --- fused qkv ------------------------------------------------------------------------------------------------------

SPECS = {
    "same": dict.fromkeys(ROLES, (TWN, INT8)),
    "different": {"query": (TWN, INT8), "key": (None, INT4), "value": (ROW, None)},
    "partly absent": {"query": (None, None), "key": (TWN, None), "value": (None, None)},
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("detached", [(), ("query", "key"), ROLES, ("value",)], ids=lambda d: "+".join(d) or "none")
@pytest.mark.parametrize("specs", SPECS.values(), ids=list(SPECS))
def test_fused_equals_three_linears(specs: dict, detached: tuple[str, ...], bias: bool):
    fused = nn.Linear(5, 12, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        fused.weight[4:8] *= 3  # one scale for all three would show
    parts = []
    for index, role in enumerate(ROLES):
        part = nn.Linear(5, 4, bias=bias, dtype=torch.float64)
        rows = slice(4 * index, 4 * index + 4)
        with torch.no_grad():
            part.weight.copy_(fused.weight[rows])
            if bias:
                part.bias.copy_(fused.bias[rows])
        parts.append(QuantLinear.from_float(part, *specs[role]))
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    y = QuantFusedLinear.from_float(fused, specs)(x, frozenset(detached))
    expected = torch.cat(
        [p(x.detach() if role in detached else x) for role, p in zip(ROLES, parts, strict=True)], dim=-1
    )
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    y.square().sum().backward()
    ours, x.grad = x.grad, None
    expected.square().sum().backward()
    if len(detached) == 3:
        assert ours is None
        assert x.grad is None
    else:
        torch.testing.assert_close(ours, x.grad, rtol=1e-10, atol=1e-12)
    for name in ("weight", "bias") if bias else ("weight",):
        theirs = torch.cat([getattr(part, name).grad for part in parts])
        torch.testing.assert_close(getattr(fused, name).grad, theirs, rtol=1e-10, atol=1e-12)


def test_fused_refuses_rows_that_do_not_divide():
    with pytest.raises(ValueError, match="10 output rows cannot be divided into 3 blocks"):
        QuantFusedLinear.from_float(nn.Linear(4, 10), dict.fromkeys(ROLES, (TWN, None)))
