"""Loss terms: a loss function bound to the trace fields it reads and to a weight that may move over a stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from lowbit.losses import functional as L
from lowbit.losses.ramps import check_ramp, ramped
from lowbit.losses.regularizers import WeightOnGrid, oscillation_aware_regularization

_FIELDS: dict[str, frozenset[str]] = {
    "logits": frozenset(),
    "task": frozenset(),
    "hidden": frozenset({"embeddings", "hidden"}),
    "scores": frozenset({"scores"}),
    "maps": frozenset({"probs"}),
    "maps_mse": frozenset({"probs"}),
    "attn_block": frozenset({"attn_block"}),
    "attn_out": frozenset({"attn_out"}),
    "soft_labels": frozenset(),
    "obr": frozenset(),
}
_WITHOUT_TEACHER = ("task", "soft_labels", "obr")


class TraceLike(Protocol):
    """What a term reads of a forward pass; `lowbit.modeling.Trace` is one."""

    @property
    def logits(self) -> Tensor:
        """Model output, BC; BSL where the model looks for a span."""

    @property
    def layers(self) -> Sequence[Any]:
        """One object per layer with the fields of `LayerTrace`."""

    @property
    def embeddings(self) -> Tensor | None:
        """Input of the first layer, BLE."""

    @property
    def key_mask(self) -> Tensor | None:
        """True at real tokens, BL."""


@dataclass(frozen=True)
class LossTerm:
    """One term of the training loss, summed over layers where it compares layers (`layers: mean` averages).

    Attributes:
        kind: `logits` (soft cross-entropy, of both ends for spans; MSE for regression), `task` (labels), `hidden`
            (embeddings and layer outputs), `scores`, `maps` (KL), `maps_mse`, `attn_block`, `attn_out`, `soft_labels`
            (stored probabilities), `obr` (oscillation-aware bin regularization of the weights).
        weight, weight_end, ramp: the weight at the stage's first step, at its last, and the path between.
        reduction, temperature: of the soft cross-entropy.
        mask: `full` or `valid`, see `lowbit.losses.functional`.
        start: share of the stage's steps before the weight begins to move.
        layers: `sum` or `mean`.
        aggregation, detach_step, max_bits, convolution_grad_scale: of `obr`, see `lowbit.losses.regularizers`.

    Raises:
        ValueError: unknown kind or ramp, or a ramp without `weight_end`.
    """

    kind: str
    weight: float = 1.0
    weight_end: float | None = None
    ramp: str = "constant"
    reduction: str = "sum"
    mask: str = "full"
    temperature: float = 1.0
    start: float = 0.0
    layers: str = "sum"
    aggregation: str = "mean"
    detach_step: bool = True
    max_bits: float | None = None
    convolution_grad_scale: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in _FIELDS:
            raise ValueError(f"loss kind {self.kind!r}: allowed are {', '.join(_FIELDS)}")
        check_ramp(f"loss {self.kind!r}", "weight", self.ramp, self.weight_end)

    @property
    def fields(self) -> frozenset[str]:
        """Trace fields that the term reads, of student and teacher."""
        return _FIELDS[self.kind]

    @property
    def unit(self) -> str | None:
        """What the loss is a mean over: `labels`, `rows`, `tokens`, `pairs` of tokens; None for one of the weights."""
        if self.kind == "obr":
            return None
        if self.kind in ("logits", "task", "soft_labels"):
            return "labels"
        if self.kind == "maps_mse" or (self.kind == "scores" and self.mask == "valid"):
            return "pairs"
        return "tokens" if self.mask == "valid" and self.kind != "maps" else "rows"

    def weight_at(self, step: int, steps: int) -> float:
        """Return the weight at step `step` (0-based) of a stage of `steps` steps."""
        first = self.start * steps
        progress = min(max(step - first, 0.0) / max(steps - 1 - first, 1), 1.0)
        return ramped(self.weight, self.weight_end, self.ramp, progress)

    def __call__(
        self,
        student: TraceLike,
        teacher: TraceLike | None,
        labels: Tensor | None,
        soft_labels: Tensor | None = None,
        weights: Sequence[WeightOnGrid] = (),
    ) -> Tensor:
        """Return the unweighted loss, a scalar.

        Raises:
            ValueError: the term needs a teacher, labels or weights that are not there.
        """
        if self.kind in _WITHOUT_TEACHER:
            return self._alone(student, labels, soft_labels, weights)
        if teacher is None:
            raise ValueError(f"loss {self.kind!r} needs a teacher: set the stage's `teacher: true`")
        if self.kind == "logits":
            return self._logits(student.logits, teacher.logits)
        mask = student.key_mask
        pairs = [
            (getattr(s, f), getattr(t, f))
            for f in sorted(self.fields - {"embeddings"})
            for s, t in zip(student.layers, teacher.layers, strict=True)
        ]
        if "embeddings" in self.fields:
            pairs.insert(0, (student.embeddings, teacher.embeddings))
        losses = [self._pair(s, t, mask) for s, t in pairs]
        total = sum(losses[1:], losses[0])
        return total / len(losses) if self.layers == "mean" else total

    def _alone(
        self, student: TraceLike, labels: Tensor | None, soft_labels: Tensor | None, weights: Sequence[WeightOnGrid]
    ) -> Tensor:
        if self.kind == "obr":
            return oscillation_aware_regularization(
                weights,
                aggregation=self.aggregation,
                detach_step=self.detach_step,
                max_bits=self.max_bits,
                convolution_grad_scale=self.convolution_grad_scale,
            )
        if self.kind == "soft_labels":
            if soft_labels is None:
                raise ValueError("loss 'soft_labels' needs stored soft labels, but the batch has none")
            return L.soft_label_loss(student.logits, soft_labels)
        if labels is None:
            raise ValueError("loss 'task' needs labels, but the batch has none")
        return L.task_loss(student.logits, labels)

    def _logits(self, student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
        settings: dict[str, Any] = {"reduction": self.reduction, "temperature": self.temperature}
        if student_BC.dim() == 3:
            return L.span_soft_cross_entropy(student_BC, teacher_BC, **settings)
        if student_BC.shape[-1] == 1:
            return L.logit_mse(student_BC, teacher_BC)
        return L.soft_cross_entropy(student_BC, teacher_BC, **settings)

    def _pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        if self.kind == "scores":
            return L.score_mse(student, teacher, mask, rule=self.mask)
        if self.kind == "maps":
            return L.attention_map_kl(student, teacher, mask)
        if self.kind == "maps_mse":
            return L.attention_map_mse(student, teacher, mask)
        return L.hidden_mse(student, teacher, mask, rule=self.mask)
