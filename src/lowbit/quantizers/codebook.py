"""Product quantization (iPQ): noise that prepares for it, and weights that are words of a learned codebook."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit.quantizers.fake_quantizer import FakeQuantizer, LookUp, StatefulQuantizer, Target, number_like
from lowbit.quantizers.functional.noise import drop_blocks
from lowbit.quantizers.grid import Grid
from lowbit.quantizers.spec import QuantizerSpec

_ITERATIONS = 15  # k-means steps of the published code
_SEED = 0
_FITTED_ROWS = 2**19  # of more blocks k-means sees a random part; the rest are only assigned


def _blocks_per_row(spec: QuantizerSpec, target: Target) -> int:
    size = spec.get("block_size")
    if not target.weight:
        raise ValueError(f"quantizer {spec}: product quantization is for weights")
    width = math.prod(target.shape[1:])
    if width % size:
        allowed = ", ".join(str(n) for n in range(1, min(width, 64) + 1) if width % n == 0)
        raise ValueError(f"block_size={size} does not divide the {width} elements of a row: allowed are {allowed}")
    return int(width // size)


class BlockNoiseQuantizer(FakeQuantizer):
    """Drop random blocks of the weight in training; evaluation and size are those of the plain weight."""

    def __init__(self, spec: QuantizerSpec, target: Target) -> None:
        super().__init__(spec, target)
        if spec.get("noise_rate") == 1:
            raise ValueError(f"quantizer {spec}: noise_rate=1 drops every block: it must be below 1")
        self._blocks = _blocks_per_row(spec, target)

    def forward(self, x: Tensor) -> Tensor:
        """Return a copy with blocks dropped; the weight itself is never changed."""
        if not self.training:
            return x
        rate = self.spec.get("noise_rate")
        return drop_blocks(x, torch.rand(x.shape[0], self._blocks, device=x.device) >= rate, rate=rate)

    @property
    def by_rows(self) -> bool:
        """No: a row that occurs twice has one mask."""
        return False

    def codes(self, x: Tensor) -> Tensor:
        """There is no grid.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"quantizer {self.spec} has no grid: its weights have no integer codes")


class CodebookQuantizer(StatefulQuantizer):
    """A weight as rows of codebook words: `centroids` learn, `assignments` stay as k-means made them.

    The latent weight is read once, by `initialize`; afterwards it gets no gradient (None, so that optimizers skip it),
    and a centroid's gradient is the sum over its members; that of an embedding's padding row is left out.

    Source: Stock et al. 2020 (arXiv 1907.05686); Fan et al. 2020 (arXiv 2004.07320), section 4.2.
    """

    assignments: Tensor

    def __init__(self, spec: QuantizerSpec, target: Target) -> None:
        super().__init__(spec, target)
        size, blocks = spec.get("block_size"), _blocks_per_row(spec, target)
        count = min(spec.get("centroids"), target.shape[0] * blocks)
        self.centroids = nn.Parameter(torch.zeros(count, size, **number_like(target)))
        device = None if target.like is None else target.like.device
        shape = (target.shape[0], blocks)
        self.register_buffer("assignments", torch.zeros(shape, dtype=torch.int32, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Return the weight that the codebook spells; `x` gives shape and dtype only."""
        self.require_ready()
        return F.embedding(self.assignments, self.centroids).reshape(x.shape).to(x.dtype)

    @property
    def by_rows(self) -> bool:
        """Not while centroids learn: the layer's look-up knows the padding."""
        return not torch.is_grad_enabled()

    def quantize_rows(self, ids: Tensor, table: Tensor, look_up: LookUp) -> Tensor:
        """Spell only the rows that were looked up."""
        self.require_ready()
        return F.embedding(self.assignments[ids], self.centroids).reshape(*ids.shape, table.shape[1]).to(table.dtype)

    def put_on_grid(self, x: Tensor) -> tuple[Tensor, Grid]:
        """There is no grid.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"quantizer {self.spec} has no grid: its weights are words of a codebook")

    def initialize(self, weight: Tensor) -> None:
        """Find the codebook of the weight by k-means, once: one that was fine-tuned or loaded stays.

        Raises:
            ValueError: the weight has elements that are not finite.
        """
        if weight.is_meta or self.is_ready:
            return
        centroids, assignments = fit_codebook(weight.detach().reshape(-1, self.centroids.shape[1]), len(self.centroids))
        with torch.no_grad():
            self.centroids.copy_(centroids)
            self.assignments.copy_(assignments.reshape(self.assignments.shape))
        self.mark_ready()


def fit_codebook(blocks: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Cluster the rows of `blocks` into `count` centroids; return centroids and each row's index, on the CPU.

    k-means by scikit-learn: at most 15 steps from random distinct rows; an emptied cluster moves to the row farthest
    from its centroid. Of more than 2^19 rows it sees that many; every row is then assigned to its nearest centroid.
    Fewer distinct rows than centroids are all kept exactly, and some centroids stay without members. The seed is fixed
    and there is one thread, because sums over several come out in any order: so all ranks agree.

    Raises:
        ValueError: there are elements that are not finite.

    >>> centroids, assignments = fit_codebook(torch.tensor([[1.0, 1.0], [1.0, 3.0], [9.0, 9.0]]), 2)
    >>> centroids[assignments].tolist()
    [[1.0, 2.0], [1.0, 2.0], [9.0, 9.0]]
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import pairwise_distances_argmin
    from threadpoolctl import threadpool_limits

    if not torch.isfinite(blocks).all():
        raise ValueError("the weight has NaN or infinite elements: k-means finds no codebook for it")
    data = (blocks if blocks.dtype is torch.float64 else blocks.float()).cpu().numpy()
    generator = np.random.default_rng(_SEED)
    fitted = data[generator.choice(len(data), _FITTED_ROWS, replace=False)] if len(data) > _FITTED_ROWS else data
    distinct = np.unique(fitted, axis=0)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a centroid may end without members
        if len(distinct) <= count:
            centroids = distinct[np.arange(count) % len(distinct)]
        else:
            start = distinct[generator.choice(len(distinct), count, replace=False)]
            centroids = KMeans(count, init=start, n_init=1, max_iter=_ITERATIONS, tol=0).fit(fitted).cluster_centers_
        assignments = pairwise_distances_argmin(data, centroids)
    return torch.from_numpy(centroids), torch.from_numpy(assignments)
