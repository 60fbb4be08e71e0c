"""Configs without composing them anew for every case."""

import json
import pickle
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from safetensors.numpy import save_file

from lowbit.config.validate import load

Changed = Callable[..., DictConfig]


@cache
def _loaded(overrides: tuple[str, ...]) -> bytes:
    return pickle.dumps(load(list(overrides))[0])  # read back in half the time of a deep copy


@pytest.fixture(scope="session")
def run_ids() -> dict[str, Any]:
    """The ids of all shipped jobs as version 0.1.0 gave them: a run of that version is found by every later one."""
    return json.loads((Path(__file__).parents[1] / "golden" / "run_ids.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def changed() -> Changed:
    """Return a function: overrides that compose, then changes by dotted key that only the types check."""

    def make(*overrides: str, **changes: Any) -> DictConfig:
        cfg: DictConfig = pickle.loads(_loaded(overrides))
        for key, value in changes.items():
            OmegaConf.update(cfg, key, value, merge=False)
        return cfg

    return make


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that passes for a Hugging Face model where nothing but its files is looked at."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text("{}")
    save_file({"weight": np.zeros(1, np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def whole_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that passes for a soft-label store of all digits where nothing but sizes is looked at."""
    shard = {"rows": 1297, "bytes": 10, "sha256": "of nothing", "skipped": []}
    manifest = {
        "format": 2,
        "data": {"name": "digits", "size": 1297, "identity": "pixels", "probe": "none"},
        "teacher": {"id": "some", "description": ""},
        "labels": {"type": "marginal_smoothing_k5", "classes": 10},
        "crops": {"per_image": 6, "seed": 0},
        "transform": {"size": 8, "interpolation": "bilinear", "mean": None, "std": None},
        "images_per_shard": 1297,
        "command": "lowbit softlabels here",
        "shards": {"part-00000.safetensors": shard},
    }
    folder = tmp_path_factory.mktemp("labels") / "store"
    folder.mkdir()
    (folder / "part-00000.safetensors").write_bytes(b"0123456789")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def store(whole_store: Path, tmp_path: Path) -> Path:
    """A copy of the store, to be changed."""
    return Path(shutil.copytree(whole_store, tmp_path / "store"))


@pytest.fixture(autouse=True)
def _hydra_is_left_clean():
    yield
    assert not GlobalHydra.instance().is_initialized()
