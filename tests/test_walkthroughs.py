"""The walkthroughs of docs/walkthroughs.md run as they are written, and so do commands that once failed."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from torchcaps.cli import main, training
from torchcaps.train import RunFolder

PAGE = (Path(__file__).parent.parent / "docs" / "walkthroughs.md").read_text(encoding="utf-8")
PARTS = re.split(r"^## (.*)\n", PAGE, flags=re.MULTILINE)[1:]
WALKS = dict(zip(PARTS[::2], PARTS[1::2], strict=True))
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def blocks(title: str) -> list[tuple[str, str]]:
    """The blocks of a walkthrough: their language and what they hold."""
    return re.findall(r"```(\w+)\n(.*?)```", WALKS[title], re.DOTALL)


def run(*words: str) -> str:
    """Run Python with `words`; what it prints, status 0."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def walk(title: str) -> list[str]:
    """Run a walkthrough in the present folder; what each command and program of it prints."""
    said = []
    for language, text in blocks(title):
        if language == "sh":
            commands = [shlex.split(line) for line in text.splitlines()]
            assert all(words[0] == "torchcaps" for words in commands)
            said += [run("-m", *words) for words in commands]
        elif "@register_routing" in text:
            Path("cosine.py").write_text(text)
        else:
            said.append(run("-c", text))
    return said


@pytest.mark.slow
def test_own_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = walk("Your own pictures")
    listed = json.loads(said[-2])
    names = {each["name"]: each for each in listed}
    assert set(names) == {"classify-0", "classify-0-2", "classify-0-3"}
    assert names["classify-0-2"]["continued"].startswith("classify-0 2 ") and names["classify-0-2"]["epochs"] == 3
    assert names["classify-0-3"]["start"].startswith("classify-0 ")
    predicted = list(csv.reader(said[-4].splitlines()))
    assert len(predicted) == 1 + 25
    table = (tmp_path / "results" / "compare" / "small-resnet" / "folder-pictures.md").read_text()
    assert "| dynamic |" in table and "not run" not in table and table in said[-1]


@pytest.mark.slow
def test_own_routing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = walk("A routing of your own")
    assert "permutations" in said[-1]
    (record,) = RunFolder(tmp_path / "runs" / "digits-0").read_config().imports
    assert record.startswith("cosine.py ")
    file = tmp_path / "cosine.py"
    file.write_text(file.read_text() + "# changed\n")
    words = shlex.split(blocks("A routing of your own")[1][1].splitlines()[-1])  # the comparison again
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0 and "cosine: cosine.py was changed since its runs, which are made anew" in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "results" / "runs.jsonl").read_text().splitlines()]
    assert [line["cell"].rpartition("/")[2] for line in lines] == ["linear", "uniform", "cosine", "cosine"]
    assert lines[2]["config_hash"] != lines[3]["config_hash"]


def small_cifar(folder: Path) -> None:
    """Sixty-four training images and some more, where CIFAR-10 would lie."""
    random = np.random.default_rng(0)
    folder.mkdir()
    arrays = {
        f"{kind}_{split}": random.integers(0, 10 if kind == "y" else 256, shape, dtype=np.uint8)
        for split, count in (("train", 120), ("test", 80))
        for kind, shape in (("x", (count, 32, 32, 3)), ("y", (count,)))
    }
    np.savez(folder / "cifar10.npz", **arrays)


@pytest.mark.slow
def test_a_papers_cell_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small_cifar(tmp_path / "data")
    monkeypatch.setitem(ENVIRONMENT, "TORCHCAPS_DATA", str(tmp_path / "data"))
    said = walk("A paper's cell, changed")
    assert "fm/table2/ours-cifar10" in said[0] and "steps of 16 images" in said[1]
    run_folder = next((tmp_path / "runs").glob("fm.table2.ours-cifar10.smoke-0"))
    assert RunFolder(run_folder).read_config().changed == ("model.options.blocks=1,1,1", "optimiser.lr=0.05")
    assert said[-1].endswith("(3, 32, 32)\n")


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an empty folder, without reports."""
    monkeypatch.setattr(training, "report", lambda *args: None)
    monkeypatch.chdir(tmp_path)


SMALL = ["--epochs", "1", "--data.limit", "64", "--batch-size", "32", "--device", "cpu"]


@pytest.mark.slow
def test_a_cell_of_a_paper_is_trained_by_its_name(
    silent: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_cifar(tmp_path / "data")
    monkeypatch.setenv("TORCHCAPS_DATA", str(tmp_path / "data"))
    assert main(["train", "fm/table2/ours-cifar10", *SMALL, "--model.options", "blocks", "1,1,1"]) == 0
    assert RunFolder(Path("runs/fm.table2.ours-cifar10.full-0")).read_config().epochs == 1


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet18.fm", "attention-simple-cifar10"])
def test_digits_take_another_model(silent: None, model: str) -> None:
    size = ["--data.image-size", "32"] if model.startswith("attention") else []
    assert main(["train", "digits", "--model.name", model, *size, *SMALL]) == 0
    assert RunFolder(Path("runs/digits-0")).read_config().model.name == model


@pytest.mark.slow
def test_own_pictures_are_compared_with_costs_a_sweep_and_a_plain_network(
    silent: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    for label, name in enumerate(("light", "dark")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for n in range(60):
            pixels = random.integers(90 * label, 255 - 90 * (1 - label), (36, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{n}.png")
    words = ["compare", "--data.name", "folder:pictures", "--costs", "--seeds", "1", "--budget", "smoke"]
    words += ["--routings", "dyn*", "mobilenetv2_035.linear", "--sweep", "optimiser.lr", "0.01", "0.001"]
    assert main([*words, "--device", "cpu"]) == 0
    table = Path("results/compare/small-resnet/folder-pictures.md").read_text()
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][1:]
    heads = ("linear", "uniform", "dynamic", "mobilenetv2_035.linear")
    assert sorted(rows) == sorted(f"{head}@optimiser.lr={value}" for head in heads for value in ("0.01", "0.001"))
    assert "not run" not in table


def test_a_flag_of_the_recipe_is_answered_with_train(silent: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "fm/table2", "--optimiser.lr", "0.01"]) == 2
    assert "torchcaps train fm/table2/" in capsys.readouterr().err
