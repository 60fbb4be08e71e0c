"""Hugging Face checkpoints: complete ones load, and nothing but the head may be random."""

import io
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
)

from lowbit.config.model_files import folder_problems
from lowbit.data import DataInfo
from lowbit.hub import OutOfReachError
from lowbit.modeling.build import Origin, build_model
from lowbit.modeling.inputs import build_tokenizer, image_input
from lowbit.modeling.labels import label_order, save_description
from lowbit.settings.model import ModelConfig, ModelKind

INFO = DataInfo("made_up", "text", "classification", 3, "accuracy", 10)
CONFIG = BertConfig(
    vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3
)

ROBERTA = RobertaConfig(
    **(CONFIG.to_dict() | {"model_type": "roberta", "max_position_embeddings": 30, "pad_token_id": 1})
)


def config(folder: Path) -> ModelConfig:
    return ModelConfig(name="hf", kind=ModelKind.hf, path=str(folder))


def test_a_fine_tuned_checkpoint_loads_completely(tmp_path: Path):
    saved = BertForSequenceClassification(CONFIG)
    saved.save_pretrained(tmp_path)
    loaded = build_model(config(tmp_path), INFO, seed=1).state_dict()
    assert loaded.keys() == saved.state_dict().keys()
    assert all(torch.equal(loaded[key], value) for key, value in saved.state_dict().items())


def test_an_encoder_gets_a_head_that_its_seed_decides(tmp_path: Path):
    saved = BertModel(CONFIG)
    saved.save_pretrained(tmp_path)
    models = [build_model(config(tmp_path), INFO, seed) for seed in (1, 1, 2)]
    assert torch.equal(models[0].bert.pooler.dense.weight, saved.pooler.dense.weight)
    first, again, other = (model.classifier.weight for model in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_checkpoint_that_lacks_encoder_weights_is_refused(tmp_path: Path):
    """Teacher Intervention, defect 17: missing keys were ignored."""
    BertForSequenceClassification(CONFIG).save_pretrained(tmp_path)
    file, lost = tmp_path / "model.safetensors", "bert.encoder.layer.1.attention.self.query.weight"
    weights = load_file(file)
    del weights[lost]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks 1 tensors of a BertForSequenceClassification, such as {lost}"):
        build_model(config(tmp_path), INFO, seed=1)


@pytest.mark.parametrize(("saved", "room"), [(BertModel(CONFIG), 512), (RobertaModel(ROBERTA), 28)])
def test_sequences_longer_than_the_positions_are_refused(saved: PreTrainedModel, room: int, tmp_path: Path):
    """RoBERTa counts from behind its padding id."""
    saved.save_pretrained(tmp_path)
    build_model(config(tmp_path), replace(INFO, max_length=room), seed=1)
    with pytest.raises(ValueError, match=f"data.max_length={room + 1}: .* has {room} positions; set {room} or less"):
        build_model(config(tmp_path), replace(INFO, max_length=room + 1), seed=1)


def test_another_number_of_labels_is_refused_with_both(tmp_path: Path):
    BertForSequenceClassification(CONFIG).save_pretrained(tmp_path)
    message = r"classifier\.\w+ is \(3.*\) in the checkpoint, but \(2.*\) for the 2 labels of data=made_up"
    with pytest.raises(ValueError, match=message):
        build_model(config(tmp_path), replace(INFO, num_labels=2), seed=1)


@pytest.mark.parametrize("made_up", [CONFIG, ROBERTA])
def test_a_folder_without_a_vocabulary_is_refused(made_up: PretrainedConfig, tmp_path: Path):
    """Transformers would make up a tokenizer from the config alone, to which every word is unknown."""
    made_up.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"model.path={tmp_path}: no tokenizer files there, such as tokenizer.json"):
        build_tokenizer(config(tmp_path))


def test_a_tokenizer_out_of_reach_is_named():
    with pytest.raises(ValueError, match=r"path=no/such: its tokenizer cannot be loaded \(.+\); run `lowbit fetch"):
        build_tokenizer(config(Path("no/such")))


def test_a_failure_without_words_is_named_by_its_kind(monkeypatch: pytest.MonkeyPatch):
    def load(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(AutoConfig, "from_pretrained", load)
    with pytest.raises(OutOfReachError, match=r"it cannot be loaded \(TimeoutError\); run `lowbit fetch"):
        build_model(config(Path("some/name")), INFO, seed=1)


IMAGES = DataInfo("made_up", "image", "classification", 3, "accuracy", 10, image_size=32, channels=3)
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VIT = ViTConfig(image_size=32, patch_size=16, num_labels=3, **SIZES)
LABELS = ("cat", "dog", "a horse")


def plain(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder)


def divided(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size="8KB")
    assert not (folder / "model.safetensors").exists()


def pickled(model: PreTrainedModel, folder: Path) -> None:
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def old_names(model: PreTrainedModel, folder: Path) -> None:
    """As TensorFlow's names for a layer norm came to BERT's checkpoints, with a buffer that is none any more."""
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    renamed = {
        key.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): value
        for key, value in load_file(file).items()
    }
    save_file({**renamed, "bert.embeddings.position_ids": torch.arange(512)[None]}, file, metadata={"format": "pt"})


