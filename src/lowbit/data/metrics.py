"""Evaluation metrics by the name in `DataInfo.metric`; they take (logits, labels), spans' (logits, row numbers)."""

import warnings
from typing import Any, get_args

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassMatthewsCorrCoef
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef

from lowbit.data.ranking import QueryScores
from lowbit.data.spans import SpanScores, SpanSplit
from lowbit.data.splits import Split
from lowbit.data.tagging import EntityF1, TagAccuracy
from lowbit.settings.data import DataInfo, Score


class MatthewsCorrCoef(MulticlassMatthewsCorrCoef):
    """Matthews correlation as scikit-learn defines it: 0 if all predictions, or all labels, are the same.

    torchmetrics returns 0.28 for a model that predicts one class on labels split 7 to 3, and 1 if there is only one
    label and it is met. A student that collapsed at low bit widths must not look better than chance.
    """

    def compute(self) -> Tensor:
        """Return the correlation as a float32 scalar."""
        # float64 where the device has it: products of counts leave the exact range of float32 at a few thousand rows.
        precise = torch.float32 if self.confmat.device.type == "mps" else torch.float64
        counts = self.confmat.to(precise)
        labels, predictions, total = counts.sum(1), counts.sum(0), counts.sum()
        covariance = counts.trace() * total - labels @ predictions
        variance = (total**2 - labels @ labels) * (total**2 - predictions @ predictions)
        return torch.where(variance > 0, covariance / variance.sqrt(), 0.0).float()


class PositiveF1(MulticlassF1Score):
    """F1 of the class 1, as GLUE scores paraphrases."""

    def __init__(self) -> None:
        """Count two classes."""
        super().__init__(num_classes=2, average="none")

    def compute(self) -> Tensor:
        """Return F1 as a scalar; 0 if the class is neither predicted nor there."""
        return super().compute()[1]


class Scores(MetricCollection):
    """Two metrics of one data set and, under `name`, their mean."""

    def __init__(self, name: str, metrics: dict[str, Metric]) -> None:
        """Keep the name of the mean; the metrics share nothing."""
        super().__init__(dict(metrics), compute_groups=False)
        self.name = name

    def update(self, predictions: Tensor, labels: Tensor) -> None:  # type: ignore[override]  # nor is torchmetrics' own
        """Add a batch; the logits of a regression, B1, are its predictions."""
        regression = labels.is_floating_point()
        super().update(predictions.reshape(len(labels)).to(labels.dtype) if regression else predictions, labels)

    def compute(self) -> dict[str, Any]:
        """Return the metrics and their mean by name; a correlation with constant predictions is 0, as of chance."""
        found = {name: value.nan_to_num(0.0) for name, value in super().compute().items()}
        return {**found, self.name: torch.stack(list(found.values())).mean()}


def build_metric(info: DataInfo, scored: Split | None = None) -> Metric | Scores:
    """Return the metric of a data set; one of several values computes them by name.

    Args:
        info: Of the data set.
        scored: The rows to be scored; F1 of spans reads the answers there.
    """
    match info.metric:
        case "accuracy" if info.task == "tagging":
            return TagAccuracy(info.num_labels)
        case "accuracy":
            return MulticlassAccuracy(info.num_labels, average="micro")
        case "matthews":
            return MatthewsCorrCoef(info.num_labels)
        case "accuracy_f1":
            return Scores(info.metric, {"accuracy": MulticlassAccuracy(2, average="micro"), "f1": PositiveF1()})
        case "pearson_spearman":
            with warnings.catch_warnings():  # that all rows are kept in memory: they are 1,500
                warnings.simplefilter("ignore", UserWarning)
                return Scores(info.metric, {"pearson": PearsonCorrCoef(), "spearman": SpearmanCorrCoef()})
        case "f1":
            if not isinstance(scored, SpanSplit) or scored.answers is None:
                raise ValueError("the metric 'f1' needs the split whose answers are scored")
            return SpanScores(scored.answers)
        case "entity_f1":
            return EntityF1(info.labels)
        case "ndcg":
            return QueryScores()
    raise ValueError(f"no metric {info.metric!r}; choose one of {', '.join(get_args(Score))}")
