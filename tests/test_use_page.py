"""The walkthrough of docs/use.md runs as written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from torchcaps.cli import main

PAGE = (Path(__file__).parent.parent / "docs" / "use.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_walkthrough_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    for label, name in enumerate(("light", "dark")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for n in range(80):
            pixels = random.integers(90 * label, 255 - 90 * (1 - label), (30, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{n}.png")
    (tmp_path / "new").mkdir()
    for name in ("one", "two"):
        Image.new("RGB", (90, 50), "black" if name == "one" else "white").save(tmp_path / "new" / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    (commands,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in commands.splitlines():
        words, _, file = line.partition(" > ")
        if words.startswith("torchcaps train"):
            words += " --epochs 1 --device cpu --batch-size 32"
        done = subprocess.run([sys.executable, "-m", *words.split()], capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stderr)
        if file:
            Path(file).write_text(done.stdout)
    assert len(json.loads(Path("said.json").read_text())) == 2
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        each["label"] for each in json.loads(Path("said.json").read_text())
    ]


def test_every_command_of_the_page_has_flags_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    (commands,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in commands.splitlines():
        _, command, *words = line.partition(" > ")[0].split()
        assert main([command, *(["digits", "--help-all"] if command == "train" else ["--help"])]) == 0
        helped = capsys.readouterr().out
        assert all(word in helped for word in words if word.startswith("--")), line


@pytest.mark.slow
def test_the_network_of_the_page_that_is_pruned_has_dead_capsules(tmp_path: Path) -> None:
    (commands,) = re.findall(r"```\n(torchcaps train digits .*?)```", PAGE, re.DOTALL)
    for line in commands.replace("\\\n", "").splitlines():
        subprocess.run([sys.executable, "-m", *line.split()], cwd=tmp_path, check=True)
    assert (tmp_path / "runs" / "digits-0-pruned").is_dir()
