"""LearnedQuantizer: step sizes that train, with offset and shift where the kind has them.

State-dict keys: `step_size`, `offset`, `shift`, `floor`, `initialized`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.quantizers.fake_quantizer import LookUp, StatefulQuantizer, Target, number_like
from lowbit.quantizers.functional.core import Formula, fake_quantize
from lowbit.quantizers.functional.initial import STEPS, levels, mean_step, mse_step_and_offset
from lowbit.quantizers.functional.learned import Learned, Lsq, Seq
from lowbit.quantizers.grid import Grid
from lowbit.quantizers.spec import QuantizerSpec

_FLOORS = {"lsq": 1e-4}  # published, of step sizes that start at ten times it or more
_FLOOR = 1e-5  # of the other kinds
_SHARE_LEFT = 0.1  # of a step size that starts smaller
_EVENLY_SPACED = 257  # values that stand for a group of zeros


class LearnedQuantizer(StatefulQuantizer):
    """LSQ, LSQ+, SEQ and elastic quantizers: a learned step size per group, with optional offset and shift."""

    step_size: nn.Parameter
    offset: nn.Parameter | None
    shift: nn.Parameter | None
    floor: Tensor

    def __init__(self, spec: QuantizerSpec, target: Target) -> None:
        super().__init__(spec, target)
        count, like = self._group_count(), number_like(target)
        self.step_size = nn.Parameter(torch.ones(count, **like))
        self.register_parameter("offset", nn.Parameter(torch.zeros(count, **like)) if spec.offset else None)
        if spec.shift and not target.shape:
            raise ValueError(f"quantizer {spec}: `shift` needs a fixed number of features, which this input has not")
        shift = nn.Parameter(torch.zeros(math.prod(target.shape), **like)) if spec.shift else None
        self.register_parameter("shift", shift)
        self.register_buffer("floor", torch.full((count,), _FLOORS.get(spec.kind, _FLOOR), **like))
        self._seen: Tensor | None = None  # batches that were not all zero, by group
        self.whole = 1.0  # elements of the whole batch for each that this process sees of it

    def _group_count(self) -> int:
        granularity, shape = self.spec.granularity, self.target.shape
        if granularity == "tensor" or (self.target.weight and granularity == "row"):
            return self.groups
        if not self.target.weight and granularity == "head" and len(shape) == 3:
            return shape[0]
        raise ValueError(
            f"quantizer {self.spec}: a learned scale needs a fixed number of groups; allowed are tensor, row and head "
            "for weights, tensor for inputs, and head for the operands of attention products"
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return shift + x on the grid; while observing, set the scale from x first."""
        x = self._shifted(x)
        if self.observing:
            self.observe(self.heads_first(x))
        else:
            self.require_ready()
        return super().forward(x)

    def put_on_grid(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Shift, then round."""
        return super().put_on_grid(self._shifted(x))

    def _shifted(self, x: Tensor) -> Tensor:
        return x if self.shift is None else x + self.shift.reshape(self.target.shape).to(x.dtype)

    @property
    def by_rows(self) -> bool:
        """Not while observing, and not under `l1`, which multiplies by a norm of the whole table."""
        return super().by_rows and not self.observing and self.spec.grad_scale != "l1"

    def quantize_rows(self, ids: Tensor, table: Tensor, look_up: LookUp) -> Tensor:
        """Look the rows' scales up as well."""
        self.require_ready()
        scale = look_up(ids, self.step_size.unsqueeze(1))
        offset = None if self.offset is None else look_up(ids, self.offset.unsqueeze(1))
        formula = self.spec.formula(())
        assert isinstance(formula, Learned)
        formula = replace(formula, count=table.numel())
        return fake_quantize(look_up(ids, table), formula, self.spec.estimator, scale, offset)

    def formula(self, x: Tensor) -> Formula:
        """Return the formula; gradient multipliers of inputs count the elements of the whole batch."""
        formula = super().formula(x)
        if self.whole == 1 or self.target.weight:
            return formula
        assert isinstance(formula, Learned)
        return replace(formula, count=round(x.numel() * self.whole))

    def scale_and_offset(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return step size and offset, one per row, per head or for all."""
        return self._spread(self.step_size, x), None if self.offset is None else self._spread(self.offset, x)

    def _spread(self, numbers: Tensor, x: Tensor) -> Tensor:
        if numbers.numel() == 1:
            return numbers.reshape([1] * x.ndim)
        if self.target.weight:
            return numbers.reshape(-1, *[1] * (x.ndim - 1))
        return numbers.reshape(-1, 1, 1)

    def step_with_gradient(self, x: Tensor, grad_scale: str | None = None) -> Tensor:
        """Return the floored step size, broadcastable to x, under the gradient multiplier of the forward or another."""
        scale, _ = self.scale_and_offset(x)
        assert scale is not None
        formula = self.formula(x)
        if isinstance(formula, Lsq) and grad_scale is not None:
            formula = replace(formula, grad_scale=grad_scale)
        positive, multiplier = formula.positive(scale), formula.scale_multiplier(x.detach())
        return positive * multiplier + (positive * (1 - multiplier)).detach()

    def noise_bounds(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the ends of the grid."""
        formula, (scale, offset) = self.formula(x), self.scale_and_offset(x)
        assert isinstance(formula, Lsq | Seq)
        assert scale is not None
        low, high = formula.ends(scale.detach())
        zero = 0.0 if offset is None else offset.detach()
        return low + zero, high + zero

    @torch.no_grad()
    def raise_to_floor(self) -> None:
        """Keep step sizes at their floor at least, so that none becomes negative and has a long way back.

        The floor is that of the published code (1e-4, and 1e-5 for SEQ and elastic grids) or, where a step size starts
        below ten times it, a tenth of the start: tensors of small numbers have small steps.
        """
        self.step_size.clamp_(min=self.floor)

    def initialize(self, weight: Tensor) -> None:
        """Set the scale from the weight itself."""
        if not weight.is_meta:
            self.observe(self.heads_first(weight.detach()))
            self.mark_ready()

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Set the scale from a batch; over several, to the mean of theirs.

        A group that has been zero so far has no scale: it starts with the mean of the other groups of the tensor. If
        all are zero, it starts as values evenly spaced in [-b, b] would ([0, b] on unsigned grids): b is
        1 / sqrt(fan-in) for a weight, PyTorch's default start of a linear layer, and 1 for an input.
        """
        initial = self._initial(self._grouped(x))
        known = initial[0] > 0
        self._seen = known.long() if self._seen is None else self._seen + known
        share, seen = known.double() / self._seen.clamp(min=1), self._seen > 0
        own = [numbers for numbers in (self.step_size, self.offset) if numbers is not None]
        for numbers, of_batch in zip(own, initial, strict=False):
            numbers.lerp_(of_batch.to(numbers), share.to(numbers))
        if not bool(seen.all()):
            usual = [n[seen].mean() for n in own] if bool(seen.any()) else self._initial(self._evenly_spaced())
            for numbers, start in zip(own, usual, strict=False):
                numbers.copy_(torch.where(seen, numbers, start.to(numbers)))
        self.floor.copy_(torch.minimum(self.floor, _SHARE_LEFT * self.step_size))

    def _evenly_spaced(self) -> Tensor:
        reach = math.prod(self.target.shape[1:]) ** -0.5 if self.target.weight else 1.0
        low = 0.0 if self.spec.kind != "seq" and not self.spec.get("signed") else -reach
        return torch.linspace(low, reach, _EVENLY_SPACED, dtype=torch.float64).unsqueeze(0)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        state_dict.setdefault(f"{prefix}floor", self.floor)  # earlier versions had the published one throughout
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @property
    def has_observed(self) -> bool:
        """Whether calibration has shown it an input."""
        return self._seen is not None

    def _grouped(self, x: Tensor) -> Tensor:
        x = x.detach() if x.dtype is torch.float64 else x.detach().float()
        if self.step_size.numel() == 1:
            return x.reshape(1, -1)
        first = x if self.target.weight else x.transpose(0, 1)
        return first.reshape(self.step_size.numel(), -1)

    def _initial(self, x_GN: Tensor) -> tuple[Tensor, Tensor]:
        """Return step and offset per group, of shape G; the step of a group of zeros is 0."""
        spec = self.spec
        assert spec.bits is not None
        rule, zero = spec.get("init"), torch.zeros_like(x_GN[:, 0])
        if spec.kind == "lsq" and spec.init is None and self.target.weight:
            rule = "mse"
        if spec.kind == "seq":
            step = x_GN.abs().amax(1) if rule == "max" else x_GN.abs().mean(1)
        elif spec.kind == "elastic":
            step = self._elastic_step(x_GN, rule)
        else:
            low, high = levels(spec.bits, spec.get("signed"))
            if self.offset is not None and rule == "mse":
                return mse_step_and_offset(x_GN, low, high)
            step = STEPS[rule](x_GN, low, high)
        return step, zero

    def _elastic_step(self, x_GN: Tensor, rule: str) -> Tensor:
        signed = self.spec.get("signed")
        low, high = levels(self.spec.bits or 1, signed)
        if rule == "mean":
            return mean_step(x_GN, low, high) * (1 if signed else 2)
        if signed:
            return x_GN.abs().mean(1)
        highest = x_GN.amax(1, keepdim=True)
        upper = x_GN >= torch.where(highest < 0.5, highest / 2, 0.5)  # published for attention maps: 0.5 for all
        return (x_GN * upper).sum(1) / upper.sum(1).clamp(min=1)
