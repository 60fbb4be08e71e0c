"""Images that are decoded one by one: files in folders of classes, or the pixels of CIFAR."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from lowbit.data.fkd_import import fkd_name

# What PIL raises for bytes that are no image, cut off, or absurdly large.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError)


class UnreadableImageError(ValueError):
    """An image file that cannot be decoded."""


class ImageSource(Protocol):
    """Images by index: as PIL images for transforms, as (3, H, W) uint8 tensors for stored crops."""

    @property
    def names(self) -> Sequence[str] | None:
        """What a store of imported labels knows the images by, None where they have no files."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...

    def pil(self, index: int) -> Any:
        """Return an RGB image of PIL."""
        ...


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

    @property
    def names(self) -> Sequence[str]:
        """The last four components of every path."""
        return PathNames(self)

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
        from PIL import Image

        path = self.path(index)
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except (*_UNREADABLE, Image.DecompressionBombError) as error:
            raise UnreadableImageError(f"{path}: {error}") from error

    def __getitem__(self, index: int, /) -> Tensor:
        """Return the pixels of an image; raise UnreadableImageError, which names its file."""
        from torchvision.transforms.functional import pil_to_tensor

        pixels: Tensor = pil_to_tensor(self.pil(index))
        return pixels


class PathNames(Sequence[str]):
    """The names by which FKD's labels know images, made when they are asked for."""

    def __init__(self, images: FileImages) -> None:
        """Keep the images."""
        self._images = images

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        """Return one name."""
        return fkd_name(self._images.path(index))


class PixelImages:
    """Images of one size that are held in memory."""

    names: Sequence[str] | None = None

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
