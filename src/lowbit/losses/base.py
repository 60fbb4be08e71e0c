"""Loss, the base of all: settings, the trace fields that it reads, and a scalar of student and teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor

from lowbit.settings.losses import Comparison, LayerReduction, LossConfig, MaskRule

if TYPE_CHECKING:
    from lowbit.losses.weights import WeightOnGrid


class TraceLike(Protocol):
    """What a loss reads of a forward pass; `lowbit.modeling.Trace` is one."""

    @property
    def logits(self) -> Tensor:
        """Model output, BC; BSL where the model looks for a span."""

    @property
    def layers(self) -> Sequence[object]:
        """One object per layer with the fields of `LayerTrace`."""

    @property
    def embeddings(self) -> Tensor | None:
        """Input of the first layer, BLE."""

    @property
    def key_mask(self) -> Tensor | None:
        """True at real tokens, BL."""


@dataclass(frozen=True)
class LossInputs:
    """What a step offers to its losses.

    Attributes:
        student: trace of the student.
        teacher: trace of the teacher with as many layers; None without one.
        labels: labels of the batch, if it has any.
        soft_labels: stored probabilities BC, if the batch has any.
        weights: the quantized weights of the student.
    """

    student: TraceLike
    teacher: TraceLike | None = None
    labels: Tensor | None = None
    soft_labels: Tensor | None = None
    weights: Sequence[WeightOnGrid] = ()


@dataclass(frozen=True)
class Loss(ABC):
    """One term of the training loss. A loss of your own is a subclass, named in YAML as `kind: module.Class`.

    Attributes:
        settings: kind, weight and the rest of `LossConfig`; those of your own are in `settings.options`.
        compares: for a class of your own, what it compares; `lowbit check` knows from it what the loss needs.
        fields: trace fields that the loss reads, of student and teacher.
    """

    settings: LossConfig
    compares: ClassVar[Comparison] = Comparison.layers
    fields: ClassVar[frozenset[str]] = frozenset()

    @property
    def unit(self) -> str | None:
        """What the loss is a mean over: `labels`, `rows`, `tokens`, `pairs` of tokens; None for one of the weights."""
        return "labels"

    @abstractmethod
    def compute(self, inputs: LossInputs) -> Tensor:
        """Return the loss without its weight, a scalar."""

    def __call__(
        self,
        student: TraceLike,
        teacher: TraceLike | None = None,
        labels: Tensor | None = None,
        soft_labels: Tensor | None = None,
        weights: Sequence[WeightOnGrid] = (),
    ) -> Tensor:
        """Return the loss without its weight, a scalar; the arguments are those of `LossInputs`.

        Raises:
            ValueError: the loss needs a teacher, labels or weights that are not there.
        """
        if teacher is None and self.settings.needs_teacher:
            raise ValueError(f"loss {str(self.settings.kind)!r} needs a teacher: set the stage's `teacher: true`")
        return self.compute(LossInputs(student, teacher, labels, soft_labels, weights))


class WeightLoss(Loss):
    """A loss of the student's weights alone."""

    compares = Comparison.weights

    @property
    def unit(self) -> str | None:
        return None

    @abstractmethod
    def regularize(self, weights: Sequence[WeightOnGrid]) -> Tensor:
        """Return the loss of the quantized weights."""

    def compute(self, inputs: LossInputs) -> Tensor:
        return self.regularize(inputs.weights)


class LayerLoss(Loss):
    """A loss between one field of every student layer and that of the teacher's, summed (`layers: mean` averages)."""

    field: ClassVar[str]

    def __init_subclass__(cls) -> None:
        if "fields" not in vars(cls):
            cls.fields = frozenset({cls.field})

    @property
    def unit(self) -> str | None:
        return "tokens" if self.settings.mask == MaskRule.valid else "rows"

    @abstractmethod
    def compare(self, student: Tensor, teacher: Tensor, mask_BL: Tensor | None) -> Tensor:
        """Return the loss of one layer."""

    def compute(self, inputs: LossInputs) -> Tensor:
        assert inputs.teacher is not None
        mask_BL = inputs.student.key_mask
        losses = [self.compare(s, t, mask_BL) for s, t in self.pairs(inputs.student, inputs.teacher)]
        total = sum(losses[1:], losses[0])
        return total / len(losses) if self.settings.layers == LayerReduction.mean else total

    def pairs(self, student: TraceLike, teacher: TraceLike) -> list[tuple[Any, Any]]:
        """Return the compared tensors of each layer."""
        layers = zip(student.layers, teacher.layers, strict=True)
        return [(getattr(s, self.field), getattr(t, self.field)) for s, t in layers]
