"""`lowbit softlabels`: store a teacher's answers to crops of the training images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from lowbit.cli.verbs import OVERRIDES, AddVerb, describe_error
from lowbit.config.validate import load
from lowbit.settings.run import Config
from lowbit.soft_labels.files import LabelKind, Manifest, describe_written

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.training.run import Run


_EXAMPLE = "lowbit softlabels labels/digits experiment=digits/variation_aware_mckd --crops 16 --flip 0"
_TOP_K = 5


def add(verb: AddVerb) -> None:
    """Add the verb."""
    sub = verb("softlabels", _softlabels, "store a teacher's answers to crops of the training images", _EXAMPLE)
    sub.add_argument("out", type=Path, help="folder of the store; one of the same settings is resumed")
    sub.add_argument(
        "overrides", nargs="*", default=[], help=f"{OVERRIDES}; give those of the training that will use the store"
    )
    sub.add_argument("--crops", type=int, default=500, help="crops per image (500)")
    sub.add_argument(
        "--label-type",
        choices=list(LabelKind),
        default=LabelKind.marginal_smoothing,
        help="what is kept of each answer",
    )
    sub.add_argument("--top-k", type=int, help=f"classes that the marginal types keep ({_TOP_K})")
    sub.add_argument("--seed", type=int, default=0, help="seed of the crops (0)")
    sub.add_argument(
        "--scale",
        type=float,
        nargs=2,
        default=(0.08, 0.936),
        metavar=("LOW", "HIGH"),
        help="share of the area (0.08 0.936)",
    )
    sub.add_argument("--flip", type=float, default=0.5, help="probability that a crop is mirrored (0.5)")
    sub.add_argument(
        "--interpolation", choices=("bilinear", "bicubic"), default="bilinear", help="resizing of the crops (bilinear)"
    )
    sub.add_argument("--images-per-shard", type=int, default=1000, help="rows of a file, the unit of resuming (1000)")


def _softlabels(args: argparse.Namespace) -> int:
    label_type = _label_type(args.label_type, args.top_k)
    if args.seed < 0:
        raise ValueError(f"--seed {args.seed}: must be at least 0")
    cfg, config = load(args.overrides, labelling=True)
    from lowbit.training.guards import NonFiniteError

    try:
        manifest = _write(args, label_type, cfg, config)
    except NonFiniteError as error:  # in the teacher's training
        print(describe_error(error), file=sys.stderr)
        return 1
    print(describe_written(args.out, manifest))
    return 0


def _label_type(kind: LabelKind, top_k: int | None) -> str:
    if kind.startswith("marginal"):
        return f"{kind}_k{_TOP_K if top_k is None else top_k}"
    if top_k is not None:
        raise ValueError(f"--top-k {top_k} goes with the marginal types, not with {kind}")
    return kind


def _write(args: argparse.Namespace, label_type: str, cfg: DictConfig, config: Config) -> Manifest:
    """Write or resume the store of a config's training images and teacher."""
    import torch

    from lowbit.soft_labels.crops import CropRule
    from lowbit.soft_labels.dataset import crop_transform, training_images
    from lowbit.soft_labels.writer import StoreSettings, write_store
    from lowbit.training.run import Run
    from lowbit.training.setup import config_errors

    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    run = Run(cfg, replace(config, trainer=replace(config.trainer, devices=1, num_nodes=1)))
    data = run.teacher_data
    with config_errors():
        images = training_images(data)
        settings = StoreSettings(
            data=config.data.name,
            teacher=run.teacher_id,
            num_classes=data.info.num_labels,
            transform=crop_transform(data.info, args.interpolation),
            crops=args.crops,
            label_type=label_type,
            rule=CropRule(scale=tuple(args.scale), flip=args.flip),
            seed=args.seed,
            description=f"{config.model.name}, teacher.source={config.teacher.source.name}",
            images_per_shard=args.images_per_shard,
            batch_size=config.data.eval_batch_size,
            command=args.command,
            names=data.info.labels,
        )
    return write_store(images, lambda: _make_teacher(run), args.out, settings, progress=config.trainer.progress)


def _make_teacher(run: Run) -> Callable[[Tensor], Tensor]:
    """Return the function from pixels to the teacher's logits, on the device that a run would take."""
    from lightning import Fabric

    from lowbit.modeling import prepare
    from lowbit.training.teacher import obtain_teacher

    teacher = obtain_teacher(run).model
    device = Fabric(accelerator=run.config.trainer.accelerator, devices=1).device
    instrument, dtype = prepare(teacher.to(device)), next(teacher.parameters()).dtype
    return lambda pixels: instrument.run({"pixel_values": pixels.to(device, dtype)}).logits
