"""The published defects of Teacher Intervention are absent: spec/teacher_intervention.md, section 10, by its numbers.

Defects 1 and 13 are shared with KD-QAT and TernaryBERT; the index in docs/methods names their tests.
"""

import ast
import copy
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import TINY_TI
from torch import Tensor, nn

from lowbit.cli import main
from lowbit.config.identity import run_folder
from lowbit.config.problems import ConfigError
from lowbit.config.validate import load
from lowbit.data import build_datamodule, data_info
from lowbit.losses import task_loss
from lowbit.modeling import Instrument, prepare
from lowbit.modeling.build import build_model
from lowbit.quantizers import build_quantizer, quantizers_of, weight_sites
from lowbit.recipes import Stage, build_rules
from lowbit.settings import data, losses, model, quantizer, recipe, run
from lowbit.settings.run import Config
from lowbit.training.optimizers import build_optimizer
from lowbit.training.schedules import build_schedule
from lowbit.training.stage_runner import load_weights, save_tensors
from tests.helpers.losses import loss_of

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py"))}
MODES = ["ti_o", "ti_c", "ti_m", "ti_g", "ti_inverted", "ti_stochastic"]
Batch = dict[str, Tensor]
Stages = Callable[..., tuple[Stage, ...]]
Berts = Callable[..., nn.Module]
Distil = Callable[..., Any]


def test_the_threshold_factor_is_wired(stages_of: Stages):
    """Defect 2: `mean_scale` was stored in the config while the quantizer took 0.7."""
    w = torch.tensor([[1.0, 0.5, 0.2, 0.1]])  # mean .45: thresholds .315 and .09
    levels = {}
    for factor in (0.7, 0.2):
        (stage,) = stages_of(f"quantizer.weight.threshold={factor}")
        levels[factor] = build_quantizer(stage.rules[0].weight)(w).flatten().tolist()
    assert levels[0.7] == pytest.approx([0.75, 0.75, 0, 0])
    assert levels[0.2] == pytest.approx([0.45] * 4)


def test_every_setting_is_read_somewhere():
    """Defect 3: dead flags (`input_bits`, `clipping`, `tc_top_k`, `qk_FP`, `qkv_FP`)."""
    members = [member for room in (data, losses, model, quantizer, recipe, run) for member in vars(room).values()]
    classes = {member for member in members if is_dataclass(member)}
    classes = {c for c in classes if c.__module__ != "lowbit.settings.fields"}
    names = {field.name for c in classes for field in fields(c)}
    text = "\n".join(content for path, content in SOURCES.items() if path.parent.name != "settings")
    yaml = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "conf").rglob("*.yaml"))
    read_by_yaml = set(re.findall(r"\$\{(?:\w+\.)*(\w+)\}", yaml))
    own = "\n".join(content for path, content in SOURCES.items() if path.parent.name == "settings")
    read = re.compile(r"self\.(\w+)").findall(own)
    dead = {name for name in names if not re.search(rf"[.\"]{name}\b", text)} - read_by_yaml - {*read}
    assert len(names) > 100
    assert dead == set()


def test_the_width_of_activations_is_not_hard_coded(stages_of: Stages):
    """Defect 3: `input_bits` was a flag, 8 the width."""
    (stage,) = stages_of("quantizer.activation.bits=3")
    assert build_quantizer(stage.rules[0].input)(torch.linspace(-1, 1, 1001)).unique().numel() == 7


def test_full_precision_quantizes_nothing(stages_of: Stages, bert: Berts):
    """Defect 4: `quantize=0` still ternarized the attention output."""
    model = bert()
    prepare(model, stages_of("quantizer=none")[0].rules)
    assert quantizers_of(model) == {}


@pytest.mark.parametrize(("off", "module"), [("query", "attention.self.query"), ("attn_out", "attention.output.dense")])
def test_each_matrix_has_a_switch_of_its_own(off: str, module: str, bert: Berts, config_of: Callable[..., Config]):
    """Defect 4: the switch of Q, K and V was that of the attention output too."""
    config = copy.deepcopy(config_of())
    names = []
    for remove in (False, True):
        if remove:
            config.quantizer.rules[0].match.remove(off)
        model = bert()
        prepare(model, build_rules(config.quantizer, config.estimator))
        names.append({site.name for site in weight_sites(model)})
    every, others = names
    assert every - others == {f"bert.encoder.layer.{layer}.{module}" for layer in (0, 1)}


@pytest.mark.parametrize("method", MODES[:3])
def test_a_stage_that_intervenes_without_a_teacher_is_refused(method: str):
    """Defect 5: TI-O crashed with a NoneType, TI-C and TI-M fell back to plain training, silently."""
    with pytest.raises(ConfigError, match=r"intervention: needs a teacher"):
        load([f"method={method}", "method.stages.intervene.teacher=false", "budget.steps=100", "budget.epochs=null"])


