"""Configs without composing them anew for every case."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from lowbit.config.validate import load

Changed = Callable[..., DictConfig]


@cache
def _loaded(overrides: tuple[str, ...]) -> DictConfig:
    return load(list(overrides))[0]


@pytest.fixture(scope="session")
def changed() -> Changed:
    """Return a function: overrides that compose, then changes by dotted key that only the types check."""

    def make(*overrides: str, **changes: Any) -> DictConfig:
        cfg = copy.deepcopy(_loaded(overrides))
        for key, value in changes.items():
            OmegaConf.update(cfg, key, value, merge=False)
        return cfg

    return make


@pytest.fixture(autouse=True)
def _hydra_is_left_clean():
    yield
    assert not GlobalHydra.instance().is_initialized()
