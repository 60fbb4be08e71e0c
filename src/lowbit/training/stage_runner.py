"""Run one stage: a fresh Trainer.fit that starts, resumes or is skipped, depending on what its folder holds."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers import Logger
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lowbit.config.schema import TrainerConfig
from lowbit.data import StepDataModule
from lowbit.files import read_json, replacing, write_json
from lowbit.modeling import Instrument
from lowbit.recipes import Stage
from lowbit.results.run_folder import STAGE_FILE
from lowbit.training.callbacks import StepTimer, progress
from lowbit.training.checkpoints import CHECKPOINT, AtomicCheckpointIO, LastCheckpoint, step_of
from lowbit.training.heartbeat import Heartbeat
from lowbit.training.loggers import Staged
from lowbit.training.modules import FinetuneModule
from lowbit.training.quantization import calibrate_student
from lowbit.training.ranks import is_leader, led, strategy_of

WEIGHTS = "model.safetensors"
QUANTIZERS = "quantizers.safetensors"

# What a run prints is ours; Lightning's advice about hardware and add-ons is not repeated for every stage.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
_BENIGN = (
    ".*does not have many workers.*",  # small data sets need none
    ".*module.* in eval mode at the start of training.*",  # the teacher is; on_train_start sees to the student
    ".*treespec, LeafSpec.*",  # inside Lightning
    ".*overridden `on_before_batch_transfer`.*",  # in the module alone
    ".*`broadcast_buffers` is deprecated.*",  # its successor is younger than the oldest torch that will do
    ".*use `self.log\\(.*, sync_dist=True\\)`.*",  # metrics are gathered before they are logged
)
for _message in _BENIGN:
    warnings.filterwarnings("ignore", _message)


@dataclass(frozen=True)
class StageRecord:
    """What a finished stage leaves: its numbers. The weights lie beside it."""

    name: str
    steps: int
    seconds: float
    metrics: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of run.json."""
        return dict(vars(self))


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, atomically."""
    with replacing(path) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary)


def save_student(student: Instrument, folder: Path) -> None:
    """Write the latent weights, under the plain model's keys, and beside them what the quantizers learned."""
    learned = student.quantizer_state()
    if learned:
        save_tensors(learned, folder / QUANTIZERS)
    save_tensors({k: v for k, v in student.model.state_dict().items() if k not in learned}, folder / WEIGHTS)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load weights strictly, keeping the model's dtype.

    Raises:
        ValueError: the file's tensors are not the model's.
    """
    try:
        model.load_state_dict(load_file(path))
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise ValueError(f"{path} does not hold weights of this {type(model).__name__}: {first}") from error


def load_quantizer_state(folder: Path) -> dict[str, Tensor]:
    """Return what the quantizers of a finished stage learned; empty if they learn nothing."""
    path = folder / QUANTIZERS
    return load_file(path) if path.exists() else {}


def finished_stage(folder: Path) -> StageRecord | None:
    """Return the record of a stage that was finished before, or None."""
    content = read_json(folder / STAGE_FILE)
    return None if content is None else StageRecord(**content)


def build_trainer(config: TrainerConfig, steps: int, callbacks: list[Callback], loggers: list[Logger]) -> L.Trainer:
    """Return the Trainer of one stage of `steps` optimizer steps."""
    return L.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=strategy_of(config),
        precision=config.precision.value,
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=config.eval_every,
        check_val_every_n_epoch=None,
        limit_val_batches=None if config.eval_every is not None else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=config.log_every,
        logger=loggers,
        callbacks=callbacks,
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        enable_model_summary=False,
        use_distributed_sampler=False,
        plugins=[AtomicCheckpointIO()],
    )


def stage_callbacks(config: TrainerConfig, stage: Stage, folder: Path) -> tuple[list[Callback], StepTimer]:
    """Return what accompanies the steps of a stage, and the clock among it."""
    timer = StepTimer()
    callbacks = [LastCheckpoint(folder, config.checkpoint_every), timer, Heartbeat(folder, stage.steps)]
    return callbacks + progress(config.progress and is_leader(), timer, stage.steps), timer


def fit_stage(
    module: FinetuneModule, data: StepDataModule, config: TrainerConfig, folder: Path, loggers: list[Logger]
) -> StageRecord:
    """Train a stage to its end from wherever its folder says it stands, evaluate it and write record and weights."""
    stage = module.stage
    data.first_step = stage.first_step
    callbacks, timer = stage_callbacks(config, stage, folder)
    trainer = build_trainer(config, stage.steps, callbacks, loggers)
    checkpoint = folder / CHECKPOINT
    resumed = led(lambda: step_of(checkpoint))
    if not resumed:
        calibrate_student(module.instrument, data, stage)
    for logger in loggers:
        if isinstance(logger, Staged):
            logger.start_stage(stage.name, stage.first_step + resumed)
    if resumed:
        print(f"  resuming stage {stage.name} at step {resumed} of {stage.steps}", flush=True)
    try:
        if stage.steps > 0:  # none: calibrated and evaluated only (post-training quantization)
            trainer.fit(module, datamodule=data, ckpt_path=str(checkpoint) if resumed else None)
    except SystemExit as exit_:
        if trainer.interrupted:  # Lightning turns Ctrl-C into exit(1), which would read as a failure
            raise KeyboardInterrupt from exit_
        raise
    metrics = evaluate(trainer, module, data, "validate")
    record = StageRecord(stage.name, stage.steps, timer.seconds, metrics)
    led(lambda: _finish_stage(module.instrument, record, folder))
    return record


def _finish_stage(student: Instrument, record: StageRecord, folder: Path) -> None:
    """Write the weights before the record: a folder with a record is complete."""
    save_student(student, folder)
    write_json(folder / STAGE_FILE, record.as_dict())
    (folder / CHECKPOINT).unlink(missing_ok=True)


def test(module: FinetuneModule, data: StepDataModule, config: TrainerConfig) -> dict[str, float]:
    """Return the metrics of the test split or, where the data set has no test labels, of the validation split."""
    verb = "test" if data.info.has_test else "validate"
    return evaluate(build_trainer(config, 1, [], []), module, data, verb)


def evaluate(trainer: L.Trainer, module: FinetuneModule, data: StepDataModule, verb: str) -> dict[str, float]:
    """Return the metrics of the validation ("validate") or test ("test") split, by name."""
    limit = trainer.limit_val_batches
    trainer.limit_val_batches = 1.0
    try:
        result, *_ = getattr(trainer, verb)(module, datamodule=data, verbose=False)  # each loader's holds all metrics
    finally:
        trainer.limit_val_batches = limit
    return {name: float(value) for name, value in result.items() if "/" in name}
