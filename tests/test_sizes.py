"""Short functions, and a docstring in each file: what docs and reviews rely on."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_files_say_what_they_are_and_functions_are_short():
    files = sorted((ROOT / "src" / "lowbit").rglob("*.py"))
    faults = []
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if not ast.get_docstring(tree):
            faults.append(f"{file.relative_to(ROOT)} has no docstring")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > 60:
                    faults.append(f"{file.relative_to(ROOT)}: {node.name} has {lines} lines, more than 60")
    assert ROOT / "src" / "lowbit" / "cli" / "__init__.py" in files
    assert not faults, "\n".join(faults)