@pytest.mark.parametrize("method", MODES)
def test_an_intervened_step_leaves_no_flag_behind(
    method: str, stages_of: Stages, distil: Distil, bert: Berts, batch: Batch
):
    """Defect 6: the mode lay in the shared config, so a saved step-1 model was half intervened when loaded."""
    stage = stages_of(f"method={method}")[0]
    module = distil(stage, bert(), bert(seed=1))
    before, config = module.evaluate(batch, "plain"), module.student.config.to_dict()
    for step in (0, 15, 50):
        module.losses(batch, step)
    assert torch.equal(module.evaluate(batch, "plain"), before)
    assert module.student.config.to_dict() == config
    assert module.student.state_dict().keys() == bert().state_dict().keys()


def test_the_weights_of_the_first_stage_load_into_a_plain_model(two_stage_run: Any, config_of: Callable[..., Config]):
    """Defect 6: only command-line arguments made step 2 a plain student."""
    config = config_of(*TINY_TI)
    plain = build_model(config.model, data_info(config.data), 3)
    folder = two_stage_run.folder / "stages" / "intervene"
    load_weights(plain, folder / "model.safetensors")
    assert set(load_file(folder / "model.safetensors")) == set(plain.state_dict())


def test_evaluation_is_the_students_own_beside_the_intervened_one(
    stages_of: Stages, distil: Distil, bert: Berts, batch: Batch, two_stage_run: Any
):
    """Defect 7: the accuracy logged in step 1 was that of a student fed with the teacher's tensors."""
    stage = stages_of("method=ti_m")[0]
    module, other = distil(stage, bert(), bert(seed=1)), distil(stage, bert(), bert(seed=2))
    assert module.views == ("plain", "intervened")
    assert torch.equal(module.evaluate(batch, "plain"), other.evaluate(batch, "plain"))
    assert not torch.equal(module.evaluate(batch, "intervened"), other.evaluate(batch, "intervened"))
    first, second = (stage["metrics"].keys() for stage in two_stage_run.result["stages"])
    assert {"val/matthews", "val_intervened/matthews"} <= first
    assert "val_intervened/matthews" not in second


def test_one_schedule_for_all_parameters_can_be_had(stages_of: Stages):
    """Defect 8: the rate followed each parameter's own count; W_V and W_O warmed up late. Published default."""
    moved = {}
    for counter in ("parameter", "shared"):
        stage = stages_of("method=ti_g", "optimizer=bert_adam", f"optimizer.step_counter={counter}")[0]
        model = nn.ParameterDict({name: nn.Parameter(torch.ones(2, 2)) for name in ("always", "late")})
        optimizer, _ = build_optimizer(model, stage.optimizer, build_schedule(stage.scheduler, stage.steps))
        for step in range(10):  # the phase TI-O of 60 steps
            model["always"].grad = torch.ones(2, 2)
            model["late"].grad = torch.ones(2, 2) if step == 9 else None
            before = model["late"].clone()
            optimizer.step()
        moved[counter] = not torch.equal(model["late"], before)
    assert moved == {"parameter": False, "shared": True}


def test_runs_of_different_seeds_share_no_first_stage(tmp_path: Path):
    """Defect 9: step-1 checkpoints carried no seed in their name, so every step 2 began from one of them."""
    base = ["method=ti_g", f"paths.outputs={tmp_path}"]
    folders = {run_folder(*load([*base, f"seed={seed}"])) for seed in (1, 2)}
    assert len(folders) == 2


def test_a_stage_ends_at_its_last_step_wherever_evaluations_fall(two_stage_run: Any):
    """Defect 10: step 1 ended only within an evaluation, and a metric never above 0 crashed the end of the run."""
    steps = [(stage["name"], stage["steps"]) for stage in two_stage_run.result["stages"]]
    assert steps == [("intervene", 9), ("plain", 9)], "evaluated every 4 steps"
    assert {step for name, step, _ in two_stage_run.evaluated if name == "intervene"} >= {4, 8, 9}
    for stage in ("intervene", "plain"):
        assert (two_stage_run.folder / "stages" / stage / "model.safetensors").is_file()
    assert two_stage_run.result["status"] == "finished"


@pytest.mark.parametrize("quantizer", ["w2a8", "xtc_w1a8", "lsq_w4a4", "w4a8", "statsq_w2a2"])
def test_codes_and_scales_hold_the_evaluated_weights(quantizer: str, stages_of: Stages, bert: Berts):
    """Defect 11: "quantized models" held latent float weights and nothing from which levels could be packed."""
    model = bert()
    prepare(model, stages_of(f"quantizer={quantizer}")[0].rules)
    for site in weight_sites(model):
        spec = site.quantizer.spec
        with torch.no_grad():
            view = site.quantizer.heads_first(site.weight)
            y, grid = site.quantizer.put_on_grid(view)
            codes = grid.codes(y)
            assert torch.allclose(grid.levels(codes), y, rtol=1e-5, atol=1e-7)
            assert torch.equal(site.quantizer.heads_back(y, site.weight), site.quantized())
        assert codes.max() - codes.min() <= 2**spec.storage_bits - 1


