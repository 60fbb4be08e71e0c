"""What a pretrained image model wants of its input: the size and the statistics that it was trained with."""

from __future__ import annotations

from typing import Any

import torch

from lowbit.config.schema import ModelConfig, ModelKind
from lowbit.data import ImageInput
from lowbit.modeling.build import out_of_reach, source_of

_MODES = {2: "bilinear", 3: "bicubic"}  # of PIL


def image_input(config: ModelConfig) -> ImageInput | None:
    """Return the model's own input; None for random weights, which take the data's. Loads no weights.

    Raises:
        ValueError: a name or folder that does not hold such a model.
    """
    if config.kind is ModelKind.timm and config.pretrained:
        return _timm_input(config)
    return _hf_input(config) if config.kind is ModelKind.hf else None


def _timm_input(config: ModelConfig) -> ImageInput:
    import timm
    from timm.data.config import resolve_data_config

    assert config.timm_name is not None
    try:
        with torch.device("meta"):
            model = timm.create_model(config.timm_name, pretrained=False)
    except (RuntimeError, OSError) as error:
        raise ValueError(f"model.timm_name={config.timm_name}: {error}; see timm.list_models('*vit*')") from error
    facts: dict[str, Any] = resolve_data_config(model=model)  # type: ignore[no-untyped-call]
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
    """Return the input of transformers' ViT, whose processor squeezes an image into a square, DeiT's then crops it."""
    from transformers import AutoImageProcessor

    source = source_of(config)
    try:
        processor: Any = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            source, revision=config.revision or "main"
        )
    except (OSError, ValueError) as error:
        raise ValueError(out_of_reach(config, "its image processor (preprocessor_config.json)", error)) from error
    size = dict(processor.size)
    resized = size.get("height") or size["shortest_edge"]
    kept = dict(processor.crop_size)["height"] if processor.do_center_crop else resized
    return ImageInput(
        size=kept,
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
        interpolation=_MODES.get(int(processor.resample), "bicubic"),
        crop_pct=kept / resized,
        crop_mode="squash" if "height" in size else "center",
    )
