"""What keeps the house in order beside the code: workflows, the version, what is written for contributors."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

import torchcaps
from torchcaps import usage
from torchcaps.extras import EXTRAS

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CHECKS = (ROOT / ".github" / "workflows" / "checks.yml").read_text(encoding="utf-8")


@pytest.mark.skipif(find_spec("check_jsonschema") is None, reason="check-jsonschema is not installed")
def test_workflows_are_valid() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    done = subprocess.run([*command, *map(str, WORKFLOWS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_workflows_call_modules_of_python() -> None:
    """Anybody can type what they run, on any system, and no script has to be kept for them."""
    steps = [step for path in WORKFLOWS for step in re.findall(r"- run: (.*)", path.read_text(encoding="utf-8"))]
    assert len(steps) > 10 and [step for step in steps if not re.match(r"python -[mc] ", step)] == []


def test_workflows_name_slow_tests_that_there_are() -> None:
    """Of two processes, of compiled runs and of the wheel, also with the oldest and the newest dependencies."""
    (words,) = re.findall(r'-m slow -k "(.*)"', CHECKS)
    names = [
        name
        for path in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert all(any(word in name for name in names) for word in words.split(" or "))


def test_workflows_try_what_is_named() -> None:
    for wanted in ("ubuntu-latest", "macos-latest", "windows-latest", "lowest-direct", "highest", "constraints.txt"):
        assert wanted in CHECKS
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tried = re.findall(r'"(3\.\d+)"', CHECKS.partition("python: [")[2].partition("]")[0])
    assert tried == ["3.11", "3.12", "3.13", "3.14"] and project["requires-python"] == f">={tried[0]}"


def imported(path: Path) -> set[str]:
    """The modules that a file imports when it is imported itself."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_what_runs_without_extras_imports_none() -> None:
    (command,) = re.findall(r"- run: python -m pytest (tests/.*)", CHECKS)
    files = [ROOT / name for name in command.split()]
    for path in files:  # grows by the helpers that tests import
        assert path.exists()
        files += [ROOT / "tests" / f"{name}.py" for name in imported(path) if (ROOT / "tests" / f"{name}.py").exists()]
        assert not {name.partition(".")[0] for name in imported(path)} & {*EXTRAS, "hypothesis"}, path


def test_the_version_stands_in_one_place() -> None:
    for name in ("pyproject.toml", "CITATION.cff", "CONTRIBUTING.md"):
        assert torchcaps.__version__ not in (ROOT / name).read_text(encoding="utf-8"), name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version", "urls"]
    source = (ROOT / project["tool"]["hatch"]["version"]["path"]).read_text(encoding="utf-8")
    assert f'__version__ = "{torchcaps.__version__}"' in source


def test_the_address_stands_in_one_place() -> None:
    """Metadata of the package are made of it by hatch_build.py, which reads the source, as nothing is importable."""
    hook = (ROOT / "hatch_build.py").read_text(encoding="utf-8")
    (pattern,) = re.findall(r"re\.search\(r'(.*?)', source", hook)
    (found,) = re.findall(pattern, (ROOT / "src" / "torchcaps" / "usage.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert found == usage.ADDRESS
    for name in ("pyproject.toml", "CITATION.cff", "CONTRIBUTING.md", ".github/ISSUE_TEMPLATE/config.yml"):
        assert "://" not in (ROOT / name).read_text(encoding="utf-8"), name


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(torchcaps.__file__).parent / "py.typed").exists()


def test_programs_beside_the_package_have_names_of_their_own() -> None:
    """As they are run as files, each is a module at the top: `import data` must not find one of them."""
    names = {path.stem for folder in ("benchmarks", "docs", "tests") for path in (ROOT / folder).glob("*.py")}
    assert not names & {"data", "run", "train", "test", "utils", "torchcaps"}


def test_what_contributors_read_names_what_there_is() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = {each for each in re.findall(r"(?:src|tests|docs|benchmarks)/[\w./]+", text) if "mine" not in each}
    assert named and [each for each in named if not (ROOT / each).exists()] == []
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    tried = """
import torch
from torchcaps import CapsuleLayer, LinearTransform
print(list(CapsuleLayer(LinearTransform(6, 3, 4, 4), "mine")(Capsules(torch.randn(2, 6, 4)), 2).capsules.poses.shape))
"""
    run = subprocess.run([sys.executable, "-c", code + tried], capture_output=True, text=True)
    assert run.stdout.strip() == "[2, 3, 4]", run.stderr
