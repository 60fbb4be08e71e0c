"""Run identity: the same computation has the same id, wherever it is stored, logged or run."""

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lowbit.config.data_files import file_digest
from lowbit.config.glue_files import fingerprint
from lowbit.config.image_files import IMAGE_FILES, image_fingerprint
from lowbit.config.squad_files import squad_fingerprint
from lowbit.config.xglue_files import xglue_fingerprint
from lowbit.settings.data import DataConfig, DataKind, ImageConfig
from lowbit.settings.run import Config
from lowbit.soft_labels.files import store_digest

Composed = DictConfig | Mapping[str, Any]  # as Hydra composes it, or as `resolved` returns it
NOT_IDENTITY = (
    "name",
    "sweep",
    "paths",
    "logger",
    "teacher.min_score",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.threads",
    "trainer.eval_every",
    "trainer.checkpoint_every",
    "trainer.log_every",
    "trainer.progress",
    "data.num_workers",
)
# Quantizers with one scale per batch see the evaluation batches; the full-precision teacher does not. It is trained on
# whole images, so that a store can be written with it, and on the task's own rows.
_NOT_TEACHER_DATA = ("eval_batch_size", "soft_labels", "num_crops", "train_file")
NOT_TEACHER_IDENTITY = (*NOT_IDENTITY, *(f"data.{key}" for key in _NOT_TEACHER_DATA))

_FILES = {
    DataKind.glue: fingerprint,
    DataKind.squad: squad_fingerprint,
    DataKind.xglue: xglue_fingerprint,
    **dict.fromkeys(IMAGE_FILES, image_fingerprint),
}
# Settings that came later do not count where they are unset, so that runs from before keep their ids; those of data:
_LATER_SETTINGS = ("xglue_task", "language", "languages")
_PLAIN_IMAGES = OmegaConf.to_container(OmegaConf.structured(ImageConfig), enum_to_str=True)
_RECORDS = ("teacher.json", "stage.json")  # what training them took: no part of the model
_MODEL_FILES = (".safetensors", ".bin", ".json", ".txt", ".model")  # the last of SentencePiece


def resolved(cfg: Composed) -> dict[str, Any]:
    """Return the config as plain builtins of its own: interpolations resolved, enums as their names."""
    return {str(key): _copied(value) for key, value in _plain(cfg).items()}


def _plain(cfg: Composed) -> Mapping[str, Any]:
    """Return the same, perhaps shared with the caller."""
    if not isinstance(cfg, DictConfig):
        return cfg
    container = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _copied(value: Any) -> Any:
    """Do what `copy.deepcopy` does, ten times as fast, of builtins as JSON has them."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def run_id(cfg: Composed) -> str:
    """Return the id of a run: a hash of the resolved config without `NOT_IDENTITY`.

    Stages count in their order, folders and soft-label stores by what is in them, the teacher only where a stage needs
    one, and the crops per step only where there is a store.
    """
    content = _content(cfg, NOT_IDENTITY)
    stages = content["method"]["stages"]
    content["method"]["stages"] = list(stages.items())
    if not any(map(_needs_teacher, stages.values())):
        del content["teacher"]
    _count_soft_labels(content["data"])
    return _digest(content)


def run_folder(cfg: Composed, config: Config) -> Path:
    """Return where the run keeps its files."""
    return Path(config.paths.outputs) / "runs" / config.name / run_id(cfg)


def teacher_id(cfg: Composed) -> str:
    """Return the id of the teacher that the run needs: a hash of data, model, precision and teacher settings."""
    content = _content(cfg, NOT_TEACHER_IDENTITY)
    if "model" in content["teacher"]:
        content["model"] = content["teacher"].pop("model")
    return _digest({part: content[part] for part in ("data", "model", "teacher", "trainer")})


def cached_teacher(cfg: Composed) -> str | None:
    """Return the id of the teacher that the run takes from the cache, or None: no teacher, or one that is given."""
    content = _plain(cfg)
    if content["teacher"]["source"] != "finetune" or not any(map(_needs_teacher, content["method"]["stages"].values())):
        return None
    return teacher_id(cfg)


def _content(cfg: Composed, left_out: tuple[str, ...]) -> dict[str, Any]:
    content = resolved(cfg)
    for path in left_out:
        _drop(content, path)
    for part in _models(content):
        part["path"] = _fingerprint(part["path"])
        if part["revision"] is None:
            del part["revision"]
    if content["teacher"]["model"] is None:
        del content["teacher"]["model"]
    if content["data"]["kind"] in (kind.name for kind in _FILES):
        content["data"].update(dir=_files(content["data"]), train_file=None)
    for key in _LATER_SETTINGS:
        if content["data"][key] is None:
            del content["data"][key]
    if content["data"]["image"] == _PLAIN_IMAGES:
        del content["data"]["image"]
    return content


def _models(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of a config that name weights."""
    parts = (content["model"], content["teacher"], content["teacher"]["model"])
    return [part for part in parts if part is not None]


def _needs_teacher(stage: dict[str, Any]) -> bool:
    """Say of a stage what `Recipe.needs_teacher` says of the whole recipe."""
    return stage["student"] in ("teacher", "narrow") or (stage["teacher"] and stage["supervisor"] == "teacher")


def _drop(content: dict[str, Any], path: str) -> None:
    *parents, leaf = path.split(".")
    for parent in parents:
        content = content[parent]
    del content[leaf]


def _count_soft_labels(data: dict[str, Any]) -> None:
    folder = data["soft_labels"]
    if folder is None:
        del data["soft_labels"], data["num_crops"]
    else:
        data["soft_labels"] = store_digest(Path(folder).expanduser()) or folder


def _fingerprint(path: str | None) -> str | None:
    """Return a hash of a folder's config and weight files; anything else (a hub name) stands for itself."""
    if path is None or not Path(path).expanduser().is_dir():
        return path
    digest = hashlib.sha256()
    for file in sorted(Path(path).expanduser().iterdir()):
        if file.suffix in _MODEL_FILES and file.name not in _RECORDS:
            digest.update(file.name.encode())
            digest.update(bytes.fromhex(file_digest(file)))
    return digest.hexdigest()


def _files(settings: dict[str, Any]) -> str | None:
    """Return a hash of the files of a data set; those of a config that does not validate stand for themselves."""
    data = _data_config(json.dumps(settings))
    try:
        return _FILES[data.kind](data)
    except (ValueError, OSError):
        return f"{data.dir} {data.train_file}"


@lru_cache(maxsize=1024)
def _data_config(settings: str) -> DataConfig:
    """Return the settings as typed object; the jobs of a sweep share a few."""
    data = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), json.loads(settings)))
    assert isinstance(data, DataConfig)
    return data


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
