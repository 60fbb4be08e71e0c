"""Pages that answer a query: rated one by one, scored by the order in which they come (nDCG).

Shape suffixes: B pages, C ratings.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.retrieval import RetrievalNormalizedDCG

from lowbit.data.splits import Batch, TextSplit
from lowbit.data.tokens import Tokens


class RankedSplit(TextSplit):
    """Pairs of a query and a page with its rating; `ranked` of a batch is ratings and numbers of the queries, B2."""

    def __init__(self, tokens: Tokens, labels: Tensor, queries: Tensor, pad_id: int, pad_to: int | None) -> None:
        """Keep the pairs and the query of each."""
        super().__init__(tokens, labels, pad_id, pad_to)
        self.queries = queries

    def _batch(self, rows: Tensor, step: int | None) -> Batch:
        batch = super()._batch(rows, step)
        return {**batch, "ranked": torch.stack([batch["labels"], self.queries[rows]], 1)}


def numbered(queries: Sequence[str]) -> Tensor:
    """Return the number of each query in the order of first appearance; the same text is the same query."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(query, len(numbers)) for query in queries])


class QueryScores(RetrievalNormalizedDCG):
    """nDCG over all pages of a query, mean over the queries; a query without a page above rating 0 counts 0.

    Pages are ordered by the expected rating, and the gain of a page is its rating (scikit-learn's `ndcg_score`).
    """

    def __init__(self) -> None:
        """Take ratings from 0 on."""
        with warnings.catch_warnings():  # that all rows are kept in memory: they are numbers, three per page
            warnings.simplefilter("ignore", UserWarning)
            super().__init__(empty_target_action="neg")

    def update(self, logits_BC: Tensor, ranked_B2: Tensor) -> None:  # type: ignore[override]  # one tensor for both
        """Add pages."""
        ratings_C = torch.arange(logits_BC.shape[-1], device=logits_BC.device, dtype=torch.float32)
        expected_B = logits_BC.detach().float().softmax(-1) @ ratings_C
        super().update(expected_B, ranked_B2[:, 0], ranked_B2[:, 1])
