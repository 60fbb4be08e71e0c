"""Structured config of `data.image`: what is done to the pixels of image files."""

from dataclasses import dataclass

from lowbit.config.enums import Interpolation
from lowbit.config.fields import number


@dataclass
class ImageConfig:
    """How image files become the input of a model; see docs/data.md, Images.

    `size` is that of models without pretrained weights (null: that of the data); pretrained ones keep their own. So do
    `crop_pct` and `interpolation` of the evaluation unless they are set here. The rest is drawn anew for every training
    image under `augment: true`: `scale` of its area, mirrored with probability `flip`, strength of `color_jitter`, a
    `randaugment` of timm such as rand-m9-mstd0.5-inc1, `random_erasing` with this probability.
    """

    size: int | None = number(above=0)
    crop_pct: float | None = number(above=0, at_most=1, note="a share of the shorter side")
    interpolation: Interpolation | None = None
    scale: list[float] = number([0.08, 1.0], above=0, at_most=1, note="shares of the area")
    flip: float = number(0.5, at_least=0, at_most=1, note="a probability")
    color_jitter: float = number(0.0, at_least=0)
    randaugment: str | None = None
    random_erasing: float = number(0.0, at_least=0, at_most=1, note="a probability")
