"""Run one stage: a fresh Trainer.fit that starts, resumes or is skipped, depending on what its folder holds."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import hydra.utils
import lightning as L
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers import Logger
from safetensors.torch import save
from torch import Tensor, nn

from lowbit.data import StepDataModule
from lowbit.files import DamagedFileError, atomic_write, set_aside, sha256, sha256_of, write_json, write_text
from lowbit.losses import WeightLoss
from lowbit.modeling import Instrument
from lowbit.modeling.weights import read_weights
from lowbit.recipes import Stage
from lowbit.results.run_file import METRICS_FILE, PROGRESS_FILE, STAGE_FILE, StageRecord, read_stage
from lowbit.settings.run import TrainerConfig
from lowbit.training.callbacks import StepTimer, progress
from lowbit.training.checkpoints import CHECKPOINT, AtomicCheckpointIO, LastCheckpoint, step_of
from lowbit.training.gradient_share import RegularizerShare
from lowbit.training.guards import check_weights
from lowbit.training.heartbeat import Heartbeat
from lowbit.training.loggers import MetricsFile
from lowbit.training.modules import FinetuneModule
from lowbit.training.quantization import calibrate_student
from lowbit.training.ranks import call_on_leader, is_leader, strategy_of

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
    ".*callbacks used to create the checkpoint need to be provided.*",  # one of an earlier version by Lightning's own
    ".*use `self.log\\(.*, sync_dist=True\\)`.*",  # metrics are gathered before they are logged
)
for _message in _BENIGN:
    warnings.filterwarnings("ignore", _message)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> str:
    """Write tensors as safetensors, atomically; return the SHA-256 of the file."""
    content = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return sha256(content)


def save_student(student: Instrument, folder: Path) -> dict[str, str]:
    """Write the latent weights, under the plain model's keys, and beside them what the quantizers learned.

    Returns:
        The SHA-256 of each file by its name.
    """
    learned = student.quantizer_state()
    weights = {k: v for k, v in student.model.state_dict().items() if k not in learned}
    content = {QUANTIZERS: learned, WEIGHTS: weights} if learned else {WEIGHTS: weights}
    return {name: save_tensors(tensors, folder / name) for name, tensors in content.items()}


def load_weights(model: nn.Module, path: Path) -> None:
    """Load weights strictly, keeping the model's dtype.

    Raises:
        ValueError: the file is damaged, or its tensors are not the model's.
    """
    try:
        model.load_state_dict(read_weights(path))
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise ValueError(f"{path} does not hold weights of this {type(model).__name__}: {first}") from error


def load_quantizer_state(folder: Path) -> dict[str, Tensor]:
    """Return what the quantizers of a finished stage learned; empty if they learn nothing."""
    path = folder / QUANTIZERS
    return read_weights(path) if path.exists() else {}


def whole_stage(folder: Path) -> StageRecord | None:
    """Return the record of a finished stage whose weights are what it left, or None where it is not finished.

    Raises:
        DamagedFileError: a file is not what was written, or not readable where an earlier version left no digests.
    """
    record = read_stage(folder)
    if record is None:
        return None
    for name in (WEIGHTS, QUANTIZERS):
        if name == WEIGHTS or name in record.files or (not record.files and (folder / name).exists()):
            check_weights_file(folder / name, record.files.get(name))
    return record


def check_weights_file(path: Path, digest: str | None) -> None:
    """Compare a file of weights with its digest; one of an earlier version, without digest, must be readable.

    Raises:
        DamagedFileError: it is not, or there is no such file.
    """
    if not path.is_file():
        raise DamagedFileError(path, f"{path} is missing")
    if digest is not None and sha256_of(path) != digest:
        raise DamagedFileError(path, f"{path} is damaged: its SHA-256 is not the one in {STAGE_FILE}")
    if digest is None:
        try:
            read_weights(path)
        except ValueError as error:
            raise DamagedFileError(path, str(error)) from error


def _start_anew(error: DamagedFileError) -> ValueError:
    """Rename a damaged file of a stage, which is no longer finished; return what says so, and what to do."""
    folder, kept = error.path.parent, ""
    if error.path.exists():
        kept = f"; it is kept as {set_aside(error.path).name}"
    (folder / STAGE_FILE).unlink(missing_ok=True)
    return ValueError(f"{error.fault}{kept}. Run the same command again: it trains stage {folder.name} anew")


def finished_stage(folder: Path) -> StageRecord | None:
    """Return the record of a stage that was finished before, or None; damaged files are set aside.

    Raises:
        ValueError: a file is damaged; says which, and that the same command trains the stage anew.
    """
    try:
        record = whole_stage(folder)
    except DamagedFileError as error:
        raise _start_anew(error) from error
    if record is not None:  # its process may have been killed before it came to this
        _tidy(folder)
    return record


def rows_of_stage(folder: Path, record: StageRecord) -> str | None:
    """Return the rows of metrics.csv up to the end of a finished stage; None if the stage does not have them."""
    path, digest = folder / METRICS_FILE, record.files.get(METRICS_FILE)
    if digest is None:  # of an earlier version
        return None
    if path.is_file() and sha256_of(path) == digest:
        return path.read_text(encoding="utf-8")
    print(f"  {path} is damaged: the rows are taken from the run's {METRICS_FILE}", flush=True)
    return None


def checkpointed_step(folder: Path) -> int:
    """Return the step of a stage's checkpoint, 0 where there is none; a damaged one is set aside.

    Raises:
        ValueError: the checkpoint is damaged; says that the same command trains the stage anew.
    """
    try:
        return step_of(folder / CHECKPOINT)
    except DamagedFileError as error:
        raise _start_anew(error) from error


def build_trainer(config: TrainerConfig, steps: int, callbacks: list[Callback], loggers: list[Logger]) -> L.Trainer:
    """Return the Trainer of one stage of `steps` optimizer steps."""
    if "profiler" in config.extra:  # its report is a message
        logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)
    limit = config.extra.get("limit_test_batches")
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
        limit_val_batches=limit if config.eval_every is not None else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=config.log_every,
        logger=loggers,
        callbacks=callbacks,
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        enable_model_summary=False,
        enable_checkpointing=False,  # `LastCheckpoint` does it
        use_distributed_sampler=False,
        plugins=[AtomicCheckpointIO()],
        **config.extra,
    )


def stage_callbacks(
    config: TrainerConfig, stage: Stage, folder: Path, own: Mapping[str, object]
) -> tuple[list[Callback], StepTimer]:
    """Return what accompanies the steps of a stage, the callbacks of the config too, and the clock among it."""
    timer = StepTimer()
    last = LastCheckpoint(folder, config.checkpoint_every, config.eval_every)
    shares = [RegularizerShare(loss) for loss in stage.losses.values() if isinstance(loss, WeightLoss)]
    given = [hydra.utils.instantiate(settings, _convert_="all") for settings in own.values()]
    callbacks = [timer, Heartbeat(folder, stage.steps), last, *shares, *given]
    return callbacks + progress(config.progress and is_leader(), timer, stage.steps), timer


def fit_stage(
    module: FinetuneModule,
    data: StepDataModule,
    config: TrainerConfig,
    folder: Path,
    loggers: list[Logger],
    callbacks: Mapping[str, object] = MappingProxyType({}),
) -> StageRecord:
    """Train a stage to its end from wherever its folder says it stands, evaluate it and write record and weights.

    `callbacks` are those of the config: classes and their arguments by name.
    """
    stage = module.stage
    data.first_step = stage.first_step
    accompanying, timer = stage_callbacks(config, stage, folder, callbacks)
    trainer = build_trainer(config, stage.steps, accompanying, loggers)
    checkpoint = folder / CHECKPOINT
    resumed = call_on_leader(lambda: checkpointed_step(folder))
    if not resumed:
        calibrate_student(module.instrument, data, stage)
    for logger in loggers:
        if hasattr(logger, "start_stage"):
            logger.start_stage(stage.name, stage.first_step + resumed)
    if resumed:
        print(f"  resuming stage {stage.name} at step {resumed} of {stage.steps}", flush=True)
    try:
        if stage.steps > 0:  # none: calibrated and evaluated only (post-training quantization)
            ckpt = str(checkpoint) if resumed else None
            trainer.fit(module, datamodule=data, ckpt_path=ckpt, weights_only=True)
    except SystemExit as exit_:
        if trainer.interrupted:  # Lightning turns Ctrl-C into exit(1), which would read as a failure
            raise KeyboardInterrupt from exit_
        raise
    check_weights(module.student.state_dict(), stage)
    metrics = evaluate(trainer, module, data, "validate")
    steps = trainer.global_step if stage.steps else 0  # fewer than planned where a callback has stopped the stage
    record = StageRecord(stage.name, steps, timer.seconds, metrics)
    return call_on_leader(lambda: _finish_stage(module.instrument, record, folder, loggers))


def _finish_stage(student: Instrument, record: StageRecord, folder: Path, loggers: list[Logger]) -> StageRecord:
    """Write the weights and the rows so far before the record: a folder with a record is complete."""
    files = save_student(student, folder)
    for logger in loggers:
        if isinstance(logger, MetricsFile):
            write_text(folder / METRICS_FILE, logger.text())
            files[METRICS_FILE] = sha256(logger.text().encode())
    record = replace(record, files=files)
    write_json(folder / STAGE_FILE, record.as_dict())
    _tidy(folder)
    return record


def _tidy(folder: Path) -> None:
    """Remove what a finished stage no longer needs.

    Its progress too: Lightning does not tell callbacks of the end of a stage that resumes at its last step.
    """
    for name in (CHECKPOINT, PROGRESS_FILE):
        (folder / name).unlink(missing_ok=True)


def test(module: FinetuneModule, data: StepDataModule, config: TrainerConfig) -> dict[str, float]:
    """Return the metrics of the test split or, where the data set has no test labels, of the validation split."""
    verb = "test" if data.info.has_test else "validate"
    return evaluate(build_trainer(config, 1, [], []), module, data, verb)


def evaluate(trainer: L.Trainer, module: FinetuneModule, data: StepDataModule, verb: str) -> dict[str, float]:
    """Return the metrics of the validation ("validate") or test ("test") split, by name."""
    limit = trainer.limit_val_batches
    trainer.limit_val_batches = trainer.limit_test_batches
    try:
        result, *_ = getattr(trainer, verb)(module, datamodule=data, verbose=False)  # each loader's holds all metrics
    finally:
        trainer.limit_val_batches = limit
    return {name: float(value) for name, value in result.items() if "/" in name}
