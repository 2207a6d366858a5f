"""A light core: what is optional is not imported before it is needed, and is asked for by name where it is missing."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from torchcaps.extras import EXTRAS, missing_extra
from torchcaps.usage import describe

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HIDE = "import sys; sys.modules.update(dict.fromkeys(HIDDEN))"  # None: as if it were not installed
CORE = """
import torch
from torchcaps import Capsules, CapsuleHead, CapsuleLayer, HeadedModel, create_model, list_models, list_routings
from torchcaps.layers import LinearTransform
from torchcaps.losses import margin_loss, multi_hot

layer = CapsuleLayer(LinearTransform(children=6, parents=4, child_pose=8, parent_pose=16), routing="dynamic")
assert layer(Capsules(torch.randn(2, 6, 8)), iterations=2).capsules.poses.shape == (2, 4, 16)
backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32))
model = HeadedModel(backbone, CapsuleHead("fm", 32, 3))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for step in range(3):
    loss = torch.nn.functional.cross_entropy(model(torch.ones(4, 1, 8, 8)).scores, torch.tensor([0, 1, 2, 0]))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
assert create_model("capsnet", image_size=20, channels=4, primary=2)(torch.rand(1, 1, 20, 20)).scores.shape == (1, 10)
assert len(list_models()) > 50 and len(list_routings()) >= 10
print("trained")
"""
WHEEL = """
from importlib.util import find_spec
import torch, torchcaps
from torchcaps import Capsules, CapsuleLayer
from torchcaps.layers import LinearTransform

assert torchcaps.__file__.startswith(HOME), torchcaps.__file__
assert not [name for name in ABSENT if find_spec(name)]
torch.manual_seed(0)
layer = CapsuleLayer(LinearTransform(children=6, parents=3, child_pose=8, parent_pose=16), routing="dynamic")
assert layer.fused
children, labels = Capsules(torch.randn(12, 6, 8)), torch.arange(12) % 3
optimizer, losses = torch.optim.Adam(layer.parameters(), 0.01), []
for step in range(20):
    lengths = layer(children, iterations=2).capsules.poses.norm(dim=-1)
    losses.append(torch.nn.functional.cross_entropy(10 * lengths, labels))
    optimizer.zero_grad()
    losses[-1].backward()
    optimizer.step()
assert losses[-1] < 0.7 * losses[0], losses
print("learnt")
"""


def python(hidden: list[str], code: str) -> subprocess.CompletedProcess[str]:
    """`code` in a fresh interpreter that finds none of the packages `hidden`."""
    return subprocess.run(
        [sys.executable, "-c", f"HIDDEN = {hidden!r}\n{HIDE}\n{code}"], capture_output=True, text=True
    )


def test_the_core_trains_with_torch_numpy_and_safetensors_alone():
    done = python([*EXTRAS, "lightning", "sklearn", "torchmetrics", "numba", "triton"], CORE)
    assert done.stdout == "trained\n", done.stderr
    assert done.stderr.count("numba is not installed") == 1


@pytest.mark.slow
@pytest.mark.parametrize("package", ["numba", "llvmlite"])  # a numba without llvmlite is broken
def test_without_numba_a_layer_is_plain_and_fused_says_why(package):
    code = CORE.partition("backbone")[0]
    code += """
transform = LinearTransform(6, 4, 8, 16)
try:
    CapsuleLayer(transform, "dynamic", implementation="fused")
except ValueError as error:
    print(error)
"""
    done = python([package, "triton"], code)
    assert "neither numba nor Triton is installed" in done.stdout, done.stderr
    assert done.stderr.count("numba is not installed") == 1


@pytest.mark.slow
def test_without_numba_packed_layers_are_plain_and_say_so():
    code = """
import torch
from torchcaps import Capsules, CapsuleLayer, LinearTransform
from torchcaps.packed import pack

layer = CapsuleLayer(LinearTransform(6, 4, 8, 16), "xnodr").eval()
packed, children = pack(layer), Capsules(torch.randn(2, 6, 8))
with torch.no_grad():
    for _ in range(2):
        torch.testing.assert_close(packed(children, 2).capsules.poses, layer(children, 2).capsules.poses)
try:
    packed.implementation = "fused"
except ValueError as error:
    print(error)
"""
    done = python(["numba", "llvmlite"], code)
    wanted = "numba and llvmlite are not installed, which kernels on cpu take; use 'auto' or 'plain'"
    assert done.stdout.strip() == f"implementation is 'fused', but {wanted}", done.stderr
    assert done.stderr.count("pip install numba") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("os.environ['NUMBA_DISABLE_JIT'] = '1'", "NUMBA_DISABLE_JIT has numba compile nothing"),
        ("sys.path.insert(0, BROKEN)", "numba cannot be imported (ImportError: Numba needs NumPy 2.2 or less)"),
    ],
)
def test_a_numba_that_is_there_and_does_not_serve_leaves_plain_steps(tmp_path, harm, said):
    """Numba's own words beside a NumPy that it does not know."""
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 2.2 or less')", encoding="utf-8")
    code = f"""
import os
import sys

BROKEN = {str(tmp_path)!r}
{harm}
import torch
from torchcaps import Capsules, CapsuleLayer, LinearTransform
from torchcaps.packed import pack

for routing in ("dynamic", "em", "xnodr"):
    layer = CapsuleLayer(LinearTransform(6, 4, 4, 4), routing)
    layer(Capsules(torch.randn(2, 6, 4), torch.rand(2, 6)), 2)
with torch.no_grad():
    pack(layer.eval())(Capsules(torch.randn(1, 6, 4)), 2)
try:
    CapsuleLayer(LinearTransform(6, 4, 8, 16), "dynamic", implementation="fused")
except ValueError as error:
    print(error)
"""
    done = python(["triton"], code)
    assert done.stdout.strip() == f"implementation is 'fused', but {said}; use 'auto' or 'plain'", done.stderr
    assert done.stderr.count(f"torchcaps: {said}, so capsule layers on a CPU take plain steps") == 1, done.stderr


