"""What a text model wants of its tokenizer: ids and token types that it has embeddings for."""

from __future__ import annotations

from typing import Any

_TYPES = "token_type_ids"
_SHOWN = 3


def fit_tokenizer(where: str, tokenizer: Any, model_config: Any) -> None:
    """Make a tokenizer give token types where the model tells them apart, whether or not it lists them itself.

    Args:
        where: What a message calls the model.
        tokenizer: Hugging Face tokenizer; it is changed.
        model_config: config.json of the model, as transformers reads it.

    Raises:
        ValueError: ids or types without an embedding, which would fail in the middle of training; no padding token.
    """
    if tokenizer.pad_token_id is None:
        raise ValueError(f"{where}: its tokenizer has no padding token: set pad_token in tokenizer_config.json")
    sizes = (getattr(model_config, name, None) for name in ("vocab_size", "type_vocab_size"))
    ids, rows = (size if isinstance(size, int) else None for size in sizes)
    if ids is not None:
        _check_ids(where, tokenizer.get_vocab(), ids)
    if rows is None:
        return
    if rows > 1 and _TYPES not in tokenizer.model_input_names:
        tokenizer.model_input_names = [*tokenizer.model_input_names, _TYPES]
    highest = max(tokenizer("a", "b").get(_TYPES, [0]))
    if highest >= max(rows, 1):
        raise ValueError(
            f"{where}: its tokenizer gives token type {highest} to the second sentence, and the model has {rows} "
            f"(type_vocab_size in config.json); give the tokenizer of this model, or take {_TYPES} out of "
            "model_input_names in tokenizer_config.json"
        )


def _check_ids(where: str, vocabulary: dict[str, int], rows: int) -> None:
    outside = sorted((number, token) for token, number in vocabulary.items() if number >= rows)
    if not outside:
        return
    listed = ", ".join(f"{number} ({token!r})" for number, token in outside[:_SHOWN])
    more = f" and {len(outside) - _SHOWN} more" if len(outside) > _SHOWN else ""
    raise ValueError(
        f"{where}: its tokenizer has {len(vocabulary)} tokens, the model has embeddings for ids 0 to {rows - 1} "
        f"(vocab_size in config.json); out of range: {listed}{more}. Give the tokenizer of this model, or save the "
        f"model after model.resize_token_embeddings({outside[-1][0] + 1})"
    )
