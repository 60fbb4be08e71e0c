"""The small records of a run folder: read whole, or not at all."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from lowbit.results.run_file import (
    Holder,
    StageRecord,
    read_attempt,
    read_holder,
    read_progress,
    read_rows,
    read_stage,
    write_holder,
)

HERE = {"pid": 1, "host": "here"}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (HERE, Holder(1, "here")),
        ({"pid": 1}, None),
        ([1, "here"], None),
        ({**HERE, "pid": "1"}, None),
        ({**HERE, "host": 7}, None),
        ({**HERE, "more": 7}, None),
        (None, None),
    ],
)
def test_a_holder_is_whole_or_unknown(tmp_path: Path, content: Any, found: Holder | None) -> None:
    (tmp_path / "holder.json").write_text(json.dumps(content))
    assert read_holder(tmp_path) == found


@pytest.mark.parametrize("pid", [10**30, 2**31, 2**22 + 1])
def test_no_process_has_an_absurd_id(pid: int) -> None:
    assert Holder(pid, socket.gethostname()).is_gone


def test_this_process_holds_what_it_says(tmp_path: Path) -> None:
    write_holder(tmp_path)
    holder = read_holder(tmp_path)
    assert holder == Holder(os.getpid(), socket.gethostname())
    assert not holder.is_gone


@pytest.mark.parametrize("content", ["", "[]", "{}", "{", '{"exit_code": "a", "seconds": 1.0, "whole": true}'])
def test_records_that_only_help_to_show_a_run_may_be_damaged(tmp_path: Path, content: str) -> None:
    for name in ("attempt.json", "progress.json"):
        (tmp_path / name).write_text(content)
    assert read_attempt(tmp_path) is None
    assert read_progress(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe\x00", b"stage,step,x\na,0", b"stage,step,x\na,zero,1\n", b"stage,step,x\na,0,1,2\n", b"a\nb\n"],
)
def test_rows_that_no_run_wrote_are_refused_by_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"metrics\.csv is damaged"):
        read_rows(tmp_path / "metrics.csv")


def test_the_record_of_a_stage_is_one_or_named(tmp_path: Path) -> None:
    record = {"name": "plain", "steps": 3, "seconds": 1.0, "metrics": {"val/accuracy": 0.5}}
    assert read_stage(tmp_path) is None
    (tmp_path / "stage.json").write_text(json.dumps(record))  # as the first versions wrote it
    assert read_stage(tmp_path) == StageRecord(**record)
    for content in ([record], {"name": "plain"}, {**record, "steps": "3"}, None, {**record, "more": 1}):
        (tmp_path / "stage.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"stage\.json is not the record of a stage"):
            read_stage(tmp_path)
