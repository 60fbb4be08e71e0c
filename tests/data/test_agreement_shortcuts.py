"""Only the rule that knows the head noun solves the agreement task."""

from collections.abc import Callable

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from lowbit.data import lexicon
from lowbit.data.agreement import Corpus, Sentence, generate

NOUNS = {form: bool(i) for pairs in lexicon.NOUNS.values() for pair in pairs for i, form in enumerate(pair)}
VERB_PAIRS = [*lexicon.VERBS["thing"], *lexicon.VERBS["person"], *lexicon.COPULAS, *lexicon.PERFECTS]
VERBS = {form: bool(i) for pair in (*VERB_PAIRS, *lexicon.TRANSITIVE) for i, form in enumerate(pair)}


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return generate()


def nouns_before_verb(sentence: Sentence) -> list[bool]:
    return [NOUNS[word] for word in sentence.words[: sentence.verb] if word in NOUNS]


def score(sentences: tuple[Sentence, ...], number: Callable[[Sentence], bool]) -> float:
    """Accuracy of calling a sentence good if its main verb has the number that the rule expects."""
    hits = [(number(s) == VERBS[s.words[s.verb]]) == bool(s.label) for s in sentences]
    return sum(hits) / len(hits)


def test_the_head_noun_decides_every_sentence(corpus: Corpus):
    for part in (corpus.train, corpus.validation, corpus.test):
        assert score(part, lambda sentence: NOUNS[sentence.words[sentence.head]]) == 1.0


@pytest.mark.parametrize(
    ("rule", "limit"),
    [
        (lambda s: nouns_before_verb(s)[-1], 0.7),
        (lambda s: [NOUNS[word] for word in s.words if word in NOUNS][-1], 0.7),
        (lambda s: nouns_before_verb(s)[0], 0.82),
        (lambda s: 2 * sum(nouns_before_verb(s)) > len(nouns_before_verb(s)), 0.8),
    ],
    ids=["nearest", "last", "first", "majority"],
)
def test_a_noun_told_without_syntax_does_not(corpus: Corpus, rule: Callable[[Sentence], bool], limit: float):
    assert 0.5 < score(corpus.train, rule) < limit


@pytest.mark.parametrize("ngrams", [(1, 1), (1, 2)], ids=["unigrams", "bigrams"])
def test_bags_of_words_do_not(corpus: Corpus, ngrams: tuple[int, int]):
    vectorizer = CountVectorizer(ngram_range=ngrams, token_pattern=r"\S+", min_df=3)
    features = vectorizer.fit_transform([s.text for s in corpus.train])
    model = LogisticRegression(max_iter=200, C=0.1).fit(features, [s.label for s in corpus.train])
    accuracy = model.score(vectorizer.transform([s.text for s in corpus.test]), [s.label for s in corpus.test])
    assert accuracy < (0.6 if ngrams == (1, 1) else 0.7)


def test_the_bag_of_words_test_can_fail(corpus: Corpus):
    """The same model does learn a label that single words give away."""
    labels = [int(s.words[s.verb] in {"is", "was", "has"}) for s in (*corpus.train, *corpus.test)]
    vectorizer = CountVectorizer(token_pattern=r"\S+")
    features = vectorizer.fit_transform([s.text for s in (*corpus.train, *corpus.test)])
    model = LogisticRegression(max_iter=200).fit(features[:20_000], labels[:20_000])
    assert model.score(features[20_000:], labels[20_000:]) > 0.95


def test_attractors_are_independent_of_the_head(corpus: Corpus):
    pairs = [
        (NOUNS[s.words[s.head]], NOUNS[word])
        for s in corpus.train
        for place, word in enumerate(s.words)
        if word in NOUNS and place != s.head
    ]
    assert len(pairs) > 30_000
    assert sum(head == other for head, other in pairs) / len(pairs) == pytest.approx(0.5, abs=0.01)


def test_neither_length_nor_verb_form_tells_the_label(corpus: Corpus):
    good = [s for s in corpus.train if s.label]
    bad = [s for s in corpus.train if not s.label]
    means = [sum(len(s.words) for s in part) / len(part) for part in (good, bad)]
    assert means[0] == pytest.approx(means[1], abs=0.2)
    shares = [sum(VERBS[s.words[s.verb]] for s in part) / len(part) for part in (good, bad)]
    assert shares == pytest.approx([0.5, 0.5], abs=0.02)


def test_verbs_of_clauses_agree_with_the_noun_before_them(corpus: Corpus):
    clause_verbs = 0
    for sentence in corpus.train:
        last = None
        for place, word in enumerate(sentence.words):
            last = NOUNS.get(word, last)
            if word in VERBS and place != sentence.verb:
                clause_verbs += 1
                assert VERBS[word] == last
    assert clause_verbs > 5_000
