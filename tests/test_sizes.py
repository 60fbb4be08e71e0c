"""Small files and functions, and a docstring in each file: what docs and reviews rely on."""

import ast
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "src").rglob("*.py"))


def lines_of(file: str) -> int:
    return len((ROOT / file).read_text(encoding="utf-8").splitlines())


def test_there_are_files():
    assert "src/lowbit/cli/__init__.py" in FILES


def test_median_file_is_short():
    assert median(map(lines_of, FILES)) < 150


@pytest.mark.parametrize("file", FILES)
def test_file_is_of_a_size_to_read(file: str):
    assert lines_of(file) <= 400, f"{file}: more than 400 lines; split it by what its parts are for"


@pytest.mark.parametrize("file", FILES)
def test_file_says_what_it_is_and_functions_are_short(file: str):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{file} has no docstring"
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {node.name: n for node in functions if (n := (node.end_lineno or 0) - node.lineno + 1) > 60}
    assert not long, f"{file}: functions of more than 60 lines: {long}"
