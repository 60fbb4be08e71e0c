"""One `lowbit train`: from a config to run.json, at most once per run id."""

from __future__ import annotations

import copy
import datetime as dt
import os
import traceback
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from lowbit.config import identity
from lowbit.config.problems import ConfigError
from lowbit.data import StepDataModule
from lowbit.files import sha256_of, write_json, write_text
from lowbit.modeling import Instrument, prepare
from lowbit.modeling.families import family_of
from lowbit.modeling.sizes import model_size
from lowbit.modeling.surgery import narrow, reduce_layers, split_ternary
from lowbit.recipes import Stage
from lowbit.results import (
    RUN_FILE,
    SCHEMA,
    Cell,
    collect,
    print_grid,
    read_run,
    tabulate_languages,
    tabulate_rows,
)
from lowbit.results.run_file import (
    ERROR_FILE,
    METRICS_FILE,
    StageRecord,
)
from lowbit.settings.run import Config
from lowbit.training.checks import check_run
from lowbit.training.environment import environment, keep_freed_memory
from lowbit.training.handover import Student, take_over, take_over_halves
from lowbit.training.loggers import MetricsFile, Tracked, build_loggers, finish_wandb, open_wandb, under_agent
from lowbit.training.modules import DistillationModule, FinetuneModule
from lowbit.training.ranks import Ranks, call_on_leader, is_leader
from lowbit.training.run import HeldError, Run
from lowbit.training.setup import config_errors, make_instrument, make_metric
from lowbit.training.showcase import show_result, summary_of
from lowbit.training.stage_runner import (
    WEIGHTS,
    checkpointed_step,
    finished_stage,
    fit_stage,
    load_quantizer_state,
    load_weights,
    rows_of_stage,
    test,
)
from lowbit.training.teacher import Teacher, obtain_teacher

_LOCK_SECONDS = 0.5  # who only looks at the state of a run holds its lock for less


def train(cfg: DictConfig, config: Config) -> float | None:
    """Run a config to its end and return its primary metric.

    A finished run is not repeated, an unfinished one is resumed; None if another process is running it, or if this is
    one of the run's further processes (`Ranks`).
    """
    run, ranks = Run(cfg, config), Ranks(config.trainer)
    if not ranks.leads:
        _follow(run, ranks)
        return None
    print(f"run {config.name}/{run.id} seed {config.seed}", flush=True)
    finished = read_run(run.folder)
    if finished is None:
        for line in check_run(run):
            print(f"  {line}", flush=True)
        finished = _finish(run, ranks)
        if finished is None:
            return None
    else:  # no lock is needed, which may be another user's
        ranks.dismiss()
        print(f"  finished before, nothing to train: {run.folder / RUN_FILE}", flush=True)
        if under_agent():
            _tell_agent(run, finished)
    cells = [Cell(run.folder, {}, "")]
    print_grid(tabulate_rows(collect(cells), f"{config.name}/{run.id}"))
    if finished["primary_metric"].startswith("val_mean/"):
        print_grid(tabulate_languages(cells, "by language"))
    return float(finished["metrics"][finished["primary_metric"]])


def _finish(run: Run, ranks: Ranks) -> dict[str, Any] | None:
    """Run to the end and return the run.json; None if another process is running it."""
    try:
        with run.claim():
            finished = read_run(run.folder)
            if finished is not None:  # by another process, a moment ago
                ranks.dismiss()
                return finished
            run.begin()
            ranks.start()
            finished = _guarded(run)
            ranks.leave()
            return finished
    except HeldError as holder:
        ranks.dismiss()
        print(f"  {holder} is running it; nothing to do here", flush=True)
        return None


