"""Load a split from the hub, or say how to get it otherwise."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class OutOfReachError(ValueError):
    """Something on the hub is neither cached nor reachable: whether it would do is unknown here."""


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Keep the hub's client from printing every retry: what is out of reach is said once, by the error."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


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
