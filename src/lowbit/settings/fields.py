"""What a setting may be, written where it is declared: the range of a number, the form of a name, its readers.

`field_problems` reads it off a typed config, and nothing else lists these facts (imports no torch).
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import math
import operator
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")
LIMIT = 2**63  # torch takes no larger integers
_LONGEST = 200  # bytes of a name; file systems allow 255 of each folder's
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)*")
_ENDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "above": ("greater than", operator.gt),
    "at_least": ("at least", operator.ge),
    "below": ("below", operator.lt),
    "at_most": ("at most", operator.le),
}


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may be, all of them finite, and what else to know of them."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    note: str = ""

    def __str__(self) -> str:
        given = [(text, end) for key, (text, _) in _ENDS.items() if (end := getattr(self, key)) is not None]
        words = " and ".join(f"{text} {'2**63' if end == LIMIT else f'{end:g}'}" for text, end in given)
        if self.at_least is not None and self.at_most is not None:
            words = f"from {self.at_least:g} to {self.at_most:g}"
        return f"{words or 'a number'}{self.note and '; '}{self.note}"

    def problem(self, value: float) -> str | None:
        """Return what the number must be, None if it is."""
        ends = [(getattr(self, key), holds) for key, (_, holds) in _ENDS.items()]
        if not all(end is None or holds(value, end) for end, holds in ends):
            return f"must be {self}"
        if isinstance(value, int):
            return None if abs(value) < LIMIT else "must be below 2**63"
        return None if math.isfinite(value) else f"must be {self}, and finite"


@dataclass(frozen=True)
class Name:
    """A word that becomes part of a path: it must stay below the folder that it names."""

    slashes: bool = True

    def problem(self, value: str) -> str | None:
        """Return what the name must be, None if it is."""
        parts = value.split("/")
        fits = _NAME.fullmatch(value) and not {".", ".."} & {*parts} and len(value.encode()) <= _LONGEST
        if fits and (self.slashes or len(parts) == 1):
            return None
        inside = "; a / only between two names" if self.slashes else ""
        return f"is part of a path: must be 1 to {_LONGEST} letters, digits, '.', '_' or '-', not '.' or '..'{inside}"


@dataclass(frozen=True)
class OneOf:
    """Words of a library, which are no enum here since they never reach a run's identity."""

    words: tuple[str, ...]

    def problem(self, value: str) -> str | None:
        """Return what the word must be, None if it is."""
        return None if value in self.words else f"must be one of {', '.join(self.words)}"


@dataclass(frozen=True)
class ClassOr:
    """One of the package's own words, or a class of the user's own as `module.Class`.

    Attributes:
        words: the package's own.
        base: what a class of the user's own extends, for the message.
        mark: attribute that every such class has.
    """

    words: tuple[str, ...]
    base: str
    mark: str

    def problem(self, value: str) -> str | None:
        """Return what the word or the class must be, None if it is."""
        if value in self.words or value == "???":
            return None
        if "." not in value:
            own = "or a class of your own as module.Class"
            return f"allowed are {', '.join(self.words)}, {own}{_nearest(value, self.words)}"
        try:
            found = import_class(value)
        except ValueError as error:
            return str(error)
        return None if hasattr(found, self.mark) else f"is not a subclass of {self.base}"


@dataclass(frozen=True)
class Of:
    """The settings under which a setting counts: `key` of the same group is one of `values`.

    Elsewhere the setting is refused, or noted if it is `harmless`: one list of overrides then serves several models.
    """

    key: str
    values: tuple[object, ...]
    harmless: bool = False

    def __str__(self) -> str:
        return ", ".join(map(word, self.values))


@dataclass(frozen=True)
class Setting:
    """One value of a config: its dotted key, how its group declares it, and that group."""

    key: str
    value: Any
    declared: dataclasses.Field[object]
    group: object

    def problems(self) -> Iterator[str]:
        """Yield what the declaration does not allow of the value, or of each one in a list or mapping."""
        items = self.value if isinstance(self.value, list) else [self.value]
        names = list(self.value) if isinstance(self.value, dict) else []
        for fact, values in (("allowed", items), ("keys", names)):
            allowed: Range | Name | OneOf | None = self.declared.metadata.get(fact)
            for value in values:
                if allowed is not None and value is not None and (problem := allowed.problem(value)) is not None:
                    yield f"{_shown(self.key, value if fact == 'keys' else self.value)}: {problem}"

    @property
    def default(self) -> object:
        """What the declaration gives."""
        factory = self.declared.default_factory
        return self.declared.default if factory is dataclasses.MISSING else factory()

    @property
    def given(self) -> bool:
        """Whether a config sets the value for certain: it would be null."""
        return self.declared.default is None and self.value is not None

    @property
    def harmless(self) -> bool:
        """Whether it is harmless where nothing reads it."""
        of: Of | None = self.declared.metadata.get("of")
        return of is not None and of.harmless

    @property
    def idle(self) -> str | None:
        """Why nothing reads the value; None if something does, as far as its own group says."""
        of: Of | None = self.declared.metadata.get("of")
        if of is None or (now := getattr(self.group, of.key)) in of.values or "." in str(now):
            return None  # a class of the user's own may read every setting
        parent = self.key.rpartition(".")[0]
        return f"{_shown(self.key, self.value)}: has no effect under {parent}.{of.key}={word(now)}, only under {of}"


