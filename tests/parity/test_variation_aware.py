"""Variation-aware quantization (LSQ, OBR, soft labels) on a timm ViT, step by step against the published code.

Sizes, widths, cases and step counts come from vvtq_index.json (LOWBIT_VECTORS).
"""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from published_runs import FOLDER, TOLERANCE, Batch, PublishedSteps, RecordingSteps, relative
from safetensors.torch import load_file
from torchmetrics.classification import MulticlassAccuracy

from lowbit.config.compose import compose, to_config
from lowbit.modeling import prepare
from lowbit.recipes import build_recipe
from lowbit.training.stage_runner import fit_stage

INDEX = json.loads((FOLDER / "vvtq_index.json").read_text())


class PublishedImages(PublishedSteps):
    def __init__(self) -> None:
        super().__init__("vvtq_batches.safetensors", INDEX)

    def batch(self, index: int) -> Batch:
        batch = {"pixel_values": self.tensors[f"images.{index}"]}
        soft = self.tensors.get(f"soft_labels.{index}")
        return batch if soft is None else {**batch, "soft_labels": soft}


def initial_model() -> torch.nn.Module:
    sizes = dict(INDEX["model"])
    sizes.pop("names")
    epsilon = sizes.pop("layer_norm_eps")
    model = timm.models.vision_transformer.VisionTransformer(
        norm_layer=partial(torch.nn.LayerNorm, eps=epsilon), **sizes
    ).double()
    model.load_state_dict(load_file(FOLDER / "vvtq_initial_weights.safetensors"))
    return model.eval()


def overrides_of(case: dict[str, Any]) -> list[str]:
    (rate,) = re.findall(r"lr ([\d.e-]+)", INDEX["optimizer"])
    return [
        "method=variation_aware",
        "quantizer=lsq_w4a4",
        f"quantizer.weight.bits={case['weight_bits']}",
        f"quantizer.activation.bits={case['activation_bits']}",
        "quantizer.weight.grad_scale=l1",
        "quantizer.activation.grad_scale=vvtq_act",
        "quantizer.activation.init=mean_signed",
        f"method.losses.obr.weight={case['obr_weight']}",
        "method.losses.obr.weight_end=null",
        "method.losses.obr.ramp=constant",
        "method.losses.obr.max_bits=null",
        "method.losses.obr.detach_step=false",
        "method.losses.obr.aggregation=mean",
        "method.losses.obr.convolution_grad_scale=lsq",
        "method.losses.soft_labels.weight=1",
        "method.losses.task.weight=0",
        "method.losses.logits.weight=0",
        "optimizer=adamw",
        f"optimizer.lr={rate}",
        "optimizer.weight_decay=0",
        "optimizer.max_grad_norm=null",
        "scheduler=constant",
        "scheduler.warmup=0",
        f"budget.steps={INDEX['steps']}",
        "budget.epochs=null",
        "trainer.precision=float64",
        "trainer.progress=false",
        "trainer.accelerator=cpu",
    ]


@pytest.mark.parametrize("name", INDEX["cases"])
def test_training_run_equals_the_published_code(name: str, tmp_path: Path) -> None:
    case = INDEX["cases"][name]
    config = to_config(compose(overrides_of(case)))
    (stage,) = build_recipe(config, steps_per_epoch=1).stages
    log: list[dict[str, float]] = []
    instrument = prepare(initial_model(), stage.rules)
    metric = ("accuracy", MulticlassAccuracy(INDEX["model"]["num_classes"]))
    data = PublishedImages()
    fit_stage(RecordingSteps(instrument, stage, metric, 1, log=log), data, config.trainer, tmp_path, [])

    assert len(log) == len(case["steps"]) == INDEX["steps"]
    for number, (ours, theirs) in enumerate(zip(log, case["steps"], strict=True)):
        for term, key in {"task": "soft_labels", "obr": "obr", "total": "total"}.items():
            assert ours.get(key, 0.0) == pytest.approx(theirs[term], rel=TOLERANCE), f"{name}, step {number}, {term}"
    instrument.model.eval()
    with torch.no_grad():
        logits = instrument.run(data.batch(INDEX["eval_batch"])).logits
    expected = load_file(FOLDER / "vvtq_final.safetensors")[f"{name}.final_eval_logits"]
    assert relative(logits, expected) < TOLERANCE
