"""From an image to the input of a model: timm's transforms, whose random numbers depend on their key alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowbit.data.sampling import generator_for
from lowbit.settings.data import ImageConfig, ImageInput

Transform = Callable[[Any], Tensor]
_PADDING = 8  # published for CIFAR: 4 pixels of 32


def with_settings(image: ImageInput, settings: ImageConfig) -> ImageInput:
    """Return the input with what the config says of its evaluation, which then is no longer a processor's."""
    if settings.crop_pct is None and settings.interpolation is None:
        return image
    return replace(
        image,
        processor=None,
        crop_pct=settings.crop_pct or image.crop_pct,
        interpolation=settings.interpolation.name if settings.interpolation else image.interpolation,
    )


def evaluation_transform(image: ImageInput) -> Transform:
    """Return the transform of whole images: resized, cut out at the centre, normalised; or the model's processor."""
    if image.processor is not None:
        return image.processor
    from timm.data.transforms_factory import create_transform

    transform: Transform = create_transform(
        image.size,
        interpolation=image.interpolation,
        mean=image.mean,
        std=image.std,
        crop_pct=image.crop_pct,
        crop_mode=image.crop_mode,
    )
    return transform


def training_transform(image: ImageInput, settings: ImageConfig, *, own_size: bool) -> Transform:
    """Return the transform that augments; it draws from the global generators, see `seeded`.

    Args:
        image: Of the model.
        settings: What is drawn.
        own_size: Whether the images have the model's size: they are then padded and cut, not resized.

    Raises:
        ValueError: a `randaugment` that timm does not know.
    """
    from timm.data.transforms_factory import create_transform
    from torchvision.transforms import RandomCrop, Resize

    drawn: dict[str, Any] = {
        "scale": tuple(settings.scale),
        "hflip": settings.flip,
        "color_jitter": settings.color_jitter or None,
        "auto_augment": settings.randaugment,
        "re_prob": settings.random_erasing,
        "re_mode": "pixel",
    }
    drawn |= {"interpolation": image.interpolation, "mean": image.mean, "std": image.std}
    try:
        transform: Any = create_transform(image.size, is_training=True, **drawn)
    except (AssertionError, ValueError, IndexError, KeyError) as error:
        raise ValueError(
            f"data.image.randaugment={settings.randaugment}: timm refuses it ({error}); use null, or a policy such as "
            "rand-m9-mstd0.5-inc1"
        ) from error
    if own_size:
        # Resizing does nothing to CIFAR, and makes images of another size in its folders fit.
        sized = Resize((image.size, image.size)), RandomCrop(image.size, padding=image.size // _PADDING)
        transform.transforms[:1] = sized
    checked: Transform = transform
    return checked


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed the global generators of Python, numpy and torch's CPU for a block, and put them back.

    The transforms of timm and torchvision take no generator.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    drawn = torch.randint(2**32, (3,), generator=generator_for(*key)).tolist()
    random.seed(drawn[0])
    np.random.seed(drawn[1])
    # Not torch.manual_seed, which seeds the accelerator too.
    torch.default_generator.manual_seed(drawn[2])
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
