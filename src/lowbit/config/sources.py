"""The YAML files that overrides choose: what is wrong in them, and where they set a key (imports no torch)."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lowbit.config import compose as C
from lowbit.config.problems import explain, nearest
from lowbit.settings.run import Config

_HEADER = re.compile(r"#+\s*@package\s+(\S+)")
_GLOBAL = "# @package _global_"
_KEYWORDS = re.compile(r"^(?:override |optional )*")
Entries = list[tuple[Any, Any]]  # nodes of keys and values


@dataclass(frozen=True)
class Source:
    """One config file: its choice, such as `experiment/mine`, and the part of the config that its keys belong to."""

    choice: str
    path: Path
    package: str
    root: yaml.Node | None

    @classmethod
    def of(cls, choice: str, path: Path) -> Source:
        """Read a file.

        Raises:
            yaml.YAMLError: naming file and line.
        """
        text = path.read_text(encoding="utf-8")
        lines = filter(None, map(str.strip, text.splitlines()))
        head = takewhile(re.compile(r"#+\s*@").match, lines)  # Hydra looks no further
        headers = (found[1] for line in head if (found := _HEADER.match(line)))
        group = choice.rpartition("/")[0].replace("/", ".")
        package = {"_global_": "", "_group_": group}.get(given := next(headers, "_group_"), given)
        with path.open(encoding="utf-8") as file:
            return cls(choice, path, package, yaml.compose(file, Loader=yaml.SafeLoader))

    def at(self, node: yaml.Node) -> str:
        """Return file and line of a node."""
        return f"{_shown(self.path)}, line {node.start_mark.line + 1}"

    @property
    def entries(self) -> Entries:
        """The keys at the root and their values, but not those of Hydra, nor the layout of a sweep's table."""
        others = ["defaults", "hydra", *([C.TABLE] if self.choice.startswith("sweeps/") else [])]
        return [(key, value) for key, value in self._root if key.value not in others]

    @property
    def _root(self) -> Entries:
        return self.root.value if isinstance(self.root, yaml.MappingNode) else []

    @property
    def lists(self) -> Entries:
        """The defaults list, with its key."""
        return [(key, value) for key, value in self._root if key.value == "defaults"]

    def defaults(self) -> Iterator[tuple[yaml.Node, str, str]]:
        """Yield each entry of the defaults list with the group and the name that it chooses."""
        lists = [found for _, found in self.lists if _default_list_problem(found) is None]
        folder = self.choice.rpartition("/")[0]
        for item in (item for found in lists for item in found.value):
            if isinstance(item, yaml.ScalarNode):
                group, _, name = item.value.rpartition("/")
                node = item
            else:
                ((key, node),) = item.value
                group, name = _KEYWORDS.sub("", key.value).partition("@")[0], node.value
                if not isinstance(node, yaml.ScalarNode) or node.tag.endswith("null"):
                    continue
            if name != "_self_" and "${" not in name:
                group = group.strip()
                yield node, group[1:] if group.startswith("/") else "/".join(filter(None, (folder, group))), name


def file_problems(overrides: list[str]) -> dict[str, list[str]]:
    """Return what is wrong in the files of each override that chooses one, with file, line and key."""
    with C.hydra_session():
        found = {text: list(_problems(choice, set(), ())) for text, choice in _choices(overrides)}
    return {text: problems for text, problems in found.items() if problems}


def unused_files(overrides: list[str]) -> Iterator[str]:
    """Yield files of the user that are not read, since ours have the same name."""
    if Path.cwd() != C.shipped_root():
        for _, choice in _choices(overrides):
            for source in _used(choice, set()):
                for file in C.files_of(source.choice)[1:]:
                    yield f"{_shown(file)}: is not read, since lowbit has a {source.choice} too; rename the file"


def places(overrides: list[str]) -> dict[str, str]:
    """Return file and line of each key that a file of the user sets; the last one counts."""
    found: dict[str, str] = {}
    for _, choice in _choices(overrides):
        for source in _used(choice, set()):
            if not source.path.is_relative_to(C.shipped_root()):
                for key, value in source.entries:
                    found.update(_keys(source, key, value, f"{source.package}." if source.package else ""))
    return found


def _choices(overrides: list[str]) -> Iterator[tuple[str, str]]:
    for text in overrides:
        group, _, name = text.lstrip("+").partition("=")
        choice = f"{group.partition('@')[0]}/{name}"
        if group != "paper" and C.files_of(choice):  # published values, which are no part of a run
            yield text, choice


def _used(choice: str, seen: set[str]) -> Iterator[Source]:
    """Yield the file of a choice and those of its defaults list, in the order in which they count."""
    if choice in seen or not (files := C.files_of(choice)):
        return
    seen.add(choice)
    source = Source.of(choice, files[0])
    for _, group, name in source.defaults():
        yield from _used(f"{group}/{name}", seen)
    yield source


def _problems(choice: str, seen: set[str], above: tuple[str, ...]) -> Iterator[str]:
    """Yield what is wrong in the file of a choice and in those of its defaults list; `above` lead to it."""
    if choice in seen or not (files := C.files_of(choice)):
        return
    seen.add(choice)
    try:
        source = Source.of(choice, files[0])
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        yield f"{_shown(files[0])}: {explain(error)}"
        return
    if (wrong := _form_problem(source)) is not None:
        yield wrong
        return
    for key, value in source.lists:
        if problem := _default_list_problem(value):
            yield f"{source.at(key)}: defaults: {problem}"
    for node, folder, name in source.defaults():
        if (chosen := f"{folder}/{name}") in (choice, *above):
            yield f"{source.at(node)}: {chosen} leads back to itself"
        yield from _default_problems(source, node, folder, name)
        yield from _problems(chosen, seen, (choice, *above))
    schema = _type_of(source.package)
    if schema is not None:
        yield from _mapping_problems(source, schema, source.entries, f"{source.package}." if source.package else "")


