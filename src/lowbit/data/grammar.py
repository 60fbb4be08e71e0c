"""Random sentence frames: English sentences whose main verb has yet to take a number.

Frame := [opener] subject modifier* main-verb [tail]. A modifier is a prepositional phrase, or a relative clause whose
verb agrees with its own subject. Every noun draws its number on its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from lowbit.data import lexicon
from lowbit.data.lexicon import PERSON, THING, Pair

# Shares of the subjects with 0, 1, 2 and 3 modifiers. Without modifiers the noun next to the verb is the head, with
# them it agrees by chance, so a nearest-noun rule scores about 0.3 + 0.7 / 2.
MODIFIERS = (0,) * 6 + (1,) * 6 + (2,) * 4 + (3,) * 4
# Share of noun phrases whose determiner shows the number too (`these keys`, but `the keys`). The label is a parity of
# two numbers, of which no single word tells anything. In trials a BERT of 4 layers and width 64, trained from scratch
# in batches of 32, left chance level within 1,000 steps at 0.8, after about 2,000 at 0.6, and not in 5,000 at 0.
MARKED = 0.8
CHUNK = 1 << 15
T = TypeVar("T")


class Draws:
    """Choices from one generator; numbers are drawn in chunks, since a torch call per choice would take seconds."""

    def __init__(self, generator: torch.Generator) -> None:
        """Start with an empty chunk."""
        self._generator = generator
        self._left: list[float] = []

    def number(self) -> float:
        """Return a uniform number in [0, 1)."""
        if not self._left:
            self._left = torch.rand(CHUNK, generator=self._generator, dtype=torch.float64).tolist()
        return self._left.pop()

    def pick(self, options: Sequence[T]) -> T:
        """Return one of the options."""
        return options[int(self.number() * len(options))]

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return self.number() < probability


@dataclass
class Frame:
    """A sentence up to the number of its main verb; `plural` tells that of the subject."""

    words: list[str] = field(default_factory=list)
    head: int = 0
    plural: bool = False
    verb: int = 0
    forms: Pair = ("", "")

    def finish(self, acceptable: bool) -> tuple[str, ...]:
        """Return the words with a main verb that agrees with the subject, or one that does not."""
        form = self.forms[self.plural == acceptable]
        return (*self.words[: self.verb], form, *self.words[self.verb + 1 :])


def draw_frame(draws: Draws) -> Frame:
    """Draw a sentence frame; the main verb stands in the words as its singular form."""
    frame = Frame()
    _open(draws, frame.words)
    kind = draws.pick((THING, THING, PERSON))
    frame.plural = _noun_phrase(draws, frame.words, kind)
    frame.head = len(frame.words) - 1
    _modify(draws, frame.words, kind)
    _predicate(draws, frame, kind)
    _close(draws, frame.words)
    return frame


def _open(draws: Draws, words: list[str]) -> None:
    """Begin with a place in two of five sentences, so that the first noun is often not the subject."""
    if draws.chance(0.4):
        words.append(draws.pick(lexicon.PLACES))
        _noun_phrase(draws, words, THING)
    elif draws.chance(0.1):
        words.append(draws.pick(lexicon.OPENERS))


def _noun_phrase(draws: Draws, words: list[str], kind: str) -> bool:
    """Append a noun with its determiner and perhaps an adjective; return whether it is plural."""
    plural = draws.chance(0.5)
    if draws.chance(MARKED):
        words.append(draws.pick(lexicon.DEMONSTRATIVES)[plural])
    else:
        words.append(draws.pick(lexicon.DETERMINERS))
    if draws.chance(0.3):
        words.append(draws.pick(lexicon.ADJECTIVES[kind]))
    words.append(draws.pick(lexicon.NOUNS[kind])[plural])
    return plural


def _modify(draws: Draws, words: list[str], kind: str) -> None:
    plural = None  # number of the last noun, if that is an attractor
    after_clause = False
    for _ in range(draws.pick(MODIFIERS)):
        if draws.chance(0.2):
            # `that the boys admire`: the verb agrees with the noun of the clause.
            words.append(lexicon.RELATIVE)
            plural_agent = _noun_phrase(draws, words, PERSON)
            words.append(draws.pick(lexicon.TRANSITIVE)[plural_agent])
            plural = None
        elif plural is not None and draws.chance(0.25):
            # `that creaks`, only about an attractor: about the subject it would give the number of the head away.
            words += [lexicon.RELATIVE, draws.pick(lexicon.VERBS[kind])[plural]]
            plural = None
        else:
            kind = draws.pick((THING, PERSON))
            # After a clause only a place reads well: not `that the boys admire of the king`.
            words.append(draws.pick(lexicon.PLACES if after_clause else lexicon.PREPOSITIONS[kind]))
            plural = _noun_phrase(draws, words, kind)
        after_clause = plural is None


def _predicate(draws: Draws, frame: Frame, kind: str) -> None:
    """Append the main verb: a copula with an adjective, a perfect, or an intransitive verb."""
    shape = draws.number()
    if shape < 0.6:
        frame.forms, rest = draws.pick(lexicon.COPULAS), [draws.pick(lexicon.COMPLEMENTS[kind])]
    elif shape < 0.85:
        frame.forms, rest = draws.pick(lexicon.PERFECTS), [draws.pick(lexicon.PARTICIPLES[kind])]
    else:
        frame.forms, rest = draws.pick(lexicon.VERBS[kind]), []
    frame.verb = len(frame.words)
    frame.words += [frame.forms[0], *rest]


def _close(draws: Draws, words: list[str]) -> None:
    """End with an adverb, a place or a clause of its own, so that neither noun nor verb is told by standing last."""
    shape = draws.number()
    if shape < 0.2:
        words.append(draws.pick(lexicon.ADVERBS))
    elif shape < 0.3:
        words.append(draws.pick(lexicon.PLACES))
        _noun_phrase(draws, words, THING)
    elif shape < 0.45:
        words.append(draws.pick(lexicon.CONJUNCTIONS))
        plural = _noun_phrase(draws, words, PERSON)
        words.append(draws.pick(lexicon.VERBS[PERSON])[plural])
