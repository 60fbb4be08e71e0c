"""QuantizerSpec: the settings of one fake quantizer, and what each kind takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from lowbit.quantizers.estimators import Estimator
from lowbit.quantizers.functional.core import Formula
from lowbit.quantizers.functional.dynamic import MinMaxAsymmetric, MinMaxSymmetric, XtcSymmetric
from lowbit.quantizers.functional.initial import STEPS
from lowbit.quantizers.functional.learned import ElasticSigned, ElasticUnsigned, Lsq, Seq
from lowbit.quantizers.functional.loss_aware import Lat
from lowbit.quantizers.functional.ranges import Pact, StaticRange
from lowbit.quantizers.functional.statistical import BitNet, Bwn, StatsQ, Twn
from lowbit.settings.fields import import_class

NOISE = ("element", "row")
_COMMON = {"kind", "bits", "granularity", "estimator", "noise", "noise_rate", "options"}
_FLOAT_BITS = 32


@dataclass(frozen=True)
class QuantizerSpec:
    """Settings of one fake quantizer. None means the kind's default; a setting that the kind does not take is refused.

    Attributes:
        kind: a key of `KINDS`, or a `Formula` of the user's own as `module.Class`.
        bits: width; None for the kinds that have one width only.
        granularity: which elements share a scale: `tensor`, `row`, `token` or `head`.
        estimator: gradient of the input in place of the published one.
        noise: quantize only a random part of the weights in training: drawn per `element` or per `row`.
        noise_rate: probability with which a part is quantized in training; evaluation quantizes all.
        threshold: TWN's factor on the mean magnitude (default 0.7).
        clip: min-max and TWN: inputs are clamped to [-clip, clip] first. pact: initial clip value (default 2.5).
        center: BWN: subtract the mean before the sign (default False).
        sign_of_zero: BWN and 1-bit elastic: 1 (default), or 0 as published.
        signed: LSQ and elastic: levels below zero (default True).
        symmetric: pact and static: symmetric grid (default True).
        offset: LSQ: learned offset, LSQ+ (default False).
        shift: elastic: learned vector added to the input (default False).
        subtract_minimum: unsigned elastic above 1 bit: as published (default True).
        grad_scale: LSQ: `lsq` (default), `l1` or `none`.
        init: initial scale: `mean`, `max`, `three_sigma` or `mse` (LSQ: default mse for weights, mean for inputs).
        variant: LAT: `approximate` (default) or `exact`.
        momentum: static: of the running average of the range (default 0.95).
        refresh_every: static: training steps between two looks at the range (default 1).
        block_size: block_noise and ipq: elements per block (default 8).
        centroids: ipq: size of the codebook (default 256).
        options: of a class of the user's own, by name.

    Raises:
        ValueError: unknown kind, a setting that the kind does not take, or a value that it refuses.
    """

    kind: str
    bits: float | None = None
    granularity: str = "tensor"
    estimator: Estimator | None = None
    noise: str | None = None
    noise_rate: float | None = None
    threshold: float | None = None
    clip: float | None = None
    center: bool | None = None
    sign_of_zero: int | None = None
    signed: bool | None = None
    symmetric: bool | None = None
    offset: bool | None = None
    shift: bool | None = None
    subtract_minimum: bool | None = None
    grad_scale: str | None = None
    init: str | None = None
    variant: str | None = None
    momentum: float | None = None
    refresh_every: int | None = None
    block_size: int | None = None
    centroids: int | None = None
    options: Mapping[str, object] | tuple[tuple[str, object], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(dict(self.options).items()))  # hashable
        kind = self._kind
        given = {f.name for f in fields(self) if getattr(self, f.name) is not None}
        for name in sorted(given - _COMMON - kind.takes.keys()):
            raise ValueError(f"kind {self.kind!r} takes no {name}: remove {name}={getattr(self, name)!r}")
        if kind.bits is not None and self.bits is not None:
            raise ValueError(f"kind {self.kind!r} has one width only: remove bits={self.bits:g}")
        if kind.bits is None and self.bits is None:
            raise ValueError(f"kind {self.kind!r} needs bits, for example bits=4")
        self._check_values(kind)

    def _check_values(self, kind: Kind) -> None:
        if kind.formula is not None:
            formula = kind.formula(self, ())
            if self.estimator is not None and self.estimator.uniform_only and not formula.uniform:
                raise ValueError(
                    f"estimator {type(self.estimator).__name__} needs thresholds half-way between the levels, which "
                    f"kind {self.kind!r} does not have"
                )
        if self.estimator is not None and not kind.estimators:
            raise ValueError(f"kind {self.kind!r} takes no estimator: its gradient is part of what it learns")
        if self.noise_rate is not None and not kind.noise and "noise_rate" not in kind.takes:
            raise ValueError(f"kind {self.kind!r} has no noise: remove noise_rate={self.noise_rate}")
        if (self.noise is None) != (self.noise_rate is None) and kind.noise:
            raise ValueError("noise and noise_rate go together")
        if self.noise is not None and (self.noise not in NOISE or not kind.noise):
            raise ValueError(f"noise={self.noise!r} with kind {self.kind!r}: allowed are {', '.join(NOISE)}")
        if self.noise_rate is not None and not 0 <= self.noise_rate <= 1:
            raise ValueError(f"noise_rate={self.noise_rate}: must be between 0 and 1")
        if self.init is not None and self.init not in kind.inits:
            raise ValueError(f"init={self.init!r} with kind {self.kind!r}: allowed are {', '.join(kind.inits)}")
        for name in ("clip", "refresh_every", "block_size", "centroids"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value}: must be greater than 0")
        if self.threshold is not None and self.threshold < 0:
            raise ValueError(f"threshold={self.threshold}: must be at least 0")

    @property
    def _kind(self) -> Kind:
        return KINDS[self.kind] if self.kind in KINDS else _own_kind(self.kind)

    def get(self, name: str) -> Any:
        """Return a setting, or the kind's default for it."""
        value = getattr(self, name)
        return self._kind.takes[name] if value is None else value

    def formula(self, dims: tuple[int, ...]) -> Formula:
        """Return the formula over the given dimensions.

        Raises:
            ValueError: the kind has none.
        """
        build = self._kind.formula
        if build is None:
            raise ValueError(f"kind {self.kind!r} has no grid of its own")
        return build(self, dims)

    @property
    def has_grid(self) -> bool:
        """Whether the values lie on a grid with integer codes."""
        return self._kind.formula is not None

    @property
    def storage_bits(self) -> float:
        """Bits of one stored value: 2 for ternary, 32 where nothing is quantized, an index per block for a codebook."""
        if self.kind == "ipq":
            return math.ceil(math.log2(self.get("centroids"))) / float(self.get("block_size"))
        bits = self._kind.bits if self.bits is None else self.bits
        assert bits is not None
        return 2 if 1 < bits < 2 else int(bits)

    def packed_bits(self, elements: int, groups: int) -> int:
        """Return the bits of a packed tensor: its values, and 32 for each number of each group (scale, offset).

        A codebook stores an index per block and its centroids.
        """
        if self.kind == "ipq":
            block = self.get("block_size")
            blocks = elements // block
            centroids = min(self.get("centroids"), blocks)
            return int(blocks * math.ceil(math.log2(centroids)) + centroids * block * _FLOAT_BITS)
        if self.kind == "block_noise":
            return elements * _FLOAT_BITS
        ranged = self.kind in ("static", "pact") and not self.get("symmetric")
        offset = self.kind == "minmax_asymmetric" or ranged or (self.kind == "lsq" and bool(self.offset))
        return elements * int(self.storage_bits) + groups * (2 if offset else 1) * _FLOAT_BITS

    def __str__(self) -> str:
        words = [] if self.bits is None else [f"{self.bits:g}b"]
        words.append(f"{self.kind}/{self.granularity}")
        words += [name for name in ("center", "offset", "shift") if getattr(self, name)]
        words += ["unsigned"] if self.signed is False else []
        words += [f"noise {self.noise_rate:g}"] if self.noise_rate is not None else []
        words += [type(self.estimator).__name__] if self.estimator is not None else []
        return " ".join(words)


