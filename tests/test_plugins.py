"""Routings of one's own: by --import, by an entry point, and held to the library's properties."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from torchcaps import create_model, load, plugins
from torchcaps.capsules import Capsules, squash
from torchcaps.explore.runtime import find_runtime
from torchcaps.papers import create_recipe, find_cell, list_tables
from torchcaps.report.reproduce import reproduce_command
from torchcaps.routing import Routing, Sizes, list_routings, register_routing, registry, routing_class
from torchcaps.routing.interface import Spec
from torchcaps.tables import cells
from torchcaps.testing import check_routing

DYNAMIC = "torchcaps.routing.dynamic.Dynamic"
OWN = """
from torchcaps.capsules import Capsules, squash
from torchcaps.routing import Routing, register_routing
from torchcaps.routing.interface import Spec


@register_routing
class Mine(Routing):
    spec = Spec("NAME", "nobody, 2026", "b I J d", "b J d", iterative=True, couplings=True)

    def couple(self, votes, state, t):
        return None if state is None else votes.compete(votes.agree(state))

    def update(self, votes, coupling, state, t):
        parents = squash(votes.combine(coupling))
        return Capsules(parents), parents
"""


MORE = """
from torchcaps.config import Config
from torchcaps.data import register
from torchcaps.data.entry import Entry
from torchcaps.papers import list_recipes, recipe


@recipe
def mine():
    "A recipe of a plugin."
    return Config()


list_recipes()  # which asks for the plugins, of which this is one

for about in ("first", "again, as when a cell of a notebook is run twice"):
    register(Entry("mine-set", about, "plugged:read"))
"""
ASKED = """
from torchcaps.papers import create_recipe, list_recipes
print(*list_recipes("mine"), end=" ")
from torchcaps.data import find
print(find("mine-set")[0].name.replace("-", " "), end=" ")
from torchcaps import routing
print(create_recipe("mine").recipe)
routing.routing_class("plugged")
"""


@pytest.fixture(autouse=True)
def registered_here_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers leaves the one list with it: other tests show the list."""
    monkeypatch.setattr(registry, "_ROUTINGS", dict(registry._ROUTINGS))


class Plain(Routing):
    """A newcomer's: what `couple` gives goes to `combine` as it is."""

    spec = Spec("plain-test", "nobody", "b I J d", "b J d", iterative=True, couplings=True)

    def couple(self, votes, state, t):
        return None if state is None else votes.compete(votes.agree(state))

    def update(self, votes, coupling, state, t):
        parents = squash(votes.combine(coupling))
        return Capsules(parents), parents


def loops(votes: np.ndarray, activations: np.ndarray | None, iterations: int) -> np.ndarray:
    """`Plain` in plain loops; the first coupling is 1 / j."""
    assert activations is None
    share, parents = np.full(votes.shape[:3], 1 / votes.shape[2]), votes[:, 0]
    for _ in range(iterations):
        total = (share[..., None] * votes).sum(1)
        squared = (total**2).sum(-1, keepdims=True)
        parents = squared / (1 + squared) * total / np.sqrt(squared)
        logits = np.einsum("bijd,bjd->bij", votes, parents)
        share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return parents


def test_a_newcomer_has_all_properties() -> None:
    checked = check_routing(Plain, loops)
    assert checked[0] == "oracle" and {"permutations", "extremes", "dtypes", "gradients", "memory"} <= set(checked)
    assert {"derivatives", "compile", "export"} <= set(checked)


@pytest.mark.parametrize(
    "name",
    [
        "dynamic",
        "uniform",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("em", "fm", "xnidr", "inverted-attention-c")),
    ],
)
def test_ours_pass_the_same_check(name: str) -> None:
    cls = routing_class(name)
    assert "shapes" in check_routing(cls, iterations=2)


class Ordered(Plain):
    def update(self, votes, coupling, state, t):
        order = torch.arange(votes.parents, dtype=votes.dtype)[:, None]
        capsules, state = super().update(votes, coupling, state, t)
        return Capsules(capsules.poses * (1 + order)), state


class Unfloored(Plain):
    def update(self, votes, coupling, state, t):
        total = votes.combine(coupling)
        parents = total / total.norm(dim=-1, keepdim=True)
        return Capsules(parents), parents


class Hoarding(Plain):
    def update(self, votes, coupling, state, t):
        dense = votes.dense()
        share = 1 / votes.parents if coupling is None else coupling[..., None]
        parents = squash((share * dense * dense.sigmoid()).sum(2))
        return Capsules(parents), parents


