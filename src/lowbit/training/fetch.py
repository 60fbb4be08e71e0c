"""What `lowbit fetch` does: data and weights of a config into their caches, once, with network access."""

from __future__ import annotations

import os
from collections.abc import Iterator

from lowbit.config.teacher import teacher_model
from lowbit.data.fetch import fetch_data
from lowbit.modeling.hub import fetch_model
from lowbit.settings.model import TeacherSource
from lowbit.settings.run import Config

_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def fetch(config: Config, parts: tuple[str, ...]) -> Iterator[str]:
    """Fetch the parts (`data`, `model`, `teacher`) that are not there yet; yield a line for each.

    Raises:
        ValueError: If something is out of reach, or an environment variable forbids the network.
    """
    for name in _OFFLINE:
        if os.environ.get(name, "").lower() in ("1", "true", "yes", "on"):
            raise ValueError(f"{name}={os.environ[name]} forbids the network: run `env -u {name} lowbit fetch ...`")
    if "model" in parts:
        yield fetch_model(config.model)
    if "teacher" in parts and (config.teacher.source is TeacherSource.hub or config.teacher.model is not None):
        yield fetch_model(teacher_model(config))
    if "data" in parts:  # last, so that images that cannot be fetched do not keep an experiment from its weights
        yield from fetch_data(config.data)
