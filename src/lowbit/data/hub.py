"""Load a split from the hub, or say how to get it otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def hub_split(repository: str, *names: str, split: str, revision: str, root: str, files: Sequence[str]) -> Any:
    """Return a split through `datasets`.

    Args:
        repository: On the hub.
        names: Of the configuration, where the repository has several.
        split: Its name there.
        revision: Commit, tag or branch.
        root: What an error calls the folder of the official files.
        files: Their names in it.

    Raises:
        ValueError: it is neither cached nor reachable.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        return load_dataset(repository, *names, split=split, revision=revision)
    except (OSError, DatasetsError, ValueError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)  # a timeout may have no text
        where = " and ".join(f"{root}/{name}" for name in files)
        raise ValueError(
            f"data.source=hub: {', '.join((repository, *names, split))} at revision {revision} is neither cached nor "
            f"reachable ({first}). Run the same command once with network access and without HF_HUB_OFFLINE, or put "
            f"the official files at {where} and set data.source=folder data.dir={root}"
        ) from error
