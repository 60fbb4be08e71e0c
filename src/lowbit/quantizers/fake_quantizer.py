"""FakeQuantizer: one quantizer function with its settings, as a module that layers own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from lowbit.quantizers import functional

KINDS: dict[str, Callable[..., Tensor]] = {
    "twn": functional.twn_ternarize,
    "minmax_symmetric": functional.minmax_symmetric,
    "minmax_asymmetric": functional.minmax_asymmetric,
}


@dataclass(frozen=True)
class QuantizerSpec:
    """Settings of one fake quantizer.

    Attributes:
        kind: a key of `KINDS`.
        bits: width of a min-max grid; must be None for `twn`, whose weights take 2 bits.
        granularity: `tensor`, `row`, `token` or `head`.
        threshold: TWN's factor on the mean magnitude.
        clip: inputs are clamped to [-clip, clip] first; None for no clipping.

    Raises:
        ValueError: unknown kind; `bits` missing for a grid or given for `twn`.
    """

    kind: str
    bits: int | None = None
    granularity: str = "tensor"
    threshold: float = 0.7
    clip: float | None = 2.5

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"quantizer kind {self.kind!r}: allowed are {', '.join(sorted(KINDS))}")
        if self.kind == "twn" and self.bits is not None:
            raise ValueError(f"kind 'twn' is ternary: remove bits={self.bits}")
        if self.kind != "twn" and self.bits is None:
            raise ValueError(f"kind {self.kind!r} needs bits, for example bits=8")

    @property
    def storage_bits(self) -> int:
        """Bits of one stored value: 2 for ternary."""
        return self.bits if self.bits is not None else 2

    @property
    def numbers_per_group(self) -> int:
        """Float32 numbers stored with each group: the scale, and the offset of an asymmetric grid."""
        return 2 if self.kind == "minmax_asymmetric" else 1

    def __str__(self) -> str:
        width = "" if self.bits is None else f"{self.bits}b "
        return f"{width}{self.kind}/{self.granularity}"


class FakeQuantizer(nn.Module):
    """Apply one quantizer function; stateless, so it adds no state-dict key.

    >>> import torch
    >>> quantizer = FakeQuantizer(QuantizerSpec("minmax_symmetric", bits=8, clip=None))
    >>> quantizer(torch.tensor([0.5, -1.0])).tolist()
    [0.5039370059967041, -1.0]
    """

    def __init__(self, spec: QuantizerSpec) -> None:
        super().__init__()
        self.spec = spec
        self._function = self._bind(spec)

    @staticmethod
    def _bind(spec: QuantizerSpec) -> Callable[[Tensor], Tensor]:
        function = KINDS[spec.kind]
        if spec.kind == "twn":
            return partial(function, granularity=spec.granularity, threshold=spec.threshold, clip=spec.clip)
        return partial(function, bits=spec.bits, granularity=spec.granularity, clip=spec.clip)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` on the grid, same shape and dtype."""
        return self._function(x)

    def extra_repr(self) -> str:
        """Show the settings in the model's repr."""
        return str(self.spec)
