"""What the README shows must run as written."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from blocks import MADE, PAGES

from torchcaps.papers import list_tables

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_example_runs_and_prints_what_its_comments_say():
    _, example = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    run = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=True)
    printed = re.findall(r"\[[\d, ]+\]", run.stdout)
    promised = re.findall(r"\[[\d, ]+\]", " ".join(re.findall(r"#.*", example)))
    assert printed == promised and len(printed) == 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_and_pages_that_are_linked_exist(page):
    links = re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", page.read_text())
    assert links or page.name != "README.md"
    for link in links:
        assert (page.parent / link).exists() or MADE & {*Path(link).parts}, link


def test_every_table_is_linked_from_the_page_of_its_paper():
    pages = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    for each in list_tables():
        assert f"- [{each.printed}](../results/tables/{each.id}.md): {each.title}\n" in pages, each.id


@pytest.mark.parametrize(
    ("page", "block", "times"), [("which-routing", "compared", 1), ("which-routing", "routings", 1),
                                 ("discriminative-routing", "discriminative ", 6)],
)  # fmt: skip
def test_pages_hold_the_blocks_that_are_held_to_their_lines(page, block, times):
    assert (ROOT / "docs" / f"{page}.md").read_text().count(f"<!-- block: {block}") == times


QUICK = re.findall(r"^torchcaps (list|cost)( [^#\n]*)", README, re.MULTILINE)
assert QUICK, "the README shows no quick command"


@pytest.mark.parametrize("command", QUICK)
def test_quick_commands_of_the_readme_work(command):
    words = shlex.split("".join(command))
    run = subprocess.run([sys.executable, "-m", "torchcaps", *words], capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout, run.stderr


def test_every_command_of_the_readme_is_one_that_exists():
    shown = set(re.findall(r"^torchcaps (\S+)", README, re.MULTILINE))
    helped = subprocess.run([sys.executable, "-m", "torchcaps", "--help"], capture_output=True, text=True).stdout
    assert shown and all(command in helped for command in shown)


def test_the_readme_is_read_in_one_sitting():
    prose = "\n".join(line for line in README.splitlines() if not line.startswith("|"))  # sentences of blocks count too
    assert len(re.sub(r"<!--.*?-->", "", prose).split()) <= 1100
    tables = re.findall(r"(?:^\|.*\n)+", README, re.MULTILINE)
    assert tables and all(len(each.splitlines()) <= 10 for each in tables)  # head, rule, eight rows
