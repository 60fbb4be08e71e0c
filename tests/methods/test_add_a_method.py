"""docs/add-a-method.md, followed to the letter in a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MARK = r"<!-- (?P<action>append|edit|create|run)(?:: (?P<path>\S+))? -->"
BLOCK = re.compile(MARK + r"\n```\w+\n(?P<text>.*?)```", re.DOTALL)
PAGE = (ROOT / "docs" / "add-a-method.md").read_text()
SHELL = """
import shlex, sys
import pytest
from lowbit.cli import main

for command in sys.argv[1:]:
    program, *arguments = shlex.split(command)
    code = {"lowbit": main, "pytest": pytest.main}[program](arguments)
    if code:
        sys.exit(f"{command}: {code}")
    print(end="\\0", flush=True)
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for folder in ("src", "conf", "tests", "docs", "sweeps"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def edit(file: Path, diff: str) -> None:
    """Apply lines marked with + or -; the others say where, and must be there once."""
    lines = diff.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if line[0] != "+")
    new = "".join(line[1:] for line in lines if line[0] != "-")
    text = file.read_text()
    assert text.count(old) == 1, f"{file.name} does not hold once:\n{old}"
    file.write_text(text.replace(old, new))


def run(commands: list[str], folder: Path) -> list[str]:
    """Run commands in one process, as torch takes seconds to import; return what each of them prints."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "WANDB_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-c", SHELL, *commands], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
    printed = done.stdout.split("\0")
    assert len(printed) == len(commands) + 1
    return printed[:-1]


@pytest.mark.slow
def test_the_page_works_as_written(copy: Path):
    blocks = [match.groupdict() for match in BLOCK.finditer(PAGE)]
    assert len(blocks) == PAGE.count("```") // 2 >= 9  # every snippet is followed
    commands = []
    for block in blocks:
        if block["action"] == "run":
            commands += block["text"].strip().splitlines()
            continue
        file = copy / block["path"]
        if block["action"] == "edit":
            edit(file, block["text"])
        elif block["action"] == "append":
            file.write_text(f"{file.read_text()}\n\n{block['text']}")
        else:
            assert not file.exists()
            file.write_text(block["text"])
    printed = dict(zip(commands, run(commands, copy), strict=True))
    made_up = "Context distillation (made up): the angle between attention contexts beside labels"
    assert made_up in " ".join(printed["lowbit ls method"].split())
    metrics = next(copy.glob("outputs/runs/digits/context_kd/*/metrics.csv")).read_text()
    assert "train/context" in metrics.splitlines()[0]