def number(
    default: object = None,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    note: str = "",
    of: Of | None = None,
) -> Any:
    """Declare a number and its range; that of a list of numbers holds for each of them."""
    return setting(default, allowed=Range(above, at_least, below, at_most, note), of=of)


def path_name(default: object) -> Any:
    """Declare a name that becomes part of a path."""
    return setting(default, allowed=Name())


def setting(default: object = None, **facts: object) -> Any:
    """Declare a setting and facts of it: `allowed` of its value, `keys` of a mapping's keys, `of`, `refers`, `later`.

    A `later` setting has come after the first release: at its default it is no part of a run's identity.
    """
    facts = {key: fact for key, fact in facts.items() if fact is not None}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=default.copy, metadata=facts)
    return dataclasses.field(default=default, metadata=facts)


def changes_of(group: type) -> type:
    """Return a settings class of the same settings, where null keeps the value of `group`."""
    hints, kept = get_type_hints(group), ("allowed", "later")
    optional = [
        (declared.name, hints[declared.name] | None, setting(**{fact: declared.metadata.get(fact) for fact in kept}))
        for declared in dataclasses.fields(group)
    ]
    name, inside = group.__name__.replace("Config", "Changes"), {"__module__": group.__module__}
    return dataclasses.make_dataclass(name, optional, namespace=inside)


def merged(base: T, changes: T) -> T:
    """Return `base` with the settings of `changes` that are not null."""
    return dataclasses.replace(base, **{k: v for k, v in vars(changes).items() if v is not None})  # type: ignore[type-var]


def import_class(path: str) -> Any:
    """Import `module.Class`; modules beside the user's conf/ are found.

    Raises:
        ValueError: there is no such module or class, or importing it fails.
    """
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError:
        raise ValueError(f"the module {module} has no {name}") from None
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise ValueError(f"no module {module}; put {module.partition('.')[0]}.py beside conf/") from None
        raise ValueError(f"importing {module} failed: {error}") from error
    except Exception as error:
        raise ValueError(f"importing {module} failed: {type(error).__name__}: {error}") from error


def target_problems(
    path: str, given: Mapping[str, object], *, mark: str, first: str = "", inside: str = "options."
) -> list[str]:
    """Return what is wrong with a class that `_target_` names and the keyword arguments that it is given.

    Args:
        path: `module.Class`.
        given: keyword arguments.
        mark: attribute that every such class has.
        first: the argument that comes before them.
        inside: prefix of their keys.
    """
    try:
        found = import_class(path)
    except ValueError as error:
        return [f"_target_={path}: {error}"]
    if not hasattr(found, mark):
        return [f"_target_={path}: has no {mark}, so it cannot take this place"]
    parameters = inspect.signature(found).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return []
    known = [name for name in parameters if name != first]
    unknown = [
        f"{inside}{name}: {path} takes no such argument{_nearest(name, known)}; allowed are {', '.join(known)}"
        for name in given
        if name not in known
    ]
    lacking = [name for name in known if parameters[name].default is inspect.Parameter.empty and name not in given]
    return [*unknown, *(f"{inside}{name}: no value; {path} needs one" for name in lacking)]


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def groups_of(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a typed config and the groups inside it, also those in lists and mappings, each with its prefix of keys.

    A group that `refers` to another one is left out: its settings are those of the other.
    """
    yield prefix, group
    for declared in dataclasses.fields(group):
        key, value = f"{prefix}{declared.name}", getattr(group, declared.name)
        inside = {} if declared.metadata.get("refers") else {key: value}
        if isinstance(value, list):
            inside = {f"{key}.{index}": item for index, item in enumerate(value)}
        elif isinstance(value, dict):
            inside = {f"{key}.{word(name)}": item for name, item in value.items()}
        for where, item in inside.items():
            if dataclasses.is_dataclass(item):
                yield from groups_of(item, f"{where}.")


def settings_of(config: object, prefix: str = "") -> Iterator[Setting]:
    """Yield every setting of a typed config and of the groups inside it."""
    for where, group in groups_of(config, prefix):
        for declared in dataclasses.fields(group):
            yield Setting(f"{where}{declared.name}", getattr(group, declared.name), declared, group)


def field_problems(config: object, prefix: str = "") -> Iterator[str]:
    """Yield values that their declarations do not allow, and those that are given although nothing reads them."""
    for found in settings_of(config, prefix):
        yield from found.problems()
        if found.given and found.idle is not None:
            yield found.idle


def group_problems(config: object, prefix: str = "") -> Iterator[str]:
    """Yield what the groups of a typed config say of themselves: `problems()` names keys as the group does."""
    for where, group in groups_of(config, prefix):
        if hasattr(group, "problems"):
            yield from (f"{where}{problem}" for problem in group.problems())


def _shown(key: str, value: object) -> str:
    """Return KEY=VALUE on one line."""
    text = f"{key}={word(value)}"
    return text if text.isprintable() else ascii(text)[1:-1]


def word(value: object) -> str:
    """Return a value as a user writes it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return value.name if isinstance(value, Enum) else str(value)
