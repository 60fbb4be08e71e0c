"""The LightningModules: FinetuneModule (labels) and DistillationModule (any method: a stage fills its slots)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lowbit.data import DataInfo, StepDataModule
from lowbit.data.shares import take_weights
from lowbit.modeling import Instrument, Plan, Trace
from lowbit.recipes import Stage
from lowbit.settings.recipe import OptimizerKind
from lowbit.training.guards import check_loss, check_outputs
from lowbit.training.optimizers import build_optimizer, has_scales
from lowbit.training.quantization import QuantizationSteps
from lowbit.training.randomness import seed_step
from lowbit.training.ranks import mean_over_ranks
from lowbit.training.schedules import build_schedule

Batch = dict[str, Tensor]
NamedMetric = tuple[str, Metric | MetricCollection]


class FinetuneModule(L.LightningModule):
    """Train one instrumented model on labels: the teacher, or a baseline without one.

    Args:
        student: the prepared model.
        stage: losses, optimizer, schedule and number of steps.
        metric: torchmetrics metric of the data set, name and object; a collection names its own values.
        seed: all randomness of step g (dropout, draws of interventions) is a function of (seed, recipe step).
    """

    def __init__(self, student: Instrument, stage: Stage, metric: NamedMetric, seed: int) -> None:
        super().__init__()
        self.student = student.model
        self.instrument = student
        self.stage = stage
        self.quantization = QuantizationSteps(student.model, stage)
        self.oscillation = self.quantization.tracker  # here for its buffers to be in checkpoints
        self.metric_name, self._metric = metric
        self._scores: dict[str, Any] = {}  # of the running evaluation, by the first part of the logged name
        self._finite: dict[str, Tensor] = {}  # whether all outputs were, so far, by the same
        self.seed = seed
        self._weights: Mapping[str, float] | None = (
            None  # of this rank's share of the batch, by what losses average over
        )
        self._schedule = build_schedule(stage.scheduler, stage.steps)
        self._scale_lr = stage.optimizer.scale_lr if has_scales(student.model) else None

    @property
    def stage_name(self) -> str:
        """What the progress display calls the stage."""
        return self.stage.name

    @property
    def views(self) -> tuple[str, ...]:
        """How the student is evaluated: plainly."""
        return ("plain",)

    @property
    def last_step(self) -> int:
        """The stage's step that was trained last; 0 before the first."""
        return max(min(self.global_step, self.stage.steps) - 1, 0)

    @property
    def phase(self) -> str:
        """What the progress display shows for the last step."""
        return self.stage.name

    def phase_values(self) -> dict[str, float]:
        """Return what is logged of the phase: nothing without an intervention."""
        return {}

    @property
    def is_logged_step(self) -> bool:
        """Whether what costs time is computed for the log at this step."""
        return (self.global_step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined,no-any-return]

    def on_train_start(self) -> None:
        """Put every student module into train mode: Lightning leaves modules in the mode it finds."""
        self.student.train()

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Compute the loss; return it with every term by name, and log both."""
        seed_step(self.seed, self.stage.first_step + self.global_step)
        total, terms = self.losses(batch, self.global_step)
        logged = {name: value.detach() for name, value in terms.items()}
        if self._weights is not None:
            total, logged = _of_all_ranks(total, logged)
        check_loss(total, logged, self.stage, self.global_step)
        self.log("train/loss", total.detach(), prog_bar=True)
        if self.is_logged_step:  # Lightning takes a tenth of a millisecond for each value, whether it is written or not
            self._log_step(logged)
        return {"loss": total, "terms": logged}

    def _log_step(self, terms: dict[str, Tensor]) -> None:
        self.log_dict({f"train/{name}": value for name, value in terms.items()})
        self.log("train/lr", self.learning_rate())
        if self._scale_lr is not None:
            self.log("train/lr_scales", self._scale_lr * self._factor())
        self.log_dict({**self.phase_values(), **self.quantization.logged()})
        self.log("step", float(self.stage.first_step + self.global_step))  # loggers count steps of the recipe

    def losses(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of the loss terms at a step of the stage, and the terms."""
        student, teacher = self.traces(batch, step)
        labels = batch.get("labels")
        if labels is not None and "word_starts" in batch:  # padding and further pieces of words have no label
            starts_BL = batch["word_starts"]
            student, labels = student.at_tokens(starts_BL), labels[starts_BL]
            teacher = None if teacher is None else teacher.at_tokens(starts_BL)
        given = (labels, batch.get("soft_labels"), self.quantization.sites)
        losses = self.stage.losses
        terms = {name: loss(student, teacher, *given) for name, loss in losses.items()}
        if self._weights is not None:
            terms = {name: term * self._weights.get(losses[name].unit or "", 1.0) for name, term in terms.items()}
        first, *rest = (losses[name].settings.weight_at(step, self.stage.steps) * terms[name] for name in terms)
        return sum(rest, first), terms

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Take the weights out of a batch that is one rank's share; a whole one has none."""
        self._weights = take_weights(batch)
        return batch

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Show the quantizers the optimizer's state."""
        weight = 1.0 if self._weights is None else self._weights["rows"]
        whole = self.trainer.world_size / weight if weight > 0 else 1.0
        self.quantization.begin(self.global_step, self.optimizers(use_pl_optimizer=False), whole)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Add the gradients of corrections that are losses."""
        self.quantization.before_clipping(self.global_step)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Update the weights, then correct them and keep the ranges of the step."""
        step, lr = self.global_step, self.learning_rate()
        super().optimizer_step(*args, **kwargs)
        self.quantization.after_update(step, lr)

    def learning_rate(self) -> float:
        """Return the learning rate of the coming update."""
        return self.stage.optimizer.lr * self._factor()

    def _factor(self) -> float:
        if self.stage.scheduler._target_ is None:
            return self._schedule(self.global_step)
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        return float(optimizer.param_groups[0]["lr"]) / self.stage.optimizer.lr

    def traces(self, batch: Batch, step: int) -> tuple[Trace, Trace | None]:
        """Run the forward passes of one training step."""
        return self.instrument.run(batch, self.stage.fields), None

    def evaluate(self, batch: Batch, view: str) -> Tensor:
        """Return logits (BC; BSL for spans, BLC for tags) of the student seen through `view`."""
        return self.instrument.run(batch).logits

    def on_validation_epoch_start(self) -> None:
        """Forget what an evaluation that was interrupted has counted."""
        self._scores, self._finite = {}, {}

    def on_test_epoch_start(self) -> None:
        """Do the same before a test."""
        self.on_validation_epoch_start()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Update the metric of every view of this validation split."""
        self._update(self._validation_names[dataloader_idx], batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the metric of every view."""
        self._update("test", batch)

    def _is_shared(self, name: str) -> bool:
        """Whether the ranks share out the evaluation of a split."""
        if self.trainer.world_size == 1:
            return False
        data: StepDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        split = data.splits.test if name == "test" else data.validation_splits[self._validation_names.index(name)]
        assert split is not None
        return data.is_shared(split)

    def _update(self, split: str, batch: Batch) -> None:
        if not len(next(iter(batch.values()))):  # none of its images could be read
            return
        for view in self.views:
            logits_BC = self.evaluate(batch, view)
            prefix = split if view == "plain" else f"{split}_{view}"
            if prefix not in self._scores:
                self._scores[prefix] = _metric_of(self._metric, self._is_shared(split)).to(logits_BC.device)
                self._finite[prefix] = torch.ones((), dtype=torch.bool, device=logits_BC.device)
            self._finite[prefix] &= torch.isfinite(logits_BC).all()
            # Spans are scored by the texts of their rows, ranked pages with those of their query.
            truth = next(batch[key] for key in ("rows", "ranked", "labels") if key in batch)
            self._scores[prefix].update(logits_BC, truth)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics."""
        for prefix, finite in self._finite.items():
            check_outputs(mean_over_ranks(finite.float()) == 1, prefix, self.stage)
        found = {prefix: metric.compute() for prefix, metric in self._scores.items()}
        values = {p: value if isinstance(value, dict) else {self.metric_name: value} for p, value in found.items()}
        for prefix, named in {**values, **self._means(values)}.items():
            self.log_dict({f"{prefix}/{name}": value for name, value in named.items()})
        # An evaluation belongs to the row of the last update, not to the first step of what comes next.
        self.log("step", float(self.stage.first_step + self.last_step))

    def _means(self, values: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """Return the means over the validation splits, where the data set wants them, of each view."""
        if not self._data_info.averaged or "val" not in values:
            return {}
        means = {}
        for view in self.views:
            ending = "" if view == "plain" else f"_{view}"
            splits = [values[f"{name}{ending}"] for name in self._validation_names]
            means[f"val_mean{ending}"] = {
                name: torch.stack([split[name] for split in splits]).mean() for name in splits[0]
            }
        return means

    @property
    def _data_info(self) -> DataInfo:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        return data.info  # type: ignore[no-any-return]

    @property
    def _validation_names(self) -> tuple[str, ...]:
        return ("val", *(f"val_{name}" for name in self._data_info.more_validation))

    def on_test_epoch_end(self) -> None:
        """Log the metrics."""
        self.on_validation_epoch_end()

    def configure_optimizers(self) -> Any:
        """Build the stage's optimizer and schedule, fresh."""
        # A fused optimizer unscales float16 gradients inside its step, after the clipping below has seen them.
        fused = self.trainer.precision != "16-mixed"
        stage = self.stage
        optimizer, scheduler = build_optimizer(
            self.student, stage.optimizer, self._schedule, scheduler=stage.scheduler, fused=fused
        )
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip the gradients, then add coupled corrections."""
        self.clip_gradients_of_stage()
        self.quantization.before_update(self.global_step)

    def clip_gradients_of_stage(self) -> None:
        """Clip the global norm; BertAdam clips each tensor itself."""
        settings = self.stage.optimizer
        clips_itself = settings._target_ is None and settings.kind == OptimizerKind.bert_adam
        if not clips_itself and settings.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.student.parameters(), settings.max_grad_norm, foreach=True)


class DistillationModule(FinetuneModule):
    """Train a student under a frozen teacher; which method it is lies in the stage alone.

    The teacher is in eval mode, gets no gradient, and is absent from checkpoints.
    """

    def __init__(self, student: Instrument, teacher: Instrument, stage: Stage, metric: NamedMetric, seed: int) -> None:
        super().__init__(student, stage, metric, seed)
        self.teacher = teacher.model.requires_grad_(False).eval()
        self._teacher_instrument = teacher

    @property
    def views(self) -> tuple[str, ...]:
        """Plain, and with the teacher's tensors where the stage intervenes."""
        return ("plain",) if self.stage.intervention is None else ("plain", "intervened")

    @property
    def phase(self) -> str:
        """The stage and, where it intervenes, the sites of the last step."""
        intervention = self.stage.intervention_at(self.last_step, self.seed)
        return self.stage.name if intervention is None else f"{self.stage.name}:{'+'.join(sorted(intervention.sites))}"

    def phase_values(self) -> dict[str, float]:
        """Return the teacher's share at each site where the stage intervenes, in the layers that this step covers."""
        intervention = self.stage.intervention_at(self.global_step, self.seed)
        if intervention is None or self.stage.intervention is None:
            return {}
        return {f"phase/{site}": intervention.mix_of(site) for site in sorted(self.stage.intervention.sites)}

    def traces(self, batch: Batch, step: int) -> tuple[Trace, Trace]:
        """Run the teacher for what losses and intervention ask for, then the student under the plan."""
        intervention = self.stage.intervention_at(step, self.seed)
        sites = frozenset() if intervention is None else intervention.sites
        teacher = self._teach(batch, self.stage.fields | sites)
        plan = None if intervention is None else Plan(intervention, teacher)
        return self.instrument.run(batch, self.stage.fields, plan), teacher

    def evaluate(self, batch: Batch, view: str) -> Tensor:
        """Return logits of the plain student, or of the student under the last step's intervention."""
        if view == "plain":
            return self.instrument.run(batch).logits
        intervention = self.stage.intervention_at(self.last_step, self.seed)
        assert intervention is not None
        plan = Plan(intervention, self._teach(batch, intervention.sites))
        return self.instrument.run(batch, plan=plan).logits

    def _teach(self, batch: Batch, fields: frozenset[str]) -> Trace:
        with torch.no_grad():
            return self._teacher_instrument.run(batch, fields).select(
                self.stage.supervisor_map, self.stage.embedding_target
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the teacher out."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith("teacher.")}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the teacher that is here back in, so that loading stays strict for everything else."""
        checkpoint["state_dict"].update({f"teacher.{k}": v for k, v in self.teacher.state_dict().items()})


def _of_all_ranks(total: Tensor, terms: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return total and terms with the values of the whole batch; the total keeps this rank's gradient."""
    total_all, *terms_all = mean_over_ranks(
        torch.stack([value.to(total.dtype) for value in (total.detach(), *terms.values())])
    ).unbind()
    return total + (total_all - total.detach()), dict(zip(terms, terms_all, strict=True))


def _metric_of(metric: Metric | MetricCollection, shared: bool) -> Metric | MetricCollection:
    """Return a fresh metric; one that is not shared is of this rank's rows alone, which are all."""
    own = metric.clone()
    if not shared:
        for part in own.values() if isinstance(own, MetricCollection) else [own]:
            part.distributed_available_fn = lambda: False
    return own
