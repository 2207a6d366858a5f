"""A light core: what is optional is not imported before it is needed, and is asked for by name where it is missing."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from torchcaps.extras import EXTRAS, missing_extra
from torchcaps.usage import describe

ROOT = Path(__file__).parent.parent
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


def python(hidden: list[str], code: str) -> subprocess.CompletedProcess[str]:
    """`code` in a fresh interpreter that finds none of the packages `hidden`."""
    return subprocess.run(
        [sys.executable, "-c", f"HIDDEN = {hidden!r}\n{HIDE}\n{code}"], capture_output=True, text=True
    )


def test_the_core_trains_with_torch_numpy_and_safetensors_alone():
    done = python([*EXTRAS, "lightning", "sklearn", "torchmetrics", "numba", "triton"], CORE)
    assert done.stdout == "trained\n", done.stderr
    assert done.stderr.count("numba is not installed") == 1


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


@pytest.mark.parametrize("package", ["tyro", "lightning_fabric"])
def test_a_command_names_the_extra_that_it_needs(package):
    code = "sys.argv = ['torchcaps', 'train', 'digits']; from torchcaps.__main__ import main; sys.exit(main())"
    done = python([package], code)
    assert done.returncode == 2
    wanted = f'this needs {package}, which is not installed: pip install "torchcaps[train]"'
    assert done.stderr.strip() == f"torchcaps: error: {wanted}"


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
    optional = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    packages = {name.replace("_", "-").lower().replace("pil", "pillow"): extra for name, extra in EXTRAS.items()}
    for package, extra in packages.items():
        assert any(each.replace("_", "-").startswith(package) for each in optional[extra]), package
