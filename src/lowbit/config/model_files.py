"""Checks of the files of a model in a folder: they are whole, and of a format that is loaded (imports no torch)."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

MODEL_CONFIG = "config.json"
WEIGHTS = "model.safetensors"
# As transformers looks for them; an index names the files among which the weights are divided.
WEIGHT_FILES = (WEIGHTS, f"{WEIGHTS}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_CONFIGS = (MODEL_CONFIG, "tokenizer_config.json", "preprocessor_config.json")
_INDEX = ".index.json"
_TEXT_FILES = (".json", ".txt", ".model")  # of models and tokenizers; SentencePiece writes the last
_OTHER_FORMATS = (".h5", ".msgpack", ".gguf", ".onnx", ".pt", ".pth", ".ckpt", ".ot", ".npz", ".bin", ".safetensors")
_HUB_NAME = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")
_OLD_PICKLE = b"\x80"  # torch.save before 1.6


def folder_problems(
    where: str, folder: Path, *, needs_config: bool, formats: tuple[str, ...] = WEIGHT_FILES
) -> list[str]:
    """Return why the model in a folder cannot be loaded, one line per problem, without reading its tensors.

    Args:
        where: Name of the folder in messages, for example `model.path=FOLDER`.
        folder: The folder.
        needs_config: Whether there must be a config.json.
        formats: Names of weight files, the preferred first.
    """
    if not folder.is_dir():
        return [f"{where}: no such folder"]
    try:
        return [f"{where}: {problem}" for problem in _problems(folder, needs_config, formats)]
    except OSError as error:
        return [f"{where}: cannot be read ({error})"]


def source_problems(key: str, source: str) -> list[str]:
    """Return what is wrong with a setting that names a folder, or a model of the hub, which is not checked here."""
    folder = Path(source).expanduser()
    if not folder.is_dir() and _HUB_NAME.fullmatch(source):
        return []
    return folder_problems(f"{key}={source}", folder, needs_config=True)


def weight_file(folder: Path, formats: tuple[str, ...] = WEIGHT_FILES) -> Path | None:
    """Return the file of weights, or their index, that is loaded from a folder; None if there is none."""
    return next((folder / name for name in formats if (folder / name).is_file()), None)


def _problems(folder: Path, needs_config: bool, formats: tuple[str, ...]) -> Iterator[str]:
    pointers = [file.name for file in sorted(folder.iterdir()) if file.suffix in _TEXT_FILES and _is_pointer(file)]
    if pointers:
        yield _not_fetched(*pointers)
    elif needs_config and not (folder / MODEL_CONFIG).is_file():
        yield f"no {MODEL_CONFIG}; copy that of the model into it (save_pretrained writes it)"
    else:
        for name in _CONFIGS:
            if (folder / name).is_file():
                yield from _config_problems(folder / name)
    if (folder / "adapter_config.json").is_file():
        yield "adapter_config.json: an adapter is no whole model; save the model with it merged (merge_and_unload)"
    weights = weight_file(folder, formats)
    if weights is None:
        others = sorted(file.name for file in folder.iterdir() if file.suffix in _OTHER_FORMATS)
        found = f"; {', '.join(others)}: not of these names or formats, convert it" if others else ""
        yield f"no weights, which are in {' or '.join(formats)}{found}"
    elif not weights.name.endswith(_INDEX):
        yield from _weight_problems(weights)
    elif weights.name not in pointers:
        yield from _index_problems(weights)


def _config_problems(file: Path) -> Iterator[str]:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        yield f"{file.name} is no valid JSON ({error}); copy it again"
        return
    if not isinstance(content, dict):
        yield f"{file.name} is no JSON object but a {type(content).__name__}; copy it again"
        content = {}
    if content.get("auto_map"):
        yield (
            f"{file.name} names Python code of its own (auto_map), and lowbit runs no code of a model; give a model of "
            "a class that transformers has, or delete auto_map if the weights are of one"
        )
    if content.get("quantization_config"):
        yield f"{file.name} has a quantization_config: give the full-precision checkpoint"


def _index_problems(index: Path) -> Iterator[str]:
    try:
        parts = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        files = [index.parent / part for part in parts]
    except (ValueError, KeyError, TypeError, AttributeError):
        yield f"{index.name} is not the index of divided weights; copy it again"
        return
    for part, file in zip(parts, files, strict=True):
        if Path(part).name != part:
            yield f"{index.name} names {part}, which is outside the folder; copy it again"
        elif not file.is_file():
            yield f"{index.name} names {part}, which is not there; copy it too"
        else:
            yield from _weight_problems(file)


def _weight_problems(file: Path) -> Iterator[str]:
    fault = None
    if _is_pointer(file):
        yield _not_fetched(file.name)
    elif file.suffix == ".safetensors":
        try:
            with safe_open(file, "np"):  # the header also says how long the file must be
                pass
        except SafetensorError as error:
            fault = str(error)
    elif not (_starts_with(file, _OLD_PICKLE) or zipfile.is_zipfile(file)):
        fault = "no file of torch.save"
    if fault is not None:
        yield f"{file.name} is damaged or cut off ({fault}); copy or download it again"


def _is_pointer(file: Path) -> bool:
    return _starts_with(file, b"version https://git-lfs")  # the text that Git LFS leaves if it fetched no file


def _starts_with(file: Path, content: bytes) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(content)) == content


def _not_fetched(*names: str) -> str:
    return f"{', '.join(names)}: a Git LFS pointer, not the file; run `git lfs pull` in that folder, or copy it again"
