"""The index of published defects is complete, and the tests that it names are there."""

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
INDEX = TESTS.parent / "docs" / "methods" / "published_defects.md"
# How many defects the specifications list, by the prefix of their numbers.
EXPECTED = {
    "TernaryBERT": [str(n) for n in range(1, 16)],
    "KD-QAT": [str(n) for n in range(1, 4)],
    "Teacher Intervention": [str(n) for n in range(1, 22)],
    "XTC": [f"D{n}" for n in range(1, 13)],
    "SDQ": [f"N{n}" for n in range(1, 7)],
    "BiT": [f"B{n}" for n in range(1, 13)],
    "BinaryBERT": [f"T{n}" for n in range(1, 9)],
    "Variation-aware": [*(str(n) for n in range(1, 18)), "P1", "P2", "P3"],
    "Estimators": [f"E{n}" for n in range(1, 14)],
}


def sections() -> dict[str, list[list[str]]]:
    """Return the table rows of each section, as cells."""
    parts = re.split(r"^## (.+)$", INDEX.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    found = {}
    for title, body in zip(parts[::2], parts[1::2], strict=True):
        lines = [line for line in body.splitlines() if line.startswith("| ") and not line.startswith("| |")]
        found[title] = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return found


SECTIONS = sections()


def named(cell: str) -> list[str]:
    return re.findall(r"`([\w/]+\.py::\w+)`", cell)


@cache
def functions_of(file: str) -> frozenset[str]:
    path = TESTS / file
    tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
    return frozenset(n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_"))


def test_every_method_has_its_section():
    assert list(SECTIONS) == list(EXPECTED)


def test_no_number_is_missing():
    for title, numbers in EXPECTED.items():
        assert [row[0] for row in SECTIONS[title]] == numbers, title


def test_each_defect_has_a_test_that_exists_or_a_reason():
    for row in (row for rows in SECTIONS.values() for row in rows):
        _, defect, lowbit, shown_by = row
        assert defect, row
        tests = named(shown_by)
        assert bool(tests) != lowbit.startswith("Reason: "), row
        missing = [test for test in tests if test.split("::")[1] not in functions_of(test.split("::")[0])]
        assert missing == [], row


def test_every_test_of_a_defect_is_in_the_index():
    listed = {test for rows in SECTIONS.values() for row in rows for test in named(row[3])}
    files = sorted(f"methods/{path.name}" for path in (TESTS / "methods").glob("test_defects_*.py"))
    assert len(files) == len(EXPECTED)
    assert {f"{file}::{test}" for file in files for test in functions_of(file)} - listed == set()