@dataclass(frozen=True)
class Kind:
    """What a kind of quantizer takes.

    Attributes:
        takes: its own settings with their defaults.
        formula: (spec, dimensions that share a scale) -> formula; None if the kind is no grid.
        bits: the one width of kinds that have one; None if `bits` must be given.
        estimators: whether other estimators than the published one are defined.
        noise: whether scalar quantization noise is defined.
        inits: allowed initial scales; the first is the default.
    """

    takes: dict[str, Any]
    formula: Callable[[QuantizerSpec, tuple[int, ...]], Formula] | None
    bits: float | None = None
    estimators: bool = True
    noise: bool = True
    inits: tuple[str, ...] = ()


@cache
def _own_kind(kind: str) -> Kind:
    """Return the kind of a formula of the user's own.

    Raises:
        ValueError: there is no such kind or class.
    """
    if "." not in kind:
        raise ValueError(f"quantizer kind {kind!r}: allowed are {', '.join(sorted(KINDS))}")
    own = import_class(kind)
    return Kind({}, lambda spec, dims: own(dims, _width(spec), **dict(spec.options)))


def _elastic(spec: QuantizerSpec, dims: tuple[int, ...]) -> Formula:
    assert spec.bits is not None
    if spec.get("signed"):
        return ElasticSigned(spec.bits, spec.get("sign_of_zero"))
    return ElasticUnsigned(spec.bits, spec.get("subtract_minimum"))


