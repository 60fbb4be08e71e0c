"""What the rest of the framework must know about a data set to build models and metrics."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from lowbit.config.glue_tasks import Score


@dataclass(frozen=True)
class ImageInput:
    """What a model wants of the images of files: `size` in pixels, statistics per channel, and how they are cut.

    In an evaluation the shorter side is resized to `size` / `crop_pct`, and the centre cut out; `crop_mode=squash`
    resizes both sides. `interpolation` is a filter of PIL by its name in timm. Where there is a `processor`, it makes
    the pixels of an evaluation, from an RGB image of PIL; it does not count where inputs are compared.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"
    processor: Callable[[Any], Tensor] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class DataInfo:
    """Static facts of a data set; text fields are None for images and the other way round.

    Attributes:
        name: Name of the data group choice.
        modality: What a batch holds besides `labels`: `pixel_values`, or token ids with their masks.
        task: Kind of head and task loss.
        num_labels: Width of the head.
        metric: Key for `build_metric`.
        train_size: Rows of the training split; questions where a tokenizer is still to cut texts into windows.
        vocab_size: Number of word ids; None if a model's tokenizer decides.
        max_length: Longest sequence that a batch can hold, special tokens included; None if a model's tokenizer
            decides and the config sets no limit.
        image_size: Height and width in pixels.
        channels: Colour channels.
        image: How image files are read; None for images that are held as tensors.
        has_test: Whether there is a test split; else models are scored on the validation split.
        more_validation: Names of further validation splits, such as MNLI's `mismatched`.
        averaged: Whether tables show the mean over all validation splits, `val_mean`.
        labels: Names of the labels in the order of their ids; none where they are numbers.
    """

    name: str
    modality: Literal["image", "text"]
    task: Literal["classification", "regression", "span", "tagging"]
    num_labels: int
    metric: Score
    train_size: int
    vocab_size: int | None = None
    max_length: int | None = None
    image_size: int | None = None
    channels: int | None = None
    image: ImageInput | None = None
    has_test: bool = True
    more_validation: tuple[str, ...] = ()
    averaged: bool = False
    labels: tuple[str, ...] = ()

    @property
    def primary_metric(self) -> str:
        """The number that tables show of a run."""
        validation = "val_mean" if self.averaged else "val"
        return f"{'test' if self.has_test else validation}/{self.metric}"
