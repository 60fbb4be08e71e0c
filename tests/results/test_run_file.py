"""The files of a run folder: what is read, and what is said about damaged ones."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowbit.files import atomic_write, remove_leftovers, write_json
from lowbit.results import SCHEMA, read_run
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

Payload = dict[str, Any]


@pytest.fixture
def payload() -> Payload:
    """Return the smallest run that can become a row."""
    size = {"float_bytes": 4, "simulated_bytes": 1, "compression": 4.0, "bits": "8-8-8"}
    head = {"schema": SCHEMA, "status": "finished", "config": {}, "teacher": None, "size": size}
    return head | {"primary_metric": "m", "metrics": {"m": 1 / 3}, "steps": 1, "seconds": 0.1, "device": "2 Kerne, µ"}


def test_round_trip(tmp_path: Path, payload: Payload) -> None:
    """Every digit and every character comes back; the folder is made."""
    write_json(tmp_path / "new" / "run.json", payload)
    assert read_run(tmp_path / "new") == payload
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["run.json"]


def test_no_run_is_none(tmp_path: Path) -> None:
    """Neither an empty nor an absent directory is an error."""
    assert read_run(tmp_path) is None
    assert read_run(tmp_path / "absent") is None


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_failed_write_leaves_the_old_file(
    tmp_path: Path, payload: Payload, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """A full disk or a crash before the swap changes nothing and leaves no litter."""
    write_json(tmp_path / "run.json", payload)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        write_json(tmp_path / "run.json", payload | {"steps": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert read_run(tmp_path) == payload


def test_unserializable_payload_leaves_the_old_file(tmp_path: Path, payload: Payload) -> None:
    """The payload is judged before the file is opened."""
    write_json(tmp_path / "run.json", payload)
    with pytest.raises(TypeError):
        write_json(tmp_path / "run.json", payload | {"steps": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert read_run(tmp_path) == payload


def test_data_reaches_the_disk_before_the_swap(
    tmp_path: Path, payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data is synced first, on the complete text, in the same folder."""
    seen: list[tuple[str, Payload]] = []
    real_replace = os.replace

    def fsync(_: int) -> None:
        (file,) = tmp_path.iterdir()
        written = json.loads(file.read_text(encoding="utf-8"))
        seen.append(("fsync", {key: written[key] for key in payload}))

    def replace(source: Path, target: Path) -> None:
        assert Path(source).parent == Path(target).parent
        seen.append(("replace", payload))
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_json(tmp_path / "run.json", payload)
    assert seen == [("fsync", payload), ("replace", payload), ("fsync", payload)]  # the last one of the folder


@pytest.mark.parametrize("content", [b'{"schema": 1, "sta', b"", b"\xff\xfe\x00", b"[" * 100_000])
def test_corrupt_file_is_named(tmp_path: Path, content: bytes) -> None:
    """A truncated, empty or binary file is not a traceback from the JSON module."""
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ValueError, match="is not valid JSON") as error:
        read_run(tmp_path)
    assert str(tmp_path / "run.json") in str(error.value)
    assert "run the same command again" in str(error.value)


def _without(*keys: str) -> Callable[[Payload], Any]:
    return lambda run: {key: value for key, value in run.items() if key not in keys}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: [run], "holds a list, expected an object"),
        (lambda run: run | {"schema": 2}, "has schema 2, this version of lowbit reads schema 1"),
        (_without("schema"), "has schema None"),
        (_without("size", "steps"), "lacks size, steps"),
        (lambda run: run | {"steps": "9"}, "wrong type: steps='9'"),
        (lambda run: run | {"size": {"bits": "1"}}, "lacks size.float_bytes, size.simulated_bytes, size.compression"),
        (lambda run: run | {"teacher": {"id": "t"}}, "lacks teacher.metrics, teacher.size, teacher.steps"),
        (
            lambda run: run | {"teacher": {"id": "t", "metrics": {}, "size": {}, "steps": 1, "seconds": 1.0}},
            r"lacks teacher\.size\.float_bytes\.",
        ),
        (lambda run: run | {"primary_metric": "x"}, r"no number for its primary metric 'x' \(metrics: m\)"),
    ],
)
def test_unusable_file_says_why(
    tmp_path: Path, payload: Payload, change: Callable[[Payload], Any], message: str
) -> None:
    """Valid JSON that cannot become a row names the file and the field."""
    write_json(tmp_path / "run.json", change(payload))
    with pytest.raises(ValueError, match=message) as error:
        read_run(tmp_path)
    assert str(tmp_path / "run.json") in str(error.value)


def test_no_changed_byte_goes_unnoticed(tmp_path: Path, payload: Payload) -> None:
    """Each byte in turn; a change of white space alone, or of how a letter is written, changes nothing."""
    path = tmp_path / "run.json"
    write_json(path, payload)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            found = read_run(tmp_path)
        except ValueError as error:
            told = str(error)
            found = payload if str(path) in told and "Delete that file and run the same" in told else told
        assert found == payload, whole[place : place + 20]


def test_a_file_of_the_first_version_is_read_as_it_is(tmp_path: Path, payload: Payload) -> None:
    """It has no digest, and a name may have any length."""
    old = payload | {"name": "x" * 64, "seconds": float("inf")}
    (tmp_path / "run.json").write_text(json.dumps(old))
    assert read_run(tmp_path) == old


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_json_lacks_is_not_written(tmp_path: Path, payload: Payload, value: float) -> None:
    """Other readers of JSON would refuse the file."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "run.json", payload | {"seconds": value})
    assert not list(tmp_path.iterdir())


def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    """Nor is a folder in place of a file a traceback."""
    (tmp_path / "run").write_text("")
    (tmp_path / "other" / "run.json").mkdir(parents=True)
    for name, message in (("run", "run is a file where a folder is expected. Move it"), ("other", "is a folder where")):
        with pytest.raises(ValueError, match=message):
            read_run(tmp_path / name)


def test_leftovers_of_dead_writers_go_and_no_others(tmp_path: Path) -> None:
    """A killed process leaves its temporary file; what another one is writing stays."""
    code = "import os, sys\nfrom pathlib import Path\nfrom lowbit.files import atomic_write\n"
    code += "with atomic_write(Path(sys.argv[1])):\n"
    subprocess.run([sys.executable, "-c", code + "    os._exit(9)", tmp_path / "stages" / "a.ckpt"], check=False)
    (left,) = tmp_path.rglob(".a.ckpt*")
    ours = f".a.json.01234567.{socket.gethostname()}-{os.getpid()}.tmp"  # of a process that had our id
    elsewhere = [tmp_path / ".a.json.01234567.far-9.tmp", tmp_path / ".tmpAb12xY", tmp_path / ours]
    for path in elsewhere:
        path.touch()
    with atomic_write(tmp_path / "b.json") as mine:
        remove_leftovers(tmp_path)
        assert [path.exists() for path in (left, *elsewhere, mine)] == [False, True, True, True, True]
    for path in elsewhere:
        os.utime(path, (0, 0))
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.json", "stages"]


def test_import_is_light() -> None:
    """`lowbit ls` must not pay for pandas, rich or torch."""
    code = "import sys, lowbit.results; print({'torch', 'pandas', 'rich', 'numpy'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


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
