"""Structured config of `data.image`: what is done to the pixels of image files."""

from dataclasses import dataclass, field

from lowbit.config.enums import Interpolation


@dataclass
class ImageConfig:
    """How image files become the input of a model; see docs/data.md, Images.

    `size` is that of models without pretrained weights (null: that of the data); pretrained ones keep their own. So do
    `crop_pct` and `interpolation` of the evaluation unless they are set here. The rest is drawn anew for every training
    image under `augment: true`: `scale` of its area, mirrored with probability `flip`, strength of `color_jitter`, a
    `randaugment` of timm such as rand-m9-mstd0.5-inc1, `random_erasing` with this probability.
    """

    size: int | None = None
    crop_pct: float | None = None
    interpolation: Interpolation | None = None
    scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    flip: float = 0.5
    color_jitter: float = 0.0
    randaugment: str | None = None
    random_erasing: float = 0.0
