"""Whole training runs of the published code, step by step, through the project's recipes and DistillationModule.

Model size, classes, step counts, learning rate and cases all come from index.json, so that the same test runs on other
folders of the same format (LOWBIT_VECTORS).
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from published_runs import FOLDER, INDEX, TOLERANCE, PublishedBatches, RecordingModule, initial_model, relative
from safetensors.torch import load_file
from torchmetrics.classification import MulticlassAccuracy

from lowbit.config.compose import compose, to_config
from lowbit.modeling import prepare
from lowbit.recipes import Stage, build_recipe
from lowbit.training.stage_runner import fit_stage

METHODS = {"none": "ternarybert", "o": "ti_o", "c": "ti_c", "m": "ti_m", "g": "ti_g", "inverted": "ti_inverted"}
TERMS = {"total": "total", "logits": "logits", "scores": "scores", "hidden": "hidden", "attention_block": "attn_block"}


def recipe_of(case: dict[str, Any]) -> tuple[Any, tuple[Stage, ...]]:
    """Compose the shipped recipe of the case, with the numbers of the index and nothing else."""
    method = METHODS[str(case["mode"] or "none").lower()]
    intervened = sum(step["phase"] == "intervene" for step in case["steps"])
    over_classes = "mean" if case["logit_loss"].startswith("mean over batch and classes") else "sum"
    overrides = [
        "data=agreement",
        "model=bert_micro",
        "quantizer=w2a8",
        "optimizer=bert_adam",
        "scheduler=linear",
        f"method={method}",
        f"method.losses.logits.reduction={over_classes}",
        f"method.losses.attn_block.weight={float(case['attention_block_loss'])}",
        f"optimizer.lr={INDEX['lr']}",
        f"scheduler.warmup={INDEX['warmup']}",
        f"budget.steps={len(case['steps'])}",
        "trainer.precision=float64",
        "trainer.progress=false",
        "trainer.accelerator=cpu",
    ]
    if intervened:
        overrides.append(f"method.stages.intervene.steps={intervened}")
    config = to_config(compose(overrides))
    return config, build_recipe(config, steps_per_epoch=1).stages


def run(case: dict[str, Any], folder: Path) -> SimpleNamespace:
    config, stages = recipe_of(case)
    data = PublishedBatches()
    teacher, student = prepare(initial_model()), initial_model()
    log: list[dict[str, float]] = []
    for stage in stages:
        instrument = prepare(student, stage.rules)
        metric = ("accuracy", MulticlassAccuracy(max(INDEX["model"]["num_labels"], 2)))
        module = RecordingModule(instrument, teacher, stage, metric, 1, log=log)
        fit_stage(module, data, config.trainer, folder / stage.name, [])
        instrument.restore()
    instrument = prepare(student.eval(), stages[-1].rules)
    with torch.no_grad():
        logits = instrument.run(data.batch(INDEX["eval_batch"])).logits
    return SimpleNamespace(log=log, logits=logits, weights=student.state_dict())


@pytest.mark.parametrize("name", INDEX["cases"])
def test_training_run_equals_the_published_code(name: str, tmp_path: Path) -> None:
    case = INDEX["cases"][name]
    result = run(case, tmp_path)

    assert len(result.log) == len(case["steps"]) == INDEX["steps"]
    for number, (ours, theirs) in enumerate(zip(result.log, case["steps"], strict=True)):
        for term, key in TERMS.items():
            expected = theirs[term]
            actual = ours.get(key, 0.0)
            assert actual == pytest.approx(expected, rel=TOLERANCE, abs=1e-14), f"{name}, step {number}, {term}"

    reference = load_file(FOLDER / f"{name}.safetensors")
    assert relative(result.logits, reference["final_eval_logits"]) < TOLERANCE
    weights = {key.removeprefix("weights."): t for key, t in reference.items() if key.startswith("weights.")}
    assert weights.keys() == result.weights.keys()
    for key, expected in weights.items():
        assert relative(result.weights[key], expected) < TOLERANCE, f"{name}, final weight {key}"


def test_the_bar_is_sharp(tmp_path: Path) -> None:
    """A ten-thousandth of the learning rate, and the run no longer passes."""
    case = INDEX["cases"][next(iter(INDEX["cases"]))]
    original = INDEX["lr"]
    INDEX["lr"] = original * (1 + 1e-4)
    try:
        result = run(case, tmp_path)
    finally:
        INDEX["lr"] = original
    last, expected = result.log[-1]["total"], case["steps"][-1]["total"]
    assert last != pytest.approx(expected, rel=TOLERANCE)
