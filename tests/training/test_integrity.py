"""What a run leaves is what the next process finds, or is named: digests, histories, weights that are numbers."""

import json
import os
import resource
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TINY_TI, load_into

from lowbit.cli import main
from lowbit.files import SEAL
from lowbit.results import read_run
from lowbit.training.checkpoints import AtomicCheckpointIO, read_checkpoint
from lowbit.training.guards import NonFiniteError
from lowbit.training.modules import FinetuneModule
from lowbit.training.train import train

# Evaluations fall on steps of checkpoints and on others; the weights' quantizers learn.
OVERRIDES = (*TINY_TI, "quantizer=lsq_w4a4", "trainer.eval_every=2", "trainer.threads=1")


class StoppedError(Exception):
    """Stands for a kill: nothing of ours catches it before the outermost frame."""


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs of a run that nothing has disturbed."""
    outputs = tmp_path_factory.mktemp("straight")
    train(*load_into(outputs, *OVERRIDES))
    return outputs


@pytest.fixture(scope="module")
def stopped(straight: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs of the same run, stopped in step 7 of its second stage, one after a checkpoint."""
    outputs = tmp_path_factory.mktemp("stopped")
    shutil.copytree(straight / "teachers", outputs / "teachers")
    original = FinetuneModule.losses

    def losses(self: FinetuneModule, batch: Any, at: int) -> Any:
        if self.stage.name == "plain" and at == 7:
            raise StoppedError
        return original(self, batch, at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FinetuneModule, "losses", losses)
        with pytest.raises(StoppedError):
            train(*load_into(outputs, *OVERRIDES))
    return outputs


