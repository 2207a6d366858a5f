"""The order of the rooms: arrows run down only, imports inside functions and names in strings counted."""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import torchcaps
from torchcaps.extras import EXTRAS

SOURCE = Path(torchcaps.__file__).parent
# From top to bottom; a room is a folder or a file of the package. Those of one line know nothing of each other.
ROOMS = """
    __main__
    cli
    usage
    testing
    explore
    report compare
    examine
    papers
    tables
    deploy inspect
    train
    cost
    losses metrics
    models
    backbones encapnet
    packed
    layers
    kernels
    routing
    votes
    capsules
    manifest
    revisions
    data
    scores
    forms
    fields
    config
    plugins
    shell names lazy locking files ranks
    denormals extras markdown memory terminal
"""
ORDER = {room: height for height, line in enumerate(reversed(ROOMS.split("\n"))) for room in line.split()}
NAME = re.compile(r"torchcaps(\.\w+)+")


class Arrow(NamedTuple):
    source: str  # a module, torchcaps.a.b
    line: int
    target: str
    inside: bool  # a function


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def arrows(name: str, tree: ast.AST, inside: bool = False) -> Iterator[Arrow]:
    """The modules of ours that a module names, by an import or in a string."""
    for node in ast.iter_child_nodes(tree):
        line = getattr(node, "lineno", 0)
        named = []
        if isinstance(node, ast.Import):
            named = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{line}: imports are absolute here"
            named = [home_of(node.module or "", each.name) for each in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torchcaps":
            named = [home_of("torchcaps", node.attr)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = [node.value] if NAME.fullmatch(node.value) and node.value in MODULES else []
        elif isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
            start = str(node.values[0].value)  # f"torchcaps.room.{module}"
            named = [start.rstrip(".")] if start.startswith("torchcaps.") and start.rstrip(".") in MODULES else []
        yield from (Arrow(name, line, each, inside) for each in named if each.split(".")[0] == "torchcaps")
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from arrows(name, node, inside or function)


@cache
def home_of(module: str, name: str) -> str:
    """The module of which `from module import name` takes a name: a package hands out those of its modules."""
    if f"{module}.{name}" in MODULES:
        return f"{module}.{name}"
    if MODULES.get(module, SOURCE).name == "__init__.py":
        for node in ast.walk(parsed()[module]):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "torchcaps":
                for each in node.names:
                    if name == (each.asname or each.name):
                        return home_of(node.module, each.name)
    return module


def room_of(module: str) -> str:
    """The room of a module; of `torchcaps` itself, the face above all rooms, ""."""
    return module.split(".")[1] if "." in module else ""


@cache
def parsed() -> dict[str, ast.Module]:
    """The modules as trees; read when a test asks, not while tests are collected."""
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


@cache
def all_arrows() -> list[Arrow]:
    return [each for name, tree in parsed().items() for each in arrows(name, tree)]


def test_every_room_has_its_place():
    assert {room_of(module) for module in MODULES} - {""} == set(ORDER)


@pytest.mark.parametrize("room", ORDER)
def test_arrows_run_down_only(room):
    """The face hands out names of all rooms, on first use; what rooms ask it for is the version alone."""
    up = [each for each in all_arrows() if room_of(each.source) == room and room_of(each.target) not in ("", room)]
    assert [each for each in up if ORDER[room_of(each.target)] >= ORDER[room]] == []


def test_a_name_is_traced_to_the_module_that_has_it():
    """Through the face, and through a package that hands it out."""

    def targets(text: str) -> list[str]:
        return [each.target for each in arrows("torchcaps.capsules", ast.parse(text))]

    assert targets("from torchcaps import fit, __version__") == ["torchcaps.train.fitting", "torchcaps"]
    assert targets("import torchcaps\ntorchcaps.create_routing") == ["torchcaps", "torchcaps.routing.registry"]
    assert targets("from torchcaps.routing import create_routing") == ["torchcaps.routing.registry"]
    assert targets("from torchcaps.routing.em import EM") == ["torchcaps.routing.em"]


def test_there_is_no_circle_of_modules():
    """Within a room, too; a folder's __init__, which hands out the names of its modules, is looked through."""
    below: dict[str, set[str]] = {module: set() for module in MODULES}
    for each in all_arrows():
        if MODULES.get(each.source, SOURCE).name != "__init__.py" and each.source != each.target:
            below[each.source].add(each.target)
    while free := [module for module, targets in below.items() if not targets & below.keys()]:
        for module in free:
            del below[module]
    assert sorted(below) == []


def test_an_arrow_in_a_function_or_a_string_is_seen():
    text = (
        "def f():\n    import torchcaps.cli\nimport_module('torchcaps.data.load')\nimport_module(f'torchcaps.cost.{x}')"
    )
    found = [(each.target, each.inside) for each in arrows("torchcaps.capsules", ast.parse(text))]
    assert found == [("torchcaps.cli", True), ("torchcaps.data.load", False), ("torchcaps.cost", False)]


def test_a_kernel_is_named_as_its_routing():
    folders = {module.split(".")[2] for module in MODULES if module.startswith("torchcaps.kernels.")}
    steps = {folder for folder in folders if f"torchcaps.kernels.{folder}.step" in MODULES}
    assert steps and all(f"torchcaps.routing.{folder}" in MODULES for folder in steps)


def test_a_paper_has_one_name_in_all_rooms_below_it():
    """EncapNet and FM agreement are folders of models as they are files of papers; so is inverted attention."""
    for paper in ("capsnet", "discriminative", "encapnet", "fm", "inverted_attention"):
        assert {f"torchcaps.papers.{paper}", f"torchcaps.models.{paper}"} <= MODULES.keys()


def test_no_room_above_routing_knows_the_algorithm_with_coefficients():
    """They ask `Routing` for what it does; cells and names of models are no knowledge of a class."""
    imported = [each for each in all_arrows() if each.target == "torchcaps.routing.discriminative"]
    assert {each.source for each in imported} == {"torchcaps.routing"}


@cache
def homes() -> dict[str, str]:
    """The module of each name that a package hands out on first use."""
    found = {}
    for name, path in MODULES.items():
        for node in parsed()[name].body if path.name == "__init__.py" else ():
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES":
                for home, given in ast.literal_eval(node.value).items():
                    found |= {f"{name}.{each}": f"{name}.{home}" for each in given}
    return found


def imports(tree: ast.AST, inside: bool = False) -> Iterator[tuple[bool, str, int]]:
    """What a module imports, ours by module and others by package, whether in a function, and in which line; not what
    types need.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        named = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            whole = [f"{node.module}.{each.name}" for each in node.names]
            whole = [homes().get(each, each) for each in whole]
            named = [each if each in MODULES else node.module or "" for each in whole]
        yield from ((inside, each if each in MODULES else each.split(".")[0], node.lineno) for each in named)
        yield from imports(node, inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


@cache
def all_imports() -> dict[str, list[tuple[bool, str, int]]]:
    return {name: list(imports(tree)) for name, tree in parsed().items()}


@cache
def brought(module: str) -> frozenset[str]:
    """The packages that the import of a module, ours or not, brings, but for those of Python itself."""
    seen, todo = set(), [module]
    while todo:
        if (name := todo.pop()) not in seen:
            seen.add(name)
            parts = name.split(".") if name in MODULES else []
            todo += [".".join(parts[:n]) for n in range(1, len(parts))]
            todo += [each for inside, each, _ in all_imports().get(name, []) if not inside]
    return frozenset(seen - MODULES.keys() - sys.stdlib_module_names)


def reason(name: str, target: str) -> str:
    """Why a module imports another in a function, in the words of docs/architecture.md; "" where nothing is gained."""
    if room_of(name) in ("cli", "__main__"):
        return "a command"
    if target in ("resource", "ctypes"):
        return "one system"
    new = brought(target) - brought(name)
    if new & {"torch", "numpy"} and target.partition(".")[0] in ("torch", "torchcaps"):
        return "torch" if target != "torchcaps.packed.loop" else "another package"
    return "another package" if new & {*EXTRAS, "numba", "safetensors"} else ""


@cache
def late() -> dict[tuple[str, int], str]:
    return {
        (name, line): reason(name, each) for name in MODULES for inside, each, line in all_imports()[name] if inside
    }


def test_an_import_in_a_function_has_a_reason() -> None:
    """It brings a package that its module does without, one system has it alone, or a command imports what it runs."""
    assert [where for where, why in late().items() if not why] == []


def test_the_page_counts_the_imports_in_functions() -> None:
    """Of each reason it says how many there are at most; when many have gone, it says fewer."""
    page = (Path(__file__).parent.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    said = {why: int(most) for most, why in re.findall(r"^\| (\d+) \| ([\w ]+):", page, re.MULTILINE)}
    counted = Counter(late().values())
    assert said.keys() == counted.keys()
    assert {
        why: (count, said[why]) for why, count in counted.items() if not 0.75 * said[why] <= count <= said[why]
    } == {}


def test_the_page_draws_the_rooms_as_they_are() -> None:
    """Each once, and none above one that it stands upon."""
    page = Path(__file__).parent.parent / "docs" / "architecture.md"
    drawing = page.read_text(encoding="utf-8").partition("```\nsrc/torchcaps/\n")[2].partition("```")[0]
    drawn = re.findall(r"^  (\w+)(?:/|\.py) ", drawing, re.MULTILINE)
    assert sorted(drawn) == sorted(ORDER.keys() - {"__main__"})
    heights = [ORDER[room] for room in drawn]
    assert heights == sorted(heights, reverse=True)
