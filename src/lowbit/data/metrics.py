"""Evaluation metrics by the name in `DataInfo.metric`; all take (predictions, labels), both int64."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassMatthewsCorrCoef

from lowbit.data.info import DataInfo


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


def build_metric(info: DataInfo) -> Metric:
    """Return the metric of a data set."""
    match info.metric:
        case "accuracy":
            return MulticlassAccuracy(info.num_labels, average="micro")
        case "matthews":
            return MatthewsCorrCoef(info.num_labels)
    raise ValueError(f"no metric {info.metric!r}; choose accuracy or matthews")
