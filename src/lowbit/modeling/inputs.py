"""What a pretrained model wants of its inputs: its tokenizer, and the size and statistics of its images."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from lowbit.modeling.build import plan_timm
from lowbit.modeling.hub import NO_CODE, explain_load_errors, setting_of, source_of
from lowbit.settings.data import ImageInput
from lowbit.settings.model import ModelConfig, ModelKind

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

PREPROCESSOR = "preprocessor_config.json"
_TYPES = "token_type_ids"
_SHOWN = 3  # tokens in a message
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
# Images that a processor is tried with: a wide and a tall one, and two whose pixels show scale and normalisation.
_TRIED_SIZES = ((61, 40), (40, 61), (50, 50), (50, 50))
_TRIED_COLOURS = ("grey", "grey", "black", "white")


# --- text -----------------------------------------------------------------------------------------------------------


def build_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a Hugging Face model; it gives token types if the model has embeddings for them.

    Raises:
        OutOfReachError: If a name on the hub is neither cached nor reachable.
        ValueError: If a folder or name holds no tokenizer, or one that does not fit the model.
    """
    from transformers import AutoConfig, AutoTokenizer

    where, source, revision = setting_of(config), source_of(config), config.revision or "main"
    with explain_load_errors(config, "its tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, revision=revision, **NO_CODE)
        described = AutoConfig.from_pretrained(source, revision=revision, **NO_CODE)
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):  # made up from config.json: every word is unknown
        raise ValueError(
            f"{where}: no tokenizer files there, such as tokenizer.json or vocab.txt; put those of the checkpoint that "
            "the model was trained from beside its weights (tokenizer.save_pretrained)"
        )
    _fit_tokenizer(where, tokenizer, described)
    return tokenizer


def _fit_tokenizer(where: str, tokenizer: PreTrainedTokenizerBase, described: PretrainedConfig) -> None:
    """Make a tokenizer give token types if the model has more than one, whether or not it lists them itself.

    Raises:
        ValueError: If it has no padding token, or if it gives ids or types without an embedding, which would fail in
            the middle of training.
    """
    if tokenizer.pad_token_id is None:
        raise ValueError(f"{where}: its tokenizer has no padding token: set pad_token in tokenizer_config.json")
    ids, types = (getattr(described, name, None) for name in ("vocab_size", "type_vocab_size"))
    if isinstance(ids, int):
        _check_ids(where, tokenizer.get_vocab(), ids)
    if not isinstance(types, int):
        return
    if types > 1 and _TYPES not in tokenizer.model_input_names:
        tokenizer.model_input_names = [*tokenizer.model_input_names, _TYPES]
    highest = max(tokenizer("a", "b").get(_TYPES, [0]))
    if highest >= max(types, 1):
        raise ValueError(
            f"{where}: its tokenizer gives token type {highest} to the second sentence, and the model has {types} "
            f"(type_vocab_size in config.json); give the tokenizer of this model, or take {_TYPES} out of "
            "model_input_names in tokenizer_config.json"
        )


def _check_ids(where: str, vocabulary: dict[str, int], rows: int) -> None:
    outside = sorted((number, token) for token, number in vocabulary.items() if number >= rows)
    if not outside:
        return
    listed = ", ".join(f"{number} ({token!r})" for number, token in outside[:_SHOWN])
    more = f" and {len(outside) - _SHOWN} more" if len(outside) > _SHOWN else ""
    raise ValueError(
        f"{where}: its tokenizer has {len(vocabulary)} tokens, the model has embeddings for ids 0 to {rows - 1} "
        f"(vocab_size in config.json); out of range: {listed}{more}. Give the tokenizer of this model, or save the "
        f"model after model.resize_token_embeddings({outside[-1][0] + 1})"
    )


# --- images ---------------------------------------------------------------------------------------------------------


class ProcessorTransform:
    """An image processor of transformers as a transform: an RGB image of PIL to a (3, S, S) float32 tensor."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the same pixels that transformers would give the model."""
        pixels: Tensor = self._processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels.float()


def image_input(config: ModelConfig) -> ImageInput | None:
    """Return the input that a pretrained model wants; None for random weights. Loads no weights.

    Raises:
        OutOfReachError: If a name on the hub is neither cached nor reachable.
        ValueError: If a name or folder does not hold such a model.
    """
    if config.kind is ModelKind.timm and config.pretrained:
        return _timm_input(config)
    return _hf_input(config) if config.kind is ModelKind.hf else None


def _timm_input(config: ModelConfig) -> ImageInput:
    from timm.data.config import resolve_data_config

    facts: dict[str, Any] = resolve_data_config(model=plan_timm(config))  # type: ignore[no-untyped-call]
    _, height, width = facts["input_size"]
    if height != width:
        raise ValueError(f"{setting_of(config)}: takes {height}x{width} pixels; choose a model that takes squares")
    return ImageInput(
        size=height,
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
        interpolation=facts["interpolation"],
        crop_pct=facts["crop_pct"],
        crop_mode=facts["crop_mode"],
    )


def _hf_input(config: ModelConfig) -> ImageInput:
    from transformers import AutoImageProcessor

    with explain_load_errors(config, f"its image processor ({PREPROCESSOR})"):
        processor: object = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            source_of(config), revision=config.revision or "main", **NO_CODE
        )
    try:
        return _try_processor(processor)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ZeroDivisionError) as error:
        settings = ", ".join(f"{name}={_plain(getattr(processor, name, None))}" for name in _SETTINGS)
        raise ValueError(
            f"{setting_of(config)}: its {PREPROCESSOR} cannot be followed ({error}). "
            f"A {type(processor).__name__} with {settings} must make squares of one size, scaled and normalised; "
            "change that file to do so"
        ) from error


def _try_processor(processor: Any) -> ImageInput:
    """Return what a processor does, as found by trying it; raise one of many errors if it does anything else."""
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
    edges = _plain(processor.size) or {}
    resized = edges.get("height") or edges.get("shortest_edge") or size
    return ImageInput(
        size=size,
        mean=mean,
        std=std,
        interpolation=Image.Resampling(int(processor.resample or 0)).name.lower(),
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


def _plain(value: Any) -> Any:
    """Return a setting as its file has it, and a size without the edges that it leaves open."""
    if isinstance(value, dict) or hasattr(value, "shortest_edge"):  # a dict, or a SizeDict of transformers
        return {key: edge for key, edge in dict(value).items() if edge is not None}
    return int(value) if isinstance(value, IntEnum) else value
