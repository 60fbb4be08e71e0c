"""What a pretrained image model wants of its input: the size and the statistics that it was trained with."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lowbit.data import ImageInput
from lowbit.modeling.build import NO_CODE, out_of_reach, source_of, timm_plan
from lowbit.settings.model import ModelConfig, ModelKind

PREPROCESSOR = "preprocessor_config.json"

_MODES = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # of PIL
_SETTINGS = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)
# Images that a processor is tried with: a wide and a tall one, and two whose pixels tell scale and normalisation.
_TRIED_SIZES = ((61, 40), (40, 61), (50, 50), (50, 50))
_TRIED_COLOURS = ("grey", "grey", "black", "white")


class ProcessorTransform:
    """An image processor of transformers as a transform: an RGB image of PIL to a (3, S, S) float32 tensor."""

    def __init__(self, processor: Any) -> None:
        """Keep the processor."""
        self._processor = processor

    def __call__(self, image: Any) -> Tensor:
        """Return the pixels, the very ones that transformers would give the model."""
        pixels: Tensor = self._processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels.float()


def image_input(config: ModelConfig) -> ImageInput | None:
    """Return the model's own input; None for random weights, which take the data's. Loads no weights.

    Raises:
        ValueError: a name or folder that does not hold such a model.
    """
    if config.kind is ModelKind.timm and config.pretrained:
        return _timm_input(config)
    return _hf_input(config) if config.kind is ModelKind.hf else None


def _timm_input(config: ModelConfig) -> ImageInput:
    from timm.data.config import resolve_data_config

    facts: dict[str, Any] = resolve_data_config(model=timm_plan(config))  # type: ignore[no-untyped-call]
    _, height, width = facts["input_size"]
    if height != width:
        raise ValueError(f"model.timm_name={config.timm_name}: takes {height}x{width} pixels; choose one of squares")
    return ImageInput(
        size=height,
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
        interpolation=facts["interpolation"],
        crop_pct=facts["crop_pct"],
        crop_mode=facts["crop_mode"],
    )


def _hf_input(config: ModelConfig) -> ImageInput:
    """Return the input of a model of transformers: its own processor makes the pixels of an evaluation."""
    from transformers import AutoImageProcessor

    source = source_of(config)
    try:
        processor: Any = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            source, revision=config.revision or "main", **NO_CODE
        )
    except (OSError, ValueError, TypeError) as error:
        raise out_of_reach(config, f"its image processor ({PREPROCESSOR})", error) from error
    try:
        return _described(processor)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ZeroDivisionError) as error:
        settings = ", ".join(f"{name}={_shown(getattr(processor, name, None))}" for name in _SETTINGS)
        raise ValueError(
            f"model.path={source}: its {PREPROCESSOR} cannot be followed ({error}). "
            f"A {type(processor).__name__} with {settings} must make squares of one size, scaled and normalised; "
            "change that file to do so"
        ) from error


def _described(processor: Any) -> ImageInput:
    """Return what a processor does, as found by trying it; raise one of many errors where it does anything else."""
    whole = ProcessorTransform(processor)
    wide, tall, black, white = (
        whole(Image.new("RGB", size, colour)) for size, colour in zip(_TRIED_SIZES, _TRIED_COLOURS, strict=True)
    )
    shapes = [tuple(pixels.shape) for pixels in (wide, tall)]
    if shapes[0] != shapes[1] or shapes[0] != (3, shapes[0][-1], shapes[0][-1]):
        (w, h), (other_w, other_h) = _TRIED_SIZES[:2]
        raise ValueError(f"an image of {w}x{h} becomes {shapes[0]}, one of {other_w}x{other_h} {shapes[1]}")
    size = shapes[0][-1]
    mean, std = _statistics(processor)
    middle = (slice(None), size // 2, size // 2)
    for name, pixels, value in (("black", black, 0.0), ("white", white, 1.0)):
        expected = torch.tensor([(value - m) / s for m, s in zip(mean, std, strict=True)])
        if not torch.allclose(pixels[middle], expected, rtol=1e-4, atol=1e-4):
            raise ValueError(f"{name} becomes {pixels[middle].tolist()}, by its settings {expected.tolist()}")
    edges = _shown(processor.size) or {}
    resized = edges.get("height") or edges.get("shortest_edge") or size
    return ImageInput(
        size=size,
        mean=mean,
        std=std,
        interpolation=_MODES.get(int(processor.resample or 0), "bicubic"),
        crop_pct=min(size / resized, 1.0),
        crop_mode="squash" if "height" in edges else "center",
        processor=whole,
    )


def _statistics(processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation for pixels from 0 to 1, whatever the processor scales them to."""
    scale = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    if processor.do_normalize:
        mean, std = (_per_channel(getattr(processor, name), name) for name in ("image_mean", "image_std"))
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)


def _per_channel(value: Any, name: str) -> tuple[float, ...]:
    if value is None:
        raise ValueError(f"do_normalize=true needs {name}")
    values = (value,) * 3 if isinstance(value, int | float) else tuple(value)
    if len(values) != 3 or (name == "image_std" and 0 in values):
        raise ValueError(f"{name}={list(values)}: needs three numbers, and a deviation is not 0")
    return values


def _shown(value: Any) -> Any:
    """Return a setting as its file has it; sizes without the edges that they leave open."""
    if isinstance(value, dict) or hasattr(value, "shortest_edge"):  # a dict, or a SizeDict of transformers
        return {key: edge for key, edge in dict(value).items() if edge is not None}
    return int(value) if isinstance(value, IntEnum) else value