class Changed(Plain):
    """`Plain`, whose parents are then changed."""

    def change(self, poses: Tensor) -> Tensor:
        raise NotImplementedError

    def update(self, votes, coupling, state, t):
        capsules, state = super().update(votes, coupling, state, t)
        return Capsules(self.change(capsules.poses)), state


class Single(Changed):
    def change(self, poses):
        return poses * 2 if poses.dtype == torch.float32 else poses


class Branching(Changed):
    def change(self, poses):
        return poses * 2 if poses.sum() > 0 else poses


class Stopped(Changed):
    def change(self, poses):
        return poses * 0.5 + poses.detach() * 0.5


class Backward(torch.autograd.Function):
    """The identity, without a derivative in forward mode."""

    @staticmethod
    def forward(poses):
        return poses.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *gradients):
        return gradients


class Onesided(Changed):
    def change(self, poses):
        return Backward.apply(poses)


class Silent(Plain):
    spec = replace(Plain.spec, gives_activations=True)


@pytest.mark.parametrize(
    ("cls", "broken"),
    [
        (Ordered, "permutations"),
        (Unfloored, "extremes"),
        (Hoarding, "memory"),
        (Single, "dtypes"),
        (Branching, "compile"),
        (Stopped, "gradients"),
        (Onesided, "derivatives"),
        (Silent, "shapes"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_a_broken_property_is_named(cls: type[Routing], broken: str) -> None:
    with pytest.raises(AssertionError, match=f"^{broken} of 'plain-test': "):
        check_routing(cls)
    with pytest.raises(AssertionError, match=r"^oracle of 'plain-test': parents differ by"):
        check_routing(Plain, lambda votes, activations, iterations: votes.sum(1))


def named(name: str) -> type[Routing]:
    return type("Named", (Plain,), {"spec": replace(Plain.spec, name=name)})


@pytest.mark.parametrize("name", ["", "my.cap", "My-cap", "my_cap", "-cap", "cap-", "a--b", "a b", 3])
def test_a_name_that_no_list_command_or_path_takes_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"a routing is named {name!r}; it must be lower-case words and digits"):
        register_routing(named(name))


@pytest.mark.parametrize("name", ["linear", "twin", "dynamic-twin"])
def test_a_name_that_stands_for_a_head_of_another_kind_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"a routing is named {name!r}; '.*' stands for something else"):
        register_routing(named(name))


def test_a_class_defined_again_takes_the_place_of_what_it_was_and_another_one_does_not() -> None:
    first, second = named("twice-test"), named("twice-test")
    for each in (first, second):
        assert register_routing(each) is each and routing_class("twice-test") is each
    with pytest.raises(ValueError, match=rf"routing 'dynamic' is {re.escape(DYNAMIC)} already: give .*Named another"):
        register_routing(named("dynamic"))
    assert routing_class("dynamic").__qualname__ == "Dynamic"


def test_what_is_no_routing_or_does_not_say_what_it_is_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Bare has no spec; give the class one: spec = Spec\("):
        register_routing(type("Bare", (Routing,), {}))
    for wrong in (torch.nn.Linear, Plain(Sizes(1, 1, 1)), "mine"):
        with pytest.raises(TypeError, match="it takes a subclass of Routing"):
            register_routing(wrong)  # pyright: ignore[reportArgumentType]


def test_a_file_is_imported_once_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.HANDED_ON, "")
    monkeypatch.setattr(plugins, "_LOADED", {})
    file = tmp_path / "mine.py"
    file.write_text(OWN.replace("NAME", "test-of-mine"))
    record = plugins.import_file(file)
    assert plugins.import_file(file) == record == plugins.imported()[0]
    assert record.startswith("mine.py ") and len(record.split()[1]) == 64
    assert "test-of-mine" in {spec.name for spec in list_routings()}
    assert plugins.imported_for(routing_class("test-of-mine")) == (record,)
    assert plugins.imported_for(routing_class("dynamic")) == ()
    with pytest.raises(ValueError, match=r"runs/x needs the code of other\.py, which is not here: give --import FILE"):
        plugins.check_imports(["other.py 0"], "runs/x")
    plugins.check_imports([record], "runs/x")
    (tmp_path / "bad.py").write_text("1 / 0")
    with pytest.raises(ValueError, match=r"bad\.py cannot be imported: ZeroDivisionError"):
        plugins.import_file(tmp_path / "bad.py")
    (tmp_path / "ends.py").write_text("raise SystemExit(0)")
    with pytest.raises(ValueError, match=r"ends\.py cannot be imported: SystemExit"):
        plugins.import_file(tmp_path / "ends.py")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        plugins.import_file(tmp_path / "none.py")
    assert plugins.handed_on() == [str(file)]


@pytest.mark.usefixtures("imports_nothing_yet")
def test_a_file_may_have_a_name_with_spaces_and_with_what_parts_paths(tmp_path: Path) -> None:
    names = ["my nets.py", f"a{os.pathsep}b.py"]
    for name in names:
        (tmp_path / name).write_text("")
    records = [plugins.import_file(tmp_path / name) for name in names]
    assert list(map(plugins.file_of, records)) == names
    assert plugins.handed_on() == [str(tmp_path / name) for name in names]
    plugins.check_imports(records, "runs/x")
    with pytest.raises(ValueError, match=r"needs the code of my other\.py, which"):
        plugins.check_imports(["my other.py " + 64 * "0"], "runs/x")
    said = reproduce_command(replace(create_recipe("digits"), imports=tuple(records)), tmp_path)
    assert f"--import 'my nets.py' --import {shlex.quote(names[1])}" in said


@pytest.fixture
def imports_nothing_yet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(plugins.HANDED_ON, "")
    monkeypatch.setattr(plugins, "_LOADED", {})
    monkeypatch.setattr(plugins, "_READ", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(folder: Path, **files: str) -> None:
    """Write NAME.py, or with __ in place of / FOLDER/NAME.py."""
    for name, text in files.items():
        path = folder / f"{name.replace('__of__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def module_of(record: str) -> ModuleType:
    (module,) = (module for name, module in sys.modules.items() if name.endswith(record[-8:]))
    return module


@pytest.mark.usefixtures("imports_nothing_yet")
def test_a_file_finds_what_lies_beside_it_and_its_record_tells_when_that_changes(tmp_path: Path) -> None:
    """A module, one that only the module imports, a package, and one that is imported when it is called for."""
    write(
        tmp_path,
        mine="import beside_mine\nfrom package_mine.deep import ROOT\nassert ROOT == 3\n"
        "def later():\n    import late_mine\n    return late_mine.x\n",
        beside_mine="import behind_mine\n" + OWN.replace("NAME", "beside-of-mine"),
        behind_mine="x = 1\n",
        late_mine="x = 2\n",
        not_mine="1 / 0\n",
        package_mine__of____init__="from .not_mine import y\n",
        package_mine__of__not_mine="y = 1\n",
        package_mine__of__deep="ROOT = 3\n",
    )
    (tmp_path / "package_mine" / ".#deep.py").symlink_to("nowhere")  # an editor's lock
    file = tmp_path / "mine.py"
    record = plugins.import_file(file)
    assert record == plugins.import_file(file)
    assert plugins.imported_for(routing_class("beside-of-mine")) == (record,)
    assert module_of(record).later() == 2
    assert sorted(plugins.find_neighbours(file).files) == ["behind_mine", "beside_mine", "late_mine", "package_mine"]
    for changed in ("behind_mine.py", "late_mine.py", "package_mine/deep.py"):
        before = plugins._digest(file, plugins.find_neighbours(file))
        with (tmp_path / changed).open("a") as opened:
            opened.write("\n")
        assert plugins._digest(file, plugins.find_neighbours(file)) != before


@pytest.mark.usefixtures("imports_nothing_yet")
def test_folders_that_are_no_packages_hide_nothing(tmp_path: Path) -> None:
    """A clone of the library beside a file, and a folder of data that bears a module's name."""
    write(tmp_path, mine="import torchcaps, data_mine\n", data_mine="x = 1\n", torchcaps__of__setup="1 / 0\n")
    write(tmp_path, data_mine__of__made="1 / 0\n", torchcaps__of____init__="1 / 0\n")
    assert plugins.find_neighbours(tmp_path / "mine.py").files == {"data_mine": (tmp_path / "data_mine.py",)}
    plugins.import_file(tmp_path / "mine.py")


@pytest.mark.usefixtures("imports_nothing_yet")
def test_a_neighbour_that_bears_the_name_of_another_module_is_refused_before_anything_runs(tmp_path: Path) -> None:
    """Else the file would run with the other, now or when a function imports it."""
    for folder in ("one", "two"):
        write(tmp_path / folder, helpers_mine=f"where = {folder!r}\n", mine=f"import helpers_mine  # {folder}\n")
    plugins.import_file(tmp_path / "one" / "mine.py")
    with (tmp_path / "two" / "mine.py").open("a") as file:
        file.write("open(__file__ + '.ran', 'w')\n")
    with pytest.raises(ValueError, match=r"helpers_mine is .*one.*: give yours another name"):
        plugins.import_file(tmp_path / "two" / "mine.py")
    write(tmp_path, late="def later():\n    import cmd\n", cmd="x = 1\n")
    with pytest.raises(ValueError, match=r"cmd is .*: give yours another name"):
        plugins.import_file(tmp_path / "late.py")
    assert not list(tmp_path.rglob("*.ran")) and len(plugins.imported()) == 1


@pytest.mark.usefixtures("imports_nothing_yet")
def test_a_neighbour_that_was_changed_or_mended_is_read_anew_and_one_in_hiding_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.v2.py"
    file.write_text("import help_mine\nx = help_mine.x\nclass Mine: pass\n")
    write(tmp_path, help_mine="1 / 0\n")
    with pytest.raises(ValueError, match="ZeroDivisionError"):
        plugins.import_file(file)
    for x in (1, 22):
        write(tmp_path, help_mine=f"x = {x}\n")
        record = plugins.import_file(file)
        assert module_of(record).x == x
        assert plugins.imported_for(module_of(record).Mine) == (record,)
    write(tmp_path, other="import help_mine\n__import__('hidden_mine')\n", hidden_mine="")
    with pytest.raises(ValueError, match="it imports hidden_mine without saying so"):
        plugins.import_file(tmp_path / "other.py")


def test_entry_points_are_loaded_and_a_broken_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "plugged.py").write_text(OWN.replace("NAME", "plugged"))
    package = tmp_path / "plugged-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Name: plugged\nVersion: 1\n")
    (package / "entry_points.txt").write_text(
        "[torchcaps.plugins]\nmine = plugged\nlost = not_there_at_all\nends = ending\n"
    )
    (tmp_path / "ending.py").write_text("raise SystemExit(0)")
    with (tmp_path / "plugged.py").open("a") as file:
        file.write(MORE)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {ASKED}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "the plugin lost (not_there_at_all) cannot be loaded" in done.stderr
    assert "the plugin ends (ending) cannot be loaded: SystemExit: 0" in done.stderr
    assert done.stdout == "mine mine set mine\n"


