"""How docstrings begin: with a verb, so that what a function does, or returns, is its first word."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import torchcaps

SOURCE = Path(torchcaps.__file__).parent
WORDS = """
    Add Answer Apply Ask Begin Bring Build Call Change Check Choose Compare Compile Compute Copy Count Create
    Crop Cut Decode Describe Divide Do Draw Drop Emit End Estimate Examine Export Fill Find Fit Fold Follow
    Give Go Have Hold Import Iterate Join Keep Lay Leave Let List Load Log Look Make Map Mark Measure Mirror
    Move Multiply Name Note Open Pack Pad Parse Pass Print Prune Put Raise Read Record Refuse Register Release
    Remove Replace Return Rotate Route Run Save Say Scale See Send Set Share Shear Show Shrink Sort Split
    Squash Start Stop Store Submit Sum Take Tell Test Time Train Translate Try Turn Update Use Validate Wait
    Walk Warn Work Wrap Write Yield
"""
VERBS = set(WORDS.split())


def docstrings() -> Iterator[tuple[str, str]]:
    """The place and the docstring of each function; but that of a recipe is its title in a list."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            titled = any(ast.unparse(each).startswith("recipe") for each in node.decorator_list)
            if (text := ast.get_docstring(node)) and not titled:
                yield f"{path.relative_to(SOURCE)}:{node.name}", text


def test_docstrings_begin_with_a_verb() -> None:
    """A new verb is added above; "The", "What", "Of" and formulas are none."""
    found = dict(docstrings())
    first = {place: text.split()[0].rstrip(".,:;") for place, text in found.items()}
    assert len(found) > 1000
    assert {place: word for place, word in first.items() if word not in VERBS} == {}
