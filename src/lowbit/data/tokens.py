"""Token ids of many texts in one flat array, which a file can hold and the memory map."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from lowbit.files import sha256_of

_CHUNK = 8192  # texts tokenised at once: bounds the memory that Python lists take


@dataclass(frozen=True)
class Tokens:
    """A ragged array: text i is `ids[starts[i]:starts[i + 1]]`.

    Attributes:
        ids: Token ids with special tokens, int32.
        types: Which sentence of a pair each token belongs to, uint8.
        starts: Where each text begins, and the end of the last one; int64, one more than there are texts.
    """

    ids: Tensor
    types: Tensor
    starts: Tensor

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.starts) - 1

    @property
    def lengths(self) -> Tensor:
        """The number of tokens of each text."""
        return self.starts.diff()

    def lengths_of(self, rows: Tensor) -> Tensor:
        """Return the number of tokens of some texts."""
        return self.starts[rows + 1] - self.starts[rows]

    @classmethod
    def of(cls, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None) -> Tokens:
        """Collect the ids of each text; without types every token is of the first sentence."""
        lengths = torch.tensor([0, *map(len, ids)])
        flat = torch.tensor(list(chain.from_iterable(ids)), dtype=torch.int32)
        kinds = None if types is None else torch.tensor(list(chain.from_iterable(types)), dtype=torch.uint8)
        return cls(flat, torch.zeros_like(flat, dtype=torch.uint8) if kinds is None else kinds, lengths.cumsum(0))

    @classmethod
    def joined(cls, parts: Sequence[Tokens]) -> Tokens:
        """Put several after one another."""
        lengths = torch.cat([torch.zeros(1, dtype=torch.int64), *(part.lengths for part in parts)])
        return cls(torch.cat([p.ids for p in parts]), torch.cat([p.types for p in parts]), lengths.cumsum(0))

    def places(self, rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Return where the tokens of some texts stand in the flat arrays, BL, and which of these places are theirs."""
        place_L = torch.arange(width)
        mask_BL = place_L < self.lengths_of(rows)[:, None]
        return (self.starts[rows][:, None] + place_L).clamp_(max=len(self.ids) - 1), mask_BL

    def padded(self, rows: Tensor, width: int, pad_id: int) -> dict[str, Tensor]:
        """Return ids, mask and types of some texts, int64, padded on the right to `width`."""
        index_BL, mask_BL = self.places(rows, width)
        return {
            "input_ids": torch.where(mask_BL, self.ids[index_BL].long(), pad_id),
            "attention_mask": mask_BL.long(),
            "token_type_ids": self.types[index_BL].long() * mask_BL,
        }


def tokenize(tokenizer: Any, texts: Sequence[Sequence[str]], max_length: int | None) -> Tokens:
    """Tokenise sentences, or pairs, with a Hugging Face tokenizer.

    Args:
        tokenizer: of the model.
        texts: one sequence per sentence of a pair, each of one text per row.
        max_length: longer rows are cut, the longer sentence of a pair first.
    """
    parts = []
    for start in range(0, len(texts[0]), _CHUNK):
        columns = [list(column[start : start + _CHUNK]) for column in texts]
        found = tokenizer(*columns, truncation=max_length is not None, max_length=max_length, verbose=False)
        parts.append(Tokens.of(found["input_ids"], found.get("token_type_ids")))
    return Tokens.joined(parts)


def tokenizer_state(tokenizer: Any) -> str:
    """Return everything that decides ids and types: vocabulary, normalisation, special tokens, library versions."""
    import tokenizers
    import transformers

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        state = _python_state(tokenizer)
    else:
        state = json.loads(backend.to_str())
        for call in ("truncation", "padding"):  # left over from the last call
            state.pop(call, None)
    state["class"] = type(tokenizer).__name__
    # Settings that the backend shows in calls only.
    state["cut"] = tokenizer.truncation_side
    state["types"] = "token_type_ids" in tokenizer.model_input_names
    state["splits special tokens"] = tokenizer.split_special_tokens
    state["blank first"] = getattr(tokenizer, "add_prefix_space", None)
    state["versions"] = [tokenizers.__version__, transformers.__version__]
    return json.dumps(state, sort_keys=True)


def _python_state(tokenizer: Any) -> dict[str, Any]:
    """Return the state of a tokenizer in Python: its files hold what the vocabulary does not show, such as merges."""
    with TemporaryDirectory() as folder:
        files = [sha256_of(Path(file)) for file in tokenizer.save_vocabulary(folder)]
    places = ("name_or_path", "special_tokens_map_file", *tokenizer.vocab_files_names)
    settings = {name: value for name, value in tokenizer.init_kwargs.items() if name not in places}
    return {"vocabulary": tokenizer.get_vocab(), "files": files, "settings": repr(sorted(settings.items()))}
