"""Measured numbers of README and docs stand in blocks made from the lines of results, and nowhere else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from blocks import BLOCK, PAGES, renew

NUMBER = re.compile(
    r"\d ?%|\d ?(?:ms|MB|MiB|GB|GiB|kB)\b|\d(?: percentage)? points?\b|\d times as (?:fast|many)"
    r"|\d (?:core-)?(?:seconds|minutes|hours)\b|\d [sh]\b"
)
TABLES = {"speed.md", "costs-xnodr.md", "costs-encapnet.md"}  # pages that are made whole, by their own scripts
STATED = re.compile(  # sentences that state what a paper prints, a setting, a limit or a goal, and nothing measured
    r"published|the paper|its paper|papers?'|authors|Table [IVX\d]|section \d|rotation within|take 3\.1 GB"
    r"|about a minute"
    r"|held in memory up to|of more than 2 GiB|ratios of rounded totals|The goals were|half a gigabyte",
    re.IGNORECASE,
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_are_what_the_lines_say(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == renew(text), "python docs/blocks.py writes them anew"


def stated(text: str) -> list[str]:
    """Sentences with measured numbers outside blocks, code and links."""
    text = BLOCK.sub("", text)
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|<!--.*?-->", " ", text, flags=re.DOTALL)
    sentences = re.split(r"(?<=[.:;!?])\s+|\n\s*\n|\n(?=[|#-])", text)
    return [" ".join(each.split()) for each in sentences if NUMBER.search(each) and not STATED.search(each)]


def test_a_number_outside_a_block_is_found() -> None:
    inside = "<!-- block: routings -->\n99.1 %\n<!-- end -->\n"
    assert stated(f"{inside}It takes 3 ms here. The paper has 94.85 %. `--x 5 %`") == ["It takes 3 ms here."]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in TABLES], ids=lambda page: page.name)
def test_no_measured_number_stands_outside_a_block(page: Path) -> None:
    assert stated(page.read_text(encoding="utf-8")) == []
