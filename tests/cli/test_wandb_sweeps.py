"""`lowbit sync` finds offline runs and hands them to `wandb sync`, which is not run here; and the W&B sweep files."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lowbit.cli import main
from lowbit.config import compose as C
from lowbit.config import identity
from lowbit.config.validate import load

ATTEMPT = "offline-run-20260101_00000{}-{}"
WANDB_SWEEPS = sorted((C.shipped_root() / "sweeps" / "wandb").iterdir())


@pytest.fixture(scope="module")
def demo() -> list[list[str]]:
    return C.expand(C.sweep_overrides("demo", []))


@pytest.fixture(scope="module")
def folders(demo: list[list[str]]) -> list[Path]:
    """The folders of the demo's first two jobs, of its teacher, and of another run, under the outputs folder."""
    loaded = [load([*job, "paths.outputs=."]) for job in demo[:2]]
    teacher = identity.cached_teacher(loaded[0][0])
    assert teacher is not None
    runs = [identity.run_folder(cfg, config) for cfg, config in loaded]
    return [*runs, Path("teachers", teacher), Path("runs/digits/bit/0123456789ab")]


@pytest.fixture
def outputs(tmp_path: Path, folders: list[Path]) -> Path:
    """Offline files in each of the folders, in the first of two attempts."""
    outputs = tmp_path / "outputs"
    for folder, attempts in zip([outputs / folder for folder in folders], (2, 1, 1, 1), strict=True):
        for attempt in range(attempts):
            offline = folder / "wandb" / ATTEMPT.format(attempt, folder.name)
            offline.mkdir(parents=True)
            (offline / f"run-{folder.name}.wandb").touch()
        (folder / "wandb" / "latest-run").symlink_to(offline.name)
    return outputs


class FakeWandb:
    """Stands for `wandb sync`: takes commands, and marks folders as uploaded unless it fails."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.environments: list[dict[str, str]] = []
        self.code = 0

    def __call__(self, command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        self.environments.append(kwargs["env"])
        if self.code == 0:
            for folder in self.folders:
                (file,) = folder.glob("run-*.wandb")
                file.with_suffix(".wandb.synced").touch()
        return subprocess.CompletedProcess(command, self.code)

    @property
    def folders(self) -> list[Path]:
        """What the last command was to upload."""
        return [Path(word) for word in self.commands[-1] if "offline-run-" in word]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setattr("lowbit.cli.sync.subprocess.run", fake)
    return fake


@pytest.fixture
def sync(outputs: Path) -> Callable[..., int]:
    return lambda *words: main(["sync", *words, f"paths.outputs={outputs}"])


def test_everything_is_uploaded_once(sync, outputs, wandb, capsys):
    assert sync() == 0
    (command,) = wandb.commands
    assert command[1:4] == ["-m", "wandb", "sync"]
    assert set(wandb.folders) == set(outputs.rglob("offline-run-*"))
    assert len(wandb.folders) == 5
    assert "WANDB_MODE" not in wandb.environments[0]
    assert "5 of 5 offline folders are uploaded" in capsys.readouterr().out

    assert sync() == 0
    assert len(wandb.commands) == 1
    assert "0 offline folders to upload, 5 uploaded before" in capsys.readouterr().out

    assert sync("--again") == 0
    assert "--include-synced" in wandb.commands[1]
    assert len(wandb.folders) == 5


def test_a_dry_run_uploads_nothing(sync, outputs, wandb, capsys):
    assert sync("--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "5 offline folders to upload, 0 uploaded before"
    assert {line.strip() for line in lines[1:]} == {str(path) for path in outputs.rglob("offline-run-*")}
    assert wandb.commands == []


def test_a_sweep_is_its_jobs_and_their_teacher(sync, outputs, wandb, demo, capsys):
    assert sync("demo") == 0
    assert {folder.parents[1].name for folder in wandb.folders} == {
        path.parents[1].name for path in outputs.rglob("offline-run-*") if "0123456789ab" not in path.name
    }
    attempts = [folder.name for folder in wandb.folders if folder.parents[1] == wandb.folders[1].parents[1]]
    assert attempts == sorted(attempts), "attempts of a run are uploaded in the order of their starts"
    absent = [line for line in capsys.readouterr().out.splitlines() if line.startswith("no W&B files")]
    assert len(absent) == len(demo) - 2
    for line, job in zip(absent, demo[2:], strict=True):
        words = line.split("lowbit train ")[1].split()
        assert set(job) <= set(words)


def test_runs_of_any_name_are_found_and_teachers_in_training_left_out(sync, outputs, wandb):
    """`name=mine` puts runs one level higher; a part of a teacher's run would be marked as uploaded."""
    for folder in ("runs/mine/abcdefabcdef", "teachers/fedcba987654.partial"):
        (outputs / folder / "wandb" / ATTEMPT.format(0, "x")).mkdir(parents=True)
        (outputs / folder / "wandb" / ATTEMPT.format(0, "x") / "run-x.wandb").touch()
    assert sync("abcd") == 0
    assert [folder.parents[1].name for folder in wandb.folders] == ["abcdefabcdef"]
    assert sync("--again") == 0
    assert len(wandb.folders) == 6


