"""`lowbit softlabels`: a teacher's answers to crops of every training image, written or imported once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning import Fabric
from omegaconf import DictConfig
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from lowbit.config import identity
from lowbit.data import DataInfo
from lowbit.data.crops import CropRule
from lowbit.data.fkd_import import PUBLISHED, import_fkd
from lowbit.data.label_manifest import StoreSettings, described, pixel_digest, probe
from lowbit.data.label_types import LabelKind
from lowbit.data.label_writing import resumed_manifest
from lowbit.data.labelling import write_store
from lowbit.data.stored_crops import crop_transform, training_images
from lowbit.modeling import prepare
from lowbit.settings.run import Config
from lowbit.training.setup import config_errors, make_teacher_datamodule
from lowbit.training.teacher import Teacher, obtain_teacher

DEFAULT_K = 5
SHOWN = 10


@dataclass(frozen=True)
class LabelOptions:
    """What the command line says of a store; None: the default, or what was published."""

    crops: int
    label_type: str
    top_k: int | None
    seed: int | None
    scale: list[float] | None
    flip: float | None
    interpolation: str | None
    images_per_shard: int
    command: str

    @property
    def labels(self) -> str:
        """The label type by its full name; raise ValueError for a `top_k` that does nothing."""
        if not LabelKind(self.label_type).startswith("marginal"):
            if self.top_k is not None:
                raise ValueError(f"--top-k {self.top_k} goes with the marginal types, not with {self.label_type}")
            return self.label_type
        return f"{self.label_type}_k{DEFAULT_K if self.top_k is None else self.top_k}"


def write_soft_labels(cfg: DictConfig, config: Config, out: Path, options: LabelOptions) -> str:
    """Write or resume the store of a config's training images and teacher; return what it holds.

    The teacher is obtained as a run does: from its cache or folder, or trained now. All that the command line or the
    folder may have wrong is found before that.

    Raises:
        ConfigError: options, data or folder that do not fit.
        ValueError: the teacher's answers cannot be stored.
    """
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    data, teacher_id = make_teacher_datamodule(config), identity.teacher_id(cfg)
    with config_errors():
        images = training_images(config.data, data.splits)
        settings = _settings(config, data.info, teacher_id, options)
        resumed_manifest(out, settings.plan(len(images), probe(pixel_digest(images), len(images)), "pixels"))
    one_device = replace(config.trainer, devices=1, num_nodes=1)
    teacher = obtain_teacher(replace(config, trainer=one_device), teacher_id, data)
    answer = _answering(teacher, config.trainer.accelerator)
    manifest = write_store(images, answer, out, settings, progress=config.trainer.progress)
    return _written(out, manifest)


def import_soft_labels(out: Path, fkd: Path, images: Path, options: LabelOptions, *, skip: bool) -> str:
    """Write a store from published FKD files; return what it holds.

    Args:
        out: The store.
        fkd: The published files, `<last 4 path components of the image>.tar` below it.
        images: The training images, one folder per class; the store keeps torchvision's order of them.
        options: Of which those that say how crops are drawn must be None.
        skip: Whether to leave out images with a missing or damaged file.

    Raises:
        ConfigError: options or folders that do not fit.
        ValueError: files are missing or damaged and `skip` is off.
    """
    drawn = [name for name in ("seed", "scale", "flip", "interpolation") if getattr(options, name) is not None]
    with config_errors():
        if drawn:
            raise ValueError(f"--{drawn[0]} has no effect with --fkd: the published crops are drawn already")
        for key, folder in (("--fkd", fkd), ("--images", images)):
            if not folder.is_dir():
                raise ValueError(f"{key} {folder}: no such folder")
        settings = replace(
            PUBLISHED,
            crops=options.crops,
            label_type=options.labels,
            images_per_shard=options.images_per_shard,
            command=options.command,
        )
        found = make_dataset(str(images.absolute()), extensions=IMG_EXTENSIONS)
    done = import_fkd(fkd, [path for path, _ in found], out, settings, skip=skip, progress=True)
    left_out = [f"  - {path} {problem}" for path, problem in done.problems.items()]
    more = [f"  - and {len(left_out) - SHOWN} more"] if len(left_out) > SHOWN else []
    skipped = [f"skipped {len(left_out)} images:", *left_out[:SHOWN], *more] if left_out else []
    return "\n".join([*skipped, _written(out, done.manifest)])


def _settings(config: Config, info: DataInfo, teacher_id: str, options: LabelOptions) -> StoreSettings:
    if options.seed is not None and options.seed < 0:
        raise ValueError(f"--seed {options.seed}: must be at least 0")
    rule = CropRule()
    if options.scale is not None:
        rule = replace(rule, scale=(options.scale[0], options.scale[1]))
    if options.flip is not None:
        rule = replace(rule, flip=options.flip)
    return StoreSettings(
        data=config.data.name,
        teacher=teacher_id,
        num_classes=info.num_labels,
        transform=crop_transform(info, options.interpolation or "bilinear"),
        crops=options.crops,
        label_type=options.labels,
        rule=rule,
        seed=options.seed or 0,
        description=f"{config.model.name}, teacher.source={config.teacher.source.name}",
        images_per_shard=options.images_per_shard,
        batch_size=config.data.eval_batch_size,
        command=options.command,
        names=info.labels,
    )


def _answering(teacher: Teacher, accelerator: str) -> Callable[[Tensor], Tensor]:
    """Return the function from pixels to the teacher's logits, on the device that a run would take."""
    device = Fabric(accelerator=accelerator, devices=1).device
    instrument = prepare(teacher.model.to(device))
    dtype = next(teacher.model.parameters()).dtype

    def answer(pixels: Tensor) -> Tensor:
        return instrument.run({"pixel_values": pixels.to(device, dtype)}).logits

    return answer


def _written(out: Path, manifest: dict[str, Any]) -> str:
    size = sum(shard["bytes"] for shard in manifest["shards"].values())
    return f"{out}: {described(manifest)}, {size / 1e6:.1f} MB\ntrain with data.soft_labels={out} data.augment=false"
