"""The site: its pages are complete and true to the registries, its tutorials run, and it builds without a warning."""

from __future__ import annotations

import ast
import html
import importlib.util
import os
import re
import subprocess
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import unquote

import claims
import pytest
from browser import Browser, find_browser
from claims import CLAIMS, NO_RUN, claims_part

from torchcaps.explore.runtime import fetch_command, runtime_folder
from torchcaps.papers import find_tables, list_tables
from torchcaps.report.terms import TERMS, Explained
from torchcaps.revisions import routing_of
from torchcaps.routing import list_routings, routing_class
from torchcaps.tables.cells import Train
from torchcaps.tables.records import read_records

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
EXAMPLES = sorted((DOCS / "examples").glob("plot_*.py"))
BUILDER = "sphinx"
ROUTINGS = [
    spec.name for spec in list_routings() if routing_class(spec.name).__module__.startswith("torchcaps.")
]  # not those that other tests register


def listed(page: Path) -> list[Path]:
    """The pages that the toctrees of a page name."""
    trees = re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    names = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    return [(page.parent / re.sub(r".*<(.*)>", r"\1", name)).resolve() for name in names]


def test_every_page_is_in_the_contents_once() -> None:
    contents = listed(DOCS / "index.md") + listed(DOCS / "understand" / "votes.md")
    pages = [page for page in DOCS.rglob("*.md") if not {"generated", "tutorials"} & {*page.parts}]
    assert sorted(page.with_suffix("") for page in pages if page != DOCS / "index.md") == sorted(
        page for page in contents if page.is_relative_to(DOCS) and not {"generated", "tutorials"} & {*page.parts}
    )


@pytest.mark.parametrize("routing", ROUTINGS)
def test_every_routing_has_a_page_of_all_parts(routing: str) -> None:
    page = (DOCS / "understand" / f"routing-{routing}.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert headings == [
        "The idea",
        "The formula",
        "Its couplings",
        "What it costs",
        "When to use it",
        "What its paper claims, and what was measured",
    ]
    assert "$$" in page or "routing-xnodr.md" in page
    for part in ("couplings", "cost", "claims"):
        assert f"```{{include}} ../generated/_{part}-{routing}.md\n```" in page


def test_routings_and_modules_of_the_generated_pages_are_those_that_there_are() -> None:
    tree = ast.parse((DOCS / "site_pages.py").read_text(encoding="utf-8"))
    tables = {
        node.target.id if isinstance(node, ast.AnnAssign) else node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign | ast.Assign)
        and isinstance(node.target if isinstance(node, ast.AnnAssign) else node.targets[0], ast.Name)
    }
    variables, modules = (ast.literal_eval(tables[name]) for name in ("VARIABLES", "MODULES"))
    assert set(CLAIMS) == set(ROUTINGS)
    assert all(importlib.util.find_spec(module) for module in modules)
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    assert set(re.findall(r"TORCHCAPS_[A-Z_]+", source)) == set(variables)


@pytest.mark.parametrize("routing", ROUTINGS)
def test_each_pattern_of_a_routing_s_claims_names_a_trained_cell(routing: str) -> None:
    for table, *patterns in CLAIMS[routing]:
        (found,) = find_tables(table)
        names = [cell.name for cell in found.cells if isinstance(cell.how, Train)]
        assert [each for each in patterns if not any(fnmatchcase(name, each) for name in names)] == [], table


def test_no_run_is_said_of_routings_alone_that_have_no_line() -> None:
    records = read_records(ROOT / "results" / "runs.jsonl")
    lines = {each["cell"] for each in records if "cell" in each and each.get("budget", "smoke") != "smoke"}
    trained = [(table.id, cell) for table in list_tables() for cell in table.cells if isinstance(cell.how, Train)]
    ran = {routing_of(cell.how.build().model) for _, cell in trained if cell.id in lines}
    shown = {
        routing
        for routing, parts in CLAIMS.items()
        for table, own, *_ in parts
        for home, cell in trained
        if cell.id in lines and home == table and fnmatchcase(cell.name, own)
    }
    assert {"em", "uniform", "xnodr-xnidr"} < shown
    assert ran & {*ROUTINGS} <= shown


