"""Load a split from the hub, or say how to get it otherwise."""

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
    """Something on the hub is neither cached nor reachable: whether it would do is unknown here."""


@cache
def leave_unreachable_hub() -> None:
    """Try once whether the hub answers; if not, take only what is cached: its clients retry half a minute per file."""
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
    """Keep libraries from printing what we say once: retries, and what a checkpoint lacks or has besides."""
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
    """Return a split through `datasets`.

    Args:
        repository: On the hub.
        names: Of the configuration, where the repository has several.
        split: Its name there.
        revision: Commit, tag or branch.
        root: What an error calls the folder of the official files.
        files: Their names in it.
        choice: Name of the data group's choice, for `lowbit fetch`.

    Raises:
        OutOfReachError: it is neither cached nor reachable.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    leave_unreachable_hub()
    try:
        with quiet_hub():
            return load_dataset(repository, *names, split=split, revision=revision)
    except (OSError, DatasetsError, ValueError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)  # a timeout may have no text
        where = " and ".join(f"{root}/{name}" for name in files)
        raise OutOfReachError(
            f"data.source=hub: {', '.join((repository, *names, split))} at revision {revision} is neither cached nor "
            f"reachable ({first}). Run `lowbit fetch data={choice}` once with network access, or put the official "
            f"files at {where} and set data.source=folder data.dir={root}"
        ) from error
