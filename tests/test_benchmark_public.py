"""Public code in a folder of the user's, beside ours: what is read, checked, timed and shown."""

import hashlib
import json
from pathlib import Path

import draw_speed
import public
import pytest
import report
import routing
import torch

from torchcaps.layers import LinearTransform

CODE = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import nn

NAME = "dynamic"
ITERATIONS = 2

@dataclass
class Sizes:
    children: int

class Routed(nn.Module):
    def __init__(self, children, pose, parents, parent_pose):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(parents, children, pose, parent_pose))

    def forward(self, x):
        votes = torch.einsum("bic,jicd->bijd", x, self.weight)
        logits = torch.zeros_like(votes[..., 0])
        for _ in range(ITERATIONS):
            total = (logits.softmax(-1).unsqueeze(-1) * votes).sum(1)
            square = total.square().sum(-1, keepdim=True)
            parents = total * square.sqrt() / (1 + square)
            logits = logits + (votes * parents.unsqueeze(1)).sum(-1)
        return parents

def build(children, pose, parents, parent_pose):
    return Routed(children, pose, parents, parent_pose)
"""
LOAD = """
def load(module, weight):
    module.weight.copy_(weight)
"""
SMALL = routing.Size(lambda: LinearTransform(6, 3, 4, 5), (6, 4), 2, 1)
CPU = torch.device("cpu")


def written(folder: Path, code: str) -> Path:
    folder.joinpath("theirs.py").write_text(code)
    return folder


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(routing, "SIZES", {"linear small": SMALL, "conv": routing.SIZES[list(routing.SIZES)[1]]})
    return tmp_path / "benchmarks.jsonl"


def test_a_file_is_timed_beside_ours_and_has_its_parents(results, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    written(folder, CODE + LOAD).joinpath("_helper.py").write_text("raise RuntimeError")
    monkeypatch.setattr("sys.argv", ["routing.py", "--public", str(folder), "--repeats", "1", "--device", "cpu"])
    routing.main()
    (line,) = map(json.loads, results.read_text().splitlines())
    assert line["benchmark"] == "public/theirs.py/linear small"
    assert line["sha256"] == hashlib.sha256((CODE + LOAD).encode()).hexdigest()
    assert line["routing"] == "dynamic" and line["iterations"] == 2 and line["batch"] == 2
    assert line["difference"] < 1e-5
    assert all(line[f"{form}{key}_ms"] >= 0 for form in ("public_", "naive_", "") for key in ("forward", "step"))
    assert "theirs.py, linear small" in capsys.readouterr().out


def test_without_load_nothing_is_said_of_its_parents(results, tmp_path):
    code = CODE.replace("ITERATIONS = 2", "").replace("range(ITERATIONS)", "range(3)")
    (rival,) = public.read_rivals(written(tmp_path, code), routing.ITERATIONS)
    assert rival.iterations == routing.ITERATIONS["dynamic"]
    routing.compare_public([rival], 1, 1, CPU)
    line = json.loads(results.read_text())
    assert line["difference"] is None and line["batch"] == 1
    assert public.summary(("a",), line).endswith(" -")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("", "NAME is None, and should be one of dynamic, em"),
        ("NAME = 'em'", r"theirs.py has no build\(children"),
        (CODE.replace("return Routed(", "return (1, "), "build gives tuple, and should a torch.nn.Module"),
        (CODE + "ITERATIONS = 0", "ITERATIONS is 0, and should be"),
        (CODE.replace("return parents", "return parents[:, :2]"), r"gives parents \[2, 2, 5\], and should \[2, 3, 5\]"),
        (CODE.replace("return parents", "return parents.detach()"), "no gradient leaves"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(code, said, results, tmp_path):
    with pytest.raises(ValueError, match=said):
        routing.compare_public(public.read_rivals(written(tmp_path, code), routing.ITERATIONS), None, 1, CPU)


def test_a_folder_that_does_not_fit_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match="has no Python file"):
            public.read_rivals(folder, routing.ITERATIONS)
    with pytest.raises(ValueError, match="is in the repository"):
        public.read_rivals(Path(public.__file__).parent, routing.ITERATIONS)


def test_the_page_has_a_table_once_there_are_lines():
    assert draw_speed.public([]) == "Not measured yet."
    times = dict.fromkeys((f"{form}{key}_ms" for form in ("public_", "naive_", "") for key in ("forward", "step")), 2.0)
    line = {
        **{"benchmark": "public/theirs.py/linear small", "sha256": "0123456789abcdef", "routing": "dynamic"},
        **{"iterations": 2, "batch": 8, "forward_speed_up": 4.0, "step_speed_up": 3.0, "difference": 2e-7, **times},
    }
    made = draw_speed.public([line, line | {"difference": None}])
    row = "| `theirs.py`, linear small | `0123456789ab` | `dynamic` | 2 | 8 " + 6 * "| 2.0 " + "| 4.0x, 3.0x |"
    assert f"{row} 2e-07 |" in made and made.endswith(f"{row} - |")
