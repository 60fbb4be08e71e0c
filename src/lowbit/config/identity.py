"""Run identity: the same computation has the same id, wherever it is stored, logged or run."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from lowbit.config.data_files import file_digest
from lowbit.config.glue_files import fingerprint
from lowbit.config.image_files import IMAGE_FILES, image_fingerprint
from lowbit.config.squad_files import squad_fingerprint
from lowbit.config.xglue_files import xglue_fingerprint
from lowbit.settings.data import DataConfig, DataKind
from lowbit.settings.recipe import StageConfig
from lowbit.settings.run import Config
from lowbit.soft_labels.files import store_digest

Composed = DictConfig | Mapping[str, object]  # as Hydra composes it, or as `resolved` returns it
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
# Arguments of the Trainer in `trainer.extra` that change no result: they profile, check, or concern hardware.
EXTRA_NOT_IDENTITY = ("benchmark", "default_root_dir", "detect_anomaly", "profiler")
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


def _copied(value: object) -> object:
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
    for argument in EXTRA_NOT_IDENTITY:
        content["trainer"].get("extra", {}).pop(argument, None)
    for part in _models(content):
        part["path"] = _fingerprint(part["path"])
    if content["data"]["kind"] in (kind.name for kind in _FILES):
        content["data"].update(dir=_files(content["data"]), train_file=None)
    _drop_later(content, Config)
    return content


def _drop_later(content: dict[str, Any], group: type) -> None:
    """Leave out `later` settings at their defaults, so that runs from before them keep their ids."""
    defaults, groups = _declared(group)
    for name, default in defaults.items():
        if name in content and content[name] == default:
            del content[name]
    for name, inner in groups.items():
        value = content.get(name)
        several = value.values() if isinstance(value, dict) and inner.many else value if inner.many else [value]
        for item in several or ():
            if isinstance(item, dict):
                _drop_later(item, inner.group)


class _Inner(NamedTuple):
    group: type
    many: bool


@cache
def _declared(group: type) -> tuple[dict[str, object], dict[str, _Inner]]:
    """Return the `later` settings of a group with their defaults, and the groups inside it."""
    plain = OmegaConf.to_container(OmegaConf.structured(group), enum_to_str=True)
    assert isinstance(plain, dict)
    groups = {}
    for name, hint in get_type_hints(group).items():
        parts = [hint, *get_args(hint)]
        many = any(get_origin(part) is list or get_origin(part) is dict for part in parts)
        inner = [part for outer in parts for part in (outer, *get_args(outer)) if isinstance(part, type)]
        inner = [part for part in inner if is_dataclass(part)]
        if inner:
            groups[name] = _Inner(inner[0], many)
    return {f.name: plain[f.name] for f in fields(group) if f.metadata.get("later")}, groups


def _models(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of a config that name weights."""
    parts = (content["model"], content["teacher"], content["teacher"]["model"])
    return [part for part in parts if part is not None]


def _needs_teacher(stage: dict[str, Any]) -> bool:
    return StageConfig(**{key: stage[key] for key in ("student", "teacher", "supervisor")}).needs_teacher


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


def _files(settings: dict[str, object]) -> str | None:
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


def _digest(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
