"""Semantic checks: every impossible combination is refused with its key, its value, what is allowed and the fix."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from lowbit.config import compose as C
from lowbit.config.idle import idle_notes
from lowbit.config.image_files import IMAGE_FILES
from lowbit.config.problems import ConfigError
from lowbit.config.validate import _TRAIN_ROWS, load, validate
from lowbit.settings.data import DataConfig, DataKind
from lowbit.settings.losses import MixConfig, Site
from lowbit.settings.quantizer import FakeQuantConfig, QuantizerKind, RuleConfig

TEXT = ("data=agreement", "model=bert_micro")
TI = ("method=ti_g",)
PLAIN = ()

INTERVENE = "method.stages.intervene"
PHASES = f"{INTERVENE}.intervention.phases"

# base overrides, changes, and the words that the one problem must hold
CASES: list[tuple[tuple[str, ...], dict[str, Any], list[str]]] = [
    *[
        (PLAIN, {key: 0}, [f"{key}=0", "greater than 0"])
        for key in (
            "data.batch_size",
            "data.eval_batch_size",
            "data.train_size",
            "data.eval_size",
            "model.hidden_size",
            "model.num_layers",
            "trainer.checkpoint_every",
            "trainer.log_every",
            "trainer.eval_every",
            "trainer.threads",
        )
    ],
    (PLAIN, {"model.num_heads": -4}, ["model.num_heads=-4", "greater than 0"]),
    (PLAIN, {"optimizer.lr": -0.1}, ["optimizer.lr=-0.1", "greater than 0"]),
    (PLAIN, {"teacher.optimizer.lr": 0.0}, ["teacher.optimizer.lr=0.0", "greater than 0"]),
    (PLAIN, {"seed": -1}, ["seed=-1", "at least 0"]),
    (PLAIN, {"seed": 2**63}, [f"seed={2**63}", "below 2**63"]),
    (PLAIN, {"teacher.seed": -2}, ["teacher.seed=-2", "at least 0"]),
    (PLAIN, {"data.split_seed": -3}, ["data.split_seed=-3", "at least 0"]),
    (PLAIN, {"model.dropout": 1.0}, ["model.dropout=1.0", "below 1"]),
    (PLAIN, {"model.dropout": -0.1}, ["model.dropout=-0.1", "at least 0"]),
    (PLAIN, {"scheduler.warmup": 1.0}, ["scheduler.warmup=1.0", "share of the stage", "below 1"]),
    (PLAIN, {"teacher.scheduler.warmup": 60.0}, ["teacher.scheduler.warmup=60.0", "share of the stage", "below 1"]),
    (PLAIN, {"trainer.devices": 0}, ["trainer.devices=0", "greater than 0"]),
    (PLAIN, {"trainer.num_nodes": 0}, ["trainer.num_nodes=0", "greater than 0"]),
    (PLAIN, {"trainer.devices": 2, "trainer.num_nodes": 100}, ["data.batch_size", "200 processes", "fewer devices"]),
    (TEXT, {"model.kind": "vit"}, ["reads images", "data=agreement", "use model=bert_micro"]),
    (TEXT, {"model.kind": "timm_vit"}, ["reads images", "data=agreement", "bert_micro"]),
    (PLAIN, {"model.kind": "bert"}, ["reads text", "data=digits", "use model=vit_micro or timm"]),
    (PLAIN, {"model.hidden_size": 66}, ["model.hidden_size=66", "multiple of num_heads=4"]),
    (TEXT, {"data.tokenizer": "model"}, ["model=bert_micro", "set data.tokenizer=words"]),
    (TEXT, {"model.kind": "hf", "model.path": "bert-base-uncased"}, ["set data.tokenizer=model"]),
    (TEXT, {"model.kind": "hf", "data.tokenizer": "model"}, ["model.path", "no value", "model.path=bert-base-uncased"]),
    (
        TEXT,
        {"model.kind": "hf", "data.tokenizer": "model", "model.path": "./nowhere"},
        ["model.path=./nowhere: no such folder"],
    ),
    (
        TEXT,
        {"model.kind": "hf", "data.tokenizer": "model", "model.package": "no_such_package"},
        ["needs the package no-such-package", "pip install --no-deps no-such-package"],
    ),
    (PLAIN, {"model.kind": "timm"}, ["model.timm_name: no value", "model.timm_name=deit_tiny"]),
    (PLAIN, {"teacher.source": "path"}, ["teacher.path: no value", "model.safetensors"]),
    (
        PLAIN,
        {"teacher.source": "path", "teacher.path": "/nowhere"},
        ["teacher.path=/nowhere: no such folder"],
    ),
    (PLAIN, {"quantizer.activation.bits": 1}, ["quantizer.activation.bits=1", "2 to 16 bits", "twn"]),
    (PLAIN, {"quantizer.activation.bits": 17}, ["quantizer.activation.bits=17", "2 to 16 bits"]),
    (PLAIN, {"quantizer.activation.bits": None}, ["quantizer.activation.bits=null", "2 to 16 bits"]),
    (PLAIN, {"quantizer.weight.bits": 2}, ["quantizer.weight.bits=2", "one width only", "another kind"]),
    (PLAIN, {"quantizer.embedding.threshold": 0.0}, ["quantizer.embedding.threshold=0.0", "greater than 0"]),
    (PLAIN, {"quantizer.activation.clip": 0.0}, ["quantizer.activation.clip=0.0", "greater than 0"]),
    (
        PLAIN,
        {"quantizer.rules.0.weight": FakeQuantConfig(kind=QuantizerKind.minmax_symmetric)},
        ["quantizer.rules.0.weight.bits=null", "2 to 16"],
    ),
    (
        PLAIN,
        {"quantizer.rules.1.operands": ["query", "keys"]},
        ["quantizer.rules.1.operands", "'keys'", "query, key, probs, value"],
    ),
    (PLAIN, {"method.losses": {}}, ["method.stages.qat: no losses", "method.losses.logits.weight=1"]),
    (PLAIN, {"method.layer_map": [0, 9, 1, 2]}, ["method.layer_map=[0, 9, 1, 2]", "one of 0 to 3"]),
    (PLAIN, {"method.layer_map": [4]}, ["method.layer_map=[4]", "1 to 4 student layers"]),
    (PLAIN, {"budget.steps": 9}, ["budget.steps=9: epochs=3.0 is set too", "the other to null"]),
    (PLAIN, {"method.losses.hidden.ramp": "linear"}, ["losses.hidden.weight_end=null", "go together"]),
    (PLAIN, {"method.losses.hidden.weight_end": 0.5}, ["losses.hidden.weight_end=0.5", "go together"]),
    (("method=finetune",), {"method.losses.task.kind": "logits"}, ["loss task", "needs a teacher", "teacher=true"]),
    (PLAIN, {"method.stages": {}}, ["method.stages: empty; a method has at least one stage"]),
    (PLAIN, {"method.stages.qat.student": "narrow"}, ["loss scores: kind scores compares heads", "narrow student"]),
    (PLAIN, {"trainer.accelerator": "foo"}, ["trainer.accelerator=foo: must be one of auto, cpu, gpu"]),
    (PLAIN, {"method.stages.qat.student": "previous"}, ["first stage", "set its student to teacher or fresh"]),
    (TI, {PHASES: []}, [f"{PHASES}: empty", "sites: [probs]"]),
    (TI, {f"{PHASES}.0.share": 0}, [f"{PHASES}.0.share=0", "greater than 0"]),
    (TI, {f"{PHASES}.1.mix": 0.0}, [f"{PHASES}.1.mix=0", "nothing would be replaced"]),
    (TI, {f"{PHASES}.1.mix": 1.5}, [f"{PHASES}.1.mix=1.5", "from 0 to 1"]),
    (TI, {f"{PHASES}.1.mix_end": -0.5, f"{PHASES}.1.ramp": "linear"}, [f"{PHASES}.1.mix_end=-0.5", "from 0 to 1"]),
    (TI, {f"{PHASES}.1.mix": 0.0, f"{PHASES}.1.mix_end": 0.0, f"{PHASES}.1.ramp": "linear"}, ["nothing would be"]),
    (TI, {f"{PHASES}.1.mix_end": 0.5}, [f"{PHASES}.1", "go together"]),
    (
        TI,
        {f"{PHASES}.1.site_mix": {Site.hidden: MixConfig(mix=0.5)}},
        [f"{PHASES}.1.site_mix.hidden", "allowed: context"],
    ),
    (TI, {f"{PHASES}.2.sites": []}, [f"{PHASES}.2.sites: empty", "probs, context, attn_out, ffn_out, hidden"]),
    (TI, {f"{INTERVENE}.intervention.layers": [0, 4]}, [f"{INTERVENE}.intervention.layers: 4", "0 to 3"]),
    (TI, {f"{INTERVENE}.intervention.layers": [-1]}, [f"{INTERVENE}.intervention.layers=[-1]", "at least 0"]),
    (TI, {f"{INTERVENE}.epochs": 1.0}, [f"{INTERVENE} sets steps and epochs", "set one of them"]),
    (TI, {"budget.epochs": 1.0}, ["method.stages.plain is left with -39 of 21 steps", "raise budget.steps"]),
    (TI, {"budget.epochs": None}, ["method.stages.plain needs a total", "budget.steps=N", "budget.epochs=N"]),
    (TI, {f"{INTERVENE}.steps": None}, ["intervene and plain both take the rest", "all but one"]),
    (PLAIN, {"method.stages.qat.steps": -1}, ["method.stages.qat", "-1"]),
    # `budget` is the students': setting it would not help a teacher.
    (
        PLAIN,
        {"teacher.budget.epochs": None},
        ["teacher.budget", "set teacher.budget.steps=N or teacher.budget.epochs=N"],
    ),
    (PLAIN, {"teacher.budget.steps": -5, "teacher.budget.epochs": None}, ["teacher.budget.steps=-5", "greater than 0"]),
    (PLAIN, {"teacher.budget.epochs": 0.0}, ["teacher.budget.epochs=0.0", "greater than 0"]),
]
# These break a check and, by the way, what builds on it: the listed words must be in one of the problems.
SEVERAL: list[tuple[tuple[str, ...], dict[str, Any], list[str]]] = [
    (PLAIN, {"budget.steps": -5}, ["budget.steps=-5", "greater than 0"]),
    (PLAIN, {"budget.epochs": -1.0}, ["budget.epochs=-1.0", "greater than 0"]),
    (TI, {f"{INTERVENE}.teacher": False}, [f"{INTERVENE}.intervention", "needs a teacher", "teacher=true"]),
]


@pytest.mark.parametrize("base", [PLAIN, TI, TEXT])
def test_bases_are_valid(changed, base):
    assert validate(C.to_config(changed(*base))) == []


@pytest.mark.parametrize(("base", "changes", "words"), CASES, ids=lambda value: str(value)[:60])
def test_the_problem_says_what_and_how(changed, base, changes, words):
    problems = validate(C.to_config(changed(*base, **changes)))
    assert len(problems) == 1, problems
    (problem,) = problems
    assert "\n" not in problem
    for word in words:
        assert word in problem, problem


@pytest.mark.parametrize(("base", "changes", "words"), SEVERAL, ids=lambda value: str(value)[:60])
def test_a_problem_among_its_consequences(changed, base, changes, words):
    problems = validate(C.to_config(changed(*base, **changes)))
    assert any(all(word in problem for word in words) for problem in problems), problems


def test_all_problems_at_once(changed):
    wrong = {"seed": -1, "model.dropout": 2.0, "quantizer.weight.bits": 2, "method.losses": {}, "optimizer.lr": 0.0}
    problems = validate(C.to_config(changed(**wrong)))
    assert len(problems) == len(wrong)
    with pytest.raises(ConfigError) as caught:
        load(["seed=-1", "model.dropout=2", "optimizer.lr=0"])
    assert len(caught.value.problems) == 3
    assert str(caught.value).startswith("3 problems in the configuration:\n  - ")


@pytest.mark.parametrize(
    "changes",
    [
        {"trainer.eval_every": 1, "trainer.threads": 1},
        {"data.train_size": 1, "data.eval_size": 1},
        {"quantizer.activation.bits": 2},
        {"quantizer.activation.bits": 16},
        {"quantizer.activation.clip": None},
        {"scheduler.warmup": 0.0, "model.dropout": 0.0},
        {"seed": 0, "data.split_seed": 2**63 - 1},
        {"method.losses.hidden.ramp": "cosine", "method.losses.hidden.weight_end": 0.0},
    ],
    ids=str,
)
def test_edges_that_are_allowed(changed, changes):
    assert validate(C.to_config(changed(**changes))) == []


def test_intervention_edges_that_are_allowed(changed):
    changes = {f"{PHASES}.0.mix": 1.0, f"{INTERVENE}.intervention.layers": [0, 3], "budget.epochs": 3.0}
    assert validate(C.to_config(changed(*TI, **changes))) == []


IDLE: list[tuple[list[str], list[str]]] = [
    (["method=finetune", "quantizer=w2a8"], ["quantizer=w2a8: has no effect", "no stage of method=finetune quantizes"]),
    (["method=finetune", "quantizer.weight.clip=2"], ["quantizer.weight.clip=2", "method=finetune"]),
    (["method=finetune", "correction=cage"], ["correction=cage: has no effect", "method=finetune"]),
    (["method=finetune", "estimator=ste"], ["estimator=ste: has no effect", "method=finetune"]),
    (["method=finetune", "oscillation=track"], ["oscillation=track: has no effect", "method=finetune"]),
    (
        ["estimator.weight.delta=0.1"],
        ["delta=0.1", "estimator.weight.kind=published, only under ewgs"],
    ),
    (["correction.strength=3"], ["correction.strength=3.0", "correction.kind=none, only under cage, dampening"]),
    (
        ["correction=cage", "correction.start=0.5"],
        ["start=0.5", "correction.kind=cage, only under dampening"],
    ),
    (["oscillation=track", "oscillation.freeze_from=0.5"], ["oscillation.freeze=false, only under true"]),
    (["oscillation.threshold=0.5"], ["oscillation.threshold=0.5", "oscillation=track"]),
    (
        ["optimizer.step_counter=shared"],
        ["step_counter=shared", "optimizer.kind=adamw, only under bert_adam"],
    ),
    (["model.max_positions=9"], ["model.max_positions=9", "model.kind=timm_vit, only under bert"]),
    (["data.source=hub"], ["data.source=hub", "data.kind=digits, only under glue"]),
    (
        ["method.losses.hidden.temperature=3"],
        ["temperature=3.0", "method.losses.hidden.kind=hidden, only under logits"],
    ),
    (["method.losses.logits.layers=mean"], ["method.losses.logits.layers=mean", "kind=logits, only under hidden"]),
    (["method.width=0.3"], ["method.width=0.3: has no effect", "narrow"]),
    (["data.num_crops=2"], ["data.num_crops=2: has no effect", "data.soft_labels"]),
    (["data.image.flip=0.1"], ["data.image", "data=digits"]),
    (["data.tokenizer=model"], ["data.tokenizer=model: data=digits holds images"]),
    (["data.padding=max_length"], ["data.padding=max_length", "data.kind=digits, only under glue"]),
    (["data.max_length=64"], ["data.max_length=64", "data.kind=digits, only under glue"]),
    (["data.length_grouped=true"], ["data.length_grouped=true: has no effect", "data=digits holds images"]),
]


@pytest.mark.parametrize(("overrides", "words"), IDLE, ids=lambda value: " ".join(value)[:60])
def test_a_setting_that_nothing_reads_is_refused(overrides, words):
    with pytest.raises(ConfigError) as caught:
        load(overrides)
    assert any(all(word in problem for word in words) for problem in caught.value.problems), caught.value.problems


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["method=finetune", "teacher.seed=7"],
            ["teacher.seed=7: has no effect, since method=finetune needs no"],
        ),
        (
            ["model=timm", "model.timm_name=deit_tiny_patch16_224", "model.num_layers=1"],
            ["model.num_layers=1: has no effect under model.kind=timm, only under bert, vit, timm_vit"],
        ),
        (["method=ptq", "optimizer.lr=1"], ["optimizer.lr=1: has no effect, since method=ptq trains nothing"]),
        (["method=ptq", "budget.epochs=1"], ["budget.epochs=1: has no effect, since every stage of method=ptq"]),
        (["method=ternarybert", "teacher.seed=7", "optimizer.lr=1", "budget.epochs=1"], []),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_a_setting_that_only_this_method_leaves_idle_is_noted(overrides, words):
    """Crossed with other methods in a sweep it makes sense."""
    notes = list(idle_notes(load(overrides)[1], overrides))
    assert len(notes) == len(words)
    assert all(note.startswith(word) for note, word in zip(notes, words, strict=True))


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=finetune"],
        ["method=finetune", "quantizer=none"],
        ["method=finetune", "correction=none", "estimator=published", "oscillation=none"],
        ["estimator.weight.delta=1e-3", "estimator.weight.kind=ste"],
        ["data.train_file=null"],
    ],
    ids=" ".join,
)
def test_what_changes_nothing_is_allowed(overrides):
    load(overrides)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optimizer.max_grad_norm=0"], ["optimizer.max_grad_norm=0.0: must be greater than 0", "null switches"]),
        (["method.losses.logits.weight=-1"], ["method.losses.logits.weight=-1.0: must be at least 0"]),
        (["method.losses.logits.temperature=0"], ["temperature=0.0: must be greater than 0"]),
        (["optimizer.lr=inf"], ["optimizer.lr=inf: must be greater than 0, and finite"]),
        (["teacher.optimizer.weight_decay=nan"], ["teacher.optimizer.weight_decay=nan: must be at least 0"]),
        (["budget.epochs=inf"], ["budget.epochs=inf: must be greater than 0, and finite"]),
        (["optimizer.beta2=1"], ["optimizer.beta2=1.0: must be at least 0 and below 1"]),
        (["optimizer.eps=0"], ["optimizer.eps=0.0: must be greater than 0"]),
        (["teacher.min_score=96"], ["teacher.min_score=96.0: must be from -1 to 1; scores are shares: 0.96, not 96"]),
        (
            ["quantizer.activation.granularity=row"],
            ["granularity=row: kind minmax_symmetric allows tensor, tok"],
        ),
        (["seed=1" + 30 * "0"], ["seed=1", "below 2**63"]),
        (
            ["+trainer.extra.profilr=simple"],
            [
                "trainer.extra.profilr=simple: Lightning's Trainer has no such argument; allowed are benchmark, ",
                "did you mean profiler?",
            ],
        ),
        (
            ["+trainer.extra.max_steps=3"],
            ["trainer.extra.max_steps=3: lowbit sets this argument of the Trainer; use budget.steps"],
        ),
        (["trainer.extra.profiler=simple"], ["write +trainer.extra.profiler=simple"]),
        (["trainer.threads=9999"], ["trainer.threads=9999: must be greater than 0 and at most 1024"]),
        (["data.batch_size=1" + 30 * "0"], ["data.batch_size=1", "must be below 2**63"]),
        (["name=../../x"], ["name=../../x: is part of a path"]),
        (["name=/tmp/x"], ["name=/tmp/x: is part of a path"]),
        (["data.name=../../x"], ["data.name=../../x: is part of a path"]),
    ],
    ids=lambda value: str(value)[:50],
)
def test_values_that_ruin_a_run_are_refused(overrides, words):
    with pytest.raises(ConfigError) as caught:
        load(overrides)
    assert any(all(word in problem for word in words) for problem in caught.value.problems), caught.value.problems


def test_shared_setting_is_reported_once(changed):
    """Six roles refer to `quantizer.weight`: one mistake in it is one line."""
    problems = validate(C.to_config(changed(**{"quantizer.weight.threshold": -1.0})))
    assert problems == ["quantizer.weight.threshold=-1.0: must be greater than 0"]


def test_keys_that_the_schema_lacks_are_refused():
    """Hydra's `+` opens closed groups; without this check a typo would train and get an id of its own."""
    with pytest.raises(ConfigError) as caught:
        load(["+foo=1", "+model.num_layer=2", "++trainer.lr=1", "seed=-1"])
    problems = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    for word in ("foo: no such key", "model.num_layer: no such key", "'model.num_layers'", "'optimizer.lr'", "seed=-1"):
        assert word in problems


