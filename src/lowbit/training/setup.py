"""What a run is made of, built from its config; what does not fit together is reported as a config problem."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torchmetrics import Metric

from lowbit.config.problems import ConfigError
from lowbit.config.schema import Config, Precision, TokenizerKind
from lowbit.data import DataInfo, StepDataModule, build_datamodule, build_metric
from lowbit.modeling import Instrument, Rule, prepare
from lowbit.modeling.build import build_model, build_tokenizer


@contextmanager
def config_errors() -> Iterator[None]:
    """Turn a ValueError of the block into a ConfigError: there the config is at fault, not the training.

    Raises:
        ConfigError: with the text of the ValueError.
    """
    try:
        yield
    except ValueError as error:
        raise ConfigError([str(error)]) from error


def make_datamodule(config: Config, seed: int) -> StepDataModule:
    """Build the data module, with the model's tokenizer where the data set asks for it."""
    with config_errors():
        if config.data.tokenizer is not TokenizerKind.model:
            return build_datamodule(config.data, seed)
        tokenizer = build_tokenizer(config.model)
        return build_datamodule(
            config.data, seed, lambda texts: tokenizer(texts)["input_ids"], pad_id=tokenizer.pad_token_id
        )


def make_metric(info: DataInfo) -> tuple[str, Metric]:
    """Return the data set's metric by name."""
    return info.metric, build_metric(info)


def make_model(config: Config, info: DataInfo, seed: int) -> nn.Module:
    """Build the model in the run's dtype, so that weights loaded into it are not rounded."""
    with config_errors():
        model = build_model(config.model, info, seed)
    return model.to(torch.float64 if config.trainer.precision is Precision.float64 else torch.float32)


def make_instrument(model: nn.Module, rules: tuple[Rule, ...] = (), *, initialize: bool = True) -> Instrument:
    """Prepare a model under rules; `initialize=False` where the quantizers' state is loaded next."""
    with config_errors():
        return prepare(model, rules, initialize=initialize)
