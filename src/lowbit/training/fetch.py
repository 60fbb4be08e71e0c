"""What `lowbit fetch` does: data and weights of a config into their caches, once, with network access."""

from __future__ import annotations

import os
from collections.abc import Iterator

from lowbit.config.teacher import teacher_model
from lowbit.data.fetch import fetch_data
from lowbit.hub import quiet_hub
from lowbit.modeling.build import NO_CODE, out_of_reach, source_of
from lowbit.settings.model import ModelConfig, ModelKind, TeacherSource
from lowbit.settings.run import Config

_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def fetch(config: Config, parts: tuple[str, ...]) -> Iterator[str]:
    """Fetch the parts (`data`, `model`, `teacher`) that are not there yet; yield a line for each.

    Raises:
        ValueError: something is out of reach, or the environment forbids to reach for it.
    """
    forbidden = next(
        (name for name in _OFFLINE if os.environ.get(name, "").lower() in ("1", "true", "yes", "on")), None
    )
    if forbidden is not None:
        raise ValueError(
            f"{forbidden}={os.environ[forbidden]} forbids the network: run `env -u {forbidden} lowbit fetch ...`"
        )
    if "model" in parts:
        yield _model(config.model)
    if "teacher" in parts and (config.teacher.source is TeacherSource.hub or config.teacher.model is not None):
        yield _model(teacher_model(config))
    if "data" in parts:  # at last: images that cannot be fetched must not keep an experiment from its weights
        yield from fetch_data(config.data)


def _model(config: ModelConfig) -> str:
    if config.kind is ModelKind.timm:
        return _timm(config)
    if config.kind is not ModelKind.hf:
        return f"model={config.name}: random weights, needs no files"
    source = source_of(config)
    if config.package is not None:
        return f"model={config.name}: in the package {config.package}"
    from transformers import AutoModel, AutoProcessor, AutoTokenizer

    revision = config.revision or "main"
    try:
        with quiet_hub():
            loaded = AutoModel.from_pretrained(source, revision=revision, **NO_CODE)
            preparation = AutoProcessor if loaded.main_input_name == "pixel_values" else AutoTokenizer
            preparation.from_pretrained(source, revision=revision, **NO_CODE)
    except (OSError, ValueError) as error:
        raise out_of_reach(config, "it", error) from error
    return f"model={config.name}: {source} at revision {revision} is cached"


def _timm(config: ModelConfig) -> str:
    import timm

    if not config.pretrained:
        return f"model={config.name}: random weights, needs no files"
    assert config.timm_name is not None
    try:
        with quiet_hub():
            timm.create_model(config.timm_name, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise out_of_reach(config, "its weights", error) from error
    return f"model={config.name}: the weights of {config.timm_name} are cached"
