"""Rows that cannot be used: how they are told, when they stop a run, and that those left out are never silent."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lowbit.data.cache import Tensors, cached
from lowbit.settings.data import DataConfig, OnBadRow

_SHOWN = 5


def list_bad_rows(bad: Sequence[str]) -> str:
    """Return how many bad rows there are, and the first of them; nothing if there are none."""
    if not bad:
        return ""
    count = "1 bad row" if len(bad) == 1 else f"{len(bad)} bad rows"
    more = [f"and {len(bad) - _SHOWN} more"] if len(bad) > _SHOWN else []
    return "\n    ".join([f"{count}:", *bad[:_SHOWN], *more])


def text_problem(name: str, text: object) -> str | None:
    """Return what keeps a text from being used; None if nothing does."""
    if not isinstance(text, str) or not text.strip():
        return f"{name} is empty"
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes that could not be decoded stand in the text as lone surrogates
        return f"{name} is not UTF-8"
    return None


def bad_rows_problem(bad: Sequence[str]) -> str:
    """Return what a user is told of bad rows under `on_bad_row=error`."""
    return (
        f"{list_bad_rows(bad)}\n    Correct them, or set data.on_bad_row=skip to leave them out of training and scores."
    )


def check_rows(config: DataConfig, bad: Sequence[str], usable: int, nothing: str) -> None:
    """Raise ValueError for bad rows that are not to be skipped, or if none is usable (`nothing` says of what)."""
    if bad and config.on_bad_row is OnBadRow.error:
        raise ValueError(bad_rows_problem(bad))
    if not usable:
        raise ValueError(f"data={config.name}: {nothing}. {list_bad_rows(bad)}".rstrip())


def check_labels_differ(config: DataConfig, labels: Iterable[float], names: Sequence[str]) -> None:
    """Raise ValueError if all training rows have the same label: whatever a model says then, it has learned nothing."""
    found = set(labels)
    if len(found) == 1:
        (label,) = found
        only = names[int(label)] if names else f"{label:g}"
        more = "" if config.train_size is None else f", or raise data.train_size={config.train_size}"
        raise ValueError(f"data={config.name}: all training rows have the label {only}; give rows of others too{more}")


def cached_tokens(
    config: DataConfig, cache: Path | None, name: str, build: Callable[[], Tensors], rows: str
) -> Tensors:
    """Return the tokens of a split, from the cache if they are there; warn of the bad rows that `skipped` counts.

    Args:
        config: The data group.
        cache: Folder of the caches; None keeps nothing.
        name: Of the token file: a hash of all that decides the tokens is in it.
        build: Makes them.
        rows: What a warning calls the rows of the split.
    """
    tensors = cached(None if cache is None else cache / "tokens" / f"{name}.safetensors", build)
    skipped = int(tensors["skipped"])
    if skipped:
        warnings.warn(f"data={config.name}: {skipped} bad {rows} are left out", stacklevel=3)
    return tensors