def test_augmentation_of_text_that_does_not_exist_is_told(config_of: Callable[..., Config]):
    """Defect 12: augmentation raised a TypeError, within a cache's `except`, for half of the tasks."""
    with pytest.warns(UserWarning, match=r"data\.augment has no effect on the text of agreement"):
        build_datamodule(config_of("data=agreement", "model=bert_micro", "data.augment=true").data, 1)


def test_nothing_is_pickled():
    """Defect 13: pickled features ignored the sequence length and the vocabulary they were made with.

    One file reads pickles, since CIFAR is published as such: arrays and nothing else (tests/data/test_image_sets.py).
    """
    assert [path.name for path, text in SOURCES.items() if "import pickle" in text] == ["cifar_files.py"]
    for path, text in SOURCES.items():
        if path.name == "cifar_files.py":
            continue
        tree = ast.parse(text)
        imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
        imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not imported & {"pickle", "shelve", "joblib", "dill"}, path
        loads = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "torch.load"]
        assert all(any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in n.keywords) for n in loads)


def test_the_task_loss_of_regression_reads_labels():
    """Defect 14: the ground-truth loss of STS-B compared with the teacher's logits."""
    logits, labels = torch.tensor([[1.0], [2.0]]), torch.tensor([2.0, 5.0])
    assert task_loss(logits, labels).item() == 5.0  # (1 + 9) / 2
    assert not loss_of("task").fields


def test_a_stage_without_losses_is_refused():
    """Defect 14: with every loss off the sum was the number 0 and the backward crashed."""
    off = [f"method.losses.{name}.weight=0" for name in ("logits", "hidden", "scores")]
    with pytest.raises(ConfigError, match=r"method\.stages\.qat: no losses; give one a weight"):
        load(off)


def test_unknown_flags_are_refused_and_no_path_of_a_machine_is_in_a_file(capsys: pytest.CaptureFixture[str]):
    """Defect 15: `--gpu` worked by its prefix only, and a script had a home directory in it."""
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--gpu", "0"])
    assert stopped.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err
    shipped = [*(ROOT / "conf").rglob("*.yaml"), *(ROOT / "sweeps").rglob("*.yaml")]
    texts = {**SOURCES, **{path: path.read_text(encoding="utf-8") for path in shipped}}
    absolute = re.compile(r"(?<![\w.])/(?:home|root|Users|mnt|workspace)/")
    assert {path.name for path, text in texts.items() if absolute.search(text)} == set()


def test_no_device_is_named_in_code():
    """Defect 16: `.to("cuda")` in the score loss, and every visible GPU was taken."""
    named = re.compile(r"\.cuda\(|\.to\(\s*f?[\"']cuda|device=\s*[\"']cuda")
    assert {path.name for path, text in SOURCES.items() if named.search(text)} == set()
    assert load([])[1].trainer.devices == 1


def test_weights_with_missing_or_unexpected_keys_are_refused(bert: Berts, tmp_path: Path):
    """Defect 17: `from_pretrained` ignored both."""
    state = dict(bert().state_dict())
    for name, changed in {
        "missing": {k: v for k, v in state.items() if "layer.1.attention.self.query" not in k},
        "unexpected": {**state, "bert.extra.weight": torch.zeros(1)},
    }.items():
        save_tensors(changed, tmp_path / f"{name}.safetensors")
        with pytest.raises(ValueError, match="does not hold weights"):
            load_weights(bert(), tmp_path / f"{name}.safetensors")


def test_under_ti_o_the_attention_output_loss_trains_value_and_output_projection(
    stages_of: Stages, distil: Distil, bert: Berts, batch: Batch
):
    """Defect 18: the released losses leave W_V and W_O untrained under TI-O. Published default; `attn_out` mends it."""
    trained = {}
    for weight in (0, 1):
        stage = stages_of("method=ti_o", f"method.losses.attn_out.weight={weight}")[0]
        module = distil(stage, bert(), bert(seed=1))
        module.losses(batch, 0)[0].backward()
        layer = module.student.bert.encoder.layer[0].attention
        trained[weight] = [p.grad is not None for p in (layer.self.value.weight, layer.output.dense.weight)]
    assert trained == {0: [False, False], 1: [True, True]}


@pytest.mark.parametrize("method", MODES)
def test_every_step_of_the_first_stage_intervenes(
    method: str, stages_of: Stages, distil: Distil, bert: Berts, batch: Batch
):
    """Defect 19: for a time the published script of step 1 trained without any intervention."""
    first, second = stages_of(f"method={method}")
    assert all(first.intervention_at(step, seed=1) is not None for step in range(first.steps))
    assert all(second.intervention_at(step, seed=1) is None for step in range(second.steps))
    module = distil(first, bert(), bert(seed=1))
    plain: Instrument = module.instrument
    for step in (0, 15, 59):
        trace, teacher = module.traces(batch, step)
        assert not torch.equal(trace.logits, plain.run(batch).logits)
        assert teacher.logits.shape == trace.logits.shape
