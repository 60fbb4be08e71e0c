"""What the rest of the framework must know about a data set to build models and metrics."""

from dataclasses import dataclass
from typing import Literal

from lowbit.config.glue_tasks import Score


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
        has_test: Whether there is a test split; else models are scored on the validation split.
        more_validation: Names of further validation splits, such as MNLI's `mismatched`.
    """

    name: str
    modality: Literal["image", "text"]
    task: Literal["classification", "regression", "span"]
    num_labels: int
    metric: Score
    train_size: int
    vocab_size: int | None = None
    max_length: int | None = None
    image_size: int | None = None
    channels: int | None = None
    has_test: bool = True
    more_validation: tuple[str, ...] = ()

    @property
    def primary_metric(self) -> str:
        """The number that tables show of a run."""
        return f"{'test' if self.has_test else 'val'}/{self.metric}"
