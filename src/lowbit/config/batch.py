"""Load the jobs of a sweep: what they share is read, composed and resolved once (imports no torch).

Hydra takes 0.2 seconds to compose a run. Here it still decides which files make up a run, but each file is read once,
each key at the root of the config (`data`, `method`, ...) is merged and resolved once for each combination of files
that it depends on, and overrides by plain values (`seed=3`) are set in the result. What this cannot do is left to
`validate.load`; tests/config/test_batch.py compares the two over the shipped sweeps.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from functools import cache
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra._internal.defaults_list import DefaultsList, create_defaults_list
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf, ValueNode
from omegaconf.errors import OmegaConfBaseException

from lowbit.config import compose as C
from lowbit.config import identity
from lowbit.config.problems import CONFIG_ERRORS, ConfigError, unknown_keys
from lowbit.config.sources import unused_files
from lowbit.config.validate import load, problems_of
from lowbit.settings.fields import LIMIT
from lowbit.settings.run import PATHS, Config

Loaded = tuple[dict[str, object], Config]
_REFERENCE = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*")
_NO_VALUE = re.compile(r"([\w.]+): no value")
_ANYWHERE = ""  # a reference that may lead to any key
_PLAIN_AT_ROOT = tuple(field.name for field in fields(Config) if field.default is not MISSING)  # seed, name, sweep


def load_jobs(jobs: Sequence[list[str]]) -> list[Loaded | ConfigError]:
    """Return for each job its config as builtins and as typed object, or what is wrong with it.

    The results share parts: change none of them.

    Raises:
        ConfigError: all jobs lack a value for the same key.
    """
    batch = _Batch()
    found = {place: batch.attempt(jobs[place]) for place in _covering(jobs)}
    if len(jobs) > 1:
        _refuse_what_all_lack(list(found.values()))
    return [found[place] if place in found else batch.attempt(job) for place, job in enumerate(jobs)]


def _covering(jobs: Sequence[list[str]]) -> list[int]:
    """Return the places of a few jobs that hold every value of every axis but the seed."""
    axes = [list(dict.fromkeys(words)) for words in zip(*jobs, strict=False)]
    places = {tuple(job): place for place, job in enumerate(jobs)}
    longest = max((len(axis) for axis in axes if not axis[0].startswith("seed=")), default=1)
    chosen = [places.get(tuple(axis[min(number, len(axis) - 1)] for axis in axes)) for number in range(longest)]
    return [place for place in dict.fromkeys(chosen) if place is not None]


def _refuse_what_all_lack(results: Sequence[Loaded | ConfigError]) -> None:
    """Raise ConfigError, with one problem for each key that has no value in any job, whatever else is chosen."""
    lacking = [
        {match[1]: problem for problem in result.problems if (match := _NO_VALUE.match(problem))}
        if isinstance(result, ConfigError)
        else {}
        for result in results
    ]
    first, *others = lacking or [{}]
    common = [problem for key, problem in first.items() if all(key in other for other in others)]
    if common:
        raise ConfigError(common)


class _NotComposedError(Exception):
    """Hydra cannot compose a config, whatever plain values are set in it afterwards."""


class _Files(CachingConfigRepository):
    """Every config file, read once, without what it sets of Hydra itself."""

    def __init__(self, delegate: IConfigRepository) -> None:
        self.delegate = delegate
        self.cache: dict[str, ConfigResult | None] = {}

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Return a file's content; not to be changed."""
        if config_path not in self.cache:
            found = self.delegate.load_config(config_path=config_path)
            if found is not None and isinstance(found.config, DictConfig) and "hydra" in found.config:
                found.config.pop("hydra")
            self.cache[config_path] = found
        return self.cache[config_path]


class _Copies(_Files):
    """The same files, to be merged, which changes them."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Return a copy of a file's content."""
        found = copy.copy(self.delegate.load_config(config_path=config_path))
        if found is not None:
            found.config = copy.deepcopy(found.config)
        return found


@dataclass(frozen=True)
class _Part:
    """A key at the root of a config: as composed, resolved to builtins, as typed object; and what it refers to."""

    node: object
    content: object
    value: Any
    references: frozenset[str]

    @classmethod
    def of(cls, cfg: DictConfig, key: str) -> _Part:
        """Resolve a key."""
        node: Any = cfg._get_node(key)
        if isinstance(node, DictConfig):
            composed = OmegaConf.to_container(node, resolve=False)
            content = OmegaConf.to_container(node, resolve=True, enum_to_str=True)
            return cls(node, content, OmegaConf.to_object(node), frozenset(_references(composed)))
        return cls(node, cfg[key], cfg[key], frozenset(_references([node._value()])))


