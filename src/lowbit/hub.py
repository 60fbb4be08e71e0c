"""The Hugging Face hub: whether it answers, quiet loading, and splits of data sets (imports no torch)."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

_SECONDS = 5  # for a connection to the hub


class OutOfReachError(ValueError):
    """Something on the hub is neither cached nor reachable, so it cannot be checked."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its class if it has no text, as some timeouts."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@cache
def leave_unreachable_hub() -> None:
    """Go offline if the hub does not answer: its clients would retry for half a minute per file."""
    from huggingface_hub import constants

    hub = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or getproxies().get(hub.scheme):  # a proxy would have to be asked
        return
    try:
        socket.create_connection((hub.hostname or "", hub.port or 443), timeout=_SECONDS).close()
    except OSError:
        from datasets import config

        constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Silence libraries about retries and missing or unexpected weights, which lowbit reports itself."""
    loggers = {logger: logger.level for logger in map(logging.getLogger, ("huggingface_hub", "transformers"))}
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)


def hub_split(
    repository: str, *names: str, split: str, revision: str, root: str, files: Sequence[str], choice: str
) -> Any:
    """Load a split of a repository with `datasets`.

    Args:
        repository: Name of the repository.
        names: Name of the configuration, if the repository has several.
        split: Name of the split.
        revision: Commit, tag or branch.
        root: Name of the folder of the official files, for the error message.
        files: Names of the official files in it.
        choice: Name of the choice in the data group, for the error message.

    Raises:
        OutOfReachError: If the split is neither cached nor reachable.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    leave_unreachable_hub()
    try:
        with quiet_hub():
            return load_dataset(repository, *names, split=split, revision=revision)
    except (OSError, DatasetsError, ValueError) as error:
        where = " and ".join(f"{root}/{name}" for name in files)
        raise OutOfReachError(
            f"data.source=hub: {', '.join((repository, *names, split))} at revision {revision} is neither cached nor "
            f"reachable ({first_line(error)}). Run `lowbit fetch data={choice}` once with network access, or put the "
            f"official files at {where} and set data.source=folder data.dir={root}"
        ) from error
