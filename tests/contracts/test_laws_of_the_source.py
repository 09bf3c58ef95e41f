"""Laws of the source itself: what a user gives is never asked whether it is true."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import gradlogp

SOURCE = Path(gradlogp.__file__).parent
PLAIN = {"None", "bool", "int", "float", "str", "tuple", "list", "..."}  # checked before, or made by the library


def parameters(function: ast.FunctionDef) -> set[str]:
    """Those that may be None or an object of another class: an array, a tensor, a module, a generator."""
    every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    found = set()
    for a in every:
        names = {n.id for n in ast.walk(a.annotation) if isinstance(n, ast.Name)} if a.annotation else set()
        if "| None" in ast.unparse(a.annotation or ast.Constant(0)) and names - PLAIN:
            found.add(a.arg)
    return found


def truths(node: ast.AST) -> Iterator[ast.expr]:
    """Expressions whose truth value is taken here."""
    if isinstance(node, ast.If | ast.While | ast.IfExp | ast.Assert):
        yield node.test
    elif isinstance(node, ast.comprehension):
        yield from node.ifs
    elif isinstance(node, ast.BoolOp):
        yield from node.values
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand


def asked(tree: ast.AST) -> list[str]:
    """Parameters that are asked whether they are true, as "line: name"."""
    found = []
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            names = parameters(function)
            for node in ast.walk(function):
                found += [f"{e.lineno}: {e.id}" for e in truths(node) if isinstance(e, ast.Name) and e.id in names]
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_default_is_taken_for_none_and_nothing_else(path: Path) -> None:
    """A tensor has no truth value, and an empty module, a seed of 0 or an empty frame is not None."""
    assert asked(ast.parse(path.read_text(encoding="utf-8"))) == []


def test_the_search_finds_what_it_looks_for() -> None:
    text = "def f(grid: Grid | None, n: int | None):\n    a = grid or karras\n    return n or 1 if not grid else 2"
    assert asked(ast.parse(text)) == ["2: grid", "3: grid"]