class _Base:
    """A config without the overrides by plain values."""

    def __init__(self, parts: Mapping[str, _Part]) -> None:
        self.content = {key: part.content for key, part in parts.items()}
        self.config = Config(**{key: part.value for key, part in parts.items()})
        self._nodes = {key: part.node for key, part in parts.items()}
        self._references = frozenset[str]().union(*(part.references for part in parts.values()))
        self._leaves: dict[str, ValueNode | None] = {}

    def leaf(self, key: str) -> ValueNode | None:
        """Return the node of a key; None if its value is not a plain one, or counts elsewhere too."""
        if key not in self._leaves:
            alone = not any(_overlap(key, reference) for reference in self._references)
            self._leaves[key] = self._find(key) if alone else None
        return self._leaves[key]

    def _find(self, key: str) -> ValueNode | None:
        first, *names = key.split(".")
        if first not in self._nodes:
            return None
        node, content = self._nodes[first], self.content[first]
        for name in names:
            if not isinstance(node, DictConfig) or not isinstance(content, dict) or name not in content:
                return None
            if node._is_none() or node._is_interpolation():
                return None
            node, content = node._get_node(name), content[name]
        return node if isinstance(node, ValueNode) and not node._is_interpolation() else None


class _Batch:
    """Loads jobs; config files are taken to stay as they are meanwhile."""

    def __init__(self) -> None:
        with C.hydra_session():
            loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoaderImpl)
        self._loader = loader
        self._files = _Files(loader.repository)
        self._root: DictConfig | None = None
        self._nodes: dict[Hashable, Any] = {}  # by what they were made of
        self._parts: dict[Hashable, _Part] = {}  # of those that refer to nothing
        self._contents: dict[tuple[str, str], _File] = {}
        self._bases: dict[tuple[str, ...], _Base] = {}
        self._refused: dict[tuple[str, ...], ConfigError] = {}
        self._left_to_hydra: set[str] = set()  # keys whose values count elsewhere too
        self._problems_of: dict[tuple[str, ...], list[str]] = {}
        self._values: dict[tuple[int, str], object] = {}

    def attempt(self, overrides: list[str]) -> Loaded | ConfigError:
        """Return the config of a job, or its problems."""
        words = [word for word in overrides if not self._is_plain(word)]
        if tuple(words) in self._refused:
            return self._refused[tuple(words)]
        try:
            content, config = self._set(overrides)
            problems = self._problems(config, overrides)
            return ConfigError(problems) if problems else (content, config)
        except (_NotComposedError, *CONFIG_ERRORS) as error:
            try:
                cfg, config = load(overrides)  # it explains what is wrong with which override
            except ConfigError as explained:
                if isinstance(error, _NotComposedError):
                    self._refused[tuple(words)] = explained
                return explained
            return identity.resolved(cfg), config

    def _problems(self, config: Config, overrides: list[str]) -> list[str]:
        """Return the problems of a config, found once for all seeds: each that a run may have is as good as another."""
        others = tuple(word for word in overrides if not word.startswith("seed="))
        if not 0 <= config.seed < LIMIT:
            return problems_of(config, overrides)
        if others not in self._problems_of:
            self._problems_of[others] = problems_of(config, overrides)
        return self._problems_of[others]

    def _is_plain(self, word: str) -> bool:
        override = _parse(word)
        return override is not None and override.key_or_group not in self._left_to_hydra

    def _set(self, overrides: list[str]) -> Loaded:
        """Return the config of the overrides: that of those for Hydra, with the plain values set."""
        while True:
            base = self._base(tuple(word for word in overrides if not self._is_plain(word)))
            plain = [(word, override) for word in overrides if self._is_plain(word) and (override := _parse(word))]
            entangled = {override.key_or_group for _, override in plain if base.leaf(override.key_or_group) is None}
            if not entangled:
                break
            self._left_to_hydra |= entangled
        content, config = base.content, base.config
        for word, override in plain:
            leaf, path = base.leaf(override.key_or_group), override.key_or_group.split(".")
            assert leaf is not None
            value = self._value(leaf, word, override)
            content = _with_item(content, path, value.name if isinstance(value, Enum) else value)
            config = _with_item(config, path, value)
        return content, config

    def _value(self, leaf: ValueNode, word: str, override: Override) -> object:
        """Return an override's value as the type of its key has it."""
        place = (id(leaf), word)
        if place not in self._values:
            node = copy.deepcopy(leaf)
            node._set_value(override.value())
            self._values[place] = node._value()
        return self._values[place]

    def _base(self, overrides: tuple[str, ...]) -> _Base:
        """Return the config of the overrides that are left to Hydra."""
        if overrides not in self._bases:
            try:
                cfg, origins = self._compose(overrides)
            except (HydraException, OmegaConfBaseException, ValueError, RecursionError) as error:
                raise _NotComposedError from error
            parts = {key: self._parts.get(origin) or _Part.of(cfg, key) for key, origin in origins.items()}
            self._parts |= {origins[key]: part for key, part in parts.items() if not part.references}
            self._bases[overrides] = _Base(parts)
        return self._bases[overrides]

    def _compose(self, overrides: tuple[str, ...]) -> tuple[DictConfig, dict[str, Hashable]]:
        """Return what Hydra composes, without its own settings, and of what; the next call changes the config.

        A node at the root is made anew only if the files and overrides that set something in it are a new combination.
        """
        parsed = OverridesParser.create().parse_overrides(C.quoted(overrides))
        found = create_defaults_list(self._files, C.ROOT_CONFIG, parsed, prepend_hydra=False, skip_missing=False)
        origins = self._origins(found)
        if not all(origin in self._nodes for origin in origins.values()):
            cfg = self._loader._compose_config_from_defaults_list(found.defaults, _Copies(self._files))
            OmegaConf.set_struct(cfg, True)
            self._loader._apply_overrides_to_config(found.config_overrides, cfg)
            if unknown_keys(cfg):
                raise ValueError("keys that the schema lacks")
            self._root = self._root or cfg
            for key, origin in origins.items():
                self._nodes.setdefault(origin, cfg._get_node(key))
        assert self._root is not None
        for key, origin in origins.items():
            node = self._nodes[origin]
            self._root._content[key] = node  # type: ignore[index]
            node._set_parent(self._root)
        if any(str(OmegaConf.select(self._root, key)).startswith("~") for key in PATHS):
            raise ValueError("a path in a file begins with ~, which would be replaced in nodes that others share")
        if any(unused_files(list(overrides))):
            raise ValueError("files that are not read")
        return self._root, origins

    def _origins(self, found: DefaultsList) -> dict[str, Hashable]:
        """Return, for each key at the root, what sets something in it: files and overrides.

        Raises:
            ValueError: a mapping takes the place of an interpolation. OmegaConf merges it into a copy of what the
                interpolation refers to, so that more counts than what is set here.
        """
        origins: dict[str, list[Hashable]] = {field.name: [] for field in fields(Config)}
        interpolations: set[str] = set()
        for default in found.defaults:
            file = (str(default.config_path), default.package or "")
            content = self._file(*file)
            for key in content.keys:
                origins[key].append(file)
            replaced = interpolations & content.mappings
            interpolations |= content.interpolations
            if replaced:
                raise ValueError(f"{min(replaced)}: a mapping replaces an interpolation")
        for override in found.config_overrides:
            key, line = override.key_or_group, str(override.input_line)
            head = key.partition(".")[0]
            if head not in origins or any(f"{key}.".startswith(f"{path}.") for path in interpolations):
                raise ValueError(f"{line}: unknown, or it replaces an interpolation or leads through it")
            origins[head].append(line)
        return {key: (key, *sources) for key, sources in origins.items()}

    def _file(self, path: str, package: str) -> _File:
        """Return what a file sets."""
        if (path, package) not in self._contents:
            found = self._files.load_config(path)
            assert found is not None
            content: Any = OmegaConf.to_container(found.config, resolve=False)
            for name in reversed(package.split(".") if package else []):
                content = {name: content}
            self._contents[path, package] = _File.of(content)
        return self._contents[path, package]


