"""Everything that ships is trained for a few steps by `lowbit train`; each method: tests/methods."""

import logging
import math
from pathlib import Path

import pytest

from lowbit.cli import main
from lowbit.config import compose as C

with C.hydra_session():
    METHODS = C.choices("method")
    EXPERIMENTS = C.choices("experiment")
    QUANTIZERS = C.choices("quantizer")
    AROUND = [
        f"{group}={name}"
        for group in ("estimator", "correction", "oscillation")
        for name in C.choices(group)
        if name != "none"
    ]

# Kinds of model, optimizers, schedules and quantizers that no experiment uses yet.
OTHERS = [
    ["model.kind=vit", "method=ti_g", "scheduler=constant", "model.dropout=0.1"],
    ["model=timm", "model.timm_name=vit_tiny_patch16_224", "model.patch_size=4", "quantizer=w8a8"],
    ["model=deit_tiny_distilled", "model.pretrained=false", "model.patch_size=4", "quantizer=lsq_w4a4"],
    ["data=agreement", "model=bert_micro", "optimizer=bert_adam", "scheduler=cosine", "quantizer=none"],
]
GLUE = ["model=hf", "model.path={bert}", "data.dir={glue}"]
WANTED = {
    "digits/variation_aware_mckd": ["data.soft_labels={labels}"],
    "digits/xtc_layers": ["method.layer_map=[0]"],  # these models have one layer
    **{name: GLUE for name in EXPERIMENTS if name.startswith("glue/")},
}
NEEDS = {name: [f"method={name}"] for name in ("binarybert", "bit_chain", "sdq_ipq")}
TEXT = ["data=agreement", "model=bert_micro", "method=ternarybert"]


def run(overrides: list[str], outputs: Path) -> int:
    return main(["train", *overrides, f"paths.outputs={outputs}"])


@pytest.fixture
def labels(outputs, tiny):
    """Return the function from the overrides of a run to the store that they ask for, written at the first need."""

    def folder(overrides: list[str]) -> str:
        out = str(outputs / "labels")
        if any("{labels}" in override for override in overrides):
            rest = [override for override in overrides if "{labels}" not in override]
            arguments = [out, *rest, *tiny, f"paths.outputs={outputs}", "--crops=5", "--images-per-shard=25"]
            assert main(["softlabels", *arguments]) == 0
        return out

    return folder


EVERYTHING = [
    *([f"experiment={e}", *WANTED.get(e, [])] for e in EXPERIMENTS),
    *OTHERS,
    *([*TEXT, f"quantizer={q}", *NEEDS.get(q, [])] for q in QUANTIZERS),
    *(["method=ti_m", "quantizer=lsq_w4a4", choice] for choice in AROUND),
]
IN_EXPERIMENTS = "".join(file.read_text() for file in (C.shipped_root() / "conf" / "experiment").rglob("*.yaml"))


def is_repeated(overrides: list[str]) -> bool:
    """Whether an experiment trains the last choice too, or tests/methods or the rows of CoLA the experiment."""
    if overrides in OTHERS:
        return overrides == OTHERS[2]
    if overrides[0] == "method=ti_m" and overrides[2] not in ("estimator=ewgs", "correction=dampening"):
        return True  # the others on small models: tests/training/test_quantized_training.py
    if overrides in [[f"experiment=digits/{method}"] for method in METHODS]:
        return True
    if overrides[0].startswith("experiment=glue/"):
        return overrides[0] not in ("experiment=glue/cola_minilm_finetune", "experiment=glue/cola_minilm_ti_g")
    return any(
        f"/{word.replace('=', ': ')}\n" in IN_EXPERIMENTS
        for word in overrides
        if word.startswith(("quantizer=", "estimator=", "correction=", "oscillation=")) and word != "quantizer=lsq_w4a4"
    )


