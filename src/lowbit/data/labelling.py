"""Labelling: the answers of a teacher to N crops of every image."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowbit.data.crops import DRAWN, Crops, draw_crops
from lowbit.data.label_manifest import Images, StoreSettings, image_digest, pixel_digest, probe
from lowbit.data.label_types import LabelType, StoredLabels, compress
from lowbit.data.label_writing import Advance, LabelledImage, write_shards
from lowbit.data.sampling import generator_for

Teacher = Callable[[Tensor], Tensor]


def write_store(
    images: Images, teacher: Teacher, folder: Path, settings: StoreSettings, progress: bool = False
) -> dict[str, Any]:
    """Label N crops of every image; shards that are there and intact are kept, so the same call resumes.

    Args:
        images: The training images, in the order of training.
        teacher: (batch, C, size, size) to logits, in eval mode; it moves the batch to its device.
        folder: The store.
        settings: What to store.
        progress: Whether to show a bar.

    Returns:
        The manifest.

    Raises:
        ValueError: the folder holds a store of other settings, or the teacher's output cannot be stored.
    """
    plan = settings.plan(len(images), probe(pixel_digest(images), len(images)), "pixels")

    def rows(indices: range, advance: Advance) -> list[LabelledImage]:
        return _label(images, teacher, settings, indices, advance)

    return write_shards(folder, plan, rows, progress)


def _label(
    images: Images, teacher: Teacher, settings: StoreSettings, indices: range, advance: Advance
) -> list[LabelledImage]:
    """Label the images of one shard; batches begin anew with it, so resuming changes no bit."""
    if settings.seed is None:
        raise ValueError("seed=None is for imported labels: give a number")
    label_type, count = LabelType.parse(settings.label_type), settings.crops
    drawn: list[tuple[int, str, Crops]] = []
    views: list[Tensor] = []
    answers: list[StoredLabels] = []

    def flush() -> None:
        probs = _probabilities(teacher, torch.stack(views), settings.num_classes)
        answers.append(compress(probs, label_type))
        advance(len(views) / count)
        views.clear()

    for index in indices:
        image = images[index]
        generator = generator_for(settings.seed, DRAWN, index)
        crops = draw_crops(image.shape[-2], image.shape[-1], count, settings.rule, generator)
        drawn.append((index, image_digest(image), crops))
        for coords, flip in zip(crops.coords, crops.flip.tolist(), strict=True):
            views.append(settings.transform(image, coords, flip))
            if len(views) == settings.batch_size:
                flush()
    if views:
        flush()
    classes, probabilities = (torch.cat(column) for column in zip(*answers, strict=True))
    classes, probabilities = (column.reshape(len(drawn), count, column.shape[1]) for column in (classes, probabilities))
    return [
        LabelledImage(index, digest, crops, StoredLabels(classes[place], probabilities[place]))
        for place, (index, digest, crops) in enumerate(drawn)
    ]


@torch.no_grad()
def _probabilities(teacher: Teacher, views: Tensor, num_classes: int) -> Tensor:
    logits = teacher(views)
    if logits.shape != (len(views), num_classes):
        wanted = (len(views), num_classes)
        raise ValueError(f"the teacher returned logits of shape {tuple(logits.shape)}, expected {wanted}")
    probs = logits.float().softmax(-1).cpu()
    if not bool(probs.isfinite().all()):
        raise ValueError("the teacher returned logits that are not finite")
    return probs
