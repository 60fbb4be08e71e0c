"""Data sets as LightningDataModules whose training batches depend on (seed, step) alone."""

from lowbit.data.build import build_datamodule, data_info
from lowbit.data.datamodule import StepDataModule
from lowbit.data.metrics import build_metric
from lowbit.data.sampling import StepBatchSampler, StepRows, generator_for
from lowbit.data.splits import Batch, Splits
from lowbit.settings.data import DataInfo, ImageInput

__all__ = [
    "Batch",
    "DataInfo",
    "ImageInput",
    "Splits",
    "StepBatchSampler",
    "StepDataModule",
    "StepRows",
    "build_datamodule",
    "build_metric",
    "data_info",
    "generator_for",
]
