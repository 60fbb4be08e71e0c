"""Folders of models whose files are damaged, not fetched or of another format are refused by name, before torch."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lowbit.config.model_files import WEIGHTS, folder_problems, source_problems

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"
Damage = Callable[[Path], object]


def cut(name: str) -> Damage:
    def half(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return half


def text(name: str, content: str) -> Damage:
    return lambda folder: (folder / name).write_text(content)


def gone(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def divided(*parts: str) -> Damage:
    def divide(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "a.safetensors")
        index = {"weight_map": {f"tensor{place}": part for place, part in enumerate(parts)}}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))

    return divide


def other_format(name: str, content: bytes) -> Damage:
    def replace(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / name).write_bytes(content)

    return replace


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"weight": np.zeros((40, 40), np.float32)}, tmp_path / WEIGHTS)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return tmp_path


@pytest.mark.parametrize("damage", [lambda _: None, divided("a.safetensors"), gone("config.json")])
def test_a_whole_folder_has_no_problems(damage: Damage, folder: Path):
    damage(folder)
    assert folder_problems("teacher.path=x", folder, needs_config=False) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut(WEIGHTS), "model.safetensors is damaged or cut off (.*); copy or download it again"),
        (text(WEIGHTS, ""), "model.safetensors is damaged or cut off"),
        (text(WEIGHTS, "garbage" * 99), "model.safetensors is damaged or cut off"),
        (text(WEIGHTS, POINTER), "model.safetensors: a Git LFS pointer, not the file; run `git lfs pull`"),
        (text("tokenizer.json", POINTER), "tokenizer.json: a Git LFS pointer"),
        (text("config.json", POINTER), "config.json: a Git LFS pointer"),
        (text("config.json", "{"), "config.json is no valid JSON"),
        (text("config.json", "[]"), "config.json is no JSON object but a list"),
        (gone("config.json"), "no config.json; copy that of the model into it"),
        (
            text("config.json", '{"auto_map": {"AutoModel": "x.Y"}}'),
            "names Python code of its own .*lowbit runs no",
        ),
        (
            text("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": "x.Y"}}'),
            "^model.path=x: tokenizer_config.json",
        ),
        (text("config.json", '{"quantization_config": {"bits": 4}}'), "quantization_config: give the full-precision"),
        (text("adapter_config.json", "{}"), "adapter_config.json: an adapter is no whole model"),
        (gone(WEIGHTS), "no weights, which are in model.safetensors or model.safetensors.index.json or pytorch_model"),
        (other_format("tf_model.h5", b"x"), "no weights, .*; tf_model.h5: not of these names or formats, convert it"),
        (other_format("pytorch_model.bin", b"garbage"), "pytorch_model.bin is damaged or cut off"),
        (other_format("pytorch_model.bin", b"PK\3\4" + b"0" * 99), "pytorch_model.bin is damaged or cut off"),
        (divided("a.safetensors", "b.safetensors"), "index.json names b.safetensors, which is not there"),
        (divided("../a.safetensors"), "names ../a.safetensors, which is outside the folder"),
        (text(f"{WEIGHTS}.index.json", "[]"), None),  # not read: model.safetensors comes first
        (other_format(f"{WEIGHTS}.index.json", b"[]"), "index.json is not the index of divided weights"),
    ],
)
def test_a_damaged_folder_is_refused_by_file_fault_and_remedy(damage: Damage, message: str | None, folder: Path):
    damage(folder)
    problems = folder_problems("model.path=x", folder, needs_config=True)
    if message is None:
        assert problems == []
        return
    (problem,) = problems
    assert problem.startswith("model.path=x: ")
    assert re.search(message.replace("(", r"\(").replace(")", r"\)"), problem), problem


@pytest.mark.parametrize(
    ("source", "refused"),
    [("bert-base-uncased", False), ("org/bert-base_1.0", False), ("models/own/bert", True), ("./bert", True)],
)
def test_what_is_no_name_of_the_hub_is_a_missing_folder(source: str, refused: bool):
    assert source_problems("model.path", source) == ([f"model.path={source}: no such folder"] if refused else [])