def weights_alone(model: PreTrainedModel, folder: Path) -> None:
    """What a stage of a run leaves."""
    save_file(model.state_dict(), folder / "model.safetensors")


@pytest.mark.parametrize("save", [plain, divided, pickled, old_names, weights_alone])
@pytest.mark.parametrize("cls", [BertForSequenceClassification, ViTForImageClassification])
@pytest.mark.parametrize("source", ["model.path", "teacher.path"])
def test_every_folder_that_transformers_loads_is_loaded(source: str, cls: type[PreTrainedModel], save, tmp_path: Path):
    """One way for students and teachers: raw keys of ViT, say, are other ones in a folder than in the model."""
    saved, info = (cls(CONFIG), INFO) if cls is BertForSequenceClassification else (cls(VIT), IMAGES)
    save(saved, tmp_path)
    kind = ModelKind.bert if info is INFO else ModelKind.vit
    sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 32}
    own = ModelConfig(name="own", kind=kind, patch_size=16, max_positions=512, **sizes)
    if source == "teacher.path":
        info = replace(info, vocab_size=20, max_length=30)
        loaded = build_model(own, info, 1, Origin(source, tmp_path, trained_head=True))
    elif save is weights_alone:
        assert folder_problems("model.path=x", tmp_path, needs_config=True)
        return
    else:
        loaded = build_model(config(tmp_path), info, 1)
    state = loaded.state_dict()
    assert state.keys() == saved.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in saved.state_dict().items())


@pytest.mark.parametrize("theirs", [("dog", "A_horse", "cat"), ("LABEL_0", "LABEL_1", "LABEL_2"), LABELS])
@pytest.mark.parametrize("kind", ["bert", "roberta", "vit", "timm"])
def test_outputs_follow_the_names_of_the_labels(kind: str, theirs: tuple[str, ...], tmp_path: Path):
    """By position, a teacher of other order is wrong on every row and teaches so."""
    info = replace(IMAGES if kind in ("vit", "timm") else INFO, labels=LABELS)
    named = {"id2label": dict(enumerate(theirs)), "label2id": {name: place for place, name in enumerate(theirs)}}
    if kind == "timm":
        own = ModelConfig(name="own", kind=ModelKind.timm_vit, patch_size=16, hidden_size=16, num_layers=2, num_heads=2)
        saved = build_model(own, info, 3)
        save_file(saved.state_dict(), tmp_path / "model.safetensors")
        save_description(saved, replace(info, labels=theirs), tmp_path)
        loaded = build_model(own, info, 1, Origin("teacher.path", tmp_path, trained_head=True))
    else:
        made = {"bert": CONFIG, "roberta": ROBERTA, "vit": VIT}[kind]
        cls = {
            "bert": BertForSequenceClassification,
            "roberta": RobertaForSequenceClassification,
            "vit": ViTForImageClassification,
        }[kind]
        saved = cls(type(made)(**made.to_dict() | named)).eval()
        saved.save_pretrained(tmp_path)
        loaded = build_model(config(tmp_path), info, 1)
        assert loaded.config.id2label == dict(enumerate(LABELS))
        assert loaded.config.label2id == {name: place for place, name in enumerate(LABELS)}
    order = [2, 0, 1] if theirs[0] == "dog" else [0, 1, 2]
    shape = (3, 32, 32) if info.modality == "image" else (7,)
    batch = torch.randn(4, *shape) if info.modality == "image" else torch.randint(3, 20, (4, *shape))
    output = [model(batch) for model in (loaded, saved.eval())]
    mine, original = (getattr(one, "logits", one) for one in output)
    assert torch.equal(mine, original[:, order])


def test_other_names_are_refused_with_both(tmp_path: Path):
    named = {"id2label": dict(enumerate(["cat", "dog", "cow"]))}
    BertForSequenceClassification(BertConfig(**CONFIG.to_dict() | named)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="labels cat, dog, cow, but data=made_up has cat, dog, a horse"):
        build_model(config(tmp_path), replace(INFO, labels=LABELS), seed=1)


