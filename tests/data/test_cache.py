"""Cached tensors: written once, whole, under a hash of what they were made from; read back only if intact."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lowbit.data.cache import cached, content_key

TENSORS = {"ids": torch.arange(9, dtype=torch.int32), "none": torch.zeros(0), "number": torch.tensor(3)}


def never() -> dict[str, Tensor]:
    raise AssertionError("built again")


def test_a_file_is_built_once_and_read_afterwards(tmp_path: Path):
    file = tmp_path / "cache" / "a.safetensors"
    assert cached(file, lambda: TENSORS) is TENSORS
    again = cached(file, never)
    assert again.keys() == TENSORS.keys()
    assert all(
        torch.equal(again[name], tensor) and again[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )
    assert [path.name for path in file.parent.iterdir()] == ["a.safetensors"]


def test_without_a_file_nothing_is_written(tmp_path: Path):
    assert cached(None, lambda: TENSORS) is TENSORS
    assert not list(tmp_path.iterdir())


def test_a_failed_build_leaves_nothing(tmp_path: Path):
    with pytest.raises(AssertionError, match="built again"):
        cached(tmp_path / "a.safetensors", never)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "other"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str):
    file = tmp_path / "a.safetensors"
    cached(file, lambda: TENSORS)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    kept = {"bit": bytes(content), "cut": bytes(content[:-4]), "empty": b"", "other": b"no tensors at all"}
    file.write_bytes(kept[damage])
    with pytest.raises(ValueError, match=r"a\.safetensors is damaged \(.+\): delete it"):
        cached(file, never)


def test_keys_tell_their_parts_apart():
    keys = [
        content_key(*parts) for parts in ((), ("a",), ("a", "b"), ("ab",), ("b", "a"), (None,), ("None",), (1,), ("1",))
    ]
    assert len(set(keys)) == len(keys)
    assert content_key("a", 1, None) == content_key("a", 1, None)