def test_rivals_stand_beside_a_routing_s_own_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(table: str, budget: str, *patterns: str) -> str:
        return "head\n---\n" + " ".join(patterns) if budget in runs[table] else "head\n---"

    monkeypatch.setattr(claims, "cells", made)
    runs: dict[str, list[str]] = {"fm/figure4": ["full", "short", "cpu"]}
    page = claims_part("uniform")
    assert re.findall("budget `(.*)`", page) == ["full", "short"]
    assert "*-dynamic-1-code *-code" in page
    runs["fm/figure4"] = ["cpu"]
    assert re.findall("budget `(.*)`", claims_part("uniform")) == ["cpu"]
    runs["fm/figure4"] = []
    assert claims_part("uniform") == NO_RUN


def test_terms_are_explained_once() -> None:
    explained = Explained()
    assert explained.first("pose", "vote", "pose") == [("pose", TERMS["pose"]), ("vote", TERMS["vote"])]
    assert explained.first("vote", "capsule") == [("capsule", TERMS["capsule"])]
    assert all(text.endswith(".") and len(text) < 300 for text in TERMS.values())


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_tutorials_run(example: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(example)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "Agg"},
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec(BUILDER) is None:
        pytest.skip("Sphinx is not installed: pip install -e '.[docs]'")
    home = tmp_path_factory.mktemp("site")
    words = ["-b", "html", "-c", "docs", "-d", str(home / "read"), "-n", "-W", "--keep-going", "-q"]
    done = subprocess.run(
        [sys.executable, "-m", BUILDER, *words, ".", str(home / "pages")], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return home / "pages"


def dead_links(site: Path) -> list[str]:
    """Links of pages to files and headings that are not there."""
    pages = {page.resolve(): page.read_text(encoding="utf-8") for page in sorted(site.rglob("*.html"))}
    names = {page: {*re.findall(r'\bid="([^"]*)"', text)} for page, text in pages.items()}
    dead = []
    for page, text in pages.items():
        for link in re.findall(r'\b(?:href|src)="([^"]*)"', text):
            address, _, name = html.unescape(link).partition("#")
            if re.match(r"[a-z]+:|//", address):
                continue
            file = (page.parent / unquote(address.partition("?")[0])).resolve() if address else page
            if not file.exists() or (name and file in names and unquote(name) not in names[file]):
                dead.append(f"{page.relative_to(site.resolve())}: {link}")
    return dead


def test_dead_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="b.html?x#there"><a href="#here"><a href="#no"><img src="c.png">'
    )
    (tmp_path / "b.html").write_text('<p id="there"><a href="a.html#there"><a href="https://x.org/none">')
    assert dead_links(tmp_path) == ["a.html: #no", "a.html: c.png", "b.html: a.html#there"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_site_builds_without_a_warning_and_no_link_is_dead(site: Path) -> None:
    for page in ("index.html", "docs/understand/routing-em.html", "docs/tutorials/plot_1_digits.html"):
        text = (site / page).read_text(encoding="utf-8")
        assert not re.search(r"(?:src|href)=\"https?://[^\"]*\.(?:js|css)", text), page
    assert dead_links(site) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demonstration_s_network_can_be_played_with(site: Path) -> None:
    """Where ONNX Runtime Web is there; else the site does not speak of the page."""
    page = site / "play" / "digits.html"
    link = "../play/digits.html" in (site / "docs" / "explore.html").read_text(encoding="utf-8")
    assert link == page.exists()
    if not link:
        pytest.skip(f"ONNX Runtime Web is not there: {fetch_command(runtime_folder())}")
    if (path := find_browser()) is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with Browser(path, timeout=300) as browser:
        browser.open(page, 390)
        while not browser.run("document.body.innerText.includes('which is right')"):
            time.sleep(0.1)
        assert browser.faults == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_fit_the_screen_and_ask_for_nothing(site: Path, width: int) -> None:
    if (path := find_browser()) is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    wide, broken = "document.documentElement.scrollWidth", "[...document.images].filter(i => !i.naturalWidth).length"
    with Browser(path, timeout=300) as browser:
        for page in ("index", "understand/routing-em", "fm-agreement", "reproduced", "generated/commands", "speed"):
            browser.open(site / "docs" / f"{page}.html", width, dark=width < 600)
            assert browser.run(wide) <= width, page
            assert browser.run(broken) == 0, page
        assert browser.faults == []
        assert all(address.startswith(("file:", "data:")) for address in browser.requests)
        browser.ask("Page.navigate", url=f"{(site / 'search.html').as_uri()}?q=squash")
        while not browser.run("document.querySelectorAll('#search-results li').length"):
            time.sleep(0.1)
