"""Images that are decoded one by one: files in folders of classes, or the pixels of CIFAR."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import PIL
import torch
from torch import Tensor

# What a file with one of the names in `image_folders.EXTENSIONS` may hold, and GIF, which hides behind such names. Not
# EPS, which PIL hands to Ghostscript, a program of its own.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# What decides which files can be decoded; the number counts changes of `as_rgb`.
DECODER = (PIL.__version__, 3)
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_WHITE_IS_ZERO, _SIGNED = 0, 2
_UNBOUNDED = {"I": "signed or 32-bit integers", "F": "floats"}


class UnreadableImageError(ValueError):
    """An image file that cannot be decoded."""


class ImageSource(Protocol):
    """Images by index: as PIL images for transforms, as (3, H, W) uint8 tensors for stored crops."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...

    def pil(self, index: int) -> Any:
        """Return an RGB image of PIL."""
        ...


def as_rgb(image: Any) -> Any:
    """Return an image of PIL with 8 bits for each of red, green and blue.

    16 bits are scaled to 8, since PIL cuts grey ones off at 255. Transparency is dropped and EXIF orientation is not
    applied, as in torchvision and timm.

    Raises:
        ValueError: pixels without a largest value: signed or 32-bit integers, and floats.
    """
    import numpy as np
    from PIL import Image

    largest = _largest(image)
    unbounded = _UNBOUNDED.get(image.mode) if largest is None else None
    if unbounded is None and image.format == "TIFF" and _SIGNED in image.tag_v2.get(_SAMPLE_FORMAT, ()):
        unbounded = "signed integers"
    if unbounded is not None:
        raise ValueError(
            f"holds {unbounded} (mode {image.mode}), which have no largest value to scale by; "
            "convert it to 8 or 16 bits"
        )
    if largest is not None:
        pixels = np.rint(np.asarray(image, np.float32) * (255 / largest)).astype(np.uint8)
        image = Image.fromarray(255 - pixels if _is_inverted(image) else pixels)
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # else PIL warns of a palette with transparency
    return image.convert("RGB")


def _largest(image: Any) -> int | None:
    """Return the largest value of pixels with more than 8 bits, None for others."""
    if image.mode == "I" and image.format == "PPM":
        return 2**16 - 1  # to which PIL scales from the maximum that the file declares
    if not image.mode.startswith("I;16"):
        return None
    bits = image.tag_v2[_BITS_PER_SAMPLE][0] if image.format == "TIFF" else 16
    return int(2**bits - 1)


def _is_inverted(image: Any) -> bool:
    return bool(image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)


class FileImages:
    """Image files below a folder.

    The names are one tensor: a list of a million strings would be copied into every worker, as its reference counts
    change.
    """

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        """Keep the names, relative to the folder."""
        encoded = [file.encode("utf-8", "surrogateescape") for file in files]
        self._folder = folder.absolute()
        self._names = torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8)
        self._ends = torch.tensor([0, *map(len, encoded)]).cumsum(0)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._ends) - 1

    def path(self, index: int) -> Path:
        """Return the file of an image; raise IndexError where there is none."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        start, end = self._ends[index : index + 2].tolist()
        return self._folder / self._names[start:end].numpy().tobytes().decode("utf-8", "surrogateescape")

    def pil(self, index: int) -> Any:
        """Decode an image; raise UnreadableImageError, which names its file."""
        from PIL import Image, UnidentifiedImageError

        path = self.path(index)
        try:
            with Image.open(path, formats=_FORMATS) as image:
                return as_rgb(image)
        except UnidentifiedImageError as error:
            raise UnreadableImageError(
                f"{path}: is none of {', '.join(_FORMATS)}, or of pixels unknown to PIL"
            ) from error
        except Exception as error:  # a truncated or hostile file fails in many ways
            raise UnreadableImageError(f"{path}: {error or type(error).__name__}") from error

    def __getitem__(self, index: int, /) -> Tensor:
        """Return the pixels of an image; raise UnreadableImageError, which names its file."""
        from torchvision.transforms.functional import pil_to_tensor

        pixels: Tensor = pil_to_tensor(self.pil(index))
        return pixels


class PixelImages:
    """Images of one size that are held in memory."""

    def __init__(self, pixels_NCHW: Tensor) -> None:
        """Keep the uint8 pixels."""
        self._pixels = pixels_NCHW

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._pixels)

    def __getitem__(self, index: int, /) -> Tensor:
        """Return the pixels of an image."""
        return self._pixels[index]

    def pil(self, index: int) -> Any:
        """Return the image."""
        from PIL import Image

        return Image.fromarray(self._pixels[index].permute(1, 2, 0).contiguous().numpy())
