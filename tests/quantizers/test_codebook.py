"""Product quantization (iPQ): k-means finds a codebook once; its centroids learn, its assignments stay."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from lowbit.quantizers import QuantConv2d, QuantEmbedding, QuantFusedLinear, QuantizerSpec, QuantLinear, codebook
from lowbit.quantizers.codebook import CodebookQuantizer, fit_codebook
from lowbit.quantizers.fake_quantizer import Target

IPQ = QuantizerSpec("ipq", block_size=4, centroids=6)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def quantizer_of(weight: Tensor, spec: QuantizerSpec = IPQ) -> CodebookQuantizer:
    quantizer = CodebookQuantizer(spec, Target(tuple(weight.shape), weight, weight=True))
    quantizer.initialize(weight)
    return quantizer


def error(blocks: Tensor, centroids: Tensor) -> Tensor:
    return (blocks.unsqueeze(1) - centroids).square().sum(2)


# --- k-means --------------------------------------------------------------------------------------------------------


def test_clusters_that_are_far_apart_are_found():
    centers = torch.randint(-50, 50, (8, 4)).float() * 10
    blocks = (centers.repeat(40, 1) + torch.randn(320, 4) * 0.01)[torch.randperm(320)]
    best = min(  # random starts may leave two clusters in one: some order of the rows avoids that
        (fit_codebook(blocks[torch.randperm(320)], 8) for _ in range(20)),
        key=lambda found: error(blocks, found[0]).amin(1).sum(),
    )
    assert error(centers, best[0]).amin(1).max() < 1e-3


def test_every_block_has_its_nearest_centroid_and_15_steps_are_nearly_converged():
    blocks = torch.randn(3000, 4)
    centroids, assignments = fit_codebook(blocks, 16)
    distances = error(blocks, centroids)
    chosen = distances.gather(1, assignments.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(chosen, distances.amin(1))
    assert assignments.unique().numel() == 16  # no cluster is empty
    means = torch.stack([blocks[assignments == i].mean(0) for i in range(16)])
    assert (means - centroids).abs().max() < 0.1
    start = error(blocks, blocks[:16]).amin(1).mean()
    assert distances.amin(1).mean() < 0.8 * start


def test_the_number_of_steps_is_15(monkeypatch: pytest.MonkeyPatch):
    blocks = torch.randn(3000, 4)
    found = [fit_codebook(blocks, 16)[0]]
    for steps in (15, 14):
        monkeypatch.setattr(codebook, "_ITERATIONS", steps)
        found.append(fit_codebook(blocks, 16)[0])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    monkeypatch.setattr(codebook, "_ITERATIONS", 500)  # only convergence ends them earlier
    centroids, assignments = fit_codebook(blocks, 16)
    means = torch.stack([blocks[assignments == i].mean(0) for i in range(16)])
    torch.testing.assert_close(centroids, means, rtol=0, atol=1e-5)


def test_neither_global_seeds_nor_threads_change_the_codebook():
    blocks = torch.randn(20_000, 8)
    found = []
    for threads in (1, 4, 3):
        np.random.seed(threads)  # the global state must not matter
        torch.manual_seed(threads)
        with threadpool_limits(threads):
            found.append(fit_codebook(blocks, 64))
    for centroids, assignments in found[1:]:
        assert torch.equal(centroids, found[0][0])
        assert torch.equal(assignments, found[0][1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_fewer_distinct_blocks_than_centroids_are_kept_exactly(dtype: torch.dtype):
    distinct = torch.randn(5, 4, dtype=dtype) * 0.04
    blocks = distinct[torch.randint(5, (200,))]
    centroids, assignments = fit_codebook(blocks, 16)
    assert centroids.shape == (16, 4)
    assert torch.equal(centroids[assignments].to(dtype), blocks)
    weight = torch.zeros(6, 8)
    assert torch.equal(quantizer_of(weight)(weight), weight)


def test_mostly_equal_blocks_still_fill_the_codebook():
    blocks = torch.cat([torch.zeros(1000, 4), torch.randn(40, 4)])
    centroids, assignments = fit_codebook(blocks, 20)
    assert torch.isfinite(centroids).all()
    assert assignments.unique().numel() == 20


def test_of_a_large_matrix_a_part_is_fitted_and_all_is_assigned(monkeypatch: pytest.MonkeyPatch):
    blocks = torch.randn(5000, 4)
    full = error(blocks, fit_codebook(blocks, 16)[0]).amin(1).mean()
    monkeypatch.setattr(codebook, "_FITTED_ROWS", 2000)
    centroids, assignments = fit_codebook(blocks, 16)
    assert assignments.shape == (5000,)
    distances = error(blocks, centroids)
    torch.testing.assert_close(distances.gather(1, assignments.unsqueeze(1)).squeeze(1), distances.amin(1))
    assert distances.amin(1).mean() < 1.1 * full


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused(bad: float):
    weight = torch.randn(6, 8)
    weight[2, 3] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantizer_of(weight)


# --- the quantizer in layers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("source", "layer", "x"),
    [
        (nn.Linear(8, 6), QuantLinear, torch.randn(2, 8)),
        (nn.Conv2d(2, 6, 2), QuantConv2d, torch.randn(1, 2, 3, 3)),
        (nn.Embedding(9, 8), QuantEmbedding, torch.tensor([[1, 8, 1]])),
    ],
    ids=["linear", "convolution", "embedding"],
)
def test_a_layer_computes_with_the_spelled_weight(source: nn.Module, layer, x: Tensor, dtype: torch.dtype):
    source = copy.deepcopy(source).to(dtype)
    x = x.to(dtype) if x.is_floating_point() else x
    quantized = layer.from_float(source, IPQ, None)
    quantizer = quantized.weight_quantizer
    assert quantizer.centroids.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    assert quantizer.assignments.dtype is torch.int32
    spelled = quantizer.centroids[quantizer.assignments.long()].reshape(source.weight.shape).to(dtype)
    expected = copy.deepcopy(source)
    expected.weight = nn.Parameter(spelled.detach())
    for mode in (True, False):  # training and evaluation are the same
        assert torch.equal(quantized.train(mode)(x), expected(x))
        with torch.no_grad():
            assert torch.equal(quantized(x), expected(x))
    assert quantized.weight is source.weight
    assert quantized.weight.shape == spelled.shape


def test_a_centroid_has_the_sum_of_its_members_gradients_and_the_latent_weight_none():
    layer = QuantLinear.from_float(nn.Linear(8, 10), IPQ, None)
    quantizer, x = layer.weight_quantizer, torch.randn(3, 8)
    layer(x).square().sum().backward()
    spelled = quantizer(layer.weight).detach().requires_grad_()
    F.linear(x, spelled, layer.bias).square().sum().backward()
    expected = torch.zeros(6, 4).index_add(0, quantizer.assignments.flatten(), spelled.grad.reshape(-1, 4))
    torch.testing.assert_close(quantizer.centroids.grad, expected)
    assert layer.weight.grad is None


def test_training_moves_centroids_and_neither_assignments_nor_the_latent_weight():
    layer = QuantLinear.from_float(nn.Linear(8, 10), IPQ, None)
    quantizer = layer.weight_quantizer
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01, weight_decay=0.5)
    x, y = torch.randn(20, 8), torch.randn(20, 10)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.mse_loss(layer(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert torch.equal(layer.weight, before["weight"])
    assert torch.equal(quantizer.assignments, before["weight_quantizer.assignments"])
    assert not torch.equal(quantizer.centroids, before["weight_quantizer.centroids"])


def test_padding_teaches_the_centroids_nothing():
    source = nn.Embedding(9, 8, padding_idx=0)
    layer = QuantEmbedding.from_float(source, QuantizerSpec("ipq", block_size=4, centroids=3), None)
    quantizer = layer.weight_quantizer
    assert (quantizer.assignments[0, 0] == quantizer.assignments[1:, 0]).any()  # others share the padding's words
    ids = torch.tensor([[0, 1, 0], [5, 0, 5]])
    upstream = torch.randn(2, 3, 8)
    layer(ids).backward(upstream)
    expected = torch.zeros(3, 4)
    for i, row in ((1, upstream[0, 1]), (5, upstream[1, 0]), (5, upstream[1, 2])):
        expected.index_add_(0, quantizer.assignments[i], row.reshape(2, 4))
    torch.testing.assert_close(quantizer.centroids.grad, expected)
    quantizer.centroids.grad = None
    layer(torch.zeros(4, dtype=torch.long)).sum().backward()
    assert not quantizer.centroids.grad.any()
    assert layer.weight.grad is None


def test_only_evaluation_spells_single_rows(monkeypatch: pytest.MonkeyPatch):
    layer = QuantEmbedding.from_float(nn.Embedding(9, 8), IPQ, None)
    monkeypatch.setattr(CodebookQuantizer, "forward", lambda *_: pytest.fail("the whole table was spelled"))
    with torch.no_grad():
        assert layer(torch.tensor([1, 2])).shape == (2, 8)


def test_blocks_of_a_fused_layer_have_a_codebook_each():
    source = nn.Linear(8, 30, bias=False)
    layer = QuantFusedLinear.from_float(source, {"query": (IPQ, None), "key": (IPQ, None), "value": (None, None)})
    y = layer(torch.eye(8))
    assert torch.equal(y[:, 20:], source.weight[20:].T)
    assert torch.equal(y[:, 10:20].T, quantizer_of(source.weight[10:20])(source.weight[10:20]))
    y.sum().backward()
    assert not layer.weight.grad[:20].any()
    assert layer.weight.grad[20:].all()


# --- state ----------------------------------------------------------------------------------------------------------


def test_a_saved_codebook_is_loaded_and_never_fitted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    layer = QuantLinear.from_float(nn.Linear(8, 10), IPQ, None)
    with torch.no_grad():
        layer.weight_quantizer.centroids.mul_(3)  # as fine-tuning would
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    other = QuantLinear.from_float(nn.Linear(8, 10), IPQ, None)
    empty = QuantLinear.from_float(nn.Linear(8, 10, device="meta"), IPQ, None)
    monkeypatch.setattr(codebook, "fit_codebook", lambda *_: pytest.fail("fitted again"))
    x = torch.randn(2, 8)
    state = torch.load(tmp_path / "layer.pt")
    for loaded, assign in ((other, False), (empty, True)):
        loaded.load_state_dict(state, assign=assign)
        assert torch.equal(loaded(x), layer(x))
        loaded.weight_quantizer.initialize(loaded.weight)
        assert torch.equal(loaded(x), layer(x))


def test_copies_are_independent_and_half_precision_keeps_wide_centroids():
    layer = QuantLinear.from_float(nn.Linear(8, 10), IPQ, None)
    x = torch.randn(2, 8)
    expected = layer(x)
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.weight_quantizer.centroids.zero_()
    assert torch.equal(layer(x), expected)
    centroids = layer.weight_quantizer.centroids.detach().clone()
    layer.to(torch.bfloat16)
    assert layer.weight_quantizer.centroids.dtype is torch.float32
    assert torch.equal(layer.weight_quantizer.centroids, centroids)
    assert layer.weight_quantizer.assignments.dtype is torch.int32
    assert layer(x.bfloat16()).dtype is torch.bfloat16


def test_a_codebook_that_nobody_has_found_is_refused():
    layer = QuantLinear.from_float(nn.Linear(8, 10, device="meta"), IPQ, None).to_empty(device="cpu")
    with pytest.raises(RuntimeError, match="has no scale yet"):
        layer(torch.randn(2, 8))


def test_sizes_and_refusals():
    weight = torch.randn(6, 8)
    quantizer = quantizer_of(weight)
    assert IPQ.packed_bits(weight.numel(), 1) == 12 * 3 + 6 * 4 * 32  # indices of 3 bits, centroids in float32
    assert QuantizerSpec("ipq").packed_bits(768 * 3072, 1) == 768 * 3072 // 8 * 8 + 256 * 8 * 32
    assert quantizer.stored_numbers == 6 * 4
    assert quantizer_of(weight, QuantizerSpec("ipq", block_size=4)).centroids.shape == (12, 4)  # one per block
    with pytest.raises(ValueError, match="has no grid: its weights are words of a codebook"):
        quantizer.codes(weight)
    with pytest.raises(ValueError, match="block_size=8 does not divide the 12 elements of a row: allowed are 1, 2, 3,"):
        CodebookQuantizer(QuantizerSpec("ipq"), Target((4, 3, 2, 2), weight=True))
    with pytest.raises(ValueError, match="product quantization is for weights"):
        CodebookQuantizer(IPQ, Target((8,)))
