"""A family that the package lacks is one record: the shipped example, DistilBERT, against the installed library."""

import json
import runpy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel

from lowbit.cli import main
from lowbit.modeling import Intervention, Plan, prepare
from lowbit.modeling.build import build_model
from lowbit.modeling.families import FAMILIES, HF_BERT, register_family
from lowbit.modeling.surgery import narrow, reduce_layers
from lowbit.modeling.trace import FIELDS
from lowbit.settings.data import DataInfo
from lowbit.settings.model import ModelConfig, ModelKind

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_family" / "own_family.py"
INFO = DataInfo("made_up", "text", "classification", 2, "accuracy", 10, max_length=16)


@pytest.fixture
def example() -> Iterator[dict[str, Any]]:
    """The names that the example defines; its family is forgotten afterwards."""
    yield runpy.run_path(str(EXAMPLE))
    FAMILIES[:] = [family for family in FAMILIES if family.name != "hf_distilbert"]


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 50, (3, 7), generator=torch.Generator().manual_seed(5))
    mask = (torch.arange(7) < torch.tensor([[7], [4], [5]])).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def test_the_example_trains_a_step(example, capsys: pytest.CaptureFixture[str]):
    example["main"]()
    *report, before, after = capsys.readouterr().out.splitlines()
    assert report[0] == "query: 2 linear: weight twn/tensor, input 8b minmax_symmetric/tensor"
    assert len(report) == len(example["RULES"][0].match) + 2
    assert float(after.split()[-1]) < float(before.split()[-1])


def test_the_traced_model_is_the_plain_one_bit_for_bit(example, batch):
    plain, model = example["tiny_model"](), example["tiny_model"]()
    plain.set_attn_implementation("eager")
    expected = plain(**batch, output_hidden_states=True, output_attentions=True)
    instrument = prepare(model)
    trace = instrument.run(batch, FIELDS)
    assert torch.equal(trace.logits, expected.logits)
    for layer, hidden, probs in zip(trace.layers, expected.hidden_states[1:], expected.attentions, strict=True):
        assert torch.equal(layer.hidden, hidden)
        assert torch.equal(layer.probs, probs)
        assert None not in vars(layer).values()
    assert type(instrument.restore()) is type(plain)
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_surgery_and_intervention_know_the_family(example, batch):
    small = reduce_layers(narrow(example["tiny_model"](), 0.5), [1])
    assert small.distilbert.transformer.layer[0].attention.n_heads == 2
    assert prepare(small).run(batch).logits.isfinite().all()
    teacher = prepare(example["tiny_model"](1)).run(batch, {"hidden"})
    student = prepare(example["tiny_model"](2), example["RULES"])
    plan = Plan(Intervention(frozenset({"hidden"})), teacher)
    assert torch.equal(student.run(batch, {"hidden"}, plan).logits, student.run(batch, plan=plan).logits)


def test_a_checkpoint_is_built_with_the_heads_and_dropout_of_the_config(example, tmp_path: Path):
    DistilBertModel(example["tiny_model"]().config).save_pretrained(tmp_path)
    config = ModelConfig("hf", ModelKind.hf, path=str(tmp_path), dropout=0.25)
    model = build_model(config, INFO, 0)
    assert model.config.num_labels == 2
    assert model.distilbert.transformer.layer[0].attention.dropout.p == 0.25
    assert model.distilbert.embeddings.dropout.p == 0.25


@pytest.fixture
def command(example, tiny_bert: Path, glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of a run of two steps, in the folder of the example."""
    monkeypatch.chdir(EXAMPLE.parent)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.save_pretrained(tmp_path / "model")
    config = DistilBertConfig(vocab_size=len(tokenizer), dim=16, n_layers=2, n_heads=2, hidden_dim=32)
    DistilBertModel(config).save_pretrained(tmp_path / "model")
    steps = [f"{budget}={{steps: 2, epochs: null}}" for budget in ("budget", "teacher.budget")]
    data = ["data=mrpc", f"data.dir={glue}", "data.batch_size=4", "data.tokenizer=model"]
    quiet = ["logger=none", "trainer.progress=false", f"paths.outputs={tmp_path / 'outputs'}"]
    return ["train", *data, "model=hf", f"model.path={tmp_path / 'model'}", *steps, *quiet]


def test_a_run_names_the_family_of_its_model(command: list[str], tmp_path: Path):
    assert main([*command, "model.family=own_family.DISTILBERT"]) == 0
    (run,) = tmp_path.glob("outputs/runs/mrpc/*/*/run.json")
    assert json.loads(run.read_text())["size"]["bits"] == "2-2-8"


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("null", "no model family for DistilBertForSequenceClassification"),
        ("own_family.DISTILBART", "model.family=own_family.DISTILBART: the module own_family has no DISTILBART"),
        ("own_famly.DISTILBERT", "model.family=own_famly.DISTILBERT: no module own_famly"),
        ("own_family.Rule", "model.family=own_family.Rule: is no Family of lowbit.modeling.families but a type"),
    ],
)
def test_a_family_that_is_not_there_is_refused(family: str, message: str, command: list[str], tmp_path: Path, capsys):
    FAMILIES[:] = [known for known in FAMILIES if known.name != "hf_distilbert"]
    assert main([*command, f"model.family={family}"]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("outputs/runs/**/run.json"))


def test_one_class_has_one_family():
    assert register_family(HF_BERT) is HF_BERT
    with pytest.raises(ValueError, match=r"'mine': BertForSequenceClassification belongs to the .*'hf_bert'"):
        register_family(replace(HF_BERT, name="mine", class_names=("BertForSequenceClassification",)))
    with pytest.raises(ValueError, match="'hf_bert': this name belongs to the registered family 'hf_bert'"):
        register_family(replace(HF_BERT, class_names=("MyModel",)))
