"""CIFAR-10 and CIFAR-100 as they are published: pickled batches, read without trusting them (imports no torch)."""

from __future__ import annotations

import io
import pickle
import pickletools
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lowbit.config.data_files import stamp
from lowbit.settings.data import DataKind

SIDE = 32
_PIXELS = 3 * SIDE * SIDE
_LARGEST = 2**28  # bytes of a file; the training file of CIFAR-100 has 155 million
# What unpickling raises for bytes that are no such pickle.
_DAMAGES = (
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ValueError,
    ArithmeticError,
    MemoryError,
)


@dataclass(frozen=True)
class CifarDescription:
    """One of the two; `train` and `test` are the names of the official files, `labels` the key of the labels.

    `names` are those of the classes in the order of their numbers, as in the official `batches.meta` and `meta`.
    """

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: str
    names: tuple[str, ...]

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.names)


_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""


CIFAR = {
    DataKind.cifar10: CifarDescription(
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test=("test_batch",),
        labels="labels",
        names=tuple(_CIFAR10.split()),
    ),
    DataKind.cifar100: CifarDescription(
        folder="cifar-100-python",
        train=("train",),
        test=("test",),
        labels="fine_labels",
        names=tuple(_CIFAR100.split()),
    ),
}


def batch_files(root: Path, kind: DataKind) -> dict[str, list[Path]] | None:
    """Return the official files of train and test, in `root` or in the folder of the official archive; else None."""
    about = CIFAR[kind]
    for folder in (root / about.folder, root):
        if all((folder / name).is_file() for name in (*about.train, *about.test)):
            return {"train": [folder / name for name in about.train], "test": [folder / name for name in about.test]}
    return None


def count_rows(files: list[Path], kind: DataKind) -> int:
    """Return how many images the files hold; raise ValueError for a damaged one."""
    return sum(_count(*stamp(file), kind) for file in files)


def read_batch(file: Path, kind: DataKind) -> tuple[Any, list[int]]:
    """Return the pixels of a file, a (N, 3, 32, 32) uint8 array, and the labels.

    Raises:
        ValueError: no such file, or one that holds anything else.
    """
    about = CIFAR[kind]
    try:
        raw = _content(file)
        content = _Unpickler(io.BytesIO(raw), encoding="latin1").load()
        pixels, labels = content["data"].array, list(map(int, content[about.labels]))
        facts = (pixels.shape, all(0 <= label < about.classes for label in labels))
    except _DAMAGES as error:
        raise ValueError(_damaged(file, f"{type(error).__name__}: {' '.join(str(error).split())}")) from error
    if facts != ((len(labels), _PIXELS), True):
        raise ValueError(_damaged(file, f"pixels of shape {facts[0]}, {len(labels)} labels"))
    return pixels.reshape(-1, 3, SIDE, SIDE), labels


def _content(file: Path) -> bytes:
    """Return the bytes of a pickle after a look at the sizes in it, which would be allocated before they are read.

    Raises:
        ValueError: it is larger than any official file, or declares more than it holds.
    """
    size = file.stat().st_size
    if size > _LARGEST:
        raise ValueError(f"it has {size} bytes, the largest official file fewer than {_LARGEST}")
    raw = file.read_bytes()
    for count, (opcode, value, place) in enumerate(pickletools.genops(raw)):  # raises for strings beyond the end
        most = {"PUT": count, "BINPUT": count, "LONG_BINPUT": count, "FRAME": size}.get(opcode.name)
        if most is not None and int(value or 0) > most:
            raise ValueError(f"{opcode.name} at byte {place} declares {value}")
    return raw


def _damaged(file: Path, why: str) -> str:
    return f"{file} is no batch of the official archive ({why}); fetch it again"


class _Type:
    """Stands for a numpy type in a pickle."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name = name

    def __setstate__(self, _: Any) -> None:
        """Ignore byte order and the like: the pixels are bytes."""


class _Pixels:
    """Stands for a numpy array of bytes in a pickle; it allocates what the file holds, not what it declares."""

    def __init__(self, *_: Any) -> None:
        self.array: Any = None

    def __setstate__(self, state: Any) -> None:
        import numpy as np

        _, shape, kind, by_column, content = state
        if kind.name != "u1":
            raise pickle.UnpicklingError(f"it holds pixels of type {kind.name}")
        raw = content.encode("latin1") if isinstance(content, str) else content
        self.array = np.frombuffer(bytearray(raw), np.uint8).reshape(shape, order="F" if by_column else "C")


class _Unpickler(pickle.Unpickler):
    """Makes builtins and arrays of bytes, and runs nothing else that a file may name."""

    def find_class(self, module: str, name: str) -> Any:
        known = {"ndarray": _Pixels, "_reconstruct": _Pixels, "dtype": _Type}
        if module not in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") or name not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return known[name]


@lru_cache
def _count(path: Path, modified: int, size: int, kind: DataKind) -> int:
    return len(read_batch(path, kind)[1])