def _follow(run: Run, ranks: Ranks) -> None:
    """Run beside the leader, silently."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        if not ranks.wait():
            return
        try:
            _execute(run)
        except Exception as error:
            _leave_traceback(run.folder / ERROR_FILE, error)
            raise
    ranks.leave()


def _leave_traceback(file: Path, error: Exception) -> None:
    """Write what failed, unless another process of the run has: what fails after the first one has lost its peer."""
    try:
        if not file.exists():
            write_text(file, traceback.format_exc())
        error.add_note(f"traceback: {file}")
    except OSError:
        error.add_note(f"its traceback could not be written into {file.parent}")


def _tell_agent(run: Run, result: dict[str, Any]) -> None:
    """Give a W&B sweep the result of a run that was finished before: the sweep waits for one of its own."""
    stages = [stage["name"] for stage in result["stages"]]
    wandb_run = open_wandb(run.config, Tracked(run.id, run.folder, result["config"], stages))
    if wandb_run is not None:
        wandb_run.log_metrics(result["metrics"], step=max(result["steps"] - 1, 0))
        wandb_run.log_summary(summary_of(result))
    finish_wandb(failed=False)


def _guarded(run: Run) -> dict[str, Any]:
    """Execute the run; a failure leaves its traceback, and the W&B run is closed whatever happens."""
    failed = True
    error_file = run.folder / ERROR_FILE
    error_file.unlink(missing_ok=True)
    try:
        result = _execute(run)
        failed = False
        return result
    except Exception as error:
        if not isinstance(error, ConfigError):  # whose text says it all
            _leave_traceback(error_file, error)
        raise
    finally:
        finish_wandb(failed=failed)


def _execute(run: Run) -> dict[str, Any]:
    config, started = run.config, _now()
    keep_freed_memory()
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    data, recipe = run.data, run.recipe
    teacher = obtain_teacher(run) if recipe.needs_teacher else None
    resolved = identity.resolved(run.cfg)
    tracked = Tracked(run.id, run.folder, resolved, [stage.name for stage in recipe.stages])
    loggers = build_loggers(config, tracked) if is_leader() else []
    students: dict[str, Student] = {}
    records: list[StageRecord] = []
    for stage in recipe.stages:
        students[stage.name], record = _run_stage(run, stage, students, teacher, data, loggers)
        records.append(record)
    student = students[recipe.stages[-1].name]
    instrument = student.prepared()
    module = FinetuneModule(instrument, recipe.stages[-1], make_metric(data), config.seed)
    tested = test(module, data, config.trainer)
    size = model_size(instrument)
    for logger in loggers:
        if isinstance(logger, MetricsFile):
            logger.stage = recipe.stages[-1].name  # also where every stage was finished before
        logger.log_metrics({**tested, "size/simulated_mb": size.simulated_bytes / 1e6}, step=max(recipe.steps - 1, 0))
        logger.finalize("success")
    result = {
        "schema": SCHEMA,
        "run_id": run.id,
        "name": config.name,
        "sweep": config.sweep,
        "status": "finished",
        "config": resolved,
        "primary_metric": data.info.primary_metric,
        "metrics": {**records[-1].metrics, **tested},
        "teacher": None if teacher is None else teacher.facts,
        "size": size.as_dict(),
        "steps": sum(record.steps for record in records),
        "seconds": sum(record.seconds for record in records),
        "stages": [record.as_dict() for record in records],
        "files": call_on_leader(lambda: {METRICS_FILE: sha256_of(run.folder / METRICS_FILE)}),
        "seeds": {"run": config.seed, "teacher": config.teacher.seed, "split": config.data.split_seed},
        "started": started,
        "finished": _now(),
        **environment(config.trainer.accelerator),
    }
    call_on_leader(lambda: write_json(run.folder / RUN_FILE, result))
    show_result(loggers, result, instrument, run.folder, figures=config.logger.figures)
    return result


def _run_stage(
    run: Run,
    stage: Stage,
    students: dict[str, Student],
    teacher: Teacher | None,
    data: StepDataModule,
    loggers: list[Any],
) -> tuple[Student, StageRecord]:
    """Return the student after the stage, trained now or before, and the stage's record."""
    folder = run.folder / "stages" / stage.name
    previous = list(students.values())[-1] if students else None
    with config_errors():  # surgery that this family does not allow
        student = initial_student(run, stage, previous, teacher)
    record = call_on_leader(lambda: finished_stage(folder))
    if record is not None:
        load_weights(student, folder / WEIGHTS)
        print(f"  stage {stage.name}: finished before", flush=True)
        for logger in loggers:
            if isinstance(logger, MetricsFile):
                logger.take_up(rows_of_stage(folder, record))
        return Student(student, load_quantizer_state(folder), stage.rules), record
    resumed = call_on_leader(lambda: checkpointed_step(folder)) > 0
    same = previous is not None and stage.student == "previous" and previous.rules == stage.rules
    instrument = make_instrument(student, stage.rules, initialize=not resumed and not same)
    if previous is not None and not resumed:
        if stage.student == "previous":
            take_over(instrument, previous)
        elif stage.student == "split":
            take_over_halves(instrument, previous)
    print(f"  stage {stage.name}: {stage.steps} steps", flush=True)
    for line in instrument.resolved.report:
        print(f"    {line}", flush=True)
    metric, seed = make_metric(data), run.config.seed
    supervisor = None
    if stage.teacher:
        supervisor = _supervisor(stage, students, teacher)
        module: FinetuneModule = DistillationModule(instrument, supervisor, stage, metric, seed)
    else:
        module = FinetuneModule(instrument, stage, metric, seed)
    record = fit_stage(module, data, run.config.trainer, folder, loggers, run.config.callbacks)
    if supervisor is not None:
        supervisor.restore()
    print("  " + ", ".join(f"{name} {value:.4f}" for name, value in record.metrics.items()), flush=True)
    learned = {key: value.detach().clone() for key, value in instrument.quantizer_state().items()}
    return Student(instrument.restore(), learned, stage.rules), record


def _supervisor(stage: Stage, students: dict[str, Student], teacher: Teacher | None) -> Instrument:
    if stage.supervisor == "teacher":
        assert teacher is not None
        return prepare(teacher.model)
    return students[stage.supervisor].prepared()


def initial_student(run: Run, stage: Stage, previous: Student | None, teacher: Teacher | None) -> nn.Module:
    """Return the model with which a stage begins; what the stage before has trained is copied."""
    if stage.student in ("previous", "split"):
        assert previous is not None
        student = copy.deepcopy(previous.model).requires_grad_(True)  # the previous one may teach, and be frozen then
        return student if stage.student == "previous" else split_ternary(student)
    if stage.student in ("teacher", "narrow"):
        assert teacher is not None
        student = copy.deepcopy(teacher.model).requires_grad_(True)
        if stage.layer_map is not None:
            student = reduce_layers(student, stage.layer_map)
        if stage.student == "narrow":
            student = narrow(student, stage.width)
    else:
        student = run.new_student()
    if stage.activation is not None:
        family_of(student).set_activation(student, stage.activation)
    return student


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
