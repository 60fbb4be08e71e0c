"""The words of the agreement task: (singular, plural) pairs, and words that show no number.

No form has two parts of speech or two numbers, so tests can read both off a word.
"""

from typing import TypeAlias

Pair: TypeAlias = tuple[str, str]


def _pairs(text: str) -> tuple[Pair, ...]:
    forms = [word.split("/") for word in text.split()]
    return tuple((singular, plural) for singular, plural in forms)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


THING, PERSON = "thing", "person"

NOUNS = {
    THING: _pairs(
        "key/keys cabinet/cabinets window/windows door/doors box/boxes letter/letters bottle/bottles basket/baskets "
        "lamp/lamps clock/clocks table/tables chair/chairs mirror/mirrors picture/pictures bridge/bridges "
        "tower/towers garden/gardens house/houses wall/walls road/roads boat/boats car/cars wagon/wagons "
        "engine/engines shelf/shelves book/books map/maps coin/coins candle/candles blanket/blankets "
        "pillow/pillows carpet/carpets ladder/ladders hammer/hammers knife/knives spoon/spoons kettle/kettles "
        "barrel/barrels gate/gates chimney/chimneys statue/statues"
    ),
    PERSON: _pairs(
        "man/men woman/women child/children boy/boys girl/girls teacher/teachers doctor/doctors farmer/farmers "
        "baker/bakers sailor/sailors soldier/soldiers painter/painters singer/singers lawyer/lawyers nurse/nurses "
        "pilot/pilots student/students neighbor/neighbors friend/friends uncle/uncles aunt/aunts king/kings "
        "queen/queens actor/actors"
    ),
}
VERBS = {
    THING: _pairs(
        "shines/shine falls/fall breaks/break vanishes/vanish rusts/rust shakes/shake burns/burn sinks/sink "
        "moves/move creaks/creak leaks/leak rots/rot wobbles/wobble glows/glow collapses/collapse"
    ),
    PERSON: _pairs(
        "sleeps/sleep laughs/laugh waits/wait sings/sing dances/dance works/work smiles/smile cries/cry runs/run "
        "talks/talk listens/listen prays/pray whispers/whisper hurries/hurry sneezes/sneeze yawns/yawn"
    ),
}
TRANSITIVE = _pairs(
    "sees/see likes/like knows/know watches/watch finds/find hates/hate follows/follow remembers/remember "
    "forgets/forget admires/admire ignores/ignore avoids/avoid mentions/mention describes/describe"
)
COPULAS = _pairs("is/are was/were")
PERFECTS = _pairs("has/have")

DEMONSTRATIVES = _pairs("this/these")
DETERMINERS = _words("the my your our his her their")
ADJECTIVES = {
    THING: _words("old new big small red green blue heavy broken dusty wooden dark golden empty"),
    PERSON: _words("tall young tired angry quiet clever lazy polite famous lonely brave rich"),
}
COMPLEMENTS = {
    THING: _words("missing lost clean wet cold ruined hidden damaged expensive useful"),
    PERSON: _words("happy sad hungry late absent sick busy proud nervous awake"),
}
PARTICIPLES = {
    THING: _words("vanished moved fallen sunk cracked changed"),
    PERSON: _words("left arrived returned slept escaped spoken"),
}
PREPOSITIONS = {
    THING: _words("to near behind beside under above"),
    PERSON: _words("of from with near behind beside"),
}
PLACES = _words("near behind beside under above")
OPENERS = _words("today sometimes usually apparently perhaps often")
ADVERBS = _words("now again always here there outside tonight indeed")
CONJUNCTIONS = _words("while because although")
RELATIVE = "that"


def _vocabulary() -> tuple[str, ...]:
    pairs = [
        *NOUNS[THING],
        *NOUNS[PERSON],
        *VERBS[THING],
        *VERBS[PERSON],
        *TRANSITIVE,
        *COPULAS,
        *PERFECTS,
        *DEMONSTRATIVES,
    ]
    by_kind = [*ADJECTIVES.values(), *COMPLEMENTS.values(), *PARTICIPLES.values(), *PREPOSITIONS.values()]
    plain = [*by_kind, DETERMINERS, PLACES, OPENERS, ADVERBS, CONJUNCTIONS]
    words = {form for pair in pairs for form in pair} | {word for group in plain for word in group} | {RELATIVE}
    return tuple(sorted(words))


VOCABULARY = _vocabulary()
