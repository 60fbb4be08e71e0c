"""Metrics against scikit-learn, collapsed predictions included."""

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from lowbit.data import DataInfo, build_metric, data_info
from lowbit.settings.data import DataConfig, DataKind, GlueTask

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


def reference(task: GlueTask, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """What scikit-learn and scipy say, under the names that are logged."""
    if task is GlueTask.stsb:
        found = {"pearson": pearsonr(logits[:, 0], labels)[0], "spearman": spearmanr(logits[:, 0], labels)[0]}
        return {**found, "pearson_spearman": sum(found.values()) / 2}
    predictions = logits.argmax(1)
    if task is GlueTask.cola:
        return {"matthews": matthews_corrcoef(labels, predictions)}
    accuracy = accuracy_score(labels, predictions)
    if task in (GlueTask.mrpc, GlueTask.qqp):
        f1 = f1_score(labels, predictions)
        return {"accuracy": accuracy, "f1": f1, "accuracy_f1": (accuracy + f1) / 2}
    return {"accuracy": accuracy}


def scores(info: DataInfo, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    metric = build_metric(info).clone()
    for part in np.array_split(np.arange(len(labels)), 7):
        metric.update(torch.from_numpy(logits[part]), torch.from_numpy(labels[part]))
    found = metric.compute()
    return {name: value.item() for name, value in (found if isinstance(found, dict) else {info.metric: found}).items()}


def glue_info(task: GlueTask, glue) -> DataInfo:
    return data_info(DataConfig(name=task.name, kind=DataKind.glue, task=task, dir=str(glue)))


@pytest.mark.parametrize("task", list(GlueTask))
@pytest.mark.parametrize("seed", range(2))
def test_glue_scores_over_batches(task: GlueTask, seed: int, glue):
    info = glue_info(task, glue)
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(977, info.num_labels)).astype(np.float32)
    if info.task == "regression":
        labels = np.clip(np.round(2 * logits[:, 0] + rng.normal(size=977), 1), 0, 5).astype(np.float32)
    else:
        labels = np.where(rng.random(977) < 0.4, logits.argmax(1), rng.integers(info.num_labels, size=977))
    expected = reference(task, logits, labels)
    assert info.metric in expected
    assert scores(info, logits, labels) == pytest.approx(expected, abs=2e-6)


def test_glue_scores_of_a_collapsed_model(glue):
    labels = np.array([0, 1, 1, 0] * 5)
    always_no = np.tile(np.array([[1.0, 0.0]], dtype=np.float32), (20, 1))
    assert scores(glue_info(GlueTask.mrpc, glue), always_no, labels) == {
        "accuracy": 0.5,
        "f1": 0.0,
        "accuracy_f1": 0.25,
    }
    similar = glue_info(GlueTask.stsb, glue)
    with pytest.warns(UserWarning, match="variance of predictions or target is close to zero"):
        assert set(scores(similar, np.full((20, 1), 2.5, np.float32), labels.astype(np.float32)).values()) == {0.0}
