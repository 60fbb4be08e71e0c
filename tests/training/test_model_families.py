"""Swin and XLM-R learn under a teacher: finite losses, and gradients that reach what the method says."""

import copy
from typing import Any

import lightning as L
import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy
from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

from lowbit.config.validate import load
from lowbit.data import DataInfo, StepDataModule, build_datamodule
from lowbit.data.agreement import PAD
from lowbit.modeling import prepare
from lowbit.quantizers import quantizers_of
from lowbit.recipes import Stage, build_recipe
from lowbit.settings.run import Config
from lowbit.training.modules import DistillationModule
from lowbit.training.quantization import calibrate_student
from lowbit.training.stage_runner import build_trainer

COMMON = (
    "data.train_size=48",
    "data.eval_size=16",
    "data.batch_size=8",
    "teacher.budget={steps: 1, epochs: null}",
    "budget={steps: 8, epochs: null}",
    "trainer.progress=false",
    "trainer.accelerator=cpu",
    "logger=none",
)
METHODS = {
    "ti_g": ("method=ti_g", "quantizer=w2a8", "method.stages.intervene.steps=4"),
    "variation_aware": ("method=variation_aware", "quantizer=lsq_per_head", "method.losses.obr.start=0"),
}
DATA = {"swin": ("data=digits",), "xlmr": ("data=agreement", "model=bert_micro")}


def swin(info: DataInfo) -> nn.Module:
    return SwinTransformer(
        img_size=info.image_size,
        in_chans=info.channels,
        num_classes=info.num_labels,
        patch_size=1,
        window_size=4,
        embed_dim=16,
        depths=(2, 1),
        num_heads=(2, 4),
        drop_path_rate=0.0,
    )


def xlmr(info: DataInfo) -> nn.Module:
    """The data's own words, padded with their padding id, from behind which XLM-R counts positions."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    text = {"vocab_size": info.vocab_size, "max_position_embeddings": info.max_length + 1 + PAD, "type_vocab_size": 1}
    config = XLMRobertaConfig(**sizes, **text, pad_token_id=PAD, num_labels=info.num_labels)
    return XLMRobertaForSequenceClassification(config)


MODELS = {"swin": swin, "xlmr": xlmr}


def config_of(family: str, method: str) -> Config:
    return load([*COMMON, *DATA[family], *METHODS[method]])[1]


def modules_of(family: str, method: str) -> tuple[list[DistillationModule], StepDataModule]:
    """Return one module per stage; every stage starts from one model, whose teacher is another."""
    config = config_of(family, method)
    data = build_datamodule(config.data, config.seed)
    torch.manual_seed(0)
    model, teacher = MODELS[family](data.info), MODELS[family](data.info)
    stages = build_recipe(config, data.steps_per_epoch).stages
    return [module_of(copy.deepcopy(model), copy.deepcopy(teacher), stage, data) for stage in stages], data


def module_of(model: nn.Module, teacher: nn.Module, stage: Stage, data: StepDataModule) -> DistillationModule:
    student = prepare(model, stage.rules)
    data.setup("fit")
    calibrate_student(student, data, stage)
    metric = ("accuracy", MulticlassAccuracy(data.info.num_labels))
    return DistillationModule(student, prepare(teacher), stage, metric, 1)


class Record(L.Callback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(outputs["loss"].detach())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", MODELS)
def test_a_few_steps_are_finite_and_train_the_student_alone(family: str, method: str) -> None:
    trainer = config_of(family, method).trainer
    modules, data = modules_of(family, method)
    for module in modules:
        before = copy.deepcopy(module.state_dict())
        record = Record()
        build_trainer(trainer, module.stage.steps, [record], []).fit(module, datamodule=data)
        assert len(record.losses) == module.stage.steps > 0
        assert torch.stack(record.losses).isfinite().all()
        after = module.state_dict()
        changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
        assert changed
        assert not any(key.startswith("teacher.") for key in changed)
        assert all(value.isfinite().all() for value in after.values() if value.is_floating_point())


def unreached(module: DistillationModule, data: StepDataModule) -> set[str]:
    """Return the weights, layer by layer and role by role, that the stage's first step does not reach."""
    (batch,) = data.training_batches(module.stage.first_step, 1)
    module.student.train()
    module.losses(batch, 0)[0].backward()
    family, missing = module.instrument.family, set()
    for index, (name, _) in enumerate(family.layers_of(module.student)):
        for role in ("query", "key", "value", "attn_out", "ffn_in", "ffn_out"):
            grad: Any = module.student.get_parameter(f"{name}.{getattr(family.names, role)}.weight").grad
            if family.fused_qkv and role in ("query", "key", "value"):
                grad = grad.chunk(3)[("query", "key", "value").index(role)]
            if grad is None or not grad.any():
                missing.add(f"{index}.{role}")
    return missing


@pytest.mark.parametrize("family", MODELS)
def test_ti_g_stops_the_gradients_that_it_says(family: str) -> None:
    """Its first phase replaces attention outputs: value and output projections are left out, in every layer."""
    (intervene, plain), data = modules_of(family, "ti_g")
    depth = intervene.instrument.depth
    assert unreached(intervene, data) == {f"{i}.{role}" for i in range(depth) for role in ("value", "attn_out")}
    assert unreached(plain, data) == set()
    if family == "swin":
        tables = [p.grad for n, p in intervene.student.named_parameters() if "relative_position_bias" in n]
        assert all(grad is not None and grad.any() for grad in tables)  # a part of the scores


@pytest.mark.parametrize("family", MODELS)
def test_variation_aware_trains_every_weight_and_scale(family: str) -> None:
    (module,), data = modules_of(family, "variation_aware")
    assert unreached(module, data) == set()
    learned = {f"{n}.{k}": p for n, q in quantizers_of(module.student).items() for k, p in q.named_parameters()}
    assert len(learned) > 20
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learned.values())
    if family == "swin":  # one step size per head, of which the second stage has twice as many
        assert learned["layers.0.blocks.0.attn.q_bmm_quantizer.step_size"].numel() == 2
        assert learned["layers.1.blocks.0.attn.q_bmm_quantizer.step_size"].numel() == 4
        assert "layers.1.downsample.reduction.weight_quantizer.step_size" in learned
