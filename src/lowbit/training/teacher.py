"""The teacher cache: outputs/teachers/<id>, trained once under a file lock and shared by every run of a sweep."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from torch import nn

from lowbit.config import identity
from lowbit.config.teacher import teacher_model
from lowbit.data import DataInfo, StepDataModule
from lowbit.files import DamagedFileError, move_folder, read_json, remove_leftovers, set_aside, write_json
from lowbit.modeling import Instrument, prepare
from lowbit.modeling.inputs import build_tokenizer
from lowbit.modeling.labels import save_description
from lowbit.modeling.sizes import model_size
from lowbit.recipes import build_teacher_stage
from lowbit.results.run_file import StageRecord, missing_of_teacher
from lowbit.settings.data import TokenizerKind
from lowbit.settings.model import TeacherSource
from lowbit.settings.recipe import BudgetConfig
from lowbit.settings.run import Config
from lowbit.training.loggers import Tracked, build_loggers, finish_wandb
from lowbit.training.modules import FinetuneModule
from lowbit.training.ranks import call_on_leader, is_leader
from lowbit.training.run import Run
from lowbit.training.setup import make_metric
from lowbit.training.stage_runner import (
    WEIGHTS,
    check_weights_file,
    finished_stage,
    fit_stage,
    load_weights,
    test,
    whole_stage,
)

TEACHER_FILE = "teacher.json"


@dataclass(frozen=True)
class Teacher:
    """A full-precision model in eval mode and the facts of it that run.json repeats."""

    model: nn.Module
    facts: dict[str, Any]


def obtain_teacher(run: Run) -> Teacher:
    """Return the teacher that the config names, trained now if no run before needed it.

    Raises:
        ConfigError: `teacher.path` or the hub does not hold a teacher of this model.
        ValueError: the score is below `teacher.min_score`.
    """
    config, data = run.config, run.teacher_data
    found = _cached(run) if config.teacher.source is TeacherSource.finetune else _given(run)
    score, least = found.facts["metrics"].get(data.info.primary_metric), config.teacher.min_score
    if least is not None and score is not None and score < least:
        raise ValueError(
            f"teacher {found.facts['id']}: {data.info.primary_metric} is {score:.4f}, below teacher.min_score={least}; "
            "train it longer (teacher.budget, teacher.optimizer.lr), name a better one (teacher=path), or lower it"
        )
    return found


def _cached(run: Run) -> Teacher:
    teachers, teacher_id = run.outputs / "teachers", run.teacher_id
    teachers.mkdir(parents=True, exist_ok=True)
    folder = teachers / teacher_id
    lock = FileLock(teachers / f"{teacher_id}.lock") if is_leader() else None
    try:
        if lock is not None and lock_is_held(lock):
            print(f"teacher {teacher_id}: another process is training it, waiting", flush=True)
    except PermissionError as error:  # another user's
        if not folder.exists():
            raise OSError(
                f"{folder} is being trained by another user; set paths.outputs to a folder of yours"
            ) from error
        lock = None
    with nullcontext() if lock is None else lock:
        if not call_on_leader(lambda: _is_usable(folder)):
            print(f"teacher {teacher_id}: training", flush=True)
            partial = _partial(folder)
            call_on_leader(lambda: remove_leftovers(partial))
            _train(run, partial)
            call_on_leader(lambda: move_folder(partial, folder))  # readers see no teacher or a complete one
        else:
            print(f"teacher {teacher_id}: cached in {folder}", flush=True)
        model = run.new_teacher()
        load_weights(model, folder / WEIGHTS)
        facts = call_on_leader(lambda: _read_facts(folder / TEACHER_FILE))
    assert facts is not None
    return Teacher(model.eval(), facts)


def _partial(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.partial")


def _is_usable(folder: Path) -> bool:
    """Whether a teacher is there and whole; what is damaged is set aside, to be made anew.

    Its weights are trained again; its facts are measured again.
    """
    if not folder.exists():
        return False
    try:
        if whole_stage(folder) is None:  # a folder of an earlier version, or without its record
            check_weights_file(folder / WEIGHTS, None)
    except DamagedFileError as error:
        print(f"teacher {folder.name}: {error.fault}; its folder is kept as {set_aside(folder).name}", flush=True)
        return False
    facts = folder / TEACHER_FILE
    try:
        if _read_facts(facts) is not None:
            return True
        print(f"teacher {folder.name}: {facts} is missing; it is measured again", flush=True)
    except DamagedFileError as error:
        kept = set_aside(facts).name
        print(f"teacher {folder.name}: {error.fault}; it is kept as {kept}, and measured again", flush=True)
    folder.replace(_partial(folder))
    return False


def _read_facts(path: Path) -> dict[str, Any] | None:
    """Return the facts of a teacher, None if there is no such file.

    Raises:
        DamagedFileError: the file is damaged, or holds something else.
    """
    facts = read_json(path)
    if facts is None and not path.exists():
        return None
    if not isinstance(facts, dict) or missing_of_teacher(facts):
        remedy = "Delete it to have them measured again."
        raise DamagedFileError(path, f"{path} does not hold the facts of a teacher", remedy)
    return facts


def lock_is_held(lock: FileLock) -> bool:
    """Whether another process holds the lock right now."""
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    lock.release()
    return False


def _train(run: Run, folder: Path) -> None:
    config, data = run.config, run.teacher_data
    instrument = prepare(run.new_teacher())
    module = _module(config, instrument, data)
    record = call_on_leader(lambda: finished_stage(folder))
    if record is None:
        record = _fit(run, module, folder)
    else:
        load_weights(instrument.model, folder / WEIGHTS)
    metrics = {**record.metrics, **test(module, data, config.trainer)}
    facts = _facts(run.teacher_id, metrics, instrument, record.steps, record.seconds)
    model = instrument.restore()
    call_on_leader(lambda: _describe(config, model, data.info, facts, folder))


def _describe(config: Config, model: nn.Module, info: DataInfo, facts: dict[str, Any], folder: Path) -> None:
    """Write what a folder with weights needs to be a teacher."""
    write_json(folder / TEACHER_FILE, facts)
    save_description(model, info, folder)
    if config.data.tokenizer is TokenizerKind.model:
        build_tokenizer(teacher_model(config)).save_pretrained(folder)


def _fit(run: Run, module: FinetuneModule, folder: Path) -> StageRecord:
    config = run.config
    folder.mkdir(exist_ok=True)
    plain = identity.resolved(OmegaConf.structured(config))
    resolved = {part: plain[part] for part in ("data", "model", "teacher", "trainer")}
    tracked = Tracked(run.teacher_id, folder, resolved, [module.stage.name], job_type="teacher")
    loggers = build_loggers(config, tracked) if is_leader() else []
    failed = True
    try:
        record = fit_stage(module, run.teacher_data, config.trainer, folder, loggers)
        failed = False
        return record
    finally:
        finish_wandb(failed=failed)  # before the folder gets its name, and the student its own run


def _given(run: Run) -> Teacher:
    """Return a teacher of a folder or the hub, scored on this data set once."""
    config, data, teacher_id = run.config, run.teacher_data, run.teacher_id
    model = run.new_teacher()
    scores = run.outputs / "teachers" / f"{teacher_id}.json"
    facts = call_on_leader(lambda: _read_facts(scores))
    if facts is None:
        print(f"teacher {teacher_id}: scoring", flush=True)
        call_on_leader(lambda: remove_leftovers(scores.parent))
        instrument = prepare(model)
        metrics = test(_module(config, instrument, data), data, config.trainer)
        facts = _facts(teacher_id, metrics, instrument, 0, 0.0)
        written = facts
        call_on_leader(lambda: write_json(scores, written))
        model = instrument.restore()
    return Teacher(model.eval(), facts)


def _facts(
    teacher_id: str, metrics: dict[str, float], instrument: Instrument, steps: int, seconds: float
) -> dict[str, Any]:
    size = model_size(instrument).as_dict()
    return {"id": teacher_id, "metrics": metrics, "size": size, "steps": steps, "seconds": seconds}


def _module(config: Config, instrument: Instrument, data: StepDataModule) -> FinetuneModule:
    settings = config.teacher
    if settings.source is not TeacherSource.finetune:  # evaluated only, hence no budget
        settings = replace(settings, budget=BudgetConfig(steps=1))
    stage = build_teacher_stage(settings, data.steps_per_epoch)
    return FinetuneModule(instrument, stage, make_metric(data), config.teacher.seed)
