"""Folders of image files, one per class: what lies in them, in torchvision's order (imports no torch)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

# Torchvision's `IMG_EXTENSIONS`: the order of a soft-label store is that of its `make_dataset`.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Listing:
    """The images of one split.

    Attributes:
        folder: holds a folder per class.
        classes: names of the class folders, sorted: their places are the labels.
        files: of every image, relative to `folder`, class by class.
        counts: images of each class.
        size: of all files, in bytes.
        digest: of the names and sizes; reading the files of a large set at every start would take hours.
    """

    folder: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    counts: tuple[int, ...]
    size: int
    digest: str

    @property
    def empty(self) -> list[str]:
        """Classes without an image."""
        return [name for name, count in zip(self.classes, self.counts, strict=True) if not count]


def list_images(folder: Path) -> Listing:
    """List a split, once per process as long as no class folder changes.

    Raises:
        OSError: no such folder.
    """
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    return _list(folder.absolute(), tuple((name, (folder / name).stat().st_mtime_ns) for name in classes))


def first_folder(root: Path, names: Sequence[str]) -> Path | None:
    """Return the first of some folders that exists below `root`."""
    return next((root / name for name in names if (root / name).is_dir()), None)


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder below one, links followed, with the names of its files; none twice."""
    seen: set[tuple[int, int]] = set()
    for place, folders, found in os.walk(folder, followlinks=True):
        status = os.stat(place)  # noqa: PTH116 - as below
        if (identity := (status.st_dev, status.st_ino)) in seen:
            folders.clear()  # a link back to where it lies, or to a folder that counts already
            continue
        folders.sort()  # which of them counts may not depend on the file system
        seen.add(identity)
        yield place, found


@lru_cache(maxsize=8)
def _list(folder: Path, stamps: tuple[tuple[str, int], ...]) -> Listing:
    files: list[str] = []
    counts: list[int] = []
    total, digest = 0, hashlib.sha256()
    for name, _ in stamps:
        before = len(files)
        for place, found in sorted(_walk(folder / name)):
            inside = os.path.relpath(place, folder)
            for file in sorted(found):
                if file.lower().endswith(EXTENSIONS):
                    size = os.stat(f"{place}/{file}").st_size  # noqa: PTH116 - a Path takes longer than the call
                    total += size
                    files.append(f"{inside}/{file}")
                    digest.update(f"{files[-1]}\0{size}\0".encode("utf-8", "surrogateescape"))
        counts.append(len(files) - before)
        digest.update(f"{name}\0{counts[-1]}\0".encode("utf-8", "surrogateescape"))
    return Listing(folder, tuple(name for name, _ in stamps), tuple(files), tuple(counts), total, digest.hexdigest())
