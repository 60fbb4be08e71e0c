"""The tolerance rule, against numbers worked out by hand."""

import math
from typing import Any

import pytest

from lowbit.results.scores import POINTS, RULE, Published, compare, scale_of, score_of, std


@pytest.mark.parametrize(
    ("values", "published", "difference", "tolerance", "verdict"),
    [
        ([0.950], Published(95.5, 95.5), -0.5, 0.5, "match"),  # the edge belongs to it, whatever binary fractions say
        ([0.975], Published(97.0, 97.0), 0.5, 0.5, "match"),
        ([0.949], Published(95.5, 95.5), -0.6, 0.5, "below"),
        ([0.961], Published(95.5, 95.5), 0.6, 0.5, "above"),
        ([0.949], Published(95.5, 95.5, std=0.7), -0.6, 0.7, "match"),
        ([0.93, 0.95], Published(95.2, 95.2), -1.2, 2.0, "match"),  # std sqrt(2), twice that over sqrt(2)
        ([0.93, 0.95, 0.93, 0.95], Published(95.2, 95.2), -1.2, 2 * math.sqrt(4 / 3) / 2, "below"),
        ([0.955], Published(95.0, 96.0), 0.0, 0.5, "match"),
        ([0.970], Published(95.0, 96.0), 1.0, 0.5, "above"),
        ([0.940], Published(95.0, 96.0), -1.0, 0.5, "below"),
    ],
)
def test_verdict(values: list[float], published: Published, difference: float, tolerance: float, verdict: str) -> None:
    """Difference and tolerance in points, and what follows."""
    found = compare(values, "val/accuracy", published)
    assert found.difference == pytest.approx(difference, abs=1e-9)
    assert found.tolerance == pytest.approx(tolerance)
    assert found.verdict == verdict


@pytest.mark.parametrize(("values", "verdict"), [([math.nan], "below"), ([math.inf, 0.5], "above")])
def test_a_diverged_run_matches_nothing(values: list[float], verdict: str) -> None:
    """Nor does its infinite spread make everything match."""
    found = compare(values, "val/loss", Published(0.5, 0.5))
    assert (found.verdict, found.tolerance) == (verdict, POINTS)


def test_rule_says_the_numbers() -> None:
    """The sentence below each table is the rule that was used."""
    assert RULE.startswith("match: |difference| <= max(published std, 2 x std / sqrt(n), 0.5 points)")


@pytest.mark.parametrize(
    ("metric", "scale"), [("val/matthews", 100.0), ("val/exact_match", 100.0), ("size/mib", 1.0), ("val/loss", 1.0)]
)
def test_unit_of_papers(metric: str, scale: float) -> None:
    """Shares and correlations times 100."""
    assert scale_of(metric) == scale


@pytest.mark.parametrize(
    ("published", "text"),
    [
        (Published(55.70, 55.70), "55.7"),
        (Published(418, 418), "418"),
        (Published(76.66, 76.66, 0.04), "76.66 ± 0.04"),
        (Published(58.1, 59.7), "58.1 to 59.7"),
        (Published(74.706, 74.706), "74.706"),
    ],
)
def test_digits_of_the_source(published: Published, text: str) -> None:
    """As printed there."""
    assert str(published) == text


def test_scores_of_a_run() -> None:
    """Metrics by name, sizes in MiB; a teacher has its float size."""
    size = {"float_bytes": 8 * 2**20, "simulated_bytes": 2**20, "compression": 8.0}
    run: dict[str, Any] = {"metrics": {"val/f1": 0.5}, "size": size}
    assert (score_of(run, "val/f1"), score_of(run, "val/no")) == (0.5, None)
    assert (score_of(run, "size/mib"), score_of(run, "size/compression")) == (1.0, 8.0)
    teacher = {"metrics": {}, "size": {"float_bytes": 8 * 2**20}}
    assert (score_of(teacher, "size/mib"), score_of(teacher, "size/compression")) == (8.0, 1.0)


def test_std_of_one_value_is_none() -> None:
    """One seed has no spread."""
    assert std([1.0]) is None
    assert std([1.0, 3.0]) == pytest.approx(math.sqrt(2))
