"""What the README shows must run as written."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from blocks import MADE, PAGES, renew
from draw_compared import table

from torchcaps.papers import list_tables
from torchcaps.routing.listing import routing_table
from torchcaps.tables.records import read_records

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


def test_the_table_of_compared_routings_is_that_of_the_runs():
    assert table(read_records(ROOT / "results" / "runs.jsonl")) in (ROOT / "docs" / "which-routing.md").read_text()


def test_the_blocks_of_discriminative_routing_s_page_are_those_of_the_lines():
    page = (ROOT / "docs" / "discriminative-routing.md").read_text()
    assert page.count("<!-- block: discriminative ") == 6 and renew(page) == page, "python docs/blocks.py"


@pytest.mark.parametrize("command", re.findall(r"^torchcaps (list|cost)( [^#\n]*)", README, re.MULTILINE))
def test_quick_commands_of_the_readme_work(command):
    words = shlex.split("".join(command))
    run = subprocess.run([sys.executable, "-m", "torchcaps", *words], capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout, run.stderr


def test_every_command_of_the_readme_is_one_that_exists():
    shown = set(re.findall(r"^torchcaps (\S+)", README, re.MULTILINE))
    helped = subprocess.run([sys.executable, "-m", "torchcaps", "--help"], capture_output=True, text=True).stdout
    assert shown and all(command in helped for command in shown)


def test_the_table_of_routings_is_the_registry_s():
    assert routing_table() in (ROOT / "docs" / "which-routing.md").read_text()


def test_the_readme_is_read_in_one_sitting():
    prose = re.sub(r"<!-- block:.*?<!-- end -->", "", README, flags=re.DOTALL)
    assert len(prose.split()) <= 1100
