"""`torchcaps predict`: files, folders and lists in; a table, JSON or CSV out; what cannot be read is named."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

from torchcaps.cli import main
from torchcaps.config import ComposeConfig, DataConfig, LossConfig
from torchcaps.deploy.classifier import Answer, Classifier
from torchcaps.deploy.export import export_onnx
from torchcaps.deploy.many import find_pictures
from torchcaps.forms import InputForm, ScoreForm
from torchcaps.manifest import Manifest
from torchcaps.train import fit

SHOWN = 0.6  # scores in (0, 1), read as logits, are probabilities from a half on: some lie above this, and some below


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits, one on several digits at once, and a folder of pictures."""
    place = tmp_path_factory.mktemp("predict")
    fit(tiny_config(place / "runs", epochs=1, batch_size=16, data=DataConfig("digits", limit=64)))
    several = DataConfig("multimnist", compose=ComposeConfig("digits", epoch=64, held=16, single=2), image_size=12)
    loss = LossConfig("binary-cross-entropy", threshold=SHOWN)
    fit(tiny_config(place / "runs", recipe="several", epochs=1, batch_size=16, data=several, loss=loss))
    (place / "pictures" / "below").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ("a.png", "b.JPG", "below/c.bmp"):
        Image.fromarray(random.integers(0, 256, (9, 11, 3), dtype=np.uint8)).save(place / "pictures" / name)
    (place / "pictures" / "bad.png").write_bytes(b"no picture")
    (place / "pictures" / "notes.txt").write_text("no picture either")
    (place / "pictures" / ".hidden.png").write_bytes(b"")
    return place


@pytest.fixture(autouse=True)
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def test_a_folder_is_read_and_what_is_no_picture_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "runs/tiny-0", "pictures", "--json", "--top", "3"]) == 0
    printed = capsys.readouterr()
    records = json.loads(printed.out)
    assert [each["picture"] for each in records] == ["pictures/a.png", "pictures/b.JPG", "pictures/below/c.bmp"]
    for each in records:
        assert each["labels"] == [each["label"]] and each["probability"] == each["top"][0]["probability"]
        values = [one["probability"] for one in each["top"]]
        assert len(values) == 3 and values == sorted(values, reverse=True)
    assert "passed over pictures/bad.png: cannot read the image" in printed.err
    assert "1 of 4 pictures could not be read" in printed.err and "notes" not in printed.err


def test_all_forms_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["predict", "runs/tiny-0", "pictures/a.png", "pictures/b.JPG", "--batch", "1"]
    said = {}
    for form in ("--json", "--csv", ""):
        assert main([*command, *([form] if form else [])]) == 0
        said[form] = capsys.readouterr().out
    records = json.loads(said["--json"])
    rows = list(csv.DictReader(io.StringIO(said["--csv"])))
    assert list(rows[0]) == ["picture", *(f"{what}{n}" for n in ("", "_2", "_3", "_4", "_5")
                                          for what in ("label", "probability"))]  # fmt: skip
    lines = said[""].splitlines()
    assert lines[0].split() == ["picture", "class", "length"] and len(lines) == 3
    for record, row, line in zip(records, rows, lines[1:], strict=True):
        assert (row["picture"], row["label_2"]) == (record["picture"], record["top"][1]["label"])
        assert float(row["probability"]) == pytest.approx(record["probability"], abs=1e-6)
        assert line.split()[:3] == [record["picture"], record["label"], f"{record['probability']:.2f}"]
        assert "then " + record["top"][1]["label"] in line


