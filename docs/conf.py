"""The site: `make docs`. Sources are docs/ and results/; what is made from the library comes from `site_pages.py`."""

from __future__ import annotations

import logging
import re
import sys
from contextlib import suppress
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import site_pages  # noqa: E402 - found beside this file

import torchcaps  # noqa: E402 - what autodoc documents
from torchcaps.explore.explore import write_explorer  # noqa: E402
from torchcaps.explore.runtime import find_runtime, runtime_folder  # noqa: E402

logging.getLogger("fontTools").setLevel(logging.WARNING)  # figures of a tutorial's report
ATTRIBUTES: dict[str, list[str]] = {}  # their comments, while napoleon works
PLAY = "play/digits.html"  # of the site: the demonstration's network, to play with
RUNTIMES = (HERE.parent / "build" / "onnxruntime-web", runtime_folder())  # where `make docs` puts it, and the cache
FOLDERS = {"../results/tables": "generated/tables.md"}

project = "torchcaps"
author = "The torchcaps developers"
version = release = torchcaps.__version__
root_doc = "docs/index"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_gallery.gen_gallery"]
include_patterns = [
    "docs/**",
    "results/tables/**",
    "results/compare/**",
    "weights/**",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]
exclude_patterns = [
    ".*",
    "benchmarks",
    "build",
    "src",
    "tests",
    "docs/examples/**",
    "docs/generated/_*",
    "docs/pictures/**",
]
default_role = "literal"  # one backtick is code in our docstrings
nitpick_ignore_regex = [(r"py:.*", r".*")]  # types of other libraries, whose lists of names are not at hand
suppress_warnings = ["config.cache"]

myst_enable_extensions = ["dollarmath", "deflist", "attrs_inline"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "torchcaps"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}

sphinx_gallery_conf = {
    "examples_dirs": "docs/examples",
    "gallery_dirs": "docs/tutorials",
    "filename_pattern": "/plot",
    "abort_on_example_error": True,
    "capture_repr": (),  # what is printed is shown, and nothing else
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "within_subsection_order": "FileNameSortKey",
    "first_notebook_cell": "%matplotlib inline",
    "image_scrapers": ("site_pictures",),
}


def escape_markup(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Have stars, bars and trailing underscores of a docstring stand for themselves, but for those in backticks."""
    pieces = re.split(r"(`[^`]*`)", "\n".join(lines))
    pieces[::2] = [re.sub(r"([*|]|(?<=\w)_(?=\W|$))", r"\\\1", piece) for piece in pieces[::2]]
    for n in range(1, len(pieces), 2):
        pieces[n] += "\\ " if re.match(r"\w", pieces[n + 1]) else ""  # a plural: `Capsule`s
    lines[:] = "".join(pieces).split("\n")
    if what == "attribute":
        ATTRIBUTES[name] = list(lines)


def restore_attributes(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Undo what napoleon makes of `a: b` in the comment of an attribute, which it takes for a type."""
    if what == "attribute":
        lines[:] = ATTRIBUTES.pop(name)


def lead_folders(app: object, name: str, source: list[str]) -> None:
    """Have links to folders, which a reader of the checkout can open, lead to the pages that list them."""
    for folder, page in FOLDERS.items():
        source[0] = source[0].replace(f"]({folder})", f"]({page})")


def fetched() -> Path | None:
    """The folder of what the page to play with computes by; None where it is not there."""
    for folder in RUNTIMES:
        with suppress(FileNotFoundError):
            find_runtime(folder)
            return folder
    return None


def offer_play(app: object, name: str, source: list[str]) -> None:
    """Have the page about `torchcaps explore` begin with one that it wrote."""
    if name == "docs/explore" and fetched() is not None:
        heading, _, text = source[0].partition("\n")
        link = f'<p><a href="../{PLAY}"><strong>Play with the network that the demonstration trains</strong></a></p>'
        source[0] = f"{heading}\n\n{link}\n{text}"


def write_play(app: object, fault: Exception | None) -> None:
    """Write the page to play with, where its runtime is there; npm fetches it, and not everybody has npm."""
    runtime = fetched()
    if fault is not None or runtime is None:
        return
    out = Path(app.outdir) / PLAY  # type: ignore[attr-defined]
    out.parent.mkdir(exist_ok=True)
    write_explorer("digits", out, runtime)


def visit_inline(translator: object, node: nodes.math) -> None:
    translator.body.append(tex2mathml(node.astext()))  # type: ignore[attr-defined]
    raise nodes.SkipNode


def visit_block(translator: object, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')  # type: ignore[attr-defined]
    raise nodes.SkipNode


def write_start(app: object, fault: Exception | None) -> None:
    """Have the folder of the site begin with a page that leads to the first one."""
    if fault is None:
        out = Path(app.outdir)  # type: ignore[attr-defined]
        (out / "index.html").write_text(
            '<!doctype html><meta charset="utf-8"><title>torchcaps</title>'
            '<meta http-equiv="refresh" content="0; url=docs/index.html"><a href="docs/index.html">torchcaps</a>\n'
        )


def setup(app: object) -> dict[str, bool]:
    app.connect("builder-inited", lambda app: site_pages.write_all(), priority=100)  # type: ignore[attr-defined]
    for change in (lead_folders, offer_play):
        app.connect("source-read", change)  # type: ignore[attr-defined]
    for handle, priority in ((escape_markup, 400), (restore_attributes, 600)):  # before napoleon, and after it
        app.connect("autodoc-process-docstring", handle, priority=priority)  # type: ignore[attr-defined]
    for write in (write_start, write_play):
        app.connect("build-finished", write)  # type: ignore[attr-defined]
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))  # type: ignore[attr-defined]
    return {"parallel_read_safe": False}
