"""Run identity: the same computation has the same id, wherever it is stored, logged or run."""

import hashlib
import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lowbit.config.schema import Config

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

_MODEL_FILES = (".safetensors", ".bin", ".json", ".txt")


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Return the config as plain builtins: interpolations resolved, enums as their names."""
    container = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def run_id(cfg: DictConfig) -> str:
    """Return the id of a run: a hash of the resolved config without `NOT_IDENTITY`.

    Stages count in their order, folders by what is in them, and the teacher only where a stage needs one.
    """
    content = _content(cfg, NOT_IDENTITY)
    stages = content["method"]["stages"]
    content["method"]["stages"] = list(stages.items())
    if not any(stage["teacher"] or stage["student"] == "teacher" for stage in stages.values()):
        del content["teacher"]
    return _digest(content)


def run_folder(cfg: DictConfig, config: Config) -> Path:
    """Return where the run keeps its files."""
    return Path(config.paths.outputs) / "runs" / config.name / run_id(cfg)


def teacher_id(cfg: DictConfig) -> str:
    """Return the id of the teacher that the run needs: a hash of data, model, precision and teacher settings."""
    content = _content(cfg, NOT_TEACHER_IDENTITY)
    return _digest({part: content[part] for part in ("data", "model", "teacher", "trainer")})


def _content(cfg: DictConfig, left_out: tuple[str, ...]) -> dict[str, Any]:
    content = resolved(cfg)
    for path in left_out:
        _drop(content, path)
    for part in ("model", "teacher"):
        content[part]["path"] = _fingerprint(content[part]["path"])
    return content


def _drop(content: dict[str, Any], path: str) -> None:
    *parents, leaf = path.split(".")
    for parent in parents:
        content = content[parent]
    del content[leaf]


def _fingerprint(path: str | None) -> str | None:
    """Return a hash of a folder's config and weight files; anything else (a hub name) stands for itself."""
    if path is None or not Path(path).expanduser().is_dir():
        return path
    digest = hashlib.sha256()
    for file in sorted(Path(path).expanduser().iterdir()):
        if file.suffix in _MODEL_FILES:
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
