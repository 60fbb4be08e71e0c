"""Overrides of a run that takes seconds and has everything that a real one has: two stages, dropout, a teacher."""

import copy
from functools import cache
from pathlib import Path

from omegaconf import DictConfig

from lowbit.config.compose import to_config
from lowbit.config.validate import load
from lowbit.settings.run import Config

TINY_TI = (
    "data=agreement",
    "model=bert_micro",
    "data.train_size=64",
    "data.eval_size=32",
    "data.batch_size=8",
    "model.hidden_size=16",
    "model.num_layers=2",
    "model.num_heads=2",
    "model.intermediate_size=32",
    "teacher.budget={steps: 4, epochs: null}",
    "budget={steps: 18, epochs: null}",
    "method=ti_g",
    "method.stages.intervene.steps=9",
    "trainer.checkpoint_every=3",
    "trainer.log_every=1",
    "trainer.progress=false",
    "logger=none",
)


@cache
def _loaded(overrides: tuple[str, ...]) -> DictConfig:
    return load(list(overrides))[0]


def load_into(outputs: Path, *overrides: str) -> tuple[DictConfig, Config]:
    """Return what `load` makes of the overrides, with results in `outputs`; the same overrides are composed once."""
    cfg = copy.deepcopy(_loaded(overrides))
    cfg.paths.outputs = str(outputs)
    return cfg, to_config(cfg)
