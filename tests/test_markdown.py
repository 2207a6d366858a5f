"""Tables in Markdown."""

from __future__ import annotations

from torchcaps.markdown import markdown_table


def test_a_table_has_a_line_a_row_and_bars_are_escaped_once() -> None:
    made = markdown_table(("a", "b|c"), [(1, "x|y"), ("\\|", "two\nlines")])
    assert made.split("\n") == ["| a | b\\|c |", "| --- | --- |", "| 1 | x\\|y |", "| \\| | two lines |"]
    assert markdown_table(["alone"], []) == "| alone |\n| --- |"
