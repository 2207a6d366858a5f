"""The walkthroughs of docs/walkthroughs.md run as they are written, and so do commands that once failed."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from torchcaps import plugins
from torchcaps.cli import main, reporting
from torchcaps.routing import registry
from torchcaps.train import RunFolder

PAGE = (Path(__file__).parent.parent / "docs" / "walkthroughs.md").read_text(encoding="utf-8")
PARTS = re.split(r"^## (.*)\n", PAGE, flags=re.MULTILINE)[1:]
WALKS = dict(zip(PARTS[::2], PARTS[1::2], strict=True))
SAYS = Callable[[], str]


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> SAYS:
    """In an empty folder; what a file registers is forgotten. Called, it is what was printed since."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(plugins.HANDED_ON, "")
    forget(monkeypatch)
    return lambda: capsys.readouterr().out


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be as a process that has imported no file yet."""
    monkeypatch.setattr(plugins, "_LOADED", {})
    monkeypatch.setattr(registry, "_ROUTINGS", dict(OURS))


OURS = dict(registry._ROUTINGS)


def blocks(title: str) -> list[tuple[str, str]]:
    """The blocks of a walkthrough: their language and what they hold."""
    return re.findall(r"```(\w+)\n(.*?)```", WALKS[title], re.DOTALL)


def walk(title: str, says: SAYS) -> list[str]:
    """Run a walkthrough in the present folder; what each command and program of it prints."""
    said = []
    for language, text in blocks(title):
        if language == "sh":
            for line in text.splitlines():
                torchcaps, *words = shlex.split(line)
                assert torchcaps == "torchcaps" and main(words) == 0, line
                said.append(says())
        elif "@register_routing" in text:
            Path("forgetful.py").write_text(text)
        else:
            exec(compile(text, title, "exec"), {"__name__": "walk"})
            said.append(says())
    return said


@pytest.mark.slow
def test_own_pictures(tmp_path: Path, says: SAYS) -> None:
    said = walk("Your own pictures", says)
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
def test_own_routing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: SAYS, capsys: pytest.CaptureFixture[str]
) -> None:
    said = walk("A routing of your own", says)
    assert "permutations" in said[-1]
    (record,) = RunFolder(tmp_path / "runs" / "digits-0").read_config().imports
    assert record.startswith("forgetful.py ")
    file = tmp_path / "forgetful.py"
    file.write_text(file.read_text() + "# changed\n")
    forget(monkeypatch)
    _, *words = shlex.split(blocks("A routing of your own")[1][1].splitlines()[-1])  # the comparison again
    assert main(words) == 0
    assert "forgetful: forgetful.py was changed since its runs, which are made anew" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "results" / "runs.jsonl").read_text().splitlines()]
    heads = [line["cell"].rpartition("/")[2] for line in lines]
    assert heads == ["linear", "uniform", "twin", "forgetful", "forgetful"]
    assert lines[3]["config_hash"] != lines[4]["config_hash"]


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
def test_a_papers_cell_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: SAYS) -> None:
    small_cifar(tmp_path / "data")
    monkeypatch.setenv("TORCHCAPS_DATA", str(tmp_path / "data"))
    said = walk("A paper's cell, changed", says)
    assert "fm/table2/ours-cifar10" in said[0] and "steps of 16 images" in said[1]
    run_folder = next((tmp_path / "runs").glob("fm.table2.ours-cifar10.smoke-0"))
    assert RunFolder(run_folder).read_config().changed == ("model.options.blocks=1,1,1", "optimiser.lr=0.05")
    assert said[-1].endswith("(3, 32, 32)\n")


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an empty folder, without reports."""
    monkeypatch.setattr(reporting, "report", lambda *args: None)
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
    table = Path("results/compare/small-resnet/folder-pictures-optimiser.lr-smoke.md").read_text()
    rows = [line.split("|")[1].strip() for line in table.splitlines() if re.match(r"\| [\w.]+@", line)]
    heads = ("linear", "uniform", "twin", "dynamic", "mobilenetv2_035.linear")
    assert sorted(rows) == sorted(f"{head}@optimiser.lr={value}" for head in heads for value in ("0.01", "0.001"))
    assert "not run" not in table


def test_a_flag_of_the_recipe_is_answered_with_train(silent: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "fm/table2", "--optimiser.lr", "0.01"]) == 2
    assert "torchcaps train fm/table2/" in capsys.readouterr().err
