"""Random crops as relative coordinates, and the one function that cuts them out.

Generation and training call the same `crop`, so a student sees the very pixels that its teacher labelled.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

INTERPOLATIONS = ("bilinear", "bicubic")
_ATTEMPTS = 10  # as in torchvision: after so many draws that miss the image, the crop is the centre
# Keys of `generator_for` like the members of `Stream`: for drawing the crops of an image, for choosing those of a step.
DRAWN, CHOSEN = 20, 21


class Crops(NamedTuple):
    """N crops of one image: (N, 4) float32 top/H, left/W, height/H, width/W; (N,) bool, whether they are mirrored."""

    coords: Tensor
    flip: Tensor


@dataclass(frozen=True)
class CropRule:
    """Share of the area, aspect ratio and probability of mirroring of random crops.

    Source: FKD (arXiv 2112.01528), published generator, for the scale; torchvision for the ratio.
    """

    scale: tuple[float, float] = (0.08, 0.936)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale={self.scale}: needs 0 < lowest <= highest <= 1, e.g. (0.08, 0.936)")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio={self.ratio}: needs 0 < lowest <= highest, e.g. (0.75, 1.3333)")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip={self.flip}: needs a probability in 0..1")


def draw_crops(height: int, width: int, count: int, rule: CropRule, generator: torch.Generator) -> Crops:
    """Draw crops with the numbers, in the order, of torchvision's RandomResizedCrop and RandomHorizontalFlip.

    Args:
        height: Rows of the image.
        width: Columns of the image.
        count: Number of crops.
        rule: Scale, ratio and mirroring.
        generator: Source of every random number.
    """
    boxes, flips = [], []
    for _ in range(count):
        boxes.append(_box(height, width, rule, generator))
        flips.append(torch.rand(1, generator=generator).item() < rule.flip)
    size = torch.tensor([height, width, height, width], dtype=torch.float64)
    return Crops((torch.tensor(boxes, dtype=torch.float64) / size).float(), torch.tensor(flips))


def _box(height: int, width: int, rule: CropRule, generator: torch.Generator) -> tuple[int, int, int, int]:
    log_ratio = torch.log(torch.tensor(rule.ratio))
    for _ in range(_ATTEMPTS):
        area = height * width * torch.empty(1).uniform_(*rule.scale, generator=generator).item()
        aspect = torch.exp(torch.empty(1).uniform_(*log_ratio.tolist(), generator=generator)).item()
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, (1,), generator=generator))
            left = int(torch.randint(0, width - w + 1, (1,), generator=generator))
            return top, left, h, w
    # The largest central crop of an allowed ratio.
    w = min(width, round(height * rule.ratio[1]))
    h = min(height, round(width / rule.ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def crop(image_CHW: Tensor, coords: Tensor, flip: bool, size: int, interpolation: str = "bilinear") -> Tensor:
    """Return one crop as a (C, size, size) tensor: cut, resized with antialiasing, then mirrored.

    Args:
        image_CHW: Pixels; uint8 become floats in 0..1, floats stay as they are.
        coords: Four numbers relative to the image, as in `Crops`.
        flip: Whether to mirror left and right.
        size: Height and width of the result.
        interpolation: `bilinear` or `bicubic`.

    Source: `RandomResizedCrop_FKD` of FKD (arXiv 2112.01528), which rounds to whole pixels as well.
    """
    height, width = image_CHW.shape[-2:]
    top, left, h, w = (round(value * side) for value, side in zip(coords.tolist(), (height, width) * 2, strict=True))
    h, w = min(max(h, 1), height), min(max(w, 1), width)
    top, left = min(max(top, 0), height - h), min(max(left, 0), width - w)
    # A fresh contiguous copy: strides pick the kernel, and with it the last bit.
    piece = image_CHW[None, :, top : top + h, left : left + w].clone(memory_format=torch.contiguous_format)
    whole = piece.dtype == torch.uint8
    pixels = F.interpolate(piece.float() / 255 if whole else piece, (size, size), mode=interpolation, antialias=True)[0]
    pixels = pixels.clamp(0, 1) if whole else pixels  # bicubic overshoots
    return pixels.flip(-1) if flip else pixels


@dataclass(frozen=True)
class CropTransform:
    """From an image and a crop to the input of a model; `mean` and `std` are per channel, None leaves the pixels."""

    size: int
    interpolation: str = "bilinear"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size}: needs at least 1 pixel")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation={self.interpolation!r}: choose {' or '.join(INTERPOLATIONS)}")
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"mean={self.mean}, std={self.std}: give both or neither")

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> "CropTransform":
        """Return the transform of a manifest."""
        mean, std = (None if facts[key] is None else tuple(facts[key]) for key in ("mean", "std"))
        return cls(facts["size"], facts["interpolation"], mean, std)

    def __call__(self, image_CHW: Tensor, coords: Tensor, flip: bool) -> Tensor:
        """Return the crop, normalised."""
        pixels = crop(image_CHW, coords, flip, self.size, self.interpolation)
        if self.mean is None or self.std is None:
            return pixels
        mean, std = (torch.tensor(values, dtype=pixels.dtype)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std