def test_losses_are_named_by_the_user_and_their_settings_are_not():
    _, config = load(["~method.losses.scores"])
    assert "scores" not in config.method.losses
    with pytest.raises(
        ConfigError, match=r"method\.losses\.hidden\.wait.*Did you mean 'method\.losses\.hidden\.weight'"
    ):
        load(["+method.losses.hidden.wait=1"])


def test_missing_values_are_all_named():
    with pytest.raises(ConfigError) as caught:
        load(["model.name=???", "data.kind=???", "seed=abc"])
    problems = caught.value.problems
    assert [problem.split(":")[0] for problem in problems] == ["seed=abc", "data.kind", "model.name"]


@pytest.mark.parametrize("kind", [DataKind.digits, DataKind.agreement])
def test_train_rows_are_those_of_the_data(kind: DataKind):
    """validate.py may not import the data package (torch), so it repeats the numbers."""
    from lowbit.data import data_info

    assert _TRAIN_ROWS[kind] == data_info(DataConfig(name=kind.name, kind=kind)).train_size
    counted = {DataKind.glue, DataKind.squad, DataKind.xglue, *IMAGE_FILES}  # in their files
    assert set(_TRAIN_ROWS) == set(DataKind) - counted


def test_steps_agree_with_the_budget_of_the_recipe():
    """What validate counts as an epoch is what the recipe is built with."""
    from lowbit.config.budget import stage_steps
    from lowbit.data import data_info

    _, config = load(["data.train_size=130", "data.batch_size=64", "method=ti_g", "budget.epochs=30"])
    steps_per_epoch = -(-data_info(config.data).train_size // config.data.batch_size)
    assert stage_steps(config.method.stages, config.budget, steps_per_epoch) == {"intervene": 60, "plain": 30}


def test_operands_are_those_of_the_attention_core():
    from lowbit.config.quantization import _OPERANDS
    from lowbit.modeling.attention import OPERANDS

    assert tuple(_OPERANDS) == tuple(OPERANDS)


def test_schema_defaults_of_a_rule_are_all_operands():
    from lowbit.config.quantization import _OPERANDS

    assert OmegaConf.structured(RuleConfig).operands == list(_OPERANDS)
