"""What quantizers need around a training step: curvature, ranges, corrections of latent weights, oscillation."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lowbit.data import StepDataModule
from lowbit.modeling import Instrument
from lowbit.quantizers import (
    LearnedQuantizer,
    LossAwareQuantizer,
    OscillationTracker,
    StaticQuantizer,
    begin_step,
    calibrate,
    check_correctable,
    end_step,
    quantizers_of,
    weight_sites,
)
from lowbit.recipes import Stage


class QuantizationSteps:
    """The hooks of one stage; does nothing for a stage without quantizers.

    Args:
        model: the prepared student.
        stage: its correction and oscillation settings, and its length.
    """

    def __init__(self, model: nn.Module, stage: Stage) -> None:
        self._model = model
        self._stage = stage
        self.sites = list(weight_sites(model)) if stage.rules else []
        kept = (LearnedQuantizer, LossAwareQuantizer, StaticQuantizer)
        self._keeps = bool(stage.rules) and any(isinstance(q, kept) for q in quantizers_of(model).values())
        self._freezing = None if stage.oscillation is None else stage.oscillation.freezing
        watched = stage.oscillation is not None and bool(self.sites)
        if stage.correction is not None or watched:
            check_correctable(self.sites)
        self.tracker: OscillationTracker | None = None
        if stage.oscillation is not None and watched:
            self.tracker = OscillationTracker(self.sites, stage.oscillation.momentum, stage.oscillation.threshold)

    def begin(self, step: int, optimizer: Any, whole: float = 1.0) -> None:
        """Before the forward pass of a step of the stage; `whole`: rows of the batch for each of this process."""
        if self._keeps:
            begin_step(self._model, step, optimizer, whole)

    def before_clipping(self, step: int) -> None:
        """After the backward pass: what is the gradient of a loss joins the others."""
        if self._stage.correction is not None and self._stage.correction.is_loss:
            self._stage.correction.before_step(self.sites, step, self._stage.steps)

    def before_update(self, step: int) -> None:
        """After gradients are clipped: coupled corrections must not crowd out the task's gradient."""
        if self._stage.correction is not None and not self._stage.correction.is_loss:
            self._stage.correction.before_step(self.sites, step, self._stage.steps)

    def after_update(self, step: int, lr: float) -> None:
        """After the optimizer: decoupled corrections and freezing move weights, ranges are kept."""
        if self._stage.correction is not None:
            self._stage.correction.after_step(self.sites, step, self._stage.steps, lambda _: lr)
        if self.tracker is not None:
            self._watch(self.tracker, step)
        if self._keeps:
            end_step(self._model)

    def logged(self) -> dict[str, Tensor]:
        """Return what is logged beside the losses."""
        if self.tracker is None:
            return {}
        percent = {"train/oscillation_percent": self.tracker.percentage()}
        if self._freezing is not None:
            percent["train/frozen_percent"] = 100 * self.tracker.frozen_share()
        return percent

    def _watch(self, tracker: OscillationTracker, step: int) -> None:
        threshold = None if self._freezing is None else self._freezing.threshold_at(step, self._stage.steps)
        if threshold is not None:
            tracker.apply_frozen()
        tracker.update()
        if threshold is not None:
            tracker.freeze(threshold)
            tracker.apply_frozen()


def calibrate_student(student: Instrument, data: StepDataModule, stage: Stage) -> None:
    """Set the scales that start from data on the stage's first training batches; nothing to do if all are set."""
    batches = data.training_batches(stage.first_step, stage.calibration_batches)
    names = calibrate(student.model, batches, student.run)
    if names:
        print(f"  {len(names)} quantizers set on {stage.calibration_batches} training batch(es)", flush=True)