def test_a_run_is_found_by_the_beginning_of_its_id(sync, wandb, capsys):
    assert sync("0123") == 0
    (folder,) = wandb.folders
    assert folder.name.endswith("0123456789ab")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("demos",), "demos is neither a sweep nor a run under"),
        (("demos",), "Did you mean 'demo'?"),
        (("paths.outputs=nowhere",), "nowhere holds no W&B files"),
    ],
)
def test_what_does_not_exist_is_said(words, expected, outputs, wandb, capsys):
    assert main(["sync", f"paths.outputs={outputs}", *words]) == 2
    assert expected in capsys.readouterr().err
    assert wandb.commands == []


def test_a_failure_names_the_folders_and_what_is_needed(sync, outputs, wandb, capsys):
    wandb.code = 1
    assert sync("0123") == 1
    err = capsys.readouterr().err
    assert "wandb login" in err
    assert "exit code 1" in err
    assert "not uploaded: " + str(wandb.folders[0]) in err


def test_a_run_that_is_still_running_is_left_out(sync, outputs, wandb, monkeypatch, capsys):
    monkeypatch.setattr("lowbit.cli.sync.is_running", lambda run: run.name == "0123456789ab")
    assert sync() == 0
    assert len(wandb.folders) == 4
    assert "still running, left out: " in capsys.readouterr().out


def test_files_of_wandb_sweeps_are_no_choices():
    assert len(WANDB_SWEEPS) >= 1
    with C.hydra_session():
        assert not [name for name in C.choices("sweeps") if "wandb" in name]


@pytest.mark.parametrize("file", WANDB_SWEEPS, ids=lambda file: file.name)
def test_every_parameter_set_of_a_wandb_sweep_is_a_valid_command(file: Path):
    """Rendered by W&B's own function: the corners of the ranges, in the words that an agent would run."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    content = yaml.safe_load(file.read_text())
    assert content["metric"] == {"name": "score", "goal": "maximize"}
    parameters = content["parameters"]
    for last in (False, True):
        values = {name: _corner(p, last=last) for name, p in parameters.items()}
        made = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
        words = []
        for word in content["command"]:
            words += made[word[2:-1]] if word.startswith("${") and word != "${env}" else [word]
        assert words[:3] == ["${env}", "lowbit", "train"]
        cfg, config = load(words[3:])
        assert config.optimizer.lr == pytest.approx(values["optimizer.lr"])
        assert cfg.quantizer.name == values["quantizer"]


def _corner(parameter: dict[str, Any], *, last: bool) -> Any:
    if "values" in parameter:
        return parameter["values"][-1 if last else 0]
    return parameter["max" if last else "min"]
