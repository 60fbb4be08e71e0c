"""Weights in files and in memory: checked to be whole and finite before anything uses or records them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        ValueError: If the file is missing, is not whole, or holds NaN or an infinity.
    """
    try:
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    except (SafetensorError, OSError, ValueError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path} is not a whole file of weights ({error})") from error
    bad = not_finite(tensors)
    if bad is not None:
        raise ValueError(f"{path} holds weights that are not finite, {bad} for example")
    return tensors


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or an infinity; None if there is none."""
    if not tensors:
        return None
    whole = [torch.isfinite(tensor).all() for tensor in tensors.values()]
    if bool(torch.stack([flag.to(whole[0].device) for flag in whole]).all()):  # one transfer from the device
        return None
    return next(name for name, flag in zip(tensors, whole, strict=True) if not flag)
