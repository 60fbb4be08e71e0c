"""The examples, and docs/add-a-method.md, which explains one of them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"<!-- (?P<action>file|run)(?:: (?P<path>\S+))? -->\n```\w+\n(?P<text>.*?)```", re.DOTALL)
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


def run(example: str, commands: list[str], folder: Path) -> list[str]:
    """Run commands in a copy of an example, in one process; return what each of them prints."""
    shutil.copytree(ROOT / "examples" / example, folder, dirs_exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "WANDB_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", SHELL, *commands], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
    printed = done.stdout.split("\0")
    assert len(printed) == len(commands) + 1
    return printed[:-1]


def test_the_page_of_methods_works_as_written(tmp_path: Path):
    blocks = [match.groupdict() for match in BLOCK.finditer(PAGE)]
    assert len(blocks) == PAGE.count("```") // 2 >= 5  # every snippet is followed
    files = {block["path"]: block["text"] for block in blocks if block["action"] == "file"}
    assert files == {path: (ROOT / path).read_text() for path in files}
    commands = [line for block in blocks if block["action"] == "run" for line in block["text"].strip().splitlines()]
    printed = dict(zip(commands, run("own_loss", commands, tmp_path), strict=True))
    made_up = "Context distillation (made up): the angle between attention contexts beside labels"
    assert made_up in " ".join(printed["lowbit ls method"].split())
    metrics = next(tmp_path.glob("outputs/runs/digits/context_kd/*/metrics.csv")).read_text()
    assert "train/context" in metrics.splitlines()[0]


def test_a_callback_of_the_users_own_logs_what_it_measures(tmp_path: Path):
    command = "lowbit train experiment=digits/ternarybert debug=fast callbacks=drift trainer.log_every=1"
    run("own_callback", ["lowbit ls callbacks", command], tmp_path)
    metrics = next(tmp_path.glob("outputs/runs/*/*/*/metrics.csv")).read_text()
    assert "drift/blocks.0.attn.qkv.weight" in metrics.splitlines()[0]


def test_a_quantizer_of_the_users_own_trains(tmp_path: Path):
    commands = [
        "pytest -q -n 0 own_quantizers.py --doctest-modules",
        "lowbit check experiment=digits/ternarybert quantizer=percentile_w4a8",
        "lowbit train experiment=digits/ternarybert debug=fast quantizer=percentile_w4a8",
    ]
    *_, checked, trained = run("own_quantizer", commands, tmp_path)
    assert "4b own_quantizers.Percentile/row" in checked
    assert "percentile_w4a8: weights own_quantizers.Percentile of 4 bits" in trained
