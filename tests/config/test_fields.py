"""What the schema declares of its settings: every number has a range, every name of a folder stays below it."""

import dataclasses
import math
import types
import typing
from typing import Any

import pytest

from lowbit.settings.data import ImageConfig
from lowbit.settings.fields import LIMIT, Name, Range, field_problems
from lowbit.settings.losses import PhaseConfig
from lowbit.settings.quantizer import FakeQuantConfig
from lowbit.settings.recipe import StageConfig
from lowbit.settings.run import Config


def groups_of(hint: Any) -> set[type]:
    """Return the dataclasses that a type hint leads to."""
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint).values()
        return {typing.cast("type", hint)}.union(*map(groups_of, hints))
    return set().union(*map(groups_of, typing.get_args(hint)))


def is_list(hint: Any) -> bool:
    return any(typing.get_origin(part) is list for part in (hint, *typing.get_args(hint)))


def types_in(hint: Any) -> set[Any]:
    inside = set().union(*map(types_in, typing.get_args(hint)))
    return inside if isinstance(hint, types.UnionType) or inside else {hint}


GROUPS = sorted(groups_of(Config), key=lambda group: group.__name__)
FIELDS = [
    pytest.param(group, field, types_in(typing.get_type_hints(group)[field.name]), id=f"{group.__name__}.{field.name}")
    for group in GROUPS
    for field in dataclasses.fields(group)
]
NUMBERS = [case for case in FIELDS if {int, float} & case.values[2]]
NAMES = [case for case in FIELDS if Name in {type(fact) for fact in case.values[1].metadata.values()}]


def outside(allowed: Range, kind: type) -> list[float]:
    """Return numbers just beyond each end of a range, and what no range holds."""
    step = 1 if kind is int else 1e-3
    beyond = [end for end in (allowed.above, allowed.below) if end is not None]
    beyond += [allowed.at_least - step] if allowed.at_least is not None else []
    beyond += [allowed.at_most + step] if allowed.at_most is not None else []
    return [*map(kind, beyond), *([LIMIT, -LIMIT] if kind is int else [math.nan, math.inf, -math.inf])]


def test_the_walk_finds_every_group():
    assert {PhaseConfig, FakeQuantConfig, StageConfig, ImageConfig} < set(GROUPS)
    assert len(NUMBERS) > 80


@pytest.mark.parametrize(("group", "field", "kinds"), NUMBERS)
def test_every_number_has_a_range_and_is_refused_outside(group: type, field: dataclasses.Field[Any], kinds: set[Any]):
    allowed = field.metadata.get("allowed")
    assert isinstance(allowed, Range), "declare it with lowbit.settings.fields.number"
    kind = int if int in kinds else float
    listed = is_list(typing.get_type_hints(group)[field.name])
    for value in outside(allowed, kind):
        config = group()
        given = [value] if listed else value
        setattr(config, field.name, given)
        problems = [text for text in field_problems(config) if text.startswith(f"{field.name}={given}: must be ")]
        assert len(problems) == 1
        assert str(allowed) in problems[0] or "below 2**63" in problems[0]


@pytest.mark.parametrize(("group", "field", "kinds"), FIELDS)
def test_defaults_are_allowed(group: type, field: dataclasses.Field[Any], kinds: set[Any]):
    config = group()
    if field.name != "name" and getattr(config, field.name) != "???":
        assert not [text for text in field_problems(config, "") if text.startswith(f"{field.name}=")]


BAD_NAMES = [
    "",
    ".",
    "..",
    "../x",
    "a/../b",
    "a/..",
    "/x",
    "x/",
    "a//b",
    "a b",
    "a\nb",
    "a\x00b",
    "a\\b",
    "~x",
    "x" * 201,
]


@pytest.mark.parametrize(("group", "field", "kinds"), NAMES)
def test_names_stay_below_their_folder(group: type, field: dataclasses.Field[Any], kinds: set[Any]):
    config = group()
    is_key = "keys" in field.metadata
    for value in [*BAD_NAMES, *(["a/b"] if is_key else [])]:
        setattr(config, field.name, {value: None} if is_key else value)
        problems = [text for text in field_problems(config) if text.startswith(f"{field.name}=")]
        assert len(problems) == 1, (value, problems)
        assert problems[0].isprintable()
    for value in ["a", "größe-2", "w1.58_a8", "x" * 200, *([] if is_key else ["digits/ti_g", ".a/b..c"])]:
        setattr(config, field.name, {value: None} if is_key else value)
        assert not [text for text in field_problems(config) if text.startswith(f"{field.name}=")]


def test_the_names_of_folders():
    found = {f"{case.values[0].__name__}.{case.values[1].name}" for case in NAMES}
    assert found == {
        *("Config.name", "Config.sweep", "DataConfig.name", "ModelConfig.name", "MethodConfig.name"),
        *("MethodConfig.stages", "MethodConfig.losses", "StageConfig.losses", "QuantizerConfig.name"),
        *("EstimatorsConfig.name", "CorrectionConfig.name", "OscillationConfig.name"),
    }
