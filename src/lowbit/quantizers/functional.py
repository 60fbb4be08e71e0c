"""Fake quantizers as pure functions: tensor in, tensor of the same shape on a low-bit grid out.

Each is one published formula with its published gradient, a straight-through estimator (STE): the gradient passes
where `|x| < clip` and is zero elsewhere, equality included; scales and thresholds carry no gradient. Half-precision
inputs keep their scales in float32. No function synchronises with the host.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

Granularity = Literal["tensor", "row", "token", "head"]
_MIN_ASYMMETRIC_RANGE = 1e-8  # added to the range by the published asymmetric quantizer
_MIN_SYMMETRIC_LIMIT = 1e-30  # at or below it the scale would overflow float32; such a tensor becomes zero


def reduction_dims(x: Tensor, granularity: str) -> tuple[int, ...]:
    """Return the dimensions over which one scale is shared.

    `tensor`: all; `row`: all but the first; `token`: the last; `head`: the last two of a BHLD tensor.

    Raises:
        ValueError: unknown granularity, or one that the tensor's shape does not have.
    """
    if granularity == "tensor":
        return tuple(range(x.ndim))
    if granularity == "row" and x.ndim >= 2:
        return tuple(range(1, x.ndim))
    if granularity == "token":
        return (x.ndim - 1,)
    if granularity == "head" and x.ndim == 4:
        return (2, 3)
    allowed = ", ".join(get_args(Granularity))
    raise ValueError(
        f"granularity={granularity!r} does not fit a tensor of shape {tuple(x.shape)}: allowed are {allowed}; "
        "'row' needs two dimensions or more, 'head' a 4-D tensor (batch, heads, tokens, width)"
    )


def twn_ternarize(w: Tensor, *, granularity: str, threshold: float = 0.7, clip: float | None = None) -> Tensor:
    """Ternarize weights to {-alpha, 0, +alpha} by the Ternary Weight Networks rule.

    With c = clamp(w, -clip, clip): Delta = threshold * mean|c|, alpha = mean of |c| over |c| > Delta.
    An all-zero tensor or row stays zero.

    Source: Li et al. 2016 (arXiv 1605.04711), equations 5-6; `TwnQuantizer` of TernaryBERT (arXiv 2009.12812).

    >>> w = torch.tensor([[-0.9, 0.1, 0.7, -0.2], [3.0, -0.5, 0.0, 0.1]], requires_grad=True)
    >>> y = twn_ternarize(w, granularity="row", clip=2.5)
    >>> [[round(v, 4) for v in row] for row in y.tolist()]
    [[-0.8, 0.0, 0.8, 0.0], [2.5, 0.0, 0.0, 0.0]]
    >>> y.sum().backward()
    >>> w.grad.tolist()
    [[1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0]]
    """
    return _apply(_Twn, w, reduction_dims(w, granularity), threshold, clip)


def minmax_symmetric(x: Tensor, *, bits: int, granularity: str, clip: float | None = None) -> Tensor:
    """Round to a dynamic grid that is symmetric around zero, with n = 2^(bits-1) - 1 positive levels.

    s = n / max|clamp(x)|, y = round(clamp(x) * s) / s, ties to even. An all-zero tensor stays zero.

    Source: `SymQuantizer` of TernaryBERT (arXiv 2009.12812) and Teacher Intervention (arXiv 2302.11812).

    >>> x = torch.tensor([-3.0, 0.3, 1.0, 2.0], requires_grad=True)
    >>> y = minmax_symmetric(x, bits=2, granularity="tensor", clip=2.5)
    >>> y.tolist()
    [-2.5, 0.0, 0.0, 2.5]
    >>> y.sum().backward()
    >>> x.grad.tolist()
    [0.0, 1.0, 1.0, 1.0]
    """
    _check_bits(bits, minimum=2)
    return _apply(_MinMaxSymmetric, x, reduction_dims(x, granularity), 2 ** (bits - 1) - 1, clip)


def minmax_asymmetric(x: Tensor, *, bits: int, granularity: str, clip: float | None = None) -> Tensor:
    """Round to a dynamic grid of 2^bits levels from the minimum to the maximum.

    With c = clamp(x), lo = min c, r = max c - lo + 1e-8, n = 2^bits - 1: y = round((c - lo) / r * n) / n * r + lo.
    A constant tensor stays what it is.

    Source: `AsymQuantizer` of TernaryBERT (arXiv 2009.12812), the activation quantizer of the paper.

    >>> x = torch.tensor([-1.0, 0.2, 0.6, 2.0], requires_grad=True)
    >>> y = minmax_asymmetric(x, bits=2, granularity="tensor", clip=2.0)
    >>> [round(v, 4) for v in y.tolist()]
    [-1.0, 0.0, 1.0, 2.0]
    >>> y.sum().backward()
    >>> x.grad.tolist()
    [1.0, 1.0, 1.0, 0.0]
    """
    _check_bits(bits, minimum=1)
    return _apply(_MinMaxAsymmetric, x, reduction_dims(x, granularity), 2**bits - 1, clip)


def _check_bits(bits: int, *, minimum: int) -> None:
    if not minimum <= bits <= 16:
        raise ValueError(f"bits={bits}: this grid takes {minimum} to 16 bits; ternary weights are kind 'twn'")


def _apply(function: type[torch.autograd.Function], x: Tensor, *args: Any) -> Tensor:
    """Run an autograd function in float32 at least, so that the scales of half-precision inputs stay float32."""
    if x.dtype in (torch.float16, torch.bfloat16):
        return function.apply(x.float(), *args).to(x.dtype)  # type: ignore[no-any-return]
    return function.apply(x, *args)  # type: ignore[no-any-return]


class _ClippedStraightThrough(torch.autograd.Function):
    """Backward shared by the quantizers: identity inside the open interval (-clip, clip), zero outside."""

    @staticmethod
    def save(ctx: Any, x: Tensor, clip: float | None) -> None:
        ctx.clip = clip
        if clip is not None:
            ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Mask the gradient in one pass; hardtanh's backward is exactly the published strict mask."""
        (grad,) = grads
        if ctx.clip is None:
            return grad, None, None, None
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grad, x, -ctx.clip, ctx.clip), None, None, None


