"""The names that tables store with their labels: a number means what its name says, not its place in another list."""

from __future__ import annotations

import re
from typing import Any

# `1` or `LABEL_1`: the number itself, as `class_encode_column` names numbers.
_NUMBER = re.compile(r"(?:label[ _]?)?(\d+)", re.IGNORECASE)


def by_name(labels: list[Any], feature: Any) -> list[Any]:
    """Return labels, or lists of them, as the names that a feature of `datasets` gives them; without names as they are.

    A number that has no name becomes a text that is no label either.
    """
    from datasets import ClassLabel

    while not isinstance(feature, ClassLabel):
        if not hasattr(feature, "feature"):
            return labels
        feature = feature.feature  # of a list
    names = [int(found[1]) if (found := _NUMBER.fullmatch(name)) else name for name in feature.names]

    def name(label: Any) -> Any:
        if isinstance(label, list):
            return [name(one) for one in label]
        if not isinstance(label, int):
            return label
        return names[label] if 0 <= label < len(names) else f"number {label} without a name"

    return [name(label) for label in labels]
