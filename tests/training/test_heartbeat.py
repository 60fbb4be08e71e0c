"""What a run tells those who watch it from outside, and how often."""

from types import SimpleNamespace

import torch

from lowbit.results.run_file import Progress, read_progress
from lowbit.training import heartbeat
from lowbit.training.heartbeat import Heartbeat

MODULE = SimpleNamespace(stage_name="intervene", phase="intervene:probs")


def trainer(step: int, *, first: bool = True) -> SimpleNamespace:
    metrics = {"train/loss": torch.tensor(9.0), "val/accuracy": torch.tensor(0.5)}
    return SimpleNamespace(global_step=step, is_global_zero=first, callback_metrics=metrics)


def test_at_most_once_a_second_and_not_after_the_end(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    beat, folder = Heartbeat(tmp_path / "stages" / "intervene", 60), tmp_path
    outputs = {"loss": torch.tensor(2.0)}
    beat.on_train_batch_end(trainer(1), MODULE, outputs)
    values = {"loss": 2.0, "val/accuracy": 0.5}
    assert read_progress(folder) == Progress("intervene", "intervene:probs", 1, 60, values)
    now[0] += 0.5
    beat.on_train_batch_end(trainer(2), MODULE, outputs)
    assert read_progress(folder).step == 1
    now[0] += 0.6
    beat.on_train_batch_end(trainer(3), MODULE, outputs)
    assert read_progress(folder).step == 3
    beat.on_train_end(trainer(3), MODULE)
    assert read_progress(folder) is None


def test_one_rank_writes(tmp_path):
    Heartbeat(tmp_path, 60).on_train_batch_end(trainer(1, first=False), MODULE, {"loss": torch.tensor(2.0)})
    assert list(tmp_path.iterdir()) == []
