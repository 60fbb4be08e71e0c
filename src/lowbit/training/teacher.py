"""The teacher cache: outputs/teachers/<id>, trained once under a file lock and shared by every run of a sweep."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import nn

from lowbit.config.schema import BudgetConfig, Config, TeacherSource
from lowbit.data import StepDataModule
from lowbit.modeling import Instrument, prepare
from lowbit.modeling.sizes import model_size
from lowbit.recipes import build_teacher_stage
from lowbit.results import read_json, write_json
from lowbit.training.loggers import MetricsFile
from lowbit.training.modules import FinetuneModule
from lowbit.training.setup import config_errors, make_metric, make_model
from lowbit.training.stage_runner import WEIGHTS, finished_stage, fit_stage, load_weights, test

TEACHER_FILE = "teacher.json"


@dataclass(frozen=True)
class Teacher:
    """A full-precision model in eval mode and the facts of it that run.json repeats."""

    model: nn.Module
    facts: dict[str, Any]


def obtain_teacher(config: Config, teacher_id: str, data: StepDataModule) -> Teacher:
    """Return the teacher that the config names, trained now if no run before needed it.

    Raises:
        ValueError: `teacher.path` does not hold weights of this model, or the score is below `teacher.min_score`.
    """
    found = (
        _from_path(config, data) if config.teacher.source is TeacherSource.path else _cached(config, teacher_id, data)
    )
    score, least = found.facts["metrics"].get(data.info.primary_metric), config.teacher.min_score
    if least is not None and score is not None and score < least:
        raise ValueError(
            f"teacher {found.facts['id']}: {data.info.primary_metric} is {score:.4f}, below teacher.min_score={least}; "
            "train it longer (teacher.budget, teacher.optimizer.lr), name a better one (teacher=path), or lower it"
        )
    return found


def _cached(config: Config, teacher_id: str, data: StepDataModule) -> Teacher:
    teachers = Path(config.paths.outputs) / "teachers"
    teachers.mkdir(parents=True, exist_ok=True)
    folder = teachers / teacher_id
    lock = FileLock(teachers / f"{teacher_id}.lock")
    if lock_is_held(lock):
        print(f"teacher {teacher_id}: another process is training it, waiting", flush=True)
    with lock:
        if not folder.exists():
            print(f"teacher {teacher_id}: training", flush=True)
            partial = teachers / f"{teacher_id}.partial"
            _train(config, teacher_id, data, partial)
            partial.replace(folder)  # readers see no teacher or a complete one
        else:
            print(f"teacher {teacher_id}: cached in {folder}", flush=True)
    model = make_model(config, data.info, config.teacher.seed)
    load_weights(model, folder / WEIGHTS)
    return Teacher(model.eval(), read_json(folder / TEACHER_FILE))


def lock_is_held(lock: FileLock) -> bool:
    """Whether another process holds the lock right now."""
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    lock.release()
    return False


def _train(config: Config, teacher_id: str, data: StepDataModule, folder: Path) -> None:
    instrument = prepare(make_model(config, data.info, config.teacher.seed))
    module = _module(config, instrument, data)
    record = finished_stage(folder)
    if record is None:
        record = fit_stage(module, data, config.trainer, folder, [MetricsFile(folder)])
    else:
        load_weights(instrument.model, folder / WEIGHTS)
    metrics = {**record.metrics, **test(module, data, config.trainer)}
    facts = _facts(teacher_id, metrics, instrument, record.steps, record.seconds)
    write_json(folder / TEACHER_FILE, facts)


def _from_path(config: Config, data: StepDataModule) -> Teacher:
    assert config.teacher.path is not None
    folder = Path(config.teacher.path).expanduser()
    instrument = prepare(make_model(config, data.info, config.teacher.seed))
    with config_errors():
        load_weights(instrument.model, folder / WEIGHTS)
    facts = read_json(folder / TEACHER_FILE)
    if facts is None:
        metrics = test(_module(config, instrument, data), data, config.trainer)
        facts = _facts(str(folder), metrics, instrument, 0, 0.0)
    return Teacher(instrument.restore().eval(), facts)


def _facts(
    teacher_id: str, metrics: dict[str, float], instrument: Instrument, steps: int, seconds: float
) -> dict[str, Any]:
    size = model_size(instrument).as_dict()
    return {"id": teacher_id, "metrics": metrics, "size": size, "steps": steps, "seconds": seconds}


def _module(config: Config, instrument: Instrument, data: StepDataModule) -> FinetuneModule:
    settings = config.teacher
    if settings.source is TeacherSource.path:  # evaluated only, hence no budget
        settings = replace(settings, budget=BudgetConfig(steps=1))
    stage = build_teacher_stage(settings, data.steps_per_epoch)
    return FinetuneModule(instrument, stage, make_metric(data), config.teacher.seed)