class _Twn(_ClippedStraightThrough):
    @staticmethod
    def forward(ctx: Any, w: Tensor, dims: tuple[int, ...], threshold: float, clip: float | None) -> Tensor:
        _ClippedStraightThrough.save(ctx, w, clip)
        magnitude = w.abs() if clip is None else w.abs().clamp_(max=clip)
        delta = magnitude.mean(dims, keepdim=True).mul_(threshold)
        # Codes as bytes: a quarter of the memory traffic of float masks, and no negative zeros in the output.
        positive, negative = w > delta, w < -delta
        codes = positive.view(torch.int8) - negative.view(torch.int8)
        kept = positive.logical_or_(negative)
        alpha = magnitude.mul_(kept).sum(dims, keepdim=True) / kept.sum(dims, keepdim=True).clamp_(min=1)
        return codes * alpha


class _MinMaxSymmetric(_ClippedStraightThrough):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...], levels: int, clip: float | None) -> Tensor:
        _ClippedStraightThrough.save(ctx, x, clip)
        low, high = _range(x, dims)
        limit = torch.maximum(-low, high)
        if clip is not None:
            limit = limit.clamp(max=clip)
        scale = torch.where(limit > _MIN_SYMMETRIC_LIMIT, levels / limit, 1.0)
        # Clamping the codes equals clamping the input first: where the clip is active it is the scale's limit.
        return (x * scale).round_().clamp_(-levels, levels).div_(scale)


class _MinMaxAsymmetric(_ClippedStraightThrough):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...], levels: int, clip: float | None) -> Tensor:
        _ClippedStraightThrough.save(ctx, x, clip)
        low, high = _range(x, dims)
        if clip is not None:
            low, high = low.clamp(-clip, clip), high.clamp(-clip, clip)
        width = (high - low).add_(_MIN_ASYMMETRIC_RANGE)
        codes = torch.clamp(x, low, high).sub_(low).div_(width).mul_(levels).round_()
        return codes.div_(levels).mul_(width).add_(low)


def _range(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return minimum and maximum over `dims`, kept broadcastable."""
    if len(dims) == x.ndim:
        low, high = torch.aminmax(x)
        return low.reshape([1] * x.ndim), high.reshape([1] * x.ndim)
    if len(dims) == 1:
        low, high = torch.aminmax(x, dim=dims[0], keepdim=True)
        return low, high
    return x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
