"""Embeddings that quantize only the looked-up rows: the numbers of the whole table, at the cost of the batch."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lowbit.quantizers import EWGS, KINDS, ClippedSTE, QuantEmbedding, QuantizerSpec, StableQAT, ValueClippedSTE

ROWS, WIDTH = 11, 8
IDS = {
    "one batch": torch.tensor([4, 1, 7]),
    "repeated": torch.tensor([3, 3, 3, 0, 5, 0, 3]),
    "batch x length": torch.tensor([[0, 3, 3, 10], [1, 0, 3, 5]]),
    "three dimensions": torch.tensor([[[2, 2], [9, 0]], [[1, 0], [2, 6]]]),
}


def spec(kind: str, **settings: Any) -> QuantizerSpec:
    if KINDS[kind].bits is None:
        settings.setdefault("bits", 2)
    return QuantizerSpec(kind, granularity="row", **settings)


SPECS = {
    **{kind: spec(kind) for kind in KINDS if kind not in ("block_noise", "ipq", "pact", "minmax_asymmetric")},
    "ipq": spec("ipq", block_size=4, centroids=5),
    "minmax_asymmetric": spec("minmax_asymmetric", bits=4, clip=0.4),
    "minmax_symmetric clip": spec("minmax_symmetric", bits=4, clip=0.4),
    "twn clip": spec("twn", clip=0.4),
    "bwn centred": spec("bwn", center=True),
    "lat exact": spec("lat", variant="exact"),
    "seq 1.58": spec("seq", bits=1.58),
    "seq 4": spec("seq", bits=4, init="mean"),
    "lsq unsigned": spec("lsq", bits=3, signed=False),
    "lsq offset": spec("lsq", bits=3, offset=True),
    "lsq offset mse": spec("lsq", bits=3, signed=False, offset=True, init="mse"),
    "lsq l1": spec("lsq", grad_scale="l1"),
    "lsq none": spec("lsq", grad_scale="none"),
    "elastic unsigned": spec("elastic", signed=False),
    "elastic 1-bit": spec("elastic", bits=1),
    "elastic shift": spec("elastic", shift=True),
    "pact": spec("pact", clip=0.4),
    "pact asymmetric": spec("pact", clip=0.4, symmetric=False),
    "static asymmetric": spec("static", symmetric=False),
    "twn clipped": spec("twn", estimator=ClippedSTE()),
    "lsq EWGS": spec("lsq", estimator=EWGS(0.5)),
    "xtc EWGS": spec("xtc", estimator=EWGS(0.5)),
    "seq StableQAT": spec("seq", estimator=StableQAT()),
    "statsq value-clipped": spec("statsq", estimator=ValueClippedSTE(0.3)),
}
LOOKED_UP = (
    "twn",
    "lat",
    "bwn",
    "statsq",
    "bitnet",
    "minmax_symmetric",
    "minmax_asymmetric",
    "xtc",
    "lsq",
    "seq",
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def embedding(of: QuantizerSpec, rows: int = ROWS, width: int = WIDTH, **settings: Any) -> QuantEmbedding:
    source = nn.Embedding(rows, width, **settings)
    with torch.no_grad():
        source.weight.copy_(torch.randn(rows, width) * 0.4)  # the padding row too: fine-tuned tables have one
    layer = QuantEmbedding.from_float(source, of, None)
    quantizer: Any = layer.weight_quantizer
    with torch.no_grad():
        for parameter in quantizer.parameters():  # not where initialisation has put them, where gradients may vanish
            parameter.mul_(1 + 0.1 * torch.rand(parameter.shape))
    return layer


def whole_table(layer: QuantEmbedding, ids: Tensor) -> Tensor:
    table = layer.weight_quantizer(layer.weight)
    return F.embedding(ids, table, layer.padding_idx, scale_grad_by_freq=layer.scale_grad_by_freq)


def run(layer: QuantEmbedding, ids: Tensor, how: Callable[..., Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output and every gradient, from a fixed upstream gradient whose mean is not zero."""
    layer = copy.deepcopy(layer)
    y = how(layer, ids)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(9)) + 0.3)
    return y.detach(), {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in layer.named_parameters()}


def assert_same(layer: QuantEmbedding, ids: Tensor) -> dict[str, Tensor]:
    y, gradients = run(layer, ids, lambda module, given: module(given))
    expected, theirs = run(layer, ids, whole_table)
    assert y.shape == (*ids.shape, layer.embedding_dim)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-7)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    return gradients


@pytest.mark.parametrize("name", SPECS)
def test_rows_equal_the_whole_table(name: str):
    for place, ids in enumerate(IDS.values(), start=list(SPECS).index(name)):  # each shape with and without padding
        check_rows(name, ids, 0 if place % 2 else None)


