"""Run identity: the same computation has the same id, wherever it is stored, logged or run."""

import hashlib
import json
from typing import Any

from omegaconf import DictConfig, OmegaConf

NOT_IDENTITY = (
    "name",
    "sweep",
    "paths",
    "logger",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.threads",
    "trainer.eval_every",
    "trainer.checkpoint_every",
    "trainer.log_every",
    "trainer.progress",
    "data.num_workers",
)
# Quantizers with one scale per batch see the evaluation batches; the full-precision teacher does not.
NOT_TEACHER_IDENTITY = (*NOT_IDENTITY, "data.eval_batch_size")


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Return the config as plain builtins: interpolations resolved, enums as their names."""
    container = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def run_id(cfg: DictConfig) -> str:
    """Return the id of a run: a hash of the resolved config without `NOT_IDENTITY`."""
    content = resolved(cfg)
    for path in NOT_IDENTITY:
        _drop(content, path)
    return _digest(content)


def teacher_id(cfg: DictConfig) -> str:
    """Return the id of the teacher that the run needs: a hash of data, model, precision and teacher settings."""
    content = resolved(cfg)
    for path in NOT_TEACHER_IDENTITY:
        _drop(content, path)
    return _digest({part: content[part] for part in ("data", "model", "teacher", "trainer")})


def _drop(content: dict[str, Any], path: str) -> None:
    *parents, leaf = path.split(".")
    for parent in parents:
        content = content[parent]
    del content[leaf]


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
