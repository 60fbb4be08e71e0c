"""Generated English acceptability: does the main verb agree with its subject across the phrases between them?

`the keys to the old cabinet near the windows are missing` is label 1, `... is missing` is label 0. Labels are drawn
after the sentence frames, so neither the set of words nor a noun told by its position decides.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from lowbit.data.grammar import Draws, Frame, draw_frame
from lowbit.data.lexicon import VOCABULARY
from lowbit.data.sampling import Stream, generator_for
from lowbit.data.splits import Splits, TextSplit
from lowbit.data.tokens import Tokens
from lowbit.settings.data import DataConfig, DataInfo, Padding, TokenizerKind

TRAIN_SIZE, EVAL_SIZE = 20_000, 2_000
# The shortest sentences have three words (`the key falls`); longer ones than this are drawn again.
MAX_WORDS = 23
MAX_LENGTH = MAX_WORDS + 2
PAD, UNK, CLS, SEP = range(4)
WORD_IDS = {word: index for index, word in enumerate(VOCABULARY, start=SEP + 1)}

Encode = Callable[[list[str]], list[list[int]]]


@dataclass(frozen=True)
class Sentence:
    """Words, label (1 acceptable), and where subject head and main verb stand, for tests and analysis."""

    words: tuple[str, ...]
    label: int
    head: int
    verb: int

    @property
    def text(self) -> str:
        """The sentence as one string."""
        return " ".join(self.words)


@dataclass(frozen=True)
class Corpus:
    """The sentences of the three splits."""

    train: tuple[Sentence, ...]
    validation: tuple[Sentence, ...]
    test: tuple[Sentence, ...]


@lru_cache(maxsize=2)
def generate(train_size: int = TRAIN_SIZE, eval_size: int = EVAL_SIZE, split_seed: int = 0) -> Corpus:
    """Generate the corpus; smaller sizes give the first sentences of the larger ones.

    No frame is used twice, within or across splits: a sentence and its twin with the other verb never both occur.
    """
    taken: set[tuple[str, ...]] = set()
    # The evaluation splits are always drawn in full, else the training sentences would depend on eval_size.
    drawn = max(eval_size, EVAL_SIZE)
    test = _sentences(drawn, taken, split_seed, part=0)[:eval_size]
    validation = _sentences(drawn, taken, split_seed, part=1)[:eval_size]
    return Corpus(_sentences(train_size, taken, split_seed, part=2), validation, test)


def _sentences(size: int, taken: set[tuple[str, ...]], split_seed: int, part: int) -> tuple[Sentence, ...]:
    draws = Draws(generator_for(split_seed, Stream.sentences, part))
    sentences: list[Sentence] = []
    while len(sentences) < size:
        # One acceptable and one unacceptable sentence at a time: every even number of them is balanced exactly.
        first = draws.chance(0.5)
        for acceptable in (first, not first):
            frame = _new_frame(draws, taken)
            sentences.append(Sentence(frame.finish(acceptable), int(acceptable), frame.head, frame.verb))
    return tuple(sentences[:size])


def _new_frame(draws: Draws, taken: set[tuple[str, ...]]) -> Frame:
    while True:
        frame = draw_frame(draws)
        words = tuple(frame.words)
        if len(words) <= MAX_WORDS and words not in taken:
            taken.add(words)
            return frame


def encode_words(texts: Sequence[str]) -> list[list[int]]:
    """Return [CLS] word ids [SEP] of each text; words outside the vocabulary become [UNK]."""
    return [[CLS, *(WORD_IDS.get(word, UNK) for word in text.split()), SEP] for text in texts]


def agreement_info(config: DataConfig) -> DataInfo:
    """Describe the data set without generating it."""
    own_words = config.tokenizer is TokenizerKind.words
    limit = config.max_length
    if own_words and limit is not None and limit < MAX_LENGTH:
        raise ValueError(f"data.max_length={limit} is too short: agreement needs data.max_length={MAX_LENGTH} or null")
    if not own_words and limit is None and config.padding is Padding.max_length:
        raise ValueError("data.padding=max_length with data.tokenizer=model needs data.max_length, e.g. 64")
    return DataInfo(
        name=config.name,
        modality="text",
        task="classification",
        num_labels=2,
        metric="matthews",
        train_size=TRAIN_SIZE if config.train_size is None else config.train_size,
        vocab_size=len(VOCABULARY) + SEP + 1 if own_words else None,
        max_length=MAX_LENGTH if own_words and (limit is None or config.padding is Padding.longest) else limit,
    )


def agreement_splits(config: DataConfig, encode: Encode, pad_id: int) -> Splits:
    """Generate, encode and pad the sentences."""
    info = agreement_info(config)
    eval_size = EVAL_SIZE if config.eval_size is None else config.eval_size
    if min(info.train_size, eval_size) < 1:
        raise ValueError(f"data.train_size={info.train_size} and data.eval_size={eval_size} must be at least 1")
    corpus = generate(info.train_size, eval_size, config.split_seed)
    pad_to = info.max_length if config.padding is Padding.max_length else None

    def split(sentences: Sequence[Sentence]) -> TextSplit:
        ids = encode([sentence.text for sentence in sentences])
        longest = max(map(len, ids))
        if info.max_length is not None and longest > info.max_length:
            raise ValueError(f"a sentence has {longest} tokens: set data.max_length={longest} or more")
        labels = torch.tensor([sentence.label for sentence in sentences])
        return TextSplit(Tokens.of(ids), labels, pad_id, pad_to)

    return Splits(split(corpus.train), split(corpus.validation), split(corpus.test))
