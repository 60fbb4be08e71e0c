"""What is kept of a teacher's probabilities, and how they are made whole again."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor


class LabelKind(StrEnum):
    """What is kept of a teacher's probabilities, by the names of FKD (whose `ori` is `full`)."""

    full = "full"
    hard = "hard"
    smoothing = "smoothing"
    marginal_smoothing = "marginal_smoothing"
    marginal_renorm = "marginal_renorm"


@dataclass(frozen=True)
class LabelType:
    """A kind and the number of classes kept; 0 means all."""

    kind: LabelKind
    k: int

    @classmethod
    def parse(cls, text: str) -> "LabelType":
        """Return the type of a name such as `marginal_smoothing_k5`.

        Raises:
            ValueError: no such type.
        """
        if text in ("full", "ori"):
            return cls(LabelKind.full, 0)
        if text in ("hard", "smoothing"):
            return cls(LabelKind(text), 1)
        match = re.fullmatch(r"(marginal_smoothing|marginal_renorm)_k([1-9]\d*)", text)
        if match is None:
            allowed = "full, hard, smoothing, marginal_smoothing_kK or marginal_renorm_kK"
            raise ValueError(f"label type {text!r}: choose {allowed} with K classes, e.g. marginal_smoothing_k5")
        return cls(LabelKind(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.kind}_k{self.k}" if self.kind.startswith("marginal") else str(self.kind)


class StoredLabels(NamedTuple):
    """(N, k) classes, of width 0 for `full`, and (N, k) float32 probabilities, 1 for `hard`."""

    classes: Tensor
    probabilities: Tensor


def compress(probs_NC: Tensor, label_type: LabelType) -> StoredLabels:
    """Return what is stored of a teacher's probabilities."""
    if label_type.kind is LabelKind.full:
        return StoredLabels(torch.empty(len(probs_NC), 0, dtype=torch.int64), probs_NC)
    values, classes = probs_NC.topk(label_type.k, dim=1)
    return StoredLabels(classes, torch.ones_like(values) if label_type.kind is LabelKind.hard else values)


def expand(labels: StoredLabels, label_type: LabelType, num_classes: int) -> Tensor:
    """Return (N, C) float32 probabilities that sum to 1.

    Smoothing gives each class that is not stored (1 - sum of the stored ones) / (C - k); renormalisation gives it 0.

    Args:
        labels: What `compress` kept.
        label_type: With which type.
        num_classes: C.

    Source: `Recover_soft_label` of FKD (arXiv 2112.01528), published code.
    """
    probs = labels.probabilities.double()
    if label_type.kind is not LabelKind.full:
        # Half-precision files may sum to a little more than 1: then nothing is left over.
        rest = (1 - probs.sum(1, keepdim=True)).clamp_min(0) / (num_classes - label_type.k)
        if label_type.kind is LabelKind.marginal_renorm:
            rest = torch.zeros_like(rest)
        probs = rest.repeat(1, num_classes).scatter(1, labels.classes.long(), probs)
    return (probs / probs.sum(1, keepdim=True)).float()
