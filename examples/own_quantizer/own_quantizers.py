"""A quantizer of your own: a symmetric grid that ends at a percentile of the magnitudes and clips what is larger."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.quantizers import ClippedSTE, Estimator, Formula, Grid


@dataclass(frozen=True)
class Percentile(Formula):
    """Round to 2^bits - 1 levels between plus and minus the `share` quantile of |x|.

    Args:
        dims: the dimensions that share a scale, the last ones of the tensor.
        bits: width.
        share: of the elements that are not clipped.

    >>> from lowbit.quantizers import QuantizerSpec, build_quantizer
    >>> quantizer = build_quantizer(QuantizerSpec("own_quantizers.Percentile", bits=2, options={"share": 0.75}))
    >>> x = torch.tensor([0.2, -0.6, 1.0, 9.0], requires_grad=True)
    >>> y = quantizer(x)
    >>> y.tolist()  # -1, 0 or 1 times 1.0, the third of four magnitudes
    [0.0, -1.0, 1.0, 1.0]
    >>> y.sum().backward()
    >>> x.grad.tolist()  # none beyond the grid
    [1.0, 1.0, 1.0, 0.0]
    """

    dims: tuple[int, ...]
    bits: int
    share: float = 0.99

    @property
    def published(self) -> Estimator:
        """The gradient where no other estimator is chosen: straight through inside the grid."""
        return ClippedSTE()

    def quantize(self, x: Tensor, scale: Tensor | None, offset: Tensor | None) -> tuple[Tensor, Grid]:
        """Return x on the grid, and the grid."""
        kept = x.shape[: x.ndim - len(self.dims)]
        magnitudes = x.abs().reshape(*kept, -1)
        place = max(math.ceil(self.share * magnitudes.shape[-1]), 1)
        largest = 2 ** (self.bits - 1) - 1
        step = magnitudes.kthvalue(place, dim=-1).values.reshape(*kept, *[1] * len(self.dims)) / largest
        step = torch.where(step > 0, step, 1.0)
        return (x / step).round_().clamp_(-largest, largest).mul_(step), Grid(step, -largest, largest)