def test_tables_of_a_package_are_found_at_the_first_question(monkeypatch: pytest.MonkeyPatch) -> None:
    def register() -> None:
        @cells.table(cells.Paper("plugged", "Nobody 2000"), "table1", "Table 1", "one number")
        def table1() -> Iterator[cells.Cell]:
            yield cells.Cell("one", "row", "column", cells.Formula(1.0))

    monkeypatch.setattr(cells, "_TABLES", {})
    monkeypatch.setattr(plugins, "_ASKED", [])
    monkeypatch.setattr(plugins, "entry_points", lambda group: [SimpleNamespace(load=register)])
    assert find_cell("plugged/table1/one").how == cells.Formula(1.0)
    assert [each.id for each in list_tables()] == ["plugged/table1"]


@pytest.mark.slow
def test_a_run_with_own_routing_asks_for_its_file(tmp_path: Path) -> None:
    """Trained with the file, refused without it, which nothing imports by itself, and evaluated with it."""
    file = tmp_path / "mine.py"
    file.write_text(OWN.replace("NAME", "mine"))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "torchcaps", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    train = ["train", "digits", "--model.name", "small-resnet.mine", "--epochs", "1", "--data.limit", "200"]
    done = run(*train, "--device", "cpu", "--import", str(file))
    assert done.returncode == 0, done.stderr
    refused = run("evaluate", "runs/digits-0")
    assert refused.returncode == 2 and "needs the code of mine.py" in refused.stderr
    assert run("evaluate", "runs/digits-0", f"--import={file}").returncode == 0
    file.write_text(file.read_text() + "# changed\n")
    assert "mine.py was changed since" in run("evaluate", "runs/digits-0", "--import", str(file)).stderr


@pytest.mark.parametrize(
    "read",
    [
        plugins.import_file,
        load,
        lambda path: create_model("resnet18.linear", num_classes=2, pretrained=path),
        find_runtime,
    ],
    ids=["import", "load", "pretrained", "runtime"],
)
def test_a_home_of_nobody_is_named(read):
    with pytest.raises(ValueError, match="~nobody_here/there begins with ~, the home folder of a user"):
        read("~nobody_here/there")
