"""What a run would do, found out without weights: stages, and which modules the rules match.

Data are read only to compare them with a soft-label store, and where a tokenizer decides how many rows there are.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lowbit.config.budget import check_batch, epoch_steps
from lowbit.data import data_info
from lowbit.modeling import prepare
from lowbit.modeling.build import build_model
from lowbit.modeling.sizes import model_size
from lowbit.recipes import build_recipe
from lowbit.settings.model import ModelKind
from lowbit.settings.run import Config
from lowbit.soft_labels.dataset import count_labelled
from lowbit.training.setup import check_soft_labels, make_datamodule

_PATCHES = 1024  # more of them take seconds a step


def preview(config: Config) -> Iterator[str]:
    """Yield the stages with their steps, the match report and the simulated size, from a meta-device model.

    Raises:
        ConfigError: a soft-label store that is not of the data set.
        ValueError: rules that do not fit the model.
    """
    labels = check_soft_labels(config, checksums=False)
    if labels is not None:
        yield labels
    info = count_labelled(config.data, data_info(config.data))
    if info.task == "span":  # only the tokenizer knows how many windows there are; the run finds them in the cache
        info = make_datamodule(config, config.seed).info
    check_batch(config.data, info.train_size)
    recipe = build_recipe(config, epoch_steps(info.train_size, config.data.batch_size))
    for stage in recipe.stages:
        terms = ", ".join(stage.losses)
        optimizer = f"{stage.optimizer.kind} lr {stage.optimizer.lr:g}"
        yield f"stage {stage.name}: {stage.steps} steps, losses {terms}, {optimizer}"
    for rules in {stage.rules: None for stage in recipe.stages}:  # of the last stage last
        with torch.device("meta"):
            instrument = prepare(build_model(config.model, info, config.seed), rules)
    yield from instrument.resolved.report
    size = model_size(instrument)
    side, patch = info.image_size or 0, config.model.patch_size
    patches = (side // patch) ** 2
    if config.model.kind in (ModelKind.vit, ModelKind.timm_vit) and patches > _PATCHES:
        yield (
            f"note: model.patch_size={patch} makes {patches:,} patches of {side}x{side} pixels, and attention takes "
            "their square: set model.patch_size=16, or a smaller data.image.size"
        )
    yield f"size {size.simulated_bytes / 1e6:.3f} MB, {size.compression:.1f}x smaller, bits {size.bits}"
