"""Docstrings begin with a sentence that has a verb of its own: none begins with What or Those."""

import ast

from tests.paths import REPOSITORY

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def test_no_docstring_begins_with_what_or_those():
    found = []
    for path in sorted((REPOSITORY / "prograd_fast").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            docstring = ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
            if docstring and docstring.startswith(("What ", "Those ")):
                found.append(f"{path.relative_to(REPOSITORY)}: {docstring.splitlines()[0]}")
    assert not found, "\n".join(found)