@dataclass(frozen=True)
class _File:
    """What a config file sets: keys at the root, and the dotted paths of its interpolations and of its mappings."""

    keys: frozenset[str]
    interpolations: frozenset[str]
    mappings: frozenset[str]

    @classmethod
    def of(cls, content: Mapping[str, object]) -> _File:
        """Look through the content."""
        nodes = list(_nodes(content))
        texts = (path for path, value in nodes if isinstance(value, str) and "${" in value)
        mappings = (path for path, value in nodes if isinstance(value, Mapping))
        return cls(frozenset(map(str, content)), frozenset(texts), frozenset(mappings))


def _nodes(value: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield everything in nested builtins, with its path."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield f"{prefix}{key}", item
        yield from _nodes(item, f"{prefix}{key}.")


def _references(content: object) -> Iterator[str]:
    """Yield every word of the interpolations in nested builtins: dotted keys, and more than is one."""
    for _, value in _nodes(content):
        if isinstance(value, str) and "${" in value:
            yield from _REFERENCE.findall(value)
            if "${." in value.replace(" ", ""):  # relative to its own place
                yield _ANYWHERE


def _overlap(key: str, reference: str) -> bool:
    """Whether a reference is to the key, to what holds it, or to something in it."""
    return reference == _ANYWHERE or f"{key}.".startswith(f"{reference}.") or reference.startswith(f"{key}.")


@cache
def _parse(word: str) -> Override | None:
    """Return an override by a plain value of a key; None of all others."""
    override = None
    with suppress(HydraException):
        override = OverridesParser.create().parse_override(*C.quoted([word]))
    if override is None or override.type is None or override.is_add() or override.is_force_add():
        return None
    if override.is_delete() or override.is_sweep_override() or override.package is not None:
        return None
    if "." not in override.key_or_group and override.key_or_group not in _PLAIN_AT_ROOT:
        return None
    value = override.value()
    if isinstance(value, str):
        return None if "${" in value or value.startswith(("~", "???")) else override
    return override if value is None or isinstance(value, int | float) else None


def _with_item(whole: Any, path: Sequence[str], value: object) -> Any:
    """Return a copy of nested builtins or dataclasses with another value at the end of a path; the rest is shared."""
    first, *rest = path
    changed = copy.copy(whole)
    if isinstance(whole, dict):
        changed[first] = _with_item(whole[first], rest, value) if rest else value
    else:
        setattr(changed, first, _with_item(getattr(whole, first), rest, value) if rest else value)
    return changed