@pytest.mark.parametrize("package", ["tyro", "lightning_fabric"])
def test_a_command_names_the_extra_that_it_needs(package):
    code = "sys.argv = ['torchcaps', 'train', 'digits']; from torchcaps.__main__ import main; sys.exit(main())"
    done = python([package], code)
    assert done.returncode == 2
    wanted = f'this needs {package}, which is not installed: pip install "torchcaps[train]"'
    assert done.stderr.strip() == f"torchcaps: error: {wanted}"


@pytest.mark.slow
def test_fit_names_the_extra_that_it_needs():
    code = "import torchcaps\ntry:\n    torchcaps.fit\nexcept ModuleNotFoundError as error:\n    print(error)"
    done = python(["lightning_fabric"], code)
    wanted = 'this needs lightning_fabric, which is not installed: pip install "torchcaps[train]"'
    assert done.stdout.strip() == wanted, done.stderr


def test_a_missing_package_that_is_no_extra_stays_what_it_is():
    error = ModuleNotFoundError("No module named 'mine'", name="mine")
    assert missing_extra(error) == "No module named 'mine'"
    assert describe(error, debug=False)[1] == 1


def test_extras_are_those_of_the_package():
    optional = PROJECT["optional-dependencies"]
    packages = {name.replace("_", "-").lower().replace("pil", "pillow"): extra for name, extra in EXTRAS.items()}
    for package, extra in packages.items():
        assert any(each.replace("_", "-").startswith(package) for each in optional[extra]), package


def closure(names: Iterable[str]) -> dict[str, Distribution]:
    """The installed distributions `names`, and all that they require without extras, by name."""
    found: dict[str, Distribution] = {}
    waiting, seen = [Requirement(name) for name in names], set()
    while waiting:
        asked = waiting.pop()
        for extra in {"", *asked.extras} - {each for name, each in seen if name == asked.name}:
            seen.add((asked.name, extra))
            each = found[canonicalize_name(asked.name)] = distribution(asked.name)
            needed = map(Requirement, each.requires or [])
            waiting += [one for one in needed if one.marker is None or one.marker.evaluate({"extra": extra})]
    return found


def link(distributions: Iterable[Distribution], folder: Path) -> None:
    """Links in `folder` to what `distributions` have in their site-packages, metadata included."""
    folder.mkdir()
    for each in distributions:
        for name in {file.parts[0] for file in each.files or [] if file.parts[0] != ".."}:
            source, target = Path(str(each.locate_file(name))), folder / name
            if source.exists() and not target.exists():
                target.symlink_to(source)


def command(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, words)], capture_output=True, text=True, **options)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_wheel_without_extras_trains_a_layer(tmp_path: Path) -> None:
    """In an environment of its own, where nothing is importable but the wheel and what it requires.

    What it requires is linked to, and not installed a second time: `pip check` says that nothing is missing.
    """
    pip = sys.executable, "-m", "pip", "--disable-pip-version-check"
    built = command(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("torchcaps-*.whl")
    venv.create(tmp_path / "fresh", with_pip=False)
    fresh = tmp_path / "fresh" / ("Scripts" if os.name == "nt" else "bin") / "python"
    installed = command(*pip, "--python", fresh, "install", "--quiet", "--no-deps", "--no-index", wheel)
    assert installed.returncode == 0, installed.stderr
    core = [Requirement(each).name for each in PROJECT["dependencies"]]
    link(closure(core).values(), tmp_path / "linked")
    site = command(fresh, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    (Path(site) / "linked.pth").write_text(f"{tmp_path / 'linked'}\n")
    checked = command(*pip, "--python", fresh, "check")
    assert checked.returncode == 0, checked.stdout

    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    home = {"cwd": tmp_path, "env": environment}
    absent = sorted(name for name, extra in EXTRAS.items() if name not in ("filelock",))  # which torch requires
    done = command(fresh, "-c", f"ABSENT, HOME = {absent!r}, {site!r}\n{WHEEL}\n{CORE}", **home)
    assert done.stdout.endswith("learnt\ntrained\n"), done.stderr
    assert "not installed" not in done.stderr  # numba is there, and layers are fused
    told = command(fresh.with_name("torchcaps"), "train", "digits", **home)
    assert told.returncode == 2 and 'pip install "torchcaps[train]"' in told.stderr, told.stderr
