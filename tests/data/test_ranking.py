"""nDCG of rated pages against scikit-learn."""

import pytest
import torch
from sklearn.metrics import ndcg_score

from lowbit.data.ranking import QueryScores, numbered


def expected(logits: torch.Tensor, ratings: torch.Tensor, queries: torch.Tensor) -> float:
    values = logits.softmax(-1) @ torch.arange(logits.shape[1], dtype=torch.float32)
    scores = []
    for query in queries.unique():
        of_query = queries == query
        scores.append(ndcg_score(ratings[of_query][None].numpy(), values[of_query][None].numpy()))
    return sum(scores) / len(scores)


@pytest.mark.parametrize("tied", [False, True])
def test_ndcg_is_that_of_scikit_learn_averaged_over_the_queries(tied: bool):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(60, 5, generator=generator)
    if tied:
        logits = logits[torch.arange(60) // 2]
    ratings = torch.randint(5, (60,), generator=generator)
    queries = torch.randint(12, (60,), generator=generator)
    ratings[queries == 4] = 0  # a query without a good page counts 0 in both
    metric = QueryScores()
    for rows in torch.randperm(60, generator=generator).split(25):  # a query's pages may be in several batches
        metric.update(logits[rows], torch.stack([ratings[rows], queries[rows]], 1))
    assert (queries.bincount() > 1).all()
    assert metric.compute().item() == pytest.approx(expected(logits, ratings, queries), abs=1e-6)


def test_the_best_order_has_one_and_the_worst_less():
    ratings, queries = torch.tensor([4, 2, 0]), torch.zeros(3, dtype=torch.int64)
    # Worst, 0 before 2 before 4: (2/log2(3) + 4/2) / (4 + 2/log2(3)).
    for logits, value in ((10 * torch.eye(5)[ratings], 1.0), (10 * torch.eye(5)[4 - ratings], 0.619906)):
        metric = QueryScores()
        metric.update(logits, torch.stack([ratings, queries], 1))
        assert metric.compute().item() == pytest.approx(value, abs=1e-5)


def test_the_same_text_is_the_same_query():
    assert numbered(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]
