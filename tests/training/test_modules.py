"""DistillationModule and the stage runner: teacher rules, train mode, logging, failures."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from tiny import TINY_TI, load_into
from torchmetrics.classification import MulticlassAccuracy

from lowbit.config.validate import load
from lowbit.data import build_datamodule, data_info
from lowbit.modeling import prepare
from lowbit.modeling.build import build_model
from lowbit.recipes import Stage, build_recipe
from lowbit.results import read_run
from lowbit.settings.run import Config
from lowbit.training.checkpoints import CHECKPOINT
from lowbit.training.guards import NonFiniteError
from lowbit.training.loggers import MetricsFile
from lowbit.training.modules import DistillationModule
from lowbit.training.stage_runner import build_trainer, checkpointed_step, evaluate, fit_stage, load_weights
from lowbit.training.train import train


def config_of(*overrides: str) -> Config:
    return load([*TINY_TI, *overrides])[1]


def module_of(config: Config, stage_index: int = 0) -> tuple[DistillationModule, Any, Stage]:
    data = build_datamodule(config.data, config.seed)
    stage = build_recipe(config, data.steps_per_epoch).stages[stage_index]
    model = build_model(config.model, data_info(config.data), 1)
    student, teacher = prepare(copy.deepcopy(model), stage.rules), prepare(model)
    return DistillationModule(student, teacher, stage, ("matthews", MulticlassAccuracy(2)), 1), data, stage


def test_teacher_is_frozen_in_eval_and_absent_from_checkpoints(tmp_path: Path) -> None:
    config = config_of("trainer.checkpoint_every=1")
    module, data, _ = module_of(config)
    before = copy.deepcopy(module.teacher.state_dict())
    seen = {}

    class Look(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            seen["teacher training"] = any(m.training for m in pl_module.teacher.modules())
            seen["student eval"] = [n for n, m in pl_module.student.named_modules() if not m.training]
            trainer.save_checkpoint(tmp_path / "look.ckpt")

    trainer = build_trainer(config.trainer, 2, [Look()], [])
    trainer.fit(module, datamodule=data)

    assert seen == {"teacher training": False, "student eval": []}
    assert not any(p.requires_grad for p in module.teacher.parameters())
    assert all(torch.equal(before[k], v) for k, v in module.teacher.state_dict().items())
    state = torch.load(tmp_path / "look.ckpt", weights_only=True)["state_dict"]
    assert state
    assert not any(key.startswith("teacher") for key in state)
    changed = [k for k, v in module.student.state_dict().items() if not torch.equal(before[k], v)]
    assert changed, "the student was not trained"


def test_a_checkpoint_loads_strictly_but_for_the_teacher(tmp_path: Path) -> None:
    config = config_of()
    module, data, _ = module_of(config)
    trainer = build_trainer(config.trainer, 1, [], [])
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    fresh, _, _ = module_of(config)
    build_trainer(config.trainer, 2, [], []).fit(fresh, datamodule=data, ckpt_path=str(tmp_path / "a.ckpt"))
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    content["state_dict"].pop("student.classifier.weight")
    torch.save(content, tmp_path / "b.ckpt")
    with pytest.raises(RuntimeError, match=r"classifier\.weight"):
        build_trainer(config.trainer, 2, [], []).fit(
            module_of(config)[0], datamodule=data, ckpt_path=str(tmp_path / "b.ckpt")
        )


def test_an_interrupted_evaluation_leaves_nothing_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("data.eval_batch_size=8")
    module, data, _ = module_of(config)
    trainer = build_trainer(config.trainer, 1, [], [])
    expected = evaluate(trainer, module, data, "validate")
    update, calls = module._update, []

    def fail(split: str, batch: Any) -> None:
        calls.append(split)
        if len(calls) == 3:
            raise OSError("the disk is gone")
        update(split, {**batch, "labels": 1 - batch["labels"]})

    monkeypatch.setattr(module, "_update", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        evaluate(trainer, module, data, "validate")
    monkeypatch.setattr(module, "_update", update)
    assert evaluate(trainer, module, data, "validate") == expected


def test_nan_stops_the_run_names_the_term_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("trainer.checkpoint_every=2")
    module, data, stage = module_of(config)
    original = type(stage.losses["scores"]).__call__

    def poisoned(self: Any, *seen: Any) -> torch.Tensor:
        value = original(self, *seen)
        return value * float("nan") if module.global_step == 5 else value

    monkeypatch.setattr(type(stage.losses["scores"]), "__call__", poisoned)
    with pytest.raises(NonFiniteError, match=r"'scores' is nan at step 5 of stage 'intervene'.*optimizer.lr"):
        fit_stage(module, data, config.trainer, tmp_path, [])
    kept = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert kept["global_step"] == 4
    assert all(torch.isfinite(v).all() for v in kept["state_dict"].values())


def test_a_checkpoint_never_holds_weights_that_are_not_finite(tmp_path: Path) -> None:
    config = config_of("trainer.checkpoint_every=1", "optimizer.lr=1e38", "optimizer.max_grad_norm=null")
    module, data, _ = module_of(config)
    with pytest.raises(NonFiniteError, match="The last good checkpoint"):
        fit_stage(module, data, config.trainer, tmp_path, [])
    kept = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert all(torch.isfinite(v).all() for v in kept["state_dict"].values())


def test_a_torn_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"half a file")
    with pytest.raises(
        ValueError,
        match=r"last\.ckpt is cut off or no checkpoint; it is kept as last\.ckpt\.damaged\. Run the same comm",
    ):
        checkpointed_step(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt.damaged"]
    assert checkpointed_step(tmp_path) == 0


def test_fp16_clips_unscaled_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fused optimizer would be handed gradients that are still multiplied by the loss scale."""
    config = config_of()
    module, _, _ = module_of(config)
    for precision, fused in (("16-mixed", False), ("32-true", True)):
        monkeypatch.setattr(type(module), "trainer", type("T", (), {"precision": precision}))
        assert module.configure_optimizers()["optimizer"].defaults["fused"] is fused


