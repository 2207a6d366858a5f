"""`benchmarks/gpu.py all`: its file, what it makes of items that fail or die, and the whole of it on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gpu
import gpu_all
import pytest
import torch
from forms import ROUTINGS
from gpu_log import ATTEMPTS, Log

from torchcaps.kernels import rule
from torchcaps.layers import CapsuleLayer

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
# What a bare machine has not.
BARE = [
    "lightning_fabric", "numba", "llvmlite", "torchvision", "timm", "tyro", "PIL", "matplotlib", "rich", "scipy",
    "filelock", "onnx", "onnxruntime",
]  # fmt: skip


def outcomes(path: Path) -> dict[str, str]:
    lines = map(json.loads, path.read_text().splitlines())
    return {line["item"]: line["outcome"] for line in lines if "outcome" in line}


def test_a_log_is_read_again_even_where_it_was_cut(tmp_path: Path):
    log = Log(tmp_path / "log.jsonl")
    log.begin("a")
    log.end("a", "done", ms=1.0)
    log.begin("b")
    with log.path.open("a") as file:
        file.write('{"item": "b", "outc')
    again = Log(log.path)
    assert again.settled("a") and not again.settled("b") and again.open_item() == "b"
    again.end("b", "died")
    assert Log(log.path).settled("b") and Log(log.path).open_item() is None


def test_what_is_cut_each_time_is_given_up_unless_it_goes_on(tmp_path: Path):
    log = Log(tmp_path / "log.jsonl")
    for _ in range(ATTEMPTS):
        log.begin("hangs")
        log.end("hangs", "cut")
        log.begin("trains")
        log.end("trains", "cut", goes_on=True)
    assert log.settled("hangs") and not log.settled("trains")


def test_an_item_that_fails_is_a_line_and_the_next_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken():
        raise RuntimeError("out of resource\nshared memory")

    def lacking():
        raise gpu_all.Absent("timm is not installed")

    made = [
        gpu_all.Item("broken", broken),
        gpu_all.Item("lacking", lacking),
        gpu_all.Item("wrong", lambda: {"wrong": True, "far": 2}),
        gpu_all.Item("right", lambda: {"ms": 3}),
        gpu_all.Item("long", lambda: {}, least=1e9),
    ]
    monkeypatch.setitem(gpu_all.GROUPS, "trials", lambda device: iter(made))
    log = Log(tmp_path / "log.jsonl")
    assert gpu_all.work("trials", CPU, log, gpu_all.time.time() + 100) == 0
    wanted = {"broken": "failed", "lacking": "absent", "wrong": "failed", "right": "done"}
    assert outcomes(log.path) == wanted
    before = len(log.lines)
    gpu_all.work("trials", CPU, Log(log.path), gpu_all.time.time() + 100)
    assert len(Log(log.path).lines) == before


def test_every_kernel_has_a_case_and_every_run_a_name():
    assert {routing for routing, *_ in gpu_all.cases(torch.device("cuda")).values()} <= set(ROUTINGS)
    assert set(gpu.TRAINED) <= set(gpu.RUNS) and gpu.RUNS["all"] == ("benchmarks/gpu_all.py",)
    names = [item.name for group in gpu_all.GROUPS for item in gpu_all.items(group, torch.device("cuda"))]
    assert len(names) == len(set(names)) > 50
    text = (ROOT / "benchmarks" / "GPU.md").read_text()
    for name in (*gpu.RUNS, *gpu_all.GROUPS):
        assert f"`{name}`" in text or f"gpu.py {name}" in text, name


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu_without_what_a_bare_machine_lacks(tmp_path: Path):
    """And a second call does nothing that has ended."""
    hidden, out = tmp_path / "hidden", tmp_path / "found.jsonl"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({BARE!r}))\n")
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "all", "--device", "cpu", "--out", str(out)]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(hidden), "HOME": str(tmp_path)}
    first = subprocess.run([*command, "--minutes", "1"], env=environment, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr[-2000:]
    found = outcomes(out)
    assert found and set(found.values()) <= {"done", "cut", "absent"}, out.read_text()
    begun = out.read_text().count('"began"')
    ended = {name for name, outcome in found.items() if outcome == "done"}
    subprocess.run([*command, "--minutes", "0.02"], env=environment, check=True, capture_output=True)
    lines = list(map(json.loads, out.read_text().splitlines()))
    again = [line["item"] for line in lines if "began" in line][begun:]
    assert not ended & set(again)


def lines_of_forms() -> list[dict]:
    lines = map(json.loads, (ROOT / "results" / "benchmarks.jsonl").read_text().splitlines())
    return [line for line in lines if line["benchmark"].startswith("forms/")]


def test_the_rule_takes_the_faster_form_at_all_sizes_that_were_measured():
    """To within a fifth: smaller differences are the machine's."""
    from forms import CONV, LINEAR

    lines = lines_of_forms()
    assert {line["benchmark"].split("/")[1] for line in lines if line["device"] == "cpu"} == set(ROUTINGS)
    for line in lines:
        _, routing, name = line["benchmark"].split("/", 2)
        layer = CapsuleLayer((LINEAR | CONV)[name].transform(), routing)
        taken = layer.form(line["device"])
        other = "plain" if taken == "fused" else "fused"
        assert line[f"{taken}_ms"] <= 1.2 * line[f"{other}_ms"], line
    assert rule.__doc__ is not None and "forms/" in rule.__doc__
