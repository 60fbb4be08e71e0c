"""Fetch a data set once, so that runs need no network: into the cache of `datasets`, or into `data.dir`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lowbit.config.image_files import Folders, find_images
from lowbit.data.text_rows import text_parts
from lowbit.settings.data import DataConfig, DataKind, DataSource, OnBadRow

_CIFAR = {DataKind.cifar10: "CIFAR10", DataKind.cifar100: "CIFAR100"}


def fetch_data(config: DataConfig) -> Iterator[str]:
    """Fetch every part of a data set and yield a line for each, and at last what to set for a run.

    Raises:
        ValueError: out of reach, or nothing that can be fetched.
    """
    if config.kind in (DataKind.digits, DataKind.agreement):
        yield f"data={config.name}: needs no files"
    elif config.kind in _CIFAR:
        yield from _cifar(config)
    elif config.kind is DataKind.image_folder:
        found = find_images(config)  # says which files to put where
        assert isinstance(found, Folders)
        counts = f"{len(found.train.files)} training images, {len(found.val.files)} to score"
        yield f"data={config.name}: is not fetched; its files are there: {config.dir}, {counts}"
    else:
        yield from _text(replace(config, source=DataSource.hub, dir=None, train_file=None, on_bad_row=OnBadRow.skip))


def _text(config: DataConfig) -> Iterator[str]:
    unit = "questions" if config.kind is DataKind.squad else "rows"
    for part in text_parts(config):
        yield f"data={config.name}: {part.name}, {len(part.read())} {unit}"
    yield f"data={config.name}: cached by `datasets`; train with data={config.name} data.source=hub"


def _cifar(config: DataConfig) -> Iterator[str]:
    import torchvision.datasets

    if config.dir is None:
        raise ValueError(f"data.dir: no value; name the folder for the files, for example data.dir=data/{config.name}")
    root = Path(config.dir).expanduser()
    try:
        getattr(torchvision.datasets, _CIFAR[config.kind])(root, download=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"data={config.name}: cannot be fetched ({error}). {_put(config)}") from error
    yield f"data={config.name}: in {root}; train with data={config.name} data.dir={config.dir}"


def _put(config: DataConfig) -> str:
    try:
        find_images(config)
    except ValueError as error:
        return str(error)
    return "Its files are there already"
