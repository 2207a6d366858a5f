"""`benchmarks/gpu.py all`: its file, what it makes of items that fail or die, and the whole of it on a CPU."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import forms
import gpu
import gpu_all
import gpu_log
import pytest
import torch
from forms import ROUTINGS
from gpu_log import ATTEMPTS, Log
from held import Held

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


class Dying:
    """A group's process: as many lives as there are lists of outcomes, each of which ends with a fault of the GPU."""

    def __init__(self, out: Path, lives: list[list[str]]):
        self.out, self.lives, self.started = out, lives, 0

    def __call__(self, command, env):
        self.started += 1
        return self

    def wait(self, timeout):
        if not self.lives:
            return 0
        log = Log(self.out)
        for name in self.lives.pop(0):
            log.begin(name)
            log.end(name, "failed")
        return 1


def test_the_next_item_has_a_fresh_process_whenever_the_one_before_died(tmp_path: Path, monkeypatch):
    """Also where the fault came to light once the item had its line; but an import that fails is not tried for ever."""
    out, later = tmp_path / "log.jsonl", gpu_all.time.time() + 100
    for lives, started in (([["a"], ["b"]], 3), ([[]], 1)):
        process = Dying(out, lives)
        monkeypatch.setattr(gpu_all.subprocess, "Popen", process)
        gpu_all.finish("trials", "cuda", out, later)
        assert process.started == started


def test_what_is_sent_to_strangers_names_neither_the_user_nor_their_folders(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "ada")
    monkeypatch.setattr(gpu_log.getpass, "getuser", lambda: "ada")
    script = tmp_path / "fails.py"
    mine = tmp_path / "ada" / "secret" / "x.py"
    script.write_text(f"import sys\nprint({str(mine)!r}, '/scratch/ada/y.py', sys.prefix)\nraise KeyError(3)\n")
    item = gpu_all.Item("fails", partial(gpu_all.called, [str(script)]), timed=True)
    log = Log(tmp_path / "log.jsonl")
    outcome, found = gpu_all.attempt(item, gpu_all.time.time() + 100)
    log.end("fails", outcome, **found)
    here, windows = str(Path(gpu_log.__file__).parent.parent), r"C:\Users\ada\x"
    log.write({"machine": {"says": [f'File "{here}/src/torchcaps/x.py"', windows, "adagrad"]}})
    text = log.path.read_text()
    assert "secret/x.py" in text and "/scratch/USER/y.py PYTHON" in text and "CHECKOUT/src/torchcaps/x.py" in text
    assert "adagrad" in text and not re.search(r"\bada\b", text) and here not in text
    assert json.loads(text.splitlines()[-1])["machine"]["says"][1] == r"C:\Users\USER\x"


def test_a_script_is_ended_when_the_time_is_out_and_its_last_lines_are_kept(tmp_path: Path):
    script = tmp_path / "endless.py"
    script.write_text("import time\nprint('one case: equal', flush=True)\ntime.sleep(60)\n")
    item = gpu_all.Item("endless", partial(gpu_all.called, [str(script)]), timed=True)
    begun = gpu_all.time.time()
    assert gpu_all.attempt(item, begun + 2) == ("cut", {"says": ["one case: equal"]})
    assert gpu_all.time.time() - begun < 20
    script.write_text("print('wrong')\nraise SystemExit(1)\n")
    found = gpu_all.attempt(item, begun + 100)
    assert found == ("failed", {"status": 1, "says": ["wrong"]})


def test_a_comparison_that_fails_is_said_and_the_next_is_made(capsys: pytest.CaptureFixture[str]):
    def compare(number):
        assert number, "off by 1"

    held = Held()
    for number in (0, 1):
        held(f"case {number}", compare, number)
    with pytest.raises(SystemExit):
        held.end()
    said = capsys.readouterr().out.splitlines()
    assert said[0] == said[2] == "case 0: AssertionError: off by 1" and said[1].startswith("case 1: equal")


def test_all_that_is_started_is_there(monkeypatch: pytest.MonkeyPatch):
    """A bare machine may have neither git nor the repository's history."""
    started: list[str] = []
    monkeypatch.setenv("TORCHCAPS_DATA", "data")
    monkeypatch.setattr(gpu_all, "find_spec", lambda name: True)
    monkeypatch.setattr(gpu_all, "called", lambda command, until, most=0.0: started.append(command[0]) or {})
    items = [*gpu_all.numerics(torch.device("cuda")), *gpu_all.training(torch.device("cuda"))]
    for item in items:
        if item.timed and not item.goes_on:
            assert isinstance(item.run, partial)
            started.append(item.run.args[0][0])
        elif item.timed:
            item.run(until=0.0)
    assert len(started) == 4 + len(gpu.TRAINED)
    scripts = [ROOT / command[0] for command in gpu.RUNS.values() if command[0] != "-m"]
    assert all(path.is_file() for path in [*map(Path, started), *scripts])
    monkeypatch.setattr(gpu_all, "which", lambda name: None)
    assert gpu_all.describe(CPU)["commit"] is None