def test_run_json_tells_everything_and_a_finished_run_is_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, config = load([*TINY_TI, f"paths.outputs={tmp_path}"])
    metric = train(cfg, config)
    (folder,) = tmp_path.glob("runs/agreement/ti_g/*")
    result = read_run(folder)
    assert result is not None
    assert metric == result["metrics"]["test/matthews"]
    assert result["run_id"] == folder.name
    assert [(s["name"], s["steps"]) for s in result["stages"]] == [("intervene", 9), ("plain", 9)]
    assert {"val/matthews", "val_intervened/matthews"} <= result["stages"][0]["metrics"].keys()
    assert "val_intervened/matthews" not in result["stages"][1]["metrics"]
    assert result["teacher"]["steps"] == 4
    assert result["size"]["bits"] == "2-2-8"
    assert {"versions", "device", "threads", "commit", "seeds", "started", "finished"} <= result.keys()
    assert not (folder / "error.log").exists()
    plain = build_model(config.model, data_info(config.data), 1)
    load_weights(plain, folder / "stages" / "plain" / "model.safetensors")

    stamp = (folder / "run.json").stat().st_mtime_ns
    monkeypatch.setattr("lowbit.training.train._execute", lambda _: pytest.fail("trained again"))
    assert train(cfg, config) == metric
    assert (folder / "run.json").stat().st_mtime_ns == stamp
    assert "finished before" in capsys.readouterr().out


def test_metrics_csv_counts_the_recipe_steps_and_names_stages(tmp_path: Path) -> None:
    import pandas as pd

    cfg, config = load([*TINY_TI, f"paths.outputs={tmp_path}", "trainer.eval_every=3"])
    train(cfg, config)
    (file,) = tmp_path.glob("runs/*/*/*/metrics.csv")
    rows = pd.read_csv(file)
    trained = rows.dropna(subset=["train/loss"])
    assert trained["step"].tolist() == list(range(18))
    assert trained["stage"].tolist() == ["intervene"] * 9 + ["plain"] * 9
    terms = trained[["train/logits", "train/hidden", "train/scores", "train/attn_block"]].sum(axis=1)
    assert terms.tolist() == pytest.approx(trained["train/loss"].tolist(), rel=1e-5)
    assert trained["train/lr"].iloc[[0, 9]].tolist() == [0, 0], "each stage warms up anew"
    assert rows["val_intervened/matthews"].notna().sum() >= 3