def _form_problem(source: Source) -> str | None:
    """Say what keeps Hydra from taking the keys of a file for what they are meant to be."""
    if source.root is not None and not isinstance(source.root, yaml.MappingNode):
        return f"{source.at(source.root)}: a config file holds keys and values, KEY: VALUE"
    group = source.package.partition(".")[0]
    if not group or group in {field.name for field in dataclasses.fields(Config)}:
        return None
    return (
        f"{_shown(source.path)}, line 1: the first line must be `{_GLOBAL}`, before other comments and without a byte "
        f"order mark; else all keys of the file belong to {group!r}, which is no part of a run"
    )


def _default_list_problem(value: yaml.Node) -> str | None:
    if not isinstance(value, yaml.SequenceNode):
        return "must be a list: `- override /method: ti_g`"
    for item in value.value:
        if not isinstance(item, yaml.ScalarNode) and not (isinstance(item, yaml.MappingNode) and len(item.value) == 1):
            return f"line {item.start_mark.line + 1}: an entry is one choice: `- override /method: ti_g`"
    return None


def _default_problems(source: Source, node: yaml.Node, group: str, name: str) -> Iterator[str]:
    if C.files_of(f"{group}/{name}"):
        return
    first = group.rpartition("/")[2]
    known = C.choices(group)
    if known:
        yield f"{source.at(node)}: {group}={name}: no such choice. {nearest(name, known)}Allowed: {', '.join(known)}"
    elif first in C.groups():
        yield f"{source.at(node)}: no group {group!r}; write `override /{first}: {name}`"
    else:
        yield f"{source.at(node)}: no group {group!r}. {nearest(group, C.groups())}Groups: {', '.join(C.groups())}"


def _mapping_problems(source: Source, schema: object, entries: Entries, prefix: str) -> Iterator[str]:
    """Yield the keys that a group or mapping lacks, and the values of another type; what a mapping holds is named."""
    for key, value in entries:
        path = f"{prefix}{key.value}"
        inner = _held(schema)
        if dataclasses.is_dataclass(schema):
            hints = typing.get_type_hints(schema)
            if key.value not in hints and path in _all_keys():
                first, _, rest = key.value.partition(".")
                yield f"{source.at(key)}: {path}: dots are for overrides; in a file write `{first}: {{{rest}: ...}}`"
                continue
            if key.value not in hints:
                hint = nearest(key.value, [*hints, *_all_keys()])
                yield f"{source.at(key)}: no such key {path!r}. {hint}Keys here: {', '.join(hints)}"
                continue
            inner = _plain(hints[key.value])
        if isinstance(value, yaml.MappingNode) and (
            dataclasses.is_dataclass(inner) or typing.get_origin(inner) is dict
        ):
            yield from _mapping_problems(source, inner, value.value, f"{path}.")
        elif dataclasses.is_dataclass(inner) and value.tag.endswith("null") and not value.value:
            yield f"{source.at(key)}: {path}: has no keys; indent them below it, or delete the line"
        elif dataclasses.is_dataclass(schema):
            yield from _type_problems(source, schema, key, value, path)


def _type_problems(source: Source, schema: object, key: yaml.Node, value: yaml.Node, path: str) -> Iterator[str]:
    try:
        given = yaml.constructor.SafeConstructor().construct_object(value, deep=True)
        if "${" in str(given) or given == "???":
            return
        OmegaConf.update(_structured(schema), str(key.value), given)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        text = explain(error)
        yield f"{source.at(value)}: {path}: {text.partition(': ')[2] or text}"


@cache
def _structured(schema: object) -> DictConfig:
    """Return a node in which values of a type can be tried, each under its own key."""
    return OmegaConf.structured(schema)  # type: ignore[no-any-return]


def _keys(source: Source, key: yaml.Node, value: yaml.Node, prefix: str) -> Iterator[tuple[str, str]]:
    path = f"{prefix}{key.value}"
    yield path, source.at(key)
    if isinstance(value, yaml.MappingNode):
        for below, item in value.value:
            yield from _keys(source, below, item, f"{path}.")


def _type_of(package: str) -> object:
    """Return the type of a part of the config, None where there is none such."""
    found: object = Config
    for name in filter(None, package.split(".")):
        found = _plain(typing.get_type_hints(found).get(name)) if dataclasses.is_dataclass(found) else _held(found)
    return found


def _plain(hint: object) -> object:
    """Return a type without None."""
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    return parts[0] if len(parts) == 1 and type(None) in typing.get_args(hint) else hint


def _held(hint: object) -> object:
    """Return the type of what a mapping holds; a group holds its keys itself."""
    return _plain(typing.get_args(hint)[1]) if typing.get_origin(hint) is dict else hint


@cache
def _all_keys() -> tuple[str, ...]:
    def walk(group: object, prefix: str) -> Iterator[str]:
        for name, hint in typing.get_type_hints(group).items():
            yield f"{prefix}{name}"
            if dataclasses.is_dataclass(_plain(hint)):
                yield from walk(_plain(hint), f"{prefix}{name}.")

    return tuple(walk(Config, ""))


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
