"""From a data config to its description and its data module."""

import warnings
from functools import partial

from lowbit.config.schema import DataConfig, DataKind, TokenizerKind
from lowbit.data.agreement import PAD, Encode, agreement_info, agreement_splits, encode_words
from lowbit.data.datamodule import StepDataModule
from lowbit.data.digits import digits_info, digits_splits
from lowbit.data.info import DataInfo


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


def build_datamodule(config: DataConfig, seed: int, encode: Encode | None = None, pad_id: int = PAD) -> StepDataModule:
    """Build the data module of a config.

    Args:
        config: The data group.
        seed: Seed of row order and augmentation; the split has its own in the config.
        encode: Texts to token ids with special tokens, for `tokenizer: model`; ignored for own word ids.
        pad_id: Id of the padding token that goes with `encode`.
    """
    info = data_info(config)
    _warn_ignored(config, info)
    if config.kind is DataKind.digits:
        return StepDataModule(info, config, seed, partial(digits_splits, config, seed))
    if config.tokenizer is TokenizerKind.words:
        encode, pad_id = encode_words, PAD
    if encode is None:
        raise ValueError(
            "data.tokenizer=model needs a model that brings a tokenizer: pass its `encode`, "
            "choose such a model (model.kind=hf), or set data.tokenizer=words"
        )
    return StepDataModule(info, config, seed, partial(agreement_splits, config, encode, pad_id))


def _warn_ignored(config: DataConfig, info: DataInfo) -> None:
    if info.modality == "text" and config.augment:
        warnings.warn(f"data.augment has no effect on the text of {config.name}", stacklevel=3)
    if info.modality == "image" and (config.tokenizer is TokenizerKind.model or config.max_length is not None):
        warnings.warn(f"data.tokenizer and data.max_length have no effect on the images of {config.name}", stacklevel=3)