def _width(spec: QuantizerSpec) -> int:
    assert spec.bits is not None
    if spec.bits != int(spec.bits):
        raise ValueError(f"bits={spec.bits:g}: kind {spec.kind!r} takes whole numbers; 1.58 is for kind 'seq'")
    return int(spec.bits)


_LSQ = {"signed": True, "offset": False, "grad_scale": "lsq", "init": "mean"}
_ELASTIC = {"signed": True, "shift": False, "subtract_minimum": True, "sign_of_zero": 1, "init": "mean"}
KINDS: dict[str, Kind] = {
    "twn": Kind({"threshold": 0.7, "clip": None}, lambda s, d: Twn(d, s.get("threshold"), s.clip), bits=2),
    "lat": Kind({"variant": "approximate"}, lambda s, d: Lat(d, s.get("variant")), bits=2),
    "bwn": Kind(
        {"center": False, "sign_of_zero": 1}, lambda s, d: Bwn(d, s.get("center"), s.get("sign_of_zero")), bits=1
    ),
    "statsq": Kind({}, lambda s, d: StatsQ(d, _width(s))),
    "bitnet": Kind({}, lambda s, d: BitNet(d), bits=2),
    "minmax_symmetric": Kind({"clip": None}, lambda s, d: MinMaxSymmetric(d, _width(s), s.clip)),
    "minmax_asymmetric": Kind({"clip": None}, lambda s, d: MinMaxAsymmetric(d, _width(s), s.clip)),
    "xtc": Kind({}, lambda s, d: XtcSymmetric(d, _width(s))),
    "lsq": Kind(_LSQ, lambda s, d: Lsq(_width(s), s.get("signed"), s.get("grad_scale")), inits=tuple(STEPS)),
    "seq": Kind({"init": "max"}, lambda s, d: Seq(s.bits or 0), inits=("max", "mean")),
    "elastic": Kind(_ELASTIC, _elastic, noise=False, inits=("mean", "paper")),
    "pact": Kind(
        {"symmetric": True, "clip": 2.5}, lambda s, d: Pact(d, _width(s), s.get("symmetric")), estimators=False
    ),
    "static": Kind(
        {"symmetric": True, "momentum": 0.95, "refresh_every": 1},
        lambda s, d: StaticRange(_width(s), s.get("symmetric")),
    ),
    "block_noise": Kind({"block_size": 8, "noise_rate": 0.1}, None, bits=_FLOAT_BITS, estimators=False, noise=False),
    "ipq": Kind({"block_size": 8, "centroids": 256}, None, bits=_FLOAT_BITS, estimators=False, noise=False),
}
