"""BiT on BERT, step by step against the published code; sizes, widths and cases come from bit_index.json."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from published_runs import (
    FOLDER,
    INDEX,
    TOLERANCE,
    PublishedBatches,
    RecordingModule,
    initial_model,
    relative,
)
from safetensors.torch import load_file
from torchmetrics.classification import MulticlassAccuracy

from lowbit.config.compose import compose, to_config
from lowbit.modeling import prepare
from lowbit.modeling.families import family_of
from lowbit.recipes import build_recipe
from lowbit.training.stage_runner import fit_stage

BIT = json.loads((FOLDER / "bit_index.json").read_text())
# Names of the published quantizers' parameters, and ours.
RENAMED = {
    ".input_clip_val": ".input_quantizer.step_size",
    ".move.bias": ".input_quantizer.shift",
    ".clip_query": ".q_bmm_quantizer.step_size",
    ".clip_key": ".k_bmm_quantizer.step_size",
    ".clip_attn": ".p_bmm_quantizer.step_size",
    ".clip_value": ".v_bmm_quantizer.step_size",
}
DEAD = (".move_q.bias", ".move_k.bias", ".move_v.bias")


def overrides_of(case: dict[str, Any]) -> list[str]:
    return [
        "data=agreement",
        "model=bert_micro",
        "method=bit",
        f"quantizer=bit_w1a{case['activation_bits']}",
        "quantizer.operand.shift=false",
        "quantizer.activation.subtract_minimum=true",
        f"method.student_activation={BIT['student_activation']}",
        "optimizer=bert_adam",
        f"optimizer.lr={INDEX['lr']}",
        f"optimizer.scale_lr={case['alpha_lr']}",
        "scheduler=linear",
        f"scheduler.warmup={INDEX['warmup']}",
        f"budget.steps={len(case['steps'])}",
        "budget.epochs=null",
        "trainer.precision=float64",
        "trainer.progress=false",
        "trainer.accelerator=cpu",
    ]


def ours(name: str) -> str:
    for theirs, mine in RENAMED.items():
        name = name.replace(theirs, mine)
    return name


@pytest.mark.parametrize("name", BIT["cases"])
def test_training_run_equals_the_published_code(name: str, tmp_path: Path) -> None:
    case = BIT["cases"][name]
    config = to_config(compose(overrides_of(case)))
    (stage,) = build_recipe(config, steps_per_epoch=1).stages
    student = initial_model()
    family_of(student).set_activation(student, stage.activation)
    instrument, log, data = prepare(student, stage.rules), [], PublishedBatches()
    metric = ("accuracy", MulticlassAccuracy(max(INDEX["model"]["num_labels"], 2)))
    module = RecordingModule(instrument, prepare(initial_model()), stage, metric, 1, log=log)
    fit_stage(module, data, config.trainer, tmp_path, [])

    assert len(log) == len(case["steps"])
    for number, (step, expected) in enumerate(zip(log, case["steps"], strict=True)):
        for term in ("logits", "hidden", "total"):
            assert step[term] == pytest.approx(expected[term], rel=TOLERANCE), f"{name}, step {number}, {term}"
    instrument.model.eval()
    with torch.no_grad():
        logits = instrument.run(data.batch(INDEX["eval_batch"])).logits
    reference = load_file(FOLDER / f"{name}.safetensors")
    assert relative(logits, reference["final_eval_logits"]) < TOLERANCE
    state = instrument.model.state_dict()
    weights = {key.removeprefix("weights."): t for key, t in reference.items() if key.startswith("weights.")}
    for key, expected in weights.items():
        if not key.endswith(DEAD):  # parameters of the published code that nothing reads
            assert relative(state[ours(key)].reshape(expected.shape), expected) < TOLERANCE, key
