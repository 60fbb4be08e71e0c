"""FakeQuantizer: one formula with its settings, as a module that layers own; kinds with a state are in `stateful`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from lowbit.quantizers.estimators import EWGS
from lowbit.quantizers.functional.core import Formula, fake_quantize
from lowbit.quantizers.functional.noise import quant_noise
from lowbit.quantizers.grid import HALF, Grid, reduction_dims
from lowbit.quantizers.spec import QuantizerSpec

LookUp = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Target:
    """What a quantizer is for.

    Attributes:
        shape: of the weight; of an input, its trailing dimensions that a learned vector covers: (features,), or
            (heads, 1, head width) of an attention operand. Empty where there are none.
        like: a tensor of the dtype and device that learned scales should have.
        weight: whether it is a weight.
        heads: (number, dimension) if a weight is to have one scale per attention head: its rows (dimension 0, query,
            key and value) or its columns (dimension 1, output projection) are split among the heads.
    """

    shape: tuple[int, ...] = ()
    like: Tensor | None = None
    weight: bool = False
    heads: tuple[int, int] | None = None


class FakeQuantizer(nn.Module):
    """Apply one quantizer; this base is stateless and adds no state-dict key.

    >>> quantizer = FakeQuantizer(QuantizerSpec("minmax_symmetric", bits=8))
    >>> quantizer(torch.tensor([0.5, -1.0])).tolist()
    [0.5039370059967041, -1.0]
    """

    def __init__(self, spec: QuantizerSpec, target: Target = Target()) -> None:
        super().__init__()
        if spec.granularity == "head" and target.weight:
            if target.heads is None:
                raise ValueError("granularity 'head' of a weight is for query, key, value and attn_out")
            if spec.noise == "row":
                raise ValueError("noise 'row' and granularity 'head' do not go together: use noise 'element'")
            spec = replace(spec, granularity="row")  # of the view that puts heads first
        elif spec.granularity == "head" and target.shape and len(target.shape) != 3:
            raise ValueError(
                "granularity 'head' of an activation is for the operands of the attention products: give them a "
                "rule of their own with `bmm`"
            )
        elif target.heads is not None:
            target = replace(target, heads=None)
        self.spec = spec
        self.target = replace(target, like=None)

    @property
    def is_ready(self) -> bool:
        """Whether it needs no (further) look at data before its first use."""
        return True

    @property
    def groups(self) -> int:
        """Groups of a weight that have a scale of their own."""
        if self.target.heads is not None:
            return self.target.heads[0]
        return self.target.shape[0] if self.spec.granularity == "row" and self.target.weight else 1

    @property
    def stored_numbers(self) -> int:
        """Numbers that a packed model stores for an input's quantizer: learned ones and kept ranges."""
        return 0

    @property
    def by_rows(self) -> bool:
        """Whether rows of a table can be quantized alone, by `quantize_rows`, as they are within the whole.

        Noise has one mask for the table; centring and elastic grids read all of it; EWGS is not linear in the gradient,
        so that a row looked up twice must sum its gradients first.
        """
        spec = self.spec
        mixed = bool(spec.center) or spec.kind == "elastic" or isinstance(spec.estimator, EWGS)
        return spec.granularity == "row" and spec.noise_rate is None and not mixed

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` on the grid, same shape and dtype; in training under the spec's noise."""
        y = self.quantize(self.heads_first(x))
        if self.spec.noise_rate is not None and self.training:
            y = self._noisy(self.heads_first(x), y)
        return self.heads_back(y, x)

    def _noisy(self, x: Tensor, y: Tensor) -> Tensor:
        assert self.spec.noise_rate is not None
        shape = x.shape if self.spec.noise == "element" else (x.shape[0], *[1] * (x.ndim - 1))
        selected = torch.rand(shape, device=x.device) < self.spec.noise_rate
        low, high = self.noise_bounds(x)
        return quant_noise(x, y, selected, low=low, high=high)

    def quantize(self, x: Tensor) -> Tensor:
        """Return `x`, heads first if the scale is per head, on the grid."""
        return fake_quantize(x, self.formula(x), self.spec.estimator, *self.scale_and_offset(x))

    def quantize_rows(self, ids: Tensor, table: Tensor, look_up: LookUp) -> Tensor:
        """Return the rows `ids` of a quantized table, quantizing no others; only where `by_rows`.

        Args:
            ids: row indices, any shape.
            table: the whole weight.
            look_up: (ids, matrix) -> rows, by which the layer reads any matrix with a row per id.
        """
        return fake_quantize(look_up(ids, table), self.spec.formula((ids.ndim,)), self.spec.estimator)

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """Return the integer code of every element, as floats."""
        view = self.heads_first(x.float() if x.dtype in HALF else x)
        y, grid = self.put_on_grid(view)
        return self.heads_back(grid.codes(y), x)

    def put_on_grid(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Return `x`, heads first if the scale is per head, on the grid, and the grid; outside of autograd."""
        return self.formula(x).quantize(x, *self.scale_and_offset(x))

    def formula(self, x: Tensor) -> Formula:
        """Return the formula for a tensor of x's shape."""
        return self.spec.formula(reduction_dims(x, self.spec.granularity))

    def scale_and_offset(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return learned or kept numbers, broadcastable to x."""
        return None, None

    def noise_bounds(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the range to which evaluation clips, None and None if it clips nothing."""
        if self.spec.clip is None:
            return None, None
        clip = torch.full([1] * x.ndim, self.spec.clip, dtype=x.dtype, device=x.device)
        return -clip, clip

    def initialize(self, weight: Tensor) -> None:
        """Take what is needed from the weight."""

    def extra_repr(self) -> str:
        """Show the settings in the model's repr."""
        return str(self.spec)

    def heads_first(self, x: Tensor) -> Tensor:
        """Return the view of a weight that has its heads first, if the scale is per head."""
        if self.target.heads is None:
            return x
        heads, dim = self.target.heads
        return x.reshape(heads, -1) if dim == 0 else x.reshape(x.shape[0], heads, -1).transpose(0, 1)

    def heads_back(self, y: Tensor, x: Tensor) -> Tensor:
        """Undo `heads_first` of `x` for a tensor computed from it."""
        if self.target.heads is None:
            return y
        return (y if self.target.heads[1] == 0 else y.transpose(0, 1)).reshape(x.shape)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Keep floating-point state in float32 or wider when the model becomes half precision."""
        return super()._apply(kept_wide(fn), recurse)  # type: ignore[no-any-return,no-untyped-call]


class StatefulQuantizer(FakeQuantizer):
    """Base of quantizers with numbers of their own: saved, moved and copied with the model.

    `initialized` is a buffer, so that a loaded model is not initialised again; its copy on the host, `is_ready`, saves
    a synchronisation per forward.
    """

    initialized: Tensor

    def __init__(self, spec: QuantizerSpec, target: Target) -> None:
        super().__init__(spec, target)
        device = None if target.like is None else target.like.device
        self.register_buffer("initialized", torch.tensor(False, device=device))
        self._ready = False
        self.observing = False

    @property
    def is_ready(self) -> bool:
        """Whether scales have been set, from data, from the weight or by loading."""
        return self._ready

    def mark_ready(self) -> None:
        """Declare the scales set."""
        self.initialized.fill_(True)
        self._ready = True

    @property
    def stored_numbers(self) -> int:
        """Learned numbers."""
        return sum(p.numel() for p in self.parameters())

    @property
    def has_observed(self) -> bool:
        """Whether calibration has shown it an input."""
        return False

    def finish_observing(self) -> None:
        """Keep what calibration has found."""
        self.mark_ready()

    def require_ready(self) -> None:
        """Refuse to run on scales that have not been set.

        Raises:
            RuntimeError: not initialised.
        """
        if not self._ready:
            raise RuntimeError(
                f"quantizer {self.spec} has no scale yet: run lowbit.quantizers.calibrate(model, batches, run) on "
                "training batches before the first forward, or load a state dict that holds its scale"
            )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if f"{prefix}initialized" in state_dict:
            self._ready = bool(self.initialized)


def number_like(target: Target) -> dict[str, Any]:
    """Return dtype and device of learned numbers: the weight's device; float64 if it is, else float32."""
    if target.like is None:
        return {"dtype": torch.float32}
    wide = target.like.dtype is torch.float64
    return {"dtype": torch.float64 if wide else torch.float32, "device": target.like.device}


def kept_wide(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return `fn`, the change that `nn.Module.to` applies to each tensor, without a change to half precision."""

    def widened(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return tensor.to(moved.device, torch.float32) if moved.dtype in HALF else moved

    return widened
