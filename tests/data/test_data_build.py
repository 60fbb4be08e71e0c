"""Building from a config: info agrees with the data, and impossible settings say what to do."""

import warnings

import pytest

from lowbit.data import build_datamodule, data_info
from lowbit.settings.data import DataConfig, DataKind, Padding, TokenizerKind


def config(kind: DataKind, **changes: object) -> DataConfig:
    return DataConfig(name=kind.name, kind=kind, **changes)  # type: ignore[arg-type]


def small(**changes: object) -> DataConfig:
    return config(DataKind.agreement, train_size=40, eval_size=20, **changes)


class ByLetters:
    """A stand-in for a model's tokenizer: letters, so sequences are longer than in words."""

    pad_token_id = 7

    def __call__(self, texts: list[str]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[100, *(ord(letter) for letter in text), 101] for text in texts]}


@pytest.mark.parametrize("kind", [DataKind.digits, DataKind.agreement])
def test_every_kind_builds_and_info_agrees_with_the_rows(kind: DataKind):
    settings = config(kind, train_size=100, eval_size=20, eval_batch_size=20)
    module = build_datamodule(settings, seed=3)
    assert module.info == data_info(settings)
    assert module.seed == 3
    assert len(module.splits.train) == module.info.train_size == 100
    assert len(module.splits.validation) == len(module.splits.test) == 20
    batch = next(iter(module.val_dataloader()))
    assert ("pixel_values" in batch) == (module.info.modality == "image")
    assert int(batch["labels"].max()) < module.info.num_labels


def test_info_does_not_generate_sentences(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise AssertionError("generated")

    monkeypatch.setattr("lowbit.data.agreement.generate", refuse)
    monkeypatch.setattr("sklearn.datasets.load_digits", refuse)
    assert data_info(small()).train_size == 40
    assert build_datamodule(small(), seed=0).steps_per_epoch == 2
    assert build_datamodule(config(DataKind.digits), seed=0).steps_per_epoch == 41


def test_a_model_tokenizer_is_used_with_its_padding():
    settings = small(tokenizer=TokenizerKind.model)
    module = build_datamodule(settings, seed=0, tokenizer=ByLetters())
    assert module.info.vocab_size is None
    assert module.info.max_length is None
    batch = next(iter(module.test_dataloader()))
    assert batch["input_ids"][:, 0].tolist() == [100] * 20
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 7).all()
    assert (batch["attention_mask"] == 0).any()


def test_own_words_ignore_the_tokenizer():
    module = build_datamodule(small(), seed=0, tokenizer=ByLetters())
    batch = next(iter(module.test_dataloader()))
    assert (batch["input_ids"][:, 0] == 2).all()
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 0).all()


def test_a_missing_tokenizer_is_refused():
    with pytest.raises(ValueError, match=r"data\.tokenizer=words"):
        build_datamodule(small(tokenizer=TokenizerKind.model), seed=0)


def test_fixed_padding_for_a_model_tokenizer_needs_a_length():
    with pytest.raises(ValueError, match=r"needs data\.max_length"):
        data_info(small(tokenizer=TokenizerKind.model, padding=Padding.max_length))


@pytest.mark.parametrize("key", ["batch_size", "eval_batch_size"])
def test_empty_batches_are_refused(key: str):
    with pytest.raises(ValueError, match=f"data.{key}=0"):
        data_info(small(**{key: 0}))


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (small(augment=True), "augment"),
        (config(DataKind.digits, tokenizer=TokenizerKind.model), "tokenizer"),
        (config(DataKind.digits, max_length=9), "max_length"),
        (config(DataKind.digits, length_grouped=True), "length_grouped"),
    ],
)
def test_settings_without_effect_are_named(settings: DataConfig, word: str):
    with pytest.warns(UserWarning, match=f"{word}.* no effect"):
        build_datamodule(settings, seed=0)


def test_useful_settings_warn_about_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_datamodule(config(DataKind.digits, augment=True), seed=0)
        build_datamodule(small(max_length=30, padding=Padding.max_length), seed=0)