@pytest.fixture
def outputs(stopped: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run."""
    return Path(shutil.copytree(stopped, tmp_path / "outputs"))


def folder_of(outputs: Path) -> Path:
    (folder,) = outputs.glob("runs/*/*/*")
    return folder


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def resume(outputs: Path) -> None:
    train(*load_into(outputs, *OVERRIDES))


def assert_same(outputs: Path, straight: Path) -> None:
    """The same weights, metrics and history."""
    mine, theirs = folder_of(outputs), folder_of(straight)
    assert mine.name == theirs.name
    for path in theirs.glob("stages/*/*.safetensors"):
        assert (mine / path.relative_to(theirs)).read_bytes() == path.read_bytes(), path.name
    assert read_run(mine)["metrics"] == read_run(theirs)["metrics"]
    assert (mine / "metrics.csv").read_text() == (theirs / "metrics.csv").read_text()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("plain/last.ckpt", flip),
        ("plain/last.ckpt", cut),
        ("intervene/model.safetensors", flip),
        ("intervene/quantizers.safetensors", Path.unlink),
        ("intervene/stage.json", flip),
    ],
)
def test_a_damaged_file_is_named_and_kept_and_its_stage_trained_anew(
    name: str, fault: Callable[[Path], None], outputs: Path, straight: Path
) -> None:
    path = folder_of(outputs) / "stages" / name
    fault(path)
    damaged = path.read_bytes() if path.exists() else None
    with pytest.raises(ValueError, match=f"the same command again: it trains stage {path.parent.name} anew") as caught:
        resume(outputs)
    assert str(path) in str(caught.value)
    if damaged is not None:
        assert path.with_name(f"{path.name}.damaged").read_bytes() == damaged
    resume(outputs)
    assert_same(outputs, straight)


@pytest.mark.parametrize("fault", ["deleted", "garbage"])
def test_the_history_of_a_run_does_not_depend_on_metrics_csv(fault: str, outputs: Path, straight: Path) -> None:
    path = folder_of(outputs) / "metrics.csv"
    content = path.read_bytes()
    path.unlink()
    if fault == "garbage":
        path.write_bytes(b"\xff\x00" + content[: len(content) // 2])
    resume(outputs)
    assert_same(outputs, straight)


def test_the_rows_of_a_stage_are_taken_from_the_run_where_they_are_damaged(
    outputs: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(outputs)
    flip(folder / "stages" / "intervene" / "metrics.csv")
    (folder / "stages" / "plain" / "last.ckpt").unlink()
    resume(outputs)
    assert "intervene/metrics.csv is damaged: the rows are taken from the run's metrics.csv" in capsys.readouterr().out
    assert_same(outputs, straight)


@pytest.mark.parametrize("step", [3, 6, 9])
def test_the_row_of_a_checkpoint_outlives_a_kill_right_after_it(
    step: int, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = tmp_path / "outputs"
    shutil.copytree(straight / "teachers", outputs / "teachers")
    original = AtomicCheckpointIO.save_checkpoint

    def save_and_die(self: AtomicCheckpointIO, checkpoint: dict[str, Any], *args: Any, **more: Any) -> None:
        original(self, checkpoint, *args, **more)
        if checkpoint["global_step"] == step:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", save_and_die)
        with pytest.raises(StoppedError):
            resume(outputs)
    resume(outputs)
    assert_same(outputs, straight)
    assert not list(outputs.rglob("progress.json")), "also of a stage that resumes at its last step"


def as_the_first_version_left_it(outputs: Path) -> None:
    """Take out what has been recorded since: digests, and the copies of rows."""
    for path in outputs.rglob("*.json"):
        content = json.loads(path.read_text())
        if content.pop(SEAL, None) is not None:
            for record in (content, *content.get("stages", [])):
                record.pop("files", None)
            path.write_text(json.dumps(content))
    for path in outputs.glob("runs/*/*/*/stages/*/metrics.csv"):
        path.unlink()
    for path in outputs.rglob("*.ckpt"):
        checkpoint = read_checkpoint(path)
        del checkpoint["metrics.csv"]
        torch.save(checkpoint, path)


def test_runs_and_teachers_of_the_first_version_go_on(
    outputs: Path, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_the_first_version_left_it(outputs)
    resume(outputs)
    assert_same(outputs, straight)
    done = Path(shutil.copytree(straight, tmp_path / "done"))
    as_the_first_version_left_it(done)
    capsys.readouterr()
    resume(done)
    assert "finished before, nothing to train" in capsys.readouterr().out


def test_an_unreadable_history_of_the_first_version_is_named(outputs: Path) -> None:
    as_the_first_version_left_it(outputs)
    path = folder_of(outputs) / "metrics.csv"
    path.write_bytes(b"\xff\x00")
    with pytest.raises(ValueError, match=r"metrics\.csv is damaged .*Move it away, and the same command goes on"):
        resume(outputs)
    path.unlink()
    resume(outputs)
    assert read_run(folder_of(outputs)) is not None


@pytest.fixture
def teacher(outputs: Path) -> Path:
    (folder,) = (path for path in outputs.glob("teachers/*") if path.is_dir())
    return folder


def spoil(path: Path) -> None:
    """Weights that are not finite, as the first version cached them."""
    tensors = load_file(path)
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, path)
    (path.parent / "stage.json").unlink()


@pytest.mark.parametrize("fault", [flip, spoil])
def test_a_damaged_teacher_is_kept_and_trained_anew(
    fault: Callable[[Path], None], teacher: Path, outputs: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fault(teacher / "model.safetensors")
    resume(outputs)
    told = capsys.readouterr().out
    assert f"{teacher / 'model.safetensors'} " in told
    assert f"its folder is kept as {teacher.name}.damaged" in told
    assert teacher.with_name(f"{teacher.name}.damaged").is_dir()
    assert_same(outputs, straight)
    theirs = straight / "teachers" / teacher.name / "model.safetensors"
    assert (teacher / "model.safetensors").read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("content", [None, b"null"])
def test_the_facts_of_a_teacher_are_measured_again_where_they_are_damaged(
    content: bytes | None, teacher: Path, outputs: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = teacher / "teacher.json"
    before = json.loads(facts.read_text())
    facts.unlink()
    if content is not None:
        facts.write_bytes(content)
    resume(outputs)
    told = capsys.readouterr().out
    assert f"{facts} " in told
    assert "measured again" in told
    assert json.loads(facts.read_text())["metrics"] == before["metrics"]
    assert_same(outputs, straight)


@pytest.mark.parametrize("key", ["optimizer", "teacher.optimizer"])
def test_weights_that_the_last_update_made_infinite_are_not_recorded(key: str, tmp_path: Path) -> None:
    constant = [f"{key.replace('optimizer', 'scheduler')}.{name}" for name in ("kind=constant", "warmup=0")]
    budget = "teacher.budget.steps=1" if key.startswith("teacher") else "budget={steps: 1, epochs: null}"
    plain = [o for o in TINY_TI if not o.startswith(("method", "budget"))]
    run = [*plain, "budget={steps: 2, epochs: null}", "method=ternarybert", f"{key}.lr=1e39", budget, *constant]
    with pytest.raises(
        NonFiniteError, match=rf"after the last update .* is not finite.*lower {key}\.lr \(now 1e\+39\)"
    ):
        train(*load_into(tmp_path, *run))
    left = tmp_path / ("teachers" if key.startswith("teacher") else "runs")
    assert not [path for path in left.rglob("*") if path.suffix in (".safetensors", ".ckpt") or path.name == "run.json"]


def test_outputs_that_are_not_finite_are_not_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outputs: Path
) -> None:
    original = FinetuneModule.evaluate

    def overflowing(self: FinetuneModule, batch: Any, view: str) -> Any:
        logits = original(self, batch, view)
        logits[-1, 0] = float("inf")
        return logits

    monkeypatch.setattr("lowbit.training.modules.DistillationModule.evaluate", overflowing)
    with pytest.raises(NonFiniteError, match="outputs on val are not finite in the evaluation of stage 'plain'"):
        resume(outputs)
    assert not list(outputs.rglob("run.json"))


def test_a_finished_run_needs_no_lock(straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It may be another user's."""
    outputs = Path(shutil.copytree(straight, tmp_path / "outputs"))
    lock = folder_of(outputs) / ".lock"
    lock.unlink()
    lock.mkdir()  # nobody could open it, root neither
    resume(outputs)
    assert "finished before" in capsys.readouterr().out


def test_a_full_disk_is_named_and_the_same_command_goes_on(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = folder_of(straight) / "stages" / "intervene" / "model.safetensors"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (weights.stat().st_size - 1, hard))
    try:
        assert main(["train", *OVERRIDES, f"paths.outputs={tmp_path}"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    told = capsys.readouterr().err
    assert "cannot be written (File too large). Make room there, and the same command goes on" in told
    assert "Traceback" not in told
    assert not list(tmp_path.rglob("*.tmp"))
    resume(tmp_path)
    assert_same(tmp_path, straight)


def test_every_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    """Those of the umask, so that a colleague may read what is shared."""
    before = os.umask(0o027)
    try:
        resume(tmp_path)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert "model.safetensors" in modes
    assert {name: mode for name, mode in modes.items() if mode != 0o640 and not name.endswith(".lock")} == {}


def test_a_file_in_place_of_the_run_is_named(outputs: Path) -> None:
    folder = folder_of(outputs)
    shutil.rmtree(folder)
    folder.write_text("")
    with pytest.raises(ValueError, match=r"is a file where a folder is expected\. Move it away"):
        resume(outputs)
    folder.unlink()
    resume(outputs)


def test_what_a_stage_that_was_killed_at_its_end_leaves_is_gone(outputs: Path) -> None:
    stage = folder_of(outputs) / "stages" / "intervene"
    for name in ("last.ckpt", "progress.json"):  # as if the record had been the last thing that was written
        shutil.copy(stage / "stage.json", stage / name)
    resume(outputs)
    assert sorted(path.name for path in stage.iterdir()) == [
        "metrics.csv",
        "model.safetensors",
        "quantizers.safetensors",
        "stage.json",
    ]


def test_leftovers_of_a_killed_run_are_gone_when_it_is_finished(outputs: Path) -> None:
    folder = folder_of(outputs)
    left = folder / "stages" / "plain" / f".last.ckpt.01234567.{socket.gethostname()}-{2**22 + 1}.tmp"
    left.write_bytes(b"half")
    resume(outputs)
    assert not left.exists()
    assert not list(outputs.rglob("*.tmp"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