def check_rows(name: str, ids: Tensor, padding_idx: int | None) -> None:
    layer = embedding(SPECS[name], padding_idx=padding_idx)
    gradients = assert_same(layer, ids)
    learned = [key for key in gradients if key != "weight"]
    assert any(gradients[key].any() for key in learned) or not learned
    if SPECS[name].kind == "ipq":
        assert not gradients["weight"].any()
        return
    if SPECS[name].kind in ("lsq", "seq") and layer.weight_quantizer.groups == ROWS:
        assert not gradients["weight_quantizer.step_size"][8].any()  # nobody looks row 8 up
    assert gradients["weight"].any()
    assert not gradients["weight"][8].any()


@pytest.mark.parametrize("name", SPECS)
def test_the_padding_row_gets_no_gradient(name: str):
    layer = embedding(SPECS[name], padding_idx=3)
    gradients = run(layer, torch.tensor([[3, 3], [3, 3]]), lambda module, given: module(given))[1]
    assert not any(gradient.any() for gradient in gradients.values()), gradients


@pytest.mark.parametrize("name", SPECS)
def test_gradients_by_frequency(name: str):
    assert_same(embedding(SPECS[name], scale_grad_by_freq=True, padding_idx=0), IDS["repeated"])


@pytest.mark.parametrize("name", ["lat", "lat exact"])
@pytest.mark.parametrize("padding_idx", [None, 0])
def test_rows_with_curvature(name: str, padding_idx: int | None):
    layer = embedding(SPECS[name], padding_idx=padding_idx)
    before = layer(IDS["repeated"])
    layer.weight_quantizer.set_curvature(torch.rand(ROWS, WIDTH) ** 4)
    assert not torch.equal(layer(IDS["repeated"]), before)
    assert_same(layer, IDS["repeated"])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].noise])
def test_a_row_that_occurs_twice_has_one_draw_of_noise(kind: str):
    layer = embedding(spec(kind, noise="element", noise_rate=0.5)).train()
    y = layer(torch.tensor([2, 5, 2, 2]))
    assert torch.equal(y[0], y[2])
    assert torch.equal(y[0], y[3])


def test_no_rows_at_all():
    assert embedding(SPECS["lsq"])(torch.empty(2, 0, dtype=torch.long)).shape == (2, 0, WIDTH)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", LOOKED_UP)
def test_rows_have_the_dtype_of_the_table(kind: str, dtype: torch.dtype):
    layer = embedding(SPECS[kind]).to(dtype)
    y = layer(IDS["batch x length"])
    assert y.dtype == dtype
    assert torch.equal(y, whole_table(layer, IDS["batch x length"]))


class Largest(TorchDispatchMode):
    """The operations whose output has the most elements; views and the dense gradient of a table aside."""

    def __init__(self) -> None:
        super().__init__()
        self.elements, self.operation = 0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and "embedding_dense_backward" not in str(func):
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, Tensor) and tensor.numel() > self.elements:
                    self.elements, self.operation = tensor.numel(), str(func)
        return out


def largest(vocabulary: int, of: QuantizerSpec) -> tuple[tuple[int, str], tuple[int, str]]:
    layer = embedding(of, vocabulary, padding_idx=0)
    if of.kind == "lat":
        layer.weight_quantizer.set_curvature(torch.rand(vocabulary, WIDTH))
    with Largest() as forward:
        y = layer(torch.randint(1, vocabulary, (4, 16)))
    with Largest() as backward:
        torch.autograd.grad(y.sum(), list(layer.parameters()))
    return (forward.elements, forward.operation), (backward.elements, backward.operation)


@pytest.mark.parametrize("kind", LOOKED_UP)
@pytest.mark.parametrize("estimator", [None, ClippedSTE()], ids=["published", "clipped"])
def test_work_does_not_grow_with_the_vocabulary(kind: str, estimator: ClippedSTE | None):
    of = spec(kind, estimator=estimator)
    looked_up = 4 * 16 * WIDTH
    small, large = largest(2_000, of), largest(200_000, of)
    assert small == large
    assert small[0][0] <= 2 * looked_up
    assert small[1][0] <= 2 * looked_up


def test_a_codebook_spells_rows_only_where_nothing_learns():
    layer = embedding(SPECS["ipq"], padding_idx=0)
    expected = whole_table(layer, IDS["batch x length"])
    with torch.no_grad(), Largest() as forward:
        y = layer(IDS["batch x length"])
    assert torch.equal(y, expected)
    assert forward.elements == y.numel() < layer.weight.numel()


def test_the_dispatch_counter_sees_a_whole_table():
    assert largest(2_000, QuantizerSpec("twn"))[0][0] == 2_000 * WIDTH
