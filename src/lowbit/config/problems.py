"""Config problems as one readable line each: the key, the value, what is allowed, the nearest match."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import shlex
from collections.abc import Iterable, Iterator

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lowbit.config import compose as C

CONFIG_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)


_FOLDERS = {
    "data": "data=image_folder data.dir=",
    "model": "model=hf model.path=",
    "teacher": "teacher=path teacher.path=",
}


class ConfigError(Exception):
    """One or more config problems; the text is for people and needs no traceback."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{count} in the configuration:\n" + "\n".join(f"  - {p}" for p in problems))


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "Did you mean 'x'? " or nothing."""
    options = list(known)
    leaf = word.rsplit(".", 1)[-1]
    same_leaf = [o for o in options if o.rsplit(".", 1)[-1] == leaf]  # the right leaf under a wrong parent
    near = difflib.get_close_matches(word, same_leaf, n=1, cutoff=0.0)
    near = near or difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}? " if near else ""


def check_overrides(overrides: list[str]) -> tuple[list[str], list[str]]:
    """Return (the overrides that compose, one problem for each of the others)."""
    good: list[str] = []
    problems: list[str] = []
    with C.hydra_session():
        groups = {group: C.choices(group) for group in C.groups()}
    left: list[str] = []
    parsed = [(text, _parse(text)) for text in overrides]
    for text, override in sorted(parsed, key=lambda pair: not _is_group(pair[1], groups)):
        problem = override if isinstance(override, str) else _group_problem(override, groups)
        if problem is None:
            left.append(text)
        else:
            problems.append(problem)
    problems += _take_composing(left, good)
    return [text for text in overrides if text in good], problems


def unknown_keys(cfg: DictConfig) -> list[str]:
    """Return one problem for each key that the schema lacks: Hydra's `+key=value` adds keys to closed groups."""
    unknown = list(_outside_schema(cfg))
    known = [key for key in _keys(cfg) if key not in unknown]
    return [f"{key}: no such key; `+` cannot add one here. {nearest(key, known)}".rstrip() for key in unknown]


def explain(error: BaseException) -> str:
    """Return the first line that a person can use of a Hydra or OmegaConf error."""
    if isinstance(error, OmegaConfBaseException):
        text = str(error.msg or error)
        key = getattr(error, "full_key", None)
        first = text.strip().splitlines()[0]
        return f"{key}: {first}" if key else first
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and str(cause):
        return explain(cause)
    text = str(error).strip()
    # Hydra appends its search path and tracebacks of its own; our messages are whole.
    if isinstance(error, yaml.YAMLError):
        return " ".join(text.split())  # what was being parsed, file, line and what is wrong, over several lines
    if not isinstance(error, HydraException):
        return text
    first, *rest = text.splitlines()
    return f"{first} {rest[0].strip()}" if rest and first.endswith(":") else first


def _parse(text: str) -> Override | str:
    try:
        return OverridesParser.create().parse_override(*C.quoted([text]))
    except HydraException as error:
        if "=" not in text:
            return f"{text!r}: an override is KEY=VALUE"
        key, _, value = text.partition("=")
        value = re.sub(r'(\\*)(?="|$)', r"\1\1", value).replace('"', '\\"')  # backslashes count before quotes only
        whole = shlex.quote(f'{key}="{value}"')
        return f"{text!r}: not a valid override ({str(error).splitlines()[0]}); quote the value: {whole}"


def _is_group(override: Override | str, groups: dict[str, list[str]]) -> bool:
    return isinstance(override, Override) and override.key_or_group in groups


def _group_problem(override: Override, groups: dict[str, list[str]]) -> str | None:
    group = override.key_or_group
    if group not in groups:
        return None
    if group == "paper":  # not a group of the run config
        return f"{override.input_line}: published values are no part of a run; `lowbit table` shows them beside it"
    value = override.value()
    if not isinstance(value, str) or value in groups[group]:
        return None
    options = ", ".join(groups[group])
    hint = nearest(value, groups[group])
    if group in _FOLDERS and os.path.isdir(value):  # noqa: PTH112 - whatever was typed
        hint = f"For a folder: {_FOLDERS[group]}{value}. "
    return f"{group}={value}: no such choice. {hint}Allowed: {options}"


def _take_composing(texts: list[str], good: list[str]) -> list[str]:
    """Add those of `texts` that compose to `good`, and return one problem for each of the others.

    By halves, because a composition takes tenths of a second and most overrides are fine.
    """
    try:
        C.compose([*good, *texts])
    except CONFIG_ERRORS as error:
        half = len(texts) // 2
        if half:
            return [*_take_composing(texts[:half], good), *_take_composing(texts[half:], good)]
        return [_composition_problem(texts[0], good, error)] if texts else []
    good += texts
    return []


def _composition_problem(text: str, good: list[str], error: BaseException) -> str:
    message = explain(error)
    unknown = re.search(r"not in struct|not in '\w+'|Could not override", f"{message} {error}")
    if unknown and (problem := _unknown_key(text, good)) is not None:
        return problem
    key = text.lstrip("+").partition("=")[0]
    if "not in struct" in message and not text.startswith("+"):
        message = f"{message}; begin the override with + to add keys here: '+{text}'"
    return message if message.startswith(f"{key}=") else f"{text}: {message}"


def _unknown_key(text: str, good: list[str]) -> str | None:
    key = text.split("=", 1)[0].lstrip("+~")
    if key.startswith("trainer.extra."):
        return f"{text}: trainer.extra takes further arguments of Lightning's Trainer; write +{text}"
    known = _keys(C.compose(good))
    if key in known:  # the value is at fault
        return None
    siblings = [k for k in known if k.rsplit(".", 1)[0] == key.rsplit(".", 1)[0] and "." in k]
    allowed = f"Keys here: {', '.join(k.rsplit('.', 1)[-1] for k in siblings)}" if siblings and "." in key else ""
    hint = nearest(key, [*known, *C.groups()])
    return f"{text}: no such key {key!r}. {hint}{allowed}".rstrip()


def _outside_schema(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    schema = OmegaConf.get_type(cfg)
    fields = {field.name for field in dataclasses.fields(schema)} if dataclasses.is_dataclass(schema) else set(cfg)
    for key in map(str, cfg):
        node = cfg._get_node(key)
        if key not in fields:
            yield f"{prefix}{key}"
        elif isinstance(node, DictConfig) and not (node._is_none() or node._is_missing() or node._is_interpolation()):
            yield from _outside_schema(node, f"{prefix}{key}.")


def _keys(cfg: DictConfig, prefix: str = "") -> list[str]:
    found: list[str] = []
    for key in map(str, cfg):
        path = f"{prefix}{key}"
        found.append(path)
        if OmegaConf.is_missing(cfg, key):
            continue
        node = cfg._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none():
            found.extend(_keys(node, f"{path}."))
    return found