def test_every_kernel_has_a_case_and_every_run_a_name():
    assert {routing for routing, *_ in gpu_all.cases(torch.device("cuda")).values()} <= set(ROUTINGS)
    assert set(gpu.TRAINED) <= set(gpu.RUNS) and gpu.RUNS["all"] == ("benchmarks/gpu_all.py",)
    names = [item.name for group in gpu_all.GROUPS for item in gpu_all.items(group, torch.device("cuda"))]
    assert len(names) == len(set(names)) > 50
    assert names.index("train/digits/fused") < names.index("numerics/linear"), "the first training waits for sums"
    text = (ROOT / "benchmarks" / "GPU.md").read_text()
    for name in (*gpu.RUNS, *gpu_all.GROUPS):
        assert f"`{name}`" in text or f"gpu.py {name}" in text, name


@pytest.mark.parametrize("name", ["inverted_attention", "em", "fm_windows", "linear"])
def test_scripts_try_float32_before_float64(name):
    """Where they are cut, what networks train in has been tried; `all` calls them `quick`, and has nothing else."""
    pytest.importorskip("triton")
    script = import_module(f"interpreted_{name}")
    types = [each for what in script.comparisons(False) for each in what if isinstance(each, torch.dtype)]
    assert types == sorted(types, key=str) and len(set(types)) == 2
    quick = [*script.comparisons(True)]
    assert quick and {torch.float64} & {each for what in quick for each in what if not isinstance(each, list)} == set()
    assert len(quick) < len(types) / 3


def test_one_way_that_fails_keeps_its_reason_and_the_others_their_times(monkeypatch: pytest.MonkeyPatch):
    """As where "fused" is demanded of a kernel that its trial refuses."""
    stepping = forms.stepping

    def refuse(way, *others):
        def fail():
            raise ValueError("the kernel does not serve: out of resource\nmore")

        return fail if way == "fused" else stepping(way, *others)

    monkeypatch.setattr(forms, "stepping", refuse)
    monkeypatch.setattr(gpu_all, "check_kernels", lambda device: None)
    shape, ways = forms.linear(4, 2, 2, 4), ("fused", "plain", "einsum")
    item = gpu_all.Item("forms", partial(gpu_all.timed, "dynamic", shape, 2, CPU, ways, 2, 1))
    outcome, found = gpu_all.attempt(item, 0.0)
    assert outcome == "failed" and found["fused_ms"] is None and found["plain_ms"] > 0 and found["einsum_ms"] > 0
    assert found["fused_fault"] == "ValueError: the kernel does not serve: out of resource"


def test_only_convolutions_are_laid_out_anew():
    model, *_ = gpu_all.built("capsnet", 1, 8, 2, CPU, {"channels": 8, "primary": 2, "kernel": 3})
    of_convolutions = {id(each.weight) for each in model.modules() if isinstance(each, torch.nn.Conv2d)}
    others = [p for p in model.parameters() if p.ndim == 4 and id(p) not in of_convolutions]
    assert others and all(p.is_contiguous() for p in others)


def test_plain_steps_are_not_taken_for_kernels(monkeypatch: pytest.MonkeyPatch):
    """As on Windows, where torch brings no Triton."""
    monkeypatch.setattr("torchcaps.routing.fused.DEVICES", set())
    monkeypatch.setattr("torchcaps.routing.fused.find_spec", lambda name: None)
    device = torch.device("cuda")
    items = {item.name: item for group in ("trials", "forms", "compiled") for item in gpu_all.items(group, device)}
    items |= {name: item for name, item in ((each.name, each) for each in gpu_all.steps(device)) if "plain" not in name}
    items["digits"] = next(iter(gpu_all.learning(device)))
    assert len(items) > 40
    for name, item in items.items():
        if not name.startswith("step/xnidr"):  # which may lack timm first
            why = "triton is not installed, which kernels on cuda take"
            assert gpu_all.attempt(item, 0.0) == ("absent", {"why": why}), name


def test_a_command_is_quoted_and_waited_for_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu.subprocess, "run", lambda command, env: seen.append(command) or Ended())
    monkeypatch.setattr(gpu.os, "execve", lambda *others: pytest.fail("it was replaced"))
    monkeypatch.setattr(gpu.os, "name", "nt")
    assert gpu.main(["all", "--out", "my results.jsonl"]) == 3
    assert seen == [[sys.executable, *gpu.RUNS["all"], "--out", "my results.jsonl"]]


class Ended:
    returncode = 3


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
    """The newest of each machine, layer and batch: kernels have changed since others."""
    lines = map(json.loads, (ROOT / "results" / "benchmarks.jsonl").read_text().splitlines())
    forms = [line for line in lines if line["benchmark"].startswith("forms/")]
    of = {(line["environment"]["cpu"], line["benchmark"], line["device"], line.get("batch")): line for line in forms}
    return [*of.values()]


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
