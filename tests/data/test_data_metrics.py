"""Metrics against scikit-learn, collapsed predictions included."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, matthews_corrcoef

from lowbit.config.schema import DataConfig, DataKind
from lowbit.data import build_metric, data_info

DIGITS = data_info(DataConfig(name="digits", kind=DataKind.digits))
AGREEMENT = data_info(DataConfig(name="agreement", kind=DataKind.agreement))


def noisy(num_labels: int, rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_labels, size=rows)
    predictions = np.where(rng.random(rows) < 0.6, labels, rng.integers(num_labels, size=rows))
    return torch.from_numpy(predictions), torch.from_numpy(labels)


@pytest.mark.parametrize("seed", range(3))
def test_accuracy_over_batches(seed: int):
    predictions, labels = noisy(10, 300, seed)
    metric = build_metric(DIGITS)
    for part in range(0, 300, 128):
        metric.update(predictions[part : part + 128], labels[part : part + 128])
    assert metric.compute().item() == pytest.approx(accuracy_score(labels, predictions))


@pytest.mark.parametrize("rows", [50, 2_000, 200_000])
def test_matthews_over_batches(rows: int):
    predictions, labels = noisy(2, rows, seed=rows)
    metric = build_metric(AGREEMENT)
    for part in range(0, rows, 50_000):
        metric.update(predictions[part : part + 50_000], labels[part : part + 50_000])
    assert metric.compute().item() == pytest.approx(matthews_corrcoef(labels, predictions), abs=1e-6)


@pytest.mark.parametrize(
    ("predictions", "labels"),
    [
        ([1] * 10, [1] * 7 + [0] * 3),
        ([0] * 10, [1] * 7 + [0] * 3),
        ([1] * 4, [1, 0, 1, 0]),
        ([1, 0, 1, 0], [1] * 4),
        ([1, 0, 1, 0], [0, 1, 0, 1]),
        ([1, 0, 1, 0], [1, 0, 1, 0]),
        ([1] * 4, [1] * 4),
    ],
)
@pytest.mark.filterwarnings("ignore:A single label")
def test_matthews_of_degenerate_predictions(predictions: list[int], labels: list[int]):
    metric = build_metric(AGREEMENT)
    metric.update(torch.tensor(predictions), torch.tensor(labels))
    assert metric.compute().item() == pytest.approx(matthews_corrcoef(labels, predictions))


def test_a_metric_starts_afresh_after_reset():
    metric = build_metric(AGREEMENT)
    metric.update(torch.tensor([1, 0]), torch.tensor([0, 1]))
    metric.reset()
    metric.update(torch.tensor([1, 0]), torch.tensor([1, 0]))
    assert metric.compute().item() == 1.0
