"""What W&B and TensorBoard hold of runs, read back from their files, beside metrics.csv."""

import csv
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lowbit.config import identity
from lowbit.config.validate import load
from lowbit.files import is_alive
from lowbit.results import read_run
from lowbit.settings.run import LoggerMode
from lowbit.training.environment import children_named
from lowbit.training.loggers import TensorBoardRun, wandb_mode
from lowbit.training.modules import DistillationModule
from lowbit.training.train import train

TINY = (
    "data.train_size=40",
    "data.eval_size=20",
    "data.batch_size=20",
    "model.num_layers=1",
    "teacher.budget={steps: 2, epochs: null}",
    "budget={steps: 6, epochs: null}",
    "method.stages.intervene.steps=3",
    "trainer={checkpoint_every: 1, log_every: 1, progress: false, eval_every: 2}",
    "trainer.threads=1",
    "sweep=s",
)
TI = ("method=ti_g", *TINY)
KEY, TOKEN = "0123456789abcdef0123456789abcdef01234567", "hf_abcdefghijklmnopqrstuvwxyz"


def records(file: Path) -> Iterator[Any]:
    """Yield the records of a .wandb file: a LevelDB log of protobuf messages behind seven bytes of header."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, message = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:  # blocks are padded where a header does not fit
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        message += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(message)
            message = b""


def values(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


class WandbFile:
    """The run, config, summary and history of a .wandb file, and its exit code."""

    def __init__(self, file: Path) -> None:
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.history: dict[int, dict[str, Any]] = {}
        self.exit_code = None
        for record in records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self.config |= values(record.run.config.update)
            elif kind == "config":
                self.config |= values(record.config.update)
            elif kind == "summary":
                self.summary |= values(record.summary.update)
            elif kind == "history":
                row = values(record.history.item)
                self.history.setdefault(int(row["_step"]), {}).update(row)
            elif kind == "exit":
                self.exit_code = record.exit.exit_code


def wandb_files(folder: Path) -> list[WandbFile]:
    return [WandbFile(file) for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


def metrics_csv(folder: Path) -> dict[int, dict[str, str]]:
    """Return the file's values by step; the last row of a step that stages share counts, as at W&B."""
    rows: dict[int, dict[str, str]] = {}
    with (folder / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            kept = {k: v for k, v in row.items() if v != "" and k not in ("stage", "step")}
            rows.setdefault(int(row["step"]), {}).update(kept)
    return rows


def run(*overrides: str) -> Path:
    cfg, config = load([*TI, *overrides])
    train(cfg, config)
    return identity.run_folder(cfg, config)


def numbers(history: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Leave out what is W&B's own and what is no curve."""
    return {
        step: kept
        for step, row in history.items()
        if (
            kept := {
                k: v for k, v in row.items() if not k.startswith(("_", "phase/stage", "phase/name", "tables", "fig"))
            }
        )
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs of one process; the second fails at first and is resumed. The third also writes for TensorBoard."""
    outputs = f"paths.outputs={tmp_path_factory.mktemp('outputs')}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", KEY)  # it must not get anywhere, and offline it is not used
        patch.setenv("HF_TOKEN", TOKEN)
        first = run(outputs, "logger.figures=false")
        original = DistillationModule.losses
        with pytest.MonkeyPatch.context() as broken:

            def fail(module: Any, batch: Any, step: int) -> Any:
                if module.stage.name == "plain" and step == 2:
                    raise RuntimeError("broken")
                return original(module, batch, step)

            broken.setattr(DistillationModule, "losses", fail)
            with pytest.raises(RuntimeError, match="broken"):
                run(outputs, "seed=2", "logger.figures=false")
        second = run(outputs, "seed=2", "logger.figures=false")
        third = run(outputs, "seed=3", "quantizer=lsq_w4a4", "optimizer.scale_lr=0.01", "logger.tensorboard=true")
    return [first, second, third]


def test_each_job_is_one_run_with_its_id_group_and_config(folders: list[Path]) -> None:
    import wandb

    assert wandb.run is None
    assert len({folder.name for folder in folders}) == 3
    for folder in folders:
        result = read_run(folder)
        assert result is not None
        files = wandb_files(folder)
        assert len(files) == (2 if folder == folders[1] else 1), "an attempt is a file, all under one id"
        for file in files:
            assert file.run.run_id == folder.name
            assert file.run.run_group == "s"
            assert file.run.job_type == "train"
            assert set(file.run.tags) == {"digits", "vit_micro", "ti_g", result["config"]["quantizer"]["name"]}
            assert file.config | {"_wandb": 0} == {**result["config"], "run_id": folder.name, "_wandb": 0}
        assert [file.exit_code for file in files] == [1, 0][-len(files) :]


def test_the_teacher_is_a_run_of_its_own(folders: list[Path]) -> None:
    outputs = folders[0].parents[3]
    result = read_run(folders[0])
    assert result is not None
    teacher = result["teacher"]["id"]
    (file,) = wandb_files(outputs / "teachers" / teacher)
    assert (file.run.run_id, file.run.job_type, file.run.run_group) == (teacher, "teacher", "s")
    assert file.config["teacher"] == result["config"]["teacher"]
    assert len(file.history) == 2


def test_metrics_read_back_equal_metrics_csv(folders: list[Path]) -> None:
    for folder in folders:
        history: dict[int, dict[str, Any]] = {}
        for file in wandb_files(folder):
            for step, row in numbers(file.history).items():
                history.setdefault(step, {}).update(row)
        expected = metrics_csv(folder)
        assert history.keys() == expected.keys()
        for step, row in expected.items():
            assert history[step] == {k: pytest.approx(float(v), rel=1e-6, abs=1e-12) for k, v in row.items()}


def test_a_resumed_run_logs_no_step_twice(folders: list[Path]) -> None:
    before, after = wandb_files(folders[1])
    assert max(before.history) == 4
    assert min(after.history) == 5, "the checkpoint of step 5 is the last"
    assert after.run.run_id == before.run.run_id


def test_history_names_terms_phases_and_learning_rates(folders: list[Path]) -> None:
    (file,) = wandb_files(folders[2])
    rows = [file.history[step] for step in range(6)]
    assert [row["phase/stage"] for row in rows] == [0, 0, 0, 1, 1, 1]
    assert [row["phase/name"] for row in rows] == ["intervene"] * 3 + ["plain"] * 3
    sites = [{k for k, v in row.items() if k.startswith("phase/") and v == 1} - {"phase/stage"} for row in rows]
    assert sites[0] == {"phase/attn_out"}
    assert sites[2] == {"phase/probs"}
    for row in rows[1:3]:
        assert {"train/loss", "train/logits", "train/hidden", "train/scores"} <= row.keys()
        assert row["train/lr_scales"] == pytest.approx(row["train/lr"] * 0.01 / file.config["optimizer"]["lr"])
    (plain,) = wandb_files(folders[0])
    assert not any("train/lr_scales" in row for row in plain.history.values()), "TWN learns no scales"


def test_the_end_of_a_run_shows_sizes_tables_and_figures(folders: list[Path]) -> None:
    (file,) = wandb_files(folders[2])
    result = read_run(folders[2])
    assert result is not None
    assert file.summary["size/bits"] == result["size"]["bits"]
    assert file.summary["size/simulated_bytes"] == result["size"]["simulated_bytes"]
    assert file.summary["score"] == result["metrics"][result["primary_metric"]]
    last = file.history[5]
    (shown,) = folders[2].glob("wandb/offline-run-*/files")
    table = json.loads((shown / last["tables/layers.path"]).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["bits"] for row in rows] == [8, *[4] * (len(rows) - 2), 8], "the first and the last layer have 8 bits"
    assert all(0 < row["relative_error"] < 1 for row in rows)
    assert all(row["packed_kb"] == pytest.approx(row["float_kb"] * row["bits"] / 32, rel=0.1) for row in rows)
    assert json.loads((shown / last["tables/result.path"]).read_text())["data"][-1][0] == "ti_g"
    for name in ("figures/loss", "figures/weights"):
        (file_name,) = last[f"{name}.filenames"]
        assert (shown / file_name).read_bytes().startswith(b"\x89PNG")
    (plain,) = wandb_files(folders[0])
    assert not [key for key in plain.history[5] if key.startswith("figures")]


def test_tensorboard_holds_the_same_numbers(folders: list[Path]) -> None:
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert not (folders[0] / "tensorboard").exists()
    events = EventAccumulator(str(folders[2] / "tensorboard")).Reload()
    found: dict[int, dict[str, float]] = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            found.setdefault(event.step, {})[tag] = event.value
    for step, row in metrics_csv(folders[2]).items():
        assert {k: found[step][k] for k in row} == {k: pytest.approx(float(v), rel=1e-5) for k, v in row.items()}
    assert {"figures/loss", "figures/weights"} == set(events.Tags()["images"])
    assert {"tables/result/text_summary", "tables/layers/text_summary"} <= set(events.Tags()["tensors"])


def test_tensorboard_hides_what_a_resumed_run_logs_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, value in ((0, 1.0), (2, 2.0)):
        log = TensorBoardRun(tmp_path, ["a"])
        log.start_stage("a", first)
        for step in range(first, 4):
            log.log_metrics({"x": value, "epoch": 0.0}, step)
        log.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("x")] == [(0, 1), (1, 1), (2, 2), (3, 2)]
    assert "epoch" not in events.Tags()["scalars"]


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from lowbit.config.problems import ConfigError

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        load(["logger=tensorboard"])
    assert caught.value.problems == [
        "logger.tensorboard=true needs the package tensorboard: run `pip install tensorboard`"
    ]


def test_no_key_is_in_any_file(folders: list[Path]) -> None:
    outputs = folders[0].parents[3]
    files = [path for path in outputs.rglob("*") if path.is_file()]
    assert sum(path.suffix == ".wandb" for path in files) == 5, "three runs, one of them twice, and their teacher"
    secrets = (KEY.encode(), TOKEN.encode())
    assert [path for path in files if any(secret in path.read_bytes() for secret in secrets)] == []


def test_wandb_is_online_only_with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_SWEEP_ID", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert wandb_mode(LoggerMode.auto) == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert wandb_mode(LoggerMode.auto) == "online"
    assert wandb_mode(LoggerMode.offline) == "offline"
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    assert wandb_mode(LoggerMode.auto) == "offline"
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_SWEEP_ID", "x")
    assert wandb_mode(LoggerMode.auto) == "online"


def test_under_an_agent_the_run_is_the_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the run was finished before, and once: its teacher is no run of the sweep."""
    import wandb

    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    for agents_id in ("agent01", "agent02"):
        monkeypatch.setenv("WANDB_RUN_ID", agents_id)
        wandb.teardown()  # an agent starts a process per run; W&B reads the environment once per process
        folder = run(f"paths.outputs={tmp_path}", "logger.figures=false", "logger.project=another")
        file = wandb_files(folder)[-1]
        assert (file.run.run_id, file.run.sweep_id) == (agents_id, "sweep1")
        assert file.run.project != "another", "the project is the agent's"
        assert file.config["run_id"] == folder.name
        result = read_run(folder)
        assert result is not None
        assert file.summary["score"] == result["metrics"][result["primary_metric"]]
    wandb.teardown()
    assert len(wandb_files(folder)) == 2
    assert not list(tmp_path.glob("teachers/*/wandb"))


def train_until_killed(services: Path, overrides: Sequence[str]) -> None:
    """Train, note W&B's services in the first step, and die by SIGKILL."""

    def losses(*_: Any) -> Any:
        services.write_text(" ".join(map(str, children_named("wandb-core"))))
        os.kill(os.getpid(), signal.SIGKILL)

    DistillationModule.losses = losses  # type: ignore[method-assign]
    train(*load(list(overrides)))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_the_service_of_a_killed_run_ends_with_it(start: Callable[..., Any], tmp_path: Path) -> None:
    """Not half a minute later, when W&B's service looks for its parent."""
    file = tmp_path / "services"
    process = start(train_until_killed, file, overrides=TI)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    services = [*map(int, file.read_text().split())]
    assert services
    end = time.monotonic() + 20
    while any(map(is_alive, services)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(is_alive, services))
