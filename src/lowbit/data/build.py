"""From a data config to its description and its data module."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

from lowbit.config.image_files import IMAGE_FILES
from lowbit.data.agreement import PAD, agreement_info, agreement_splits, encode_words
from lowbit.data.datamodule import StepDataModule
from lowbit.data.digits import digits_info, digits_splits
from lowbit.data.glue import glue_info, glue_splits
from lowbit.data.image_sets import image_info, image_splits
from lowbit.data.squad import squad_data, squad_info
from lowbit.data.xglue import xglue_info, xglue_splits
from lowbit.settings.data import DataConfig, DataInfo, DataKind, ImageInput, TokenizerKind


def data_info(config: DataConfig) -> DataInfo:
    """Describe a data set without loading it; raise ValueError for settings that it cannot serve."""
    for key, size in (("batch_size", config.batch_size), ("eval_batch_size", config.eval_batch_size)):
        if size < 1:
            raise ValueError(f"data.{key}={size} must be at least 1")
    match config.kind:
        case DataKind.digits:
            return digits_info(config)
        case DataKind.agreement:
            return agreement_info(config)
        case DataKind.glue:
            return glue_info(config)
        case DataKind.squad:
            return squad_info(config)
        case DataKind.image_folder | DataKind.cifar10 | DataKind.cifar100:
            return image_info(config)
        case DataKind.xglue:
            return xglue_info(config)


def build_datamodule(
    config: DataConfig,
    seed: int,
    tokenizer: Any = None,
    cache: Path | None = None,
    image: ImageInput | None = None,
) -> StepDataModule:
    """Build the data module of a config.

    Args:
        config: The data group.
        seed: Seed of row order and augmentation; the split has its own in the config.
        tokenizer: Hugging Face tokenizer of the model, for `tokenizer: model`; ignored for own word ids.
        cache: Folder where tokenised files of data sets are kept; None keeps none.
        image: What a pretrained model wants of image files; None: the size and the statistics are those of the data.
    """
    info = data_info(config)
    _warn_ignored(config, info)
    if config.kind is DataKind.digits:
        return StepDataModule(info, config, seed, partial(digits_splits, config, seed))
    if config.kind in IMAGE_FILES:
        info = image_info(config, image)
        return StepDataModule(info, config, seed, partial(image_splits, config, info, seed, cache))
    if config.tokenizer is TokenizerKind.words and config.kind is DataKind.agreement:
        return StepDataModule(info, config, seed, partial(agreement_splits, config, encode_words, PAD))
    if tokenizer is None:
        own = ", or set data.tokenizer=words" if config.kind is DataKind.agreement else ""
        raise ValueError(f"data={config.name} needs a model that brings a tokenizer: use model=minilm or hf{own}")
    if config.kind is DataKind.glue:
        return StepDataModule(info, config, seed, partial(glue_splits, config, info, tokenizer, cache))
    if config.kind is DataKind.xglue:
        return StepDataModule(info, config, seed, partial(xglue_splits, config, info, tokenizer, cache))
    if config.kind is DataKind.squad:
        info, load = squad_data(config, info, tokenizer, cache)
        return StepDataModule(info, config, seed, load)

    def encode(texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = tokenizer(texts)["input_ids"]
        return ids

    return StepDataModule(info, config, seed, partial(agreement_splits, config, encode, tokenizer.pad_token_id))


def _warn_ignored(config: DataConfig, info: DataInfo) -> None:
    if info.modality == "text" and config.augment:
        warnings.warn(f"data.augment has no effect on the text of {config.name}", stacklevel=3)
    if info.modality == "image" and (config.tokenizer is TokenizerKind.model or config.max_length is not None):
        warnings.warn(f"data.tokenizer and data.max_length have no effect on the images of {config.name}", stacklevel=3)
    if info.modality == "image" and config.length_grouped:
        warnings.warn(f"data.length_grouped has no effect on the images of {config.name}", stacklevel=3)