@pytest.mark.parametrize(
    "overrides",
    [pytest.param(o, marks=pytest.mark.slow if is_repeated(o) else (), id=" ".join(o)) for o in EVERYTHING],
)
def test_runs_to_its_end(overrides, few_steps, outputs, runs_in, capsys, labels, many_glue_rows, tiny_bert):
    overrides = [override.replace("{labels}", labels(overrides)) for override in overrides]
    overrides = [
        override.replace("{glue}", str(many_glue_rows)).replace("{bert}", str(tiny_bert)) for override in overrides
    ]
    before = runs_in(outputs)
    assert run(few_steps(overrides), outputs) == 0
    after = runs_in(outputs)
    (new,) = set(after) - set(before)
    result = after[new]
    stages = result["config"]["method"]["stages"]
    assert result["status"] == "finished"
    assert result["config"]["method"]["name"] in METHODS
    assert [stage["name"] for stage in result["stages"]] == list(stages)
    assert (
        result["steps"]
        == sum(stage["steps"] for stage in result["stages"])
        == (0 if stages.keys() == {"ptq"} else result["config"]["budget"]["steps"])
    )
    assert (result["teacher"] is None) == (result["config"]["method"]["name"] == "finetune")
    assert math.isfinite(result["metrics"][result["primary_metric"]])
    assert result["size"]["simulated_bytes"] <= result["size"]["float_bytes"]
    folder = next(outputs.glob(f"runs/**/{new}"))
    assert (folder / "metrics.csv").read_text().count("\n") > (stages.keys() != {"ptq"})
    assert (folder / "stages" / list(stages)[-1] / "model.safetensors").is_file()
    out, err = capsys.readouterr()
    assert new in out
    assert "Traceback" not in err


def test_methods_of_one_data_set_share_one_teacher(few_steps, outputs, runs_in, capsys):
    """The second student of a teacher finds it, whatever its method, seed and quantizer."""
    for overrides in (["method=ternarybert"], ["method=ti_m", "seed=5", "quantizer=w8a8"]):
        assert run(few_steps(overrides), outputs) == 0
    teachers = {run["teacher"]["id"] for run in runs_in(outputs).values() if plain_digits(run)}
    assert len(teachers) == 1
    assert (outputs / "teachers" / teachers.pop() / "model.safetensors").is_file()


def plain_digits(run: dict) -> bool:
    default_size = run["config"]["model"]["kind"] == "timm_vit" and run["config"]["model"]["dropout"] == 0
    experiment = run["config"]["teacher"]["optimizer"]["lr"] != 1e-3
    return run["teacher"] is not None and default_size and not experiment


def test_second_time_nothing_is_trained(few_steps, outputs, capsys):
    overrides = few_steps(["method=finetune"])
    assert run(overrides, outputs) == 0
    capsys.readouterr()
    assert run(overrides, outputs) == 0
    out = capsys.readouterr().out
    assert "finished before, nothing to train" in out
    assert "stage finetune" not in out


@pytest.mark.parametrize("name", ["fast", "overfit", "limit", "profiler"])
def test_debug_choices_run_to_their_end(name, outputs, runs_in, caplog, monkeypatch):
    # Lightning's own handler writes to the stream that was there when it was imported.
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "handlers", [caplog.handler])
    before = runs_in(outputs)
    settings = ["trainer.progress=false", "model.num_layers=1"]
    assert run(["method=qat_logits", "trainer=cpu", f"debug={name}", *settings], outputs) == 0
    (new,) = set(runs_in(outputs)) - set(before)
    extra = {"limit": {"limit_test_batches": 2}, "profiler": {"profiler": "simple"}}
    assert runs_in(outputs)[new]["config"]["trainer"]["extra"] == extra.get(name, {})
    assert not list(outputs.glob(f"runs/**/{new}/wandb"))
    assert ("FIT Profiler Report" in caplog.text) == (name == "profiler")


def test_limited_evaluations_see_so_many_batches(outputs, runs_in):
    overrides = ["method=qat_logits", "debug=limit", "data.eval_batch_size=1", "model.num_layers=1"]
    before = runs_in(outputs)
    assert run([*overrides, "trainer.eval_every=32", "trainer.progress=false"], outputs) == 0
    (new,) = set(runs_in(outputs)) - set(before)
    result = runs_in(outputs)[new]
    assert {value * 2 for name, value in result["metrics"].items() if name.endswith("accuracy")} <= {0, 1, 2}
