"""Checks of `data.soft_labels`: what a run under stored soft labels needs, found out without torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lowbit.config.image_files import IMAGE_FILES
from lowbit.config.label_store import whole_manifest
from lowbit.settings.data import DataConfig, DataKind
from lowbit.settings.losses import LossKind
from lowbit.settings.run import Config

_IMAGES = (DataKind.digits, *IMAGE_FILES)


def store_folder(data: DataConfig) -> Path | None:
    """Return the folder of the store that the run trains on, None for whole images."""
    return None if data.soft_labels is None else Path(data.soft_labels).expanduser()


def rows_per_step(data: DataConfig) -> int:
    """Return the training rows of one step: `batch_size` counts crops where each row gives several."""
    return data.batch_size if data.soft_labels is None else -(-data.batch_size // max(data.num_crops, 1))


def soft_label_problems(config: Config) -> Iterator[str]:
    """Yield every problem of the store and of the loss that reads it."""
    data = config.data
    folder = store_folder(data)
    losses = [
        f"method.stages.{stage_name}.losses.{key}" if stage.losses else f"method.losses.{key}"
        for stage_name, stage in config.method.stages.items()
        for key, loss in (stage.losses or config.method.losses).items()
        if loss.kind is LossKind.soft_labels and loss.is_on
    ]
    if folder is None:
        if losses:
            yield (
                f"{losses[0]} has a weight, but data.soft_labels=null: write a store with `lowbit softlabels FOLDER` "
                f"and set data.soft_labels=FOLDER, or set {losses[0]}.weight=0"
            )
        return
    where = f"data.soft_labels={data.soft_labels}"
    if not losses:
        yield (
            f"{where}, but no loss reads its labels: set method.losses.soft_labels.weight=1, or data.soft_labels=null"
        )
    if data.augment:
        yield f"data.augment=true and {where}: the labels belong to the crops as stored; set data.augment=false"
    if data.kind not in _IMAGES:
        yield f"{where}: crops are of images, data={data.name} is text; set data.soft_labels=null"
        return
    yield from _store_problems(folder, data)


def _store_problems(folder: Path, data: DataConfig) -> Iterator[str]:
    try:
        manifest = whole_manifest(folder, checksums=False)
    except (ValueError, OSError) as error:
        yield f"data.soft_labels={data.soft_labels}: {error}"
        return
    most = min(manifest["crops"]["per_image"], data.batch_size)
    if data.num_crops > most:
        yield (
            f"data.num_crops={data.num_crops}: the store holds {manifest['crops']['per_image']} crops per image and "
            f"data.batch_size={data.batch_size}; set data.num_crops to 1..{most}"
        )