def test_metrics_file_drops_rows_that_come_again(tmp_path: Path) -> None:
    log = MetricsFile(tmp_path)
    log.start_stage("a", 0)
    for step in range(4):
        log.log_metrics({"x": float(step)}, step)
    log.save()
    assert not (tmp_path / "metrics.csv").exists(), "few rows are not worth a write"
    log.finalize("success")
    again = MetricsFile(tmp_path)
    again.start_stage("a", 2)
    again.take_up(None)
    again.log_metrics({"x": 9.0, "y": 1.0}, 2)
    again.finalize("success")
    assert (tmp_path / "metrics.csv").read_text() == "stage,step,x,y\na,0,0,\na,1,1,\na,2,9,1\n"


def test_weights_of_another_model_are_refused_in_words(tmp_path: Path) -> None:
    from lowbit.training.stage_runner import save_tensors

    save_tensors(torch.nn.Linear(2, 2).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"w.safetensors does not hold weights of this Sequential"):
        load_weights(torch.nn.Sequential(torch.nn.Linear(2, 2)), tmp_path / "w.safetensors")


@pytest.fixture(scope="module")
def outputs_of_seeds_1_1_2(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three folders, in each of which one run trained its own teacher."""
    folders = [tmp_path_factory.mktemp("outputs") for _ in range(3)]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        train(*load_into(folder, *TINY_TI, f"seed={seed}"))
    return folders


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(outputs_of_seeds_1_1_2: list[Path]) -> None:
    found = []
    for folder in outputs_of_seeds_1_1_2:
        (file,) = folder.glob("runs/*/*/*/stages/plain/model.safetensors")
        found.append(load_file(file))
    same = [torch.equal(found[0][k], found[1][k]) for k in found[0]]
    other = [torch.equal(found[0][k], found[2][k]) for k in found[0]]
    assert all(same)
    assert not all(other)


def test_the_teacher_does_not_depend_on_which_run_comes_first(outputs_of_seeds_1_1_2: list[Path]) -> None:
    teachers = []
    for folder in outputs_of_seeds_1_1_2[1:]:
        (file,) = folder.glob("teachers/*/model.safetensors")
        teachers.append((file.parent.name, load_file(file)))
    assert teachers[0][0] == teachers[1][0]
    assert all(torch.equal(teachers[0][1][k], v) for k, v in teachers[1][1].items())


def test_teacher_from_a_folder(outputs_of_seeds_1_1_2: list[Path], tmp_path: Path) -> None:
    (first,) = (json.loads(p.read_text()) for p in outputs_of_seeds_1_1_2[0].glob("runs/*/*/*/run.json"))
    (trained,) = (p.parent for p in outputs_of_seeds_1_1_2[0].glob("teachers/*/model.safetensors"))
    folder = Path(shutil.copytree(trained, tmp_path / "teacher"))
    rest = [o for o in TINY_TI if not o.startswith("teacher.")]
    other = [*rest, "teacher=path", f"teacher.path={folder}", "seed=1"]
    score = first["metrics"][first["primary_metric"]]
    assert train(*load_into(tmp_path / "b", *other)) == score
    known = read_run(next(tmp_path.glob("b/runs/*/*/*")))["teacher"]
    (folder / "teacher.json").unlink()  # any folder with weights of the same model will do
    assert train(*load_into(tmp_path / "c", *other)) == score
    found = read_run(next(tmp_path.glob("c/runs/*/*/*")))["teacher"]
    assert found["metrics"]["test/matthews"] == known["metrics"]["test/matthews"]


def test_finetune_needs_no_teacher(tmp_path: Path) -> None:
    rest = [o for o in TINY_TI if not o.startswith("method")]
    cfg, config = load([*rest, "method=finetune", f"paths.outputs={tmp_path}"])
    train(cfg, config)
    assert not (tmp_path / "teachers").exists()
    (file,) = tmp_path.glob("runs/agreement/finetune/*/run.json")
    result = read_run(file.parent)
    assert result is not None
    assert (result["teacher"], result["size"]["bits"], result["size"]["compression"]) == (None, "32-32-32", 1.0)
