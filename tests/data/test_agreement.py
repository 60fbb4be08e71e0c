"""The generated corpus: sizes, balance, no leak, lengths, encoding."""

from collections import Counter

import pytest

from lowbit.data import lexicon
from lowbit.data.agreement import (
    CLS,
    MAX_LENGTH,
    SEP,
    UNK,
    WORD_IDS,
    Corpus,
    Sentence,
    agreement_info,
    agreement_splits,
    encode_words,
    generate,
)
from lowbit.settings.data import DataConfig, DataKind, Padding

PLURALS = {singular: plural for pairs in lexicon.VERBS.values() for singular, plural in pairs}
PLURALS |= dict(lexicon.COPULAS) | dict(lexicon.PERFECTS)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return generate()


def frame(sentence: Sentence) -> tuple[str, ...]:
    """The sentence with a plural main verb, whatever it had."""
    words = list(sentence.words)
    words[sentence.verb] = PLURALS.get(words[sentence.verb], words[sentence.verb])
    return tuple(words)


def test_sizes_and_exact_balance(corpus: Corpus):
    for part, size in ((corpus.train, 20_000), (corpus.validation, 2_000), (corpus.test, 2_000)):
        assert len(part) == size
        assert sum(sentence.label for sentence in part) == size // 2


def test_no_sentence_twice_not_even_with_the_other_verb(corpus: Corpus):
    frames = [frame(sentence) for sentence in (*corpus.train, *corpus.validation, *corpus.test)]
    assert len(set(frames)) == len(frames) == 24_000


def test_generation_is_deterministic(corpus: Corpus):
    assert generate.__wrapped__() == corpus
    other = generate.__wrapped__(2_000, 2_000, split_seed=1)
    assert len({s.text for s in other.test} & {s.text for s in corpus.test}) < 50


def test_smaller_sizes_are_prefixes(corpus: Corpus):
    small = generate(1_000, 100)
    assert small.train == corpus.train[:1_000]
    assert small.validation == corpus.validation[:100]
    assert small.test == corpus.test[:100]
    assert sum(sentence.label for sentence in small.test) == 50


def test_encoded_lengths_vary_over_the_whole_range(corpus: Corpus):
    lengths = Counter(map(len, encode_words([sentence.text for sentence in corpus.train])))
    assert set(lengths) == set(range(5, MAX_LENGTH + 1))
    assert max(lengths.values()) < 0.15 * len(corpus.train)


def test_the_vocabulary_is_used_and_of_the_promised_size(corpus: Corpus):
    assert 200 <= len(lexicon.VOCABULARY) <= 400
    assert {word for sentence in corpus.train for word in sentence.words} == set(lexicon.VOCABULARY)


def test_a_form_has_one_number_and_one_part_of_speech():
    pairs = [pair for group in (lexicon.NOUNS, lexicon.VERBS) for kind in group.values() for pair in kind]
    pairs += [*lexicon.TRANSITIVE, *lexicon.COPULAS, *lexicon.PERFECTS, *lexicon.DEMONSTRATIVES]
    forms = [form for pair in pairs for form in pair]
    assert len(set(forms)) == len(forms)
    groups = (lexicon.ADJECTIVES, lexicon.COMPLEMENTS, lexicon.PARTICIPLES)
    plain = [word for group in groups for words in group.values() for word in words]
    plain += [*lexicon.DETERMINERS, *lexicon.OPENERS, *lexicon.ADVERBS, *lexicon.CONJUNCTIONS, lexicon.RELATIVE]
    assert len(set(plain)) == len(plain)
    assert not set(plain) & set(forms)


def test_determiners_agree_with_their_noun_and_often_leave_the_number_to_it(corpus: Corpus):
    numbers = {form: bool(i) for form_pair in lexicon.DEMONSTRATIVES for i, form in enumerate(form_pair)}
    nouns = {form: bool(i) for pairs in lexicon.NOUNS.values() for pair in pairs for i, form in enumerate(pair)}
    marked = 0
    for sentence in corpus.train:
        start = max(i for i in range(sentence.head) if sentence.words[i] in (*lexicon.DETERMINERS, *numbers))
        if sentence.words[start] in numbers:
            marked += 1
            assert numbers[sentence.words[start]] == nouns[sentence.words[sentence.head]]
    assert 0.75 < marked / len(corpus.train) < 0.85


def test_encoding():
    ids = encode_words(["the keys fall", "the qwerty"])
    assert ids == [
        [CLS, WORD_IDS["the"], WORD_IDS["keys"], WORD_IDS["fall"], SEP],
        [CLS, WORD_IDS["the"], UNK, SEP],
    ]
    assert sorted(WORD_IDS.values()) == list(range(4, 4 + len(lexicon.VOCABULARY)))


def config(**changes: object) -> DataConfig:
    return DataConfig(name="agreement", kind=DataKind.agreement, **changes)  # type: ignore[arg-type]


def test_rows_keep_their_labels(corpus: Corpus):
    splits = agreement_splits(config(train_size=64, eval_size=10), encode_words, pad_id=0)
    words = {index: word for word, index in WORD_IDS.items()}
    for row, sentence in enumerate(corpus.train[:64]):
        batch = splits.train[row]
        assert tuple(words[index] for index in batch["input_ids"][0, 1:-1].tolist()) == sentence.words
        assert batch["labels"].tolist() == [sentence.label]


def test_sentences_that_a_tokenizer_makes_too_long_are_refused():
    settings = config(train_size=8, eval_size=8, max_length=30, padding=Padding.max_length)
    with pytest.raises(ValueError, match="max_length=31 or more"):
        agreement_splits(settings, lambda texts: [[2] * 31 for _ in texts], pad_id=0)


@pytest.mark.parametrize("sizes", [{"train_size": 0}, {"eval_size": 0}])
def test_empty_splits_are_refused(sizes: dict[str, int]):
    with pytest.raises(ValueError, match="at least 1"):
        agreement_splits(config(**sizes), encode_words, pad_id=0)


def test_info():
    info = agreement_info(config())
    assert (info.modality, info.num_labels, info.metric, info.train_size) == ("text", 2, "matthews", 20_000)
    assert (info.vocab_size, info.max_length) == (len(lexicon.VOCABULARY) + 4, 25)
    assert agreement_info(config(max_length=40, padding=Padding.max_length)).max_length == 40
    assert agreement_info(config(max_length=40)).max_length == 25
    with pytest.raises(ValueError, match="max_length=25"):
        agreement_info(config(max_length=24))