def test_json_holds_no_number_that_is_none_and_a_table_no_formula(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("=cmd|'/c calc'!A0", "-1")
    model = {"name": "tiny", "num_classes": 2, "in_channels": 1, "image_size": (4, 4)}
    manifest = Manifest(model, names, InputForm((4, 4), 1), ScoreForm("length", "none"))
    scores = np.array([[np.nan, 0.5]], np.float32)
    runner = type("Fixed", (), {"__call__": lambda self, images: Answer(scores.repeat(len(images), 0))})()
    monkeypatch.setattr("torchcaps.deploy.load", lambda *_: Classifier(manifest, runner))
    assert main(["predict", "any", "pictures/a.png", "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert {each["label"]: each["probability"] for each in found[0]["top"]} == {names[0]: None, "-1": 0.5}
    assert main(["predict", "any", "pictures/a.png", "--csv"]) == 0
    row = next(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["label"], row["label_2"]} == {f"'{names[0]}", "-1"}


def test_a_pattern_that_no_shell_expanded_is_expanded(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "a[1].png", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    found = find_pictures([tmp_path / "*.png", tmp_path / "a[1].png", tmp_path / "no?.png"])
    assert [path.name for path in found] == ["a.png", "a[1].png", "b.png", "a[1].png", "no?.png"]


def test_pictures_that_show_several_classes_give_the_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "runs/several-0", "pictures/a.png", "--json", "--top", "10"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    above = [one["label"] for one in record["top"] if one["probability"] > SHOWN]
    assert record["labels"] == above and 0 < len(above) < 10
    assert main(["predict", "runs/several-0", "pictures/a.png", "--csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["labels"] == "|".join(above)
    assert main(["predict", "runs/several-0", "pictures/a.png"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["picture", "shows"]


def test_a_list_is_read_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("pictures/b.JPG\n\npictures/below\n"))
    assert main(["predict", "runs/tiny-0", "-", "pictures/a.png", "--json"]) == 0
    found = [each["picture"] for each in json.loads(capsys.readouterr().out)]
    assert found == ["pictures/b.JPG", "pictures/below/c.bmp", "pictures/a.png"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_names_do_not_steer_the_terminal(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "red\x1b[31m.png"
    Image.new("L", (8, 8)).save(place / name)
    bad = place / "bad\x1b[32m.png"
    bad.write_bytes(b"no picture")
    assert main(["predict", "runs/tiny-0", name, str(bad)]) == 0
    said = capsys.readouterr()
    assert "red\\x1b[31m.png" in said.out and "bad\\x1b[32m.png" in said.err and "\x1b" not in said.out + said.err
    with redirect_stdout(Terminal()) as shown:
        assert main(["predict", "runs/tiny-0", name, "--csv"]) == 0
    assert "red\\x1b[31m.png" in shown.getvalue()
    assert main(["predict", "runs/tiny-0", name, "--csv"]) == 0
    assert name in capsys.readouterr().out  # which is data, and no terminal


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of Unix")
def test_what_is_not_there_or_is_a_pipe_is_passed_over(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line of a long list ended all of it, and to open a pipe waited for ever."""
    (place / "mixed").mkdir()
    os.mkfifo(place / "mixed" / "pipe.png")
    Image.new("L", (8, 8)).save(place / "mixed" / "plain.png")
    bad = "red\x1b[31m.png"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"gone.png\nmixed\n{'n' * 300}.png\n{bad}\n"))
    (place / bad).unlink(missing_ok=True)
    assert main(["predict", "runs/tiny-0", "-", "--json"]) == 0
    printed = capsys.readouterr()
    assert [each["picture"] for each in json.loads(printed.out)] == ["mixed/plain.png"]
    assert "passed over gone.png: cannot read the image gone.png" in printed.err and "\x1b" not in printed.err
    assert "passed over mixed/pipe.png: mixed/pipe.png is a pipe" in printed.err
    assert "4 of 5 pictures could not be read" in printed.err


def test_an_exported_network_predicts_without_torch(place: Path) -> None:
    export_onnx("runs/tiny-0", "model.onnx")
    program = (
        "import sys\nfrom torchcaps.cli import main\n"
        "status = main(['predict', 'model.onnx', 'pictures/a.png', '--json'])\n"
        "sys.exit(status or ('torch' in sys.modules) * 3)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["picture"] == "pictures/a.png"


@pytest.mark.parametrize(("command", "message"), [
    ("runs/tiny-0 nothing.png", "there is no picture and no folder nothing.png"),
    ("runs/tiny-0 runs/tiny-0/best", "best holds no pictures"),
    ("runs/tiny-0", "there is no picture to look at"),
    ("runs/tiny-0 pictures/bad.png", "none of the 1 pictures could be read"),
    ("runs/tiny-0 pictures --top 0", "top is 0; it must be at least 1"),
    ("runs/tiny-0 pictures --batch 0", "batch is 0; it must be at least 1"),
    ("runs/tiny-0 pictures --json --csv", "give one of them"),
    ("runs/tiny-0 pictures --device gpu", "device is 'gpu'"),
    ("nothing pictures", "nothing"),
])  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", *command.split()]) == 2
    printed = capsys.readouterr()
    assert message in printed.err.splitlines()[-1] and printed.err.splitlines()[-1].startswith("torchcaps: error: ")


def test_names_that_the_system_s_encoding_lacks_are_whole_in_a_table_that_is_written_to_a_file(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "names").mkdir()
    shutil.copy(place / "pictures" / "a.png", place / "names" / "猫 Ж.png")
    file = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", errors="replace")
    monkeypatch.setattr("sys.stdout", file)
    assert main(["predict", "runs/tiny-0", "names", "--csv"]) == 0
    file.flush()
    (row,) = csv.DictReader(io.StringIO(file.buffer.getvalue().decode("utf-8")))
    assert Path(row["picture"]).name == "猫 Ж.png"


def test_pictures_behind_links_are_read_and_a_folder_that_cannot_be_is_said(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They had been left out without a word."""
    (place / "linked").mkdir()
    (place / "linked" / "more").symlink_to(place / "pictures" / "below", target_is_directory=True)
    (place / "linked" / "round").symlink_to(place / "linked", target_is_directory=True)
    assert main(["predict", "runs/tiny-0", "linked", "--json"]) == 0
    assert [each["picture"] for each in json.loads(capsys.readouterr().out)] == ["linked/more/c.bmp"]

    def closed(folder: str | Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("torchcaps.data.pictures.os.scandir", closed)
    assert main(["predict", "runs/tiny-0", "linked", "--json"]) == 2
    assert "cannot read the folder linked: Permission denied" in capsys.readouterr().err