@pytest.mark.parametrize(
    ("theirs", "ours", "order"),
    [
        (["b", "a"], ("a", "b"), [1, 0]),
        (["10", "2"], ("2", "10"), [1, 0]),  # folders named by numbers, sorted as texts
        (["LABEL_0", "LABEL_1"], ("a", "b"), None),
        (["a", "b"], (), None),
        (["n02102040", "n01440764"], ("n01440764", "n02102040"), [1, 0]),
        (["tench", "English springer spaniel"], ("n01440764", "n02102040"), None),  # its words, spelled otherwise
        (["English springer", "tench"], ("n01440764", "n02102040"), "refused"),
        (["a", "LABEL_1"], ("a", "b"), "refused"),
        (["LABEL_1", "LABEL_0"], ("a", "b"), [1, 0]),
        (["1", "0"], ("a", "b"), [1, 0]),
        (["1", "2"], ("a", "b"), None),  # counted from 1
        (["2", "1"], ("a", "b"), [1, 0]),
        (["2", "1"], ("0", "1"), "refused"),
        (["cat", "dog"], ("0", "1"), None),
        ([">50K", "<50K"], ("<50K", ">50K"), [1, 0]),  # alike but for punctuation
        (["the\u0301", "cafe\u0301"], ("café", "thé"), [1, 0]),  # as folders of a Mac come
        (["> 50k", "< 50k"], ("<50K", ">50K"), "refused"),
        (["crane", "crane"], ("crane", "crane"), None),
    ],
)
def test_labels_meet_by_name(theirs: list[str], ours: tuple[str, ...], order: list[int] | str | None):
    info = replace(INFO, num_labels=2, labels=ours)
    if order == "refused":
        with pytest.raises(ValueError, match=r"m: its head has the labels .*, but data=made_up has"):
            label_order("m", dict(enumerate(theirs)), info)
    else:
        assert label_order("m", dict(enumerate(theirs)), info) == order


def test_images_of_another_size_than_the_model_takes_are_refused(tmp_path: Path):
    ViTForImageClassification(VIT).save_pretrained(tmp_path)
    other = replace(IMAGES, image_size=2 * VIT.image_size)
    with pytest.raises(ValueError, match=rf"images of {2 * VIT.image_size} pixels that its preprocessor_config"):
        build_model(config(tmp_path), other, seed=1)


@pytest.mark.parametrize("encoder_alone", [True, False])
def test_layers_that_the_config_lacks_are_refused(encoder_alone: bool, tmp_path: Path):
    (BertModel(CONFIG) if encoder_alone else BertForSequenceClassification(CONFIG)).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1'))
    with pytest.raises(ValueError, match=r"has 16 tensors in layers that its config lacks, such as .*encoder.layer.1"):
        build_model(config(tmp_path), INFO, seed=1)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [ModelKind.hf, ModelKind.timm_vit])
def test_weights_that_are_no_numbers_are_refused(kind: ModelKind, number: float, tmp_path: Path):
    own = ModelConfig(name="own", kind=kind, path=str(tmp_path), patch_size=16, hidden_size=16, num_heads=2)
    saved = BertForSequenceClassification(CONFIG) if kind is ModelKind.hf else build_model(own, IMAGES, 3)
    name = "bert.encoder.layer.1.output.dense.weight" if kind is ModelKind.hf else "blocks.1.mlp.fc2.weight"
    with torch.no_grad():
        saved.get_parameter(name)[3, 5] = number
    CONFIG.save_pretrained(tmp_path)
    save_file(saved.state_dict(), tmp_path / "model.safetensors")
    origin = Origin() if kind is ModelKind.hf else Origin("teacher.path", tmp_path, trained_head=True)
    if kind is not ModelKind.hf:
        (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=f"path={tmp_path}: .*model.safetensors .* not finite, {name} for example"):
        build_model(own, INFO if kind is ModelKind.hf else IMAGES, 1, origin)


def test_weights_of_another_timm_model_are_refused_by_name(tmp_path: Path):
    own = ModelConfig(name="own", kind=ModelKind.timm_vit, patch_size=16, hidden_size=16, num_layers=2, num_heads=2)
    save_file(build_model(own, replace(IMAGES, num_labels=4), 3).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"2 tensors differ, such as head.weight is \(4, 16\) instead of \(3, 16\)"):
        build_model(own, IMAGES, 1, Origin("teacher.path", tmp_path, trained_head=True))


@pytest.mark.parametrize(
    ("made", "info", "message"),
    [
        (DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=16), INFO, "no model family for DistilBertFor"),
        (CONFIG, IMAGES, "Unrecognized configuration class"),
        (ViTMAEConfig(), IMAGES, "Unrecognized configuration class"),
    ],
)
def test_models_of_other_classes_are_refused_without_their_weights(made, info: DataInfo, message: str, tmp_path: Path):
    made.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"model.path={tmp_path}: .*{message}"):
        build_model(config(tmp_path), info, seed=1)
    broken = tmp_path / "config.json"
    broken.write_text(broken.read_text().replace(f'"{made.model_type}"', '"of_tomorrow"'))
    with pytest.raises(ValueError, match=r"has model type `of_tomorrow`"):
        build_model(config(tmp_path), info, seed=1)


def test_code_in_a_folder_is_never_run_nor_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Transformers asks at a prompt whether it may, and runs it after a "y"."""
    (tmp_path / "own.py").write_text("raise SystemExit('executed')")
    names = {"AutoConfig": "own.C", "AutoModelForSequenceClassification": "own.M"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": names}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["own.T", None]}}))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\ny\n"))
    for build in (partial(build_model, info=INFO, seed=1), build_tokenizer):
        with pytest.raises(ValueError, match=rf"model.path={tmp_path}: .* contains custom code"):
            build(config(tmp_path))
    with pytest.raises(ValueError, match=r"preprocessor_config.json"):
        image_input(config(tmp_path))
