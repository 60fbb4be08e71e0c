"""Oscillation of quantized weights: how often each one's integer flips back, and freezing those that do."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from lowbit.quantizers.corrections import check_correctable, check_number, cosine_from
from lowbit.quantizers.fake_quantizer import kept_wide
from lowbit.quantizers.grid import Grid
from lowbit.quantizers.state import WeightSite


class OscillationTracker(nn.Module):
    """Count flips of the integer weights: f <- m o + (1 - m) f, o = 1 if a change is opposite to the last change.

    Call after each optimizer step: `freeze` and `apply_frozen` if weights are to be frozen, then `update`. Its state
    follows `state_dict` and `to`; the sites' Parameters and quantizers stay the model's own. A weight that flips at
    every step has f near 1 (0.95 after 3000 steps), at every 100th 0.009, at every 300th 0.003.

    Args:
        sites: what `weight_sites` yields.
        momentum: m.
        threshold: f above which a weight counts as oscillating.

    Raises:
        ValueError: no sites, two of one name, one without a grid, or a number outside 0 to 1.

    Source: Nagel et al. 2022 (Overcoming Oscillations in QAT, ICML); the tracker of variation-aware quantization's
    code, without the freeze of its own copy of the integers, which hides the strongest oscillators.
    """

    started: Tensor

    def __init__(self, sites: Iterable[WeightSite], momentum: float = 0.001, threshold: float = 0.005) -> None:
        super().__init__()
        check_number("momentum", momentum, 0, 1)
        check_number("threshold", threshold, 0, 1)
        found = tuple(sites)
        if not found:
            raise ValueError("oscillation: the model has no quantized weights to track")
        check_correctable(found)
        self.momentum, self.threshold = momentum, threshold
        # In a tuple, so that nn.Module does not register what belongs to the model.
        self._pairs = tuple((site, _Record(site)) for site in found)
        self.records = nn.ModuleDict({site.name.replace(".", "/") or "/": record for site, record in self._pairs})
        if len(self.records) < len(found):
            raise ValueError("oscillation: every site needs a name of its own")
        self.register_buffer("started", torch.tensor(False, device=found[0].weight.device))
        self._has_codes = False

    @torch.no_grad()
    def update(self) -> None:
        """Compare the integers with those of the last call; the first call only records them."""
        for site, record in self._pairs:
            codes = site.quantizer.codes(site.weight)
            if self._has_codes:
                record.compare(codes, self.momentum)
            else:
                record.codes.copy_(codes)
                record.average.copy_(codes)
        if not self._has_codes:
            self.started.fill_(True)
            self._has_codes = True

    def percentage(self) -> Tensor:
        """Return 100 times the share of weights that oscillate."""
        return self._share([record.frequency > self.threshold for _, record in self._pairs]) * 100

    def frozen_share(self) -> Tensor:
        """Return the share of weights that are frozen."""
        return self._share([record.frozen for _, record in self._pairs])

    @staticmethod
    def _share(masks: list[Tensor]) -> Tensor:
        return torch.stack([mask.sum() for mask in masks]).sum() / sum(mask.numel() for mask in masks)

    def frequencies(self) -> dict[str, Tensor]:
        """Return f of every weight by site."""
        return {site.name: record.frequency for site, record in self._pairs}

    @torch.no_grad()
    def freeze(self, threshold: float) -> None:
        """Freeze the weights with f above `threshold`, for good, on the rounded running average of their integer."""
        check_number("threshold", threshold, 0, 1)
        for _, record in self._pairs:
            chosen = record.frequency > threshold  # rounding what is frozen already changes nothing
            record.average.copy_(torch.where(chosen, record.average.round(), record.average))
            record.frozen.logical_or_(chosen)

    @torch.no_grad()
    def apply_frozen(self) -> None:
        """Write the frozen weights to their integer on the current grid, undoing the optimizer's update of them.

        A learned scale stays as it is. One that is a statistic of the weights moves with what is written: little while
        few are frozen, but BitNet's shrinks at every call once most are.
        """
        for site, record in self._pairs:
            weight, grid = site.weight, _grid(site)
            levels = grid.levels(site.quantizer.heads_first(record.average))
            levels = site.quantizer.heads_back(levels, weight).to(weight.dtype)
            weight.copy_(torch.where(record.frozen, levels, weight))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._has_codes = bool(self.started)  # on the host: `update` must not wait for the device


class _Record(nn.Module):
    """What is known of one site's weights.

    `codes` of the last call, `previous` sign of the last change, `frequency` f, `average` of the codes (once frozen:
    the integer), `frozen` mask.
    """

    codes: Tensor
    previous: Tensor
    frequency: Tensor
    average: Tensor
    frozen: Tensor

    def __init__(self, site: WeightSite) -> None:
        super().__init__()
        types = {"codes": _code_dtype(site), "previous": torch.int8, "frozen": torch.bool}
        for name, dtype in (types | {"frequency": torch.float32, "average": torch.float32}).items():
            self.register_buffer(name, torch.zeros_like(site.weight, dtype=dtype))

    def compare(self, codes: Tensor, momentum: float) -> None:
        """Take the next integers."""
        average = self.average.lerp(codes.to(self.average.dtype), momentum)
        self.average.copy_(torch.where(self.frozen, self.average, average))
        codes = codes.to(self.codes.dtype)
        # Signs of comparisons: a difference of two bytes may not fit a byte.
        sign = (codes > self.codes).view(torch.int8) - (codes < self.codes).view(torch.int8)
        flipped = sign * self.previous == -1
        self.frequency.mul_(1 - momentum).add_(flipped, alpha=momentum)
        self.previous.copy_(torch.where(sign != 0, sign, self.previous))
        self.codes.copy_(codes)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Keep averages in float32 when the model becomes half precision: a thousandth is lost in fewer bits."""
        return super()._apply(kept_wide(fn), recurse)  # type: ignore[no-any-return,no-untyped-call]


@dataclass(frozen=True)
class Freezing:
    """The threshold of `OscillationTracker.freeze` over training: half a cosine.

    Attributes:
        start_threshold: where it begins.
        end_threshold: where it ends; published: 0.01 at 4 bits, 0.011 at 3.
        start: share of the steps before anything is frozen.

    Source: Nagel et al. 2022 (Overcoming Oscillations in QAT, ICML), iterative freezing.

    >>> [Freezing().threshold_at(step, steps=400) for step in (99, 100, 400)]
    [None, 0.1, 0.01]
    """

    start_threshold: float = 0.1
    end_threshold: float = 0.01
    start: float = 0.25

    def __post_init__(self) -> None:
        for name in ("start_threshold", "end_threshold", "start"):
            check_number(name, getattr(self, name), 0, 1)

    def threshold_at(self, step: int, steps: int) -> float | None:
        """Return the threshold of a step, None before the first."""
        return cosine_from(self.start, self.start_threshold, self.end_threshold, step, steps)


@torch.no_grad()
def _grid(site: WeightSite) -> Grid:
    wide = site.weight.to(torch.promote_types(site.weight.dtype, torch.float32))
    return site.quantizer.put_on_grid(site.quantizer.heads_first(wide))[1]


def _code_dtype(site: WeightSite) -> torch.dtype:
    """Return the smallest integer type that holds every code of the site's grid."""
    grid = _grid(site)
    for dtype in (torch.int8, torch.int16):
        limits = torch.iinfo(dtype)
        if limits.min <= math.ceil(grid.low) and math.floor(grid.high) <= limits.max:
            return dtype
    return torch.int32
