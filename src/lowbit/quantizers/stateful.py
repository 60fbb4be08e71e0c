"""Quantizers with numbers of their own, beside learned steps: learned clips, running ranges, curvature.

State-dict keys: `low`, `high` (pact: learned; static: kept), `second_moment` (LAT), and `initialized`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowbit.quantizers.estimators import ClippedSTE, Estimator
from lowbit.quantizers.fake_quantizer import FakeQuantizer, LookUp, StatefulQuantizer, Target, number_like
from lowbit.quantizers.functional import pact
from lowbit.quantizers.functional.core import Formula, fake_quantize
from lowbit.quantizers.functional.dynamic import minimum_and_maximum
from lowbit.quantizers.grid import reduction_dims
from lowbit.quantizers.learned import LearnedQuantizer
from lowbit.quantizers.spec import QuantizerSpec


class PactQuantizer(StatefulQuantizer):
    """Learned clip values over a dynamic grid; they start at plus and minus `clip`."""

    def __init__(self, spec: QuantizerSpec, target: Target) -> None:
        super().__init__(spec, target)
        like, clip = number_like(target), spec.get("clip")
        self.low = nn.Parameter(torch.full((1,), -clip, **like))
        self.high = nn.Parameter(torch.full((1,), clip, **like))
        if not self.low.is_meta:
            self.mark_ready()

    @property
    def has_observed(self) -> bool:
        """Its clip values start without data."""
        return True

    def finish_observing(self) -> None:
        """Set what a meta device could not hold."""
        clip = self.spec.get("clip")
        with torch.no_grad():
            self.low.fill_(-clip)
            self.high.fill_(clip)
        self.mark_ready()

    def quantize(self, x: Tensor) -> Tensor:
        """Clip and round."""
        if not self.observing:
            self.require_ready()
        bits = int(self.spec.bits or 0)
        symmetric, low, high = self.spec.get("symmetric"), self.low_of(x), self.high_of(x)
        return pact(x, low, high, bits=bits, granularity=self.spec.granularity, symmetric=symmetric)

    @property
    def by_rows(self) -> bool:
        """No: clipped entries of all rows move the clip values."""
        return False

    def scale_and_offset(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the clip values, which travel in these places."""
        return self.low_of(x), self.high_of(x)

    def noise_bounds(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the clip values; through them unselected weights move them too."""
        return self.low_of(x), self.high_of(x)

    def low_of(self, x: Tensor) -> Tensor:
        """Return the lower clip value."""
        return self.low.reshape([1] * x.ndim)

    def high_of(self, x: Tensor) -> Tensor:
        """Return the upper clip value."""
        return self.high.reshape([1] * x.ndim)


class StaticQuantizer(StatefulQuantizer):
    """A range kept between steps: the running average of the minima and maxima seen in training.

    A training forward quantizes with the average that includes its own batch, and leaves it in `pending`; `end_step`
    makes it the kept one. So a forward is a function of the step, and running it twice (gradient checkpointing) or
    resuming changes nothing.
    """

    def __init__(self, spec: QuantizerSpec, target: Target) -> None:
        super().__init__(spec, target)
        rows = self.spec.granularity == "row"
        if self.spec.granularity not in ("tensor", "row") or (rows and not target.weight):
            raise ValueError(f"quantizer {spec}: a kept range is per tensor, or per row of a weight")
        count, like = self.groups, number_like(target)
        for name in ("low", "high"):
            self.register_buffer(name, torch.zeros(count, **like))
            self.register_buffer(f"pending_{name}", torch.zeros(count, **like), persistent=False)
        self._has_pending = False

    looks: bool = True
    """Whether the coming training step looks at the range; set by `begin_step`."""
    low: Tensor
    high: Tensor
    pending_low: Tensor
    pending_high: Tensor

    @property
    def stored_numbers(self) -> int:
        """The two ends of the range."""
        return self.low.numel() + self.high.numel()

    def quantize(self, x: Tensor) -> Tensor:
        """Update the range if it is time, and round to it."""
        if not self.observing:
            self.require_ready()
        if self.observing or (self.training and self.looks):
            self._look(x)
        return super().quantize(x)

    @property
    def by_rows(self) -> bool:
        """No: its range is that of all its entries."""
        return False

    @torch.no_grad()
    def _look(self, x: Tensor) -> None:
        low, high = minimum_and_maximum(x.detach().to(self.low.dtype), reduction_dims(x, self.spec.granularity))
        low, high = low.reshape(-1), high.reshape(-1)
        if self._ready:  # a weight is known exactly at any step: its range is replaced, not averaged
            share = 1.0 if self.target.weight else 1 - self.spec.get("momentum")
            unset = (self.low == 0) & (self.high == 0)  # calibration saw zeros only: there is nothing to average with
            low = torch.where(unset, low, self.low.lerp(low, share))
            high = torch.where(unset, high, self.high.lerp(high, share))
        elif self._has_pending:  # a further batch of the calibration
            low, high = torch.minimum(low, self.pending_low), torch.maximum(high, self.pending_high)
        # New tensors, not new contents: the backward of an earlier call in this step still reads the old ones.
        self.pending_low, self.pending_high = low, high
        self._has_pending = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._has_pending = False

    @property
    def has_observed(self) -> bool:
        """Whether calibration has shown it an input."""
        return self._has_pending

    def finish_observing(self) -> None:
        """Keep the range found."""
        self.end_step()

    def end_step(self) -> None:
        """Keep the range of this step."""
        if self._has_pending:
            self.low.copy_(self.pending_low)
            self.high.copy_(self.pending_high)
            self._has_pending = False
            if not self._ready:
                self.mark_ready()

    def initialize(self, weight: Tensor) -> None:
        """Take the range of the weight."""
        if not weight.is_meta:
            self._look(self.heads_first(weight.detach()))
            self.end_step()

    def scale_and_offset(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return low and high, which travel in these places."""
        return self.low_of(x), self.high_of(x)

    def noise_bounds(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the ends of the grid: those of the range, or of the symmetric range around it."""
        low, high = self.low_of(x), self.high_of(x)
        if not self.spec.get("symmetric"):
            return low, high
        limit = torch.maximum(low.abs(), high.abs())
        return -limit, limit

    def low_of(self, x: Tensor) -> Tensor:
        """Return the lower end of the range."""
        low = self.pending_low if self._has_pending else self.low
        return low.reshape(-1, *[1] * (x.ndim - 1))

    def high_of(self, x: Tensor) -> Tensor:
        """Return the upper end of the range."""
        high = self.pending_high if self._has_pending else self.high
        return high.reshape(-1, *[1] * (x.ndim - 1))


class LossAwareQuantizer(StatefulQuantizer):
    """LAT: the optimizer's second moment of the weight is its curvature; TWN until there is one."""

    second_moment: Tensor

    def __init__(self, spec: QuantizerSpec, target: Target) -> None:
        super().__init__(spec, target)
        if spec.granularity not in ("tensor", "row", "head") or not target.weight:
            raise ValueError(f"quantizer {spec}: loss-aware ternarization is for weights, per tensor, row or head")
        self.register_buffer("second_moment", torch.zeros(target.shape, **number_like(target)))

    def set_curvature(self, second_moment: Tensor) -> None:
        """Take the optimizer's running average of squared gradients, of the weight's shape."""
        self.second_moment.copy_(second_moment)
        if not self._ready:
            self.mark_ready()

    @property
    def _estimator(self) -> Estimator | None:
        """The spec's; before there is curvature, the clipped one where TWN has no such estimator."""
        chosen = self.spec.estimator
        return ClippedSTE() if chosen is not None and chosen.uniform_only and not self._ready else chosen

    def quantize(self, x: Tensor) -> Tensor:
        """Ternarize by TWN's rule or, with curvature, by LAT's."""
        return fake_quantize(x, self.formula(x), self._estimator, *self.scale_and_offset(x))

    def formula(self, x: Tensor) -> Formula:
        """Return TWN's formula until there is curvature."""
        return self._formula(reduction_dims(x, self.spec.granularity))

    def _formula(self, dims: tuple[int, ...]) -> Formula:
        return self.spec.formula(dims) if self._ready else QuantizerSpec("twn").formula(dims)

    def quantize_rows(self, ids: Tensor, table: Tensor, look_up: LookUp) -> Tensor:
        """Look the rows' curvature up as well."""
        second_moment = look_up(ids, self.second_moment) if self._ready else None
        return fake_quantize(look_up(ids, table), self._formula((ids.ndim,)), self._estimator, second_moment)

    def scale_and_offset(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the curvature in the place of a scale."""
        return (self.heads_first(self.second_moment) if self._ready else None), None


def build_quantizer(spec: QuantizerSpec, target: Target = Target()) -> FakeQuantizer:  # noqa: B008  (frozen)
    """Return the quantizer of a spec for a weight or an input.

    Raises:
        ValueError: the kind or its granularity makes no sense for the target.
    """
    from lowbit.quantizers.codebook import BlockNoiseQuantizer, CodebookQuantizer

    stateful: dict[str, type[FakeQuantizer]] = {
        "lsq": LearnedQuantizer,
        "seq": LearnedQuantizer,
        "elastic": LearnedQuantizer,
        "pact": PactQuantizer,
        "static": StaticQuantizer,
        "lat": LossAwareQuantizer,
        "block_noise": BlockNoiseQuantizer,
        "ipq": CodebookQuantizer,
    }
    return stateful.get(spec.kind, FakeQuantizer)(spec, target)
