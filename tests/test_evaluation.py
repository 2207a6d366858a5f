"""`torchcaps evaluate`: measures by class, and data that are not, or no longer, those of the run."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_config
from torch import Tensor

import torchcaps
from torchcaps.cli import main
from torchcaps.config import ComposeConfig, DataConfig, LossConfig, OptimiserConfig
from torchcaps.data import Data, Images, load_data
from torchcaps.data.classes import with_classes
from torchcaps.inspect import evaluation
from torchcaps.inspect.evaluation import evaluate_run
from torchcaps.inspect.measured import Watch, measure
from torchcaps.inspect.measures import describe_measured
from torchcaps.models import Model, Output
from torchcaps.tables import drawings
from torchcaps.train import RunFolder, evaluate, fit
from torchcaps.train.processes import build_fabric, name_shortage

CLASSES = ("bee", "cat", "dog")


def pictures(
    folder: Path, classes: tuple[str, ...] = CLASSES, colour: bool = False, side: int = 8, seed: int = 0
) -> Path:
    """Twenty pictures of each class, which is told by where a picture is bright."""
    random = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for n in range(20):
            pixels = random.integers(0, 60, (side, side), dtype=np.uint8)
            third = side // 3
            pixels[:, CLASSES.index(name) * third :][:, :third] += 190
            image = Image.fromarray(pixels)
            (image.convert("RGB") if colour else image).save(folder / name / f"{n}.png")
    return folder


class Corner(Model):
    """Two scores that each view has its own of."""

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        pixels = images.flatten(1)
        return Output(torch.stack([pixels[:, 0], pixels.mean(1)], 1), (), {})


@pytest.mark.parametrize("views", [5, 10])
def test_scores_of_several_views_are_averaged(views: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (9, 1, 8, 8), dtype=torch.uint8, generator=generator)
    images = Images(pixels, torch.arange(9) % 2, ("a", "b"))
    batches = Data(images, images, images, crop=5, views=views).evaluation("test", 4)
    model, seen = Corner(), []
    fabric, loss = build_fabric(tiny_config(Path())), LossConfig("cross-entropy")
    evaluate(fabric, model, batches, loss, 2, watch=lambda scores, _: seen.append(scores))
    wanted = torch.cat([sum(model(view).scores for view in shown.unbind(1)) / views for shown, _ in batches.epoch(0)])
    torch.testing.assert_close(torch.cat(seen), wanted)
    torch.testing.assert_close(measure(fabric, model, batches, loss).scores, wanted)
    assert not torch.allclose(wanted, torch.cat([model(shown[:, 0]).scores for shown, _ in batches.epoch(0)]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that is right of all its pictures, and their folder."""
    place = tmp_path_factory.mktemp("evaluate")
    images = pictures(place / "images")
    config = tiny_config(place / "runs", {"width": 8}, epochs=8, batch_size=8, optimiser=OptimiserConfig(lr=0.02),
                         data=DataConfig(f"folder:{images}", standardise="dataset"))  # fmt: skip
    return Path(fit(config).folder), images


@pytest.fixture
def run(trained: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of both."""
    run, images = (Path(shutil.copytree(each, tmp_path / each.name)) for each in trained)
    plain = json.loads((run / "config.json").read_text())
    plain["data"]["name"] = f"folder:{images}"
    (run / "config.json").write_text(json.dumps(plain))
    return run, images


def test_a_run_in_fp16_is_measured_in_fp32_where_there_is_no_gpu(
    run: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = run
    plain = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(plain | {"precision": "fp32"}))
    expected = evaluate_run(folder, device="cpu").score
    (folder / "config.json").write_text(json.dumps(plain | {"precision": "fp16"}))
    assert "fp16" not in caplog.text and evaluate_run(folder, device="cpu").score == expected
    assert "the run was trained in fp16, which a CPU does not have: it is measured in fp32" in caplog.text
    with pytest.raises(ValueError, match="precision is 'fp16', but device is 'cpu'"):
        build_fabric(RunFolder(folder).read_config())
    others = [path.name for path in Path(torchcaps.__file__).parent.rglob("*.py") if "build_fabric(replace(" in
              path.read_text("utf-8")]  # fmt: skip
    assert not others  # each measures a run by the one function


def test_too_little_memory_to_measure_names_another_device(
    run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(evaluation, "evaluate", fail)
    with pytest.raises(MemoryError, match="cpu has too little memory for batch_size 8: a machine that has more"):
        evaluate_run(run[0], device="cpu")
    config = RunFolder(run[0]).read_config()
    with pytest.raises(MemoryError, match=r"try --device cpu$"), name_shortage(config, torch.device("cuda"), True):
        fail()


def test_pictures_of_a_table_are_standardised_as_the_run_s_were(
    run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = run
    shown: list[torch.Tensor] = []
    monkeypatch.setattr(drawings, "draw_inputs_and_outputs", lambda model, groups: shown.extend(groups.values()))
    drawings.draw_picture("reconstructions", folder)
    plain = json.loads((folder / "model.json").read_text())
    plain["input"]["mean"] = [plain["input"]["mean"][0] + plain["input"]["std"][0]]
    (folder / "model.json").write_text(json.dumps(plain))
    drawings.draw_picture("reconstructions", folder)
    torch.testing.assert_close(shown[1], shown[0] - 1)


def said(capsys: pytest.CaptureFixture[str], *command: str | Path) -> tuple[dict, str]:
    assert main(["evaluate", *map(str, command), "--json"]) == 0
    printed = capsys.readouterr()
    return json.loads(printed.out), printed.err


def test_measures_are_those_of_the_run(
    run: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    record, err = said(capsys, run[0], "--out", tmp_path / "measures")
    result = json.loads((run[0] / "result.json").read_text())
    assert (record["accuracy"], record["images"], record["of_run"]) == (1.0, 12, True)
    assert record["accuracy"] == result["test_accuracy"] and "not those of the run" not in err
    assert record["by_class"] == [{"class": name, "images": 4, "found": 4, "accuracy": 1.0} for name in CLASSES]
    assert record["top"] == {"1": 1.0, "2": 1.0} and record["confused"] == []
    assert sum(each["images"] for each in record["calibration"]["bins"]) == 12
    assert json.loads((tmp_path / "measures" / "evaluation.json").read_text()) == record
    with (tmp_path / "measures" / "confusion.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["shown", *CLASSES], ["bee", "4", "0", "0"], ["cat", "0", "4", "0"],
                                          ["dog", "0", "0", "4"]]  # fmt: skip
    assert (tmp_path / "measures" / "top-k.csv").read_text() == "k,accuracy\n1,1.0\n2,1.0\n"


def test_renamed_classes_are_an_error_that_shows_both_lists(
    run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """They were counted by their place before: 0% where 100% was right."""
    folder, images = run
    shutil.move(images / "bee", images / "wasp")
    assert main(["evaluate", str(folder)]) == 2
    shown = capsys.readouterr().err
    assert "the classes [cat, dog, wasp], and the model [bee, cat, dog]: 'wasp' is none of the model's" in shown


def test_that_an_older_run_does_not_know_its_classes_is_said(
    run: tuple[Path, Path], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Renamed ones cannot be noticed there."""
    folder, images = run
    held = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(held["model"]))
    shutil.move(images / "bee", images / "wasp")
    record, _ = said(capsys, folder)
    assert "does not say the names of its classes: those of the data are taken in their order" in caplog.text
    assert record["accuracy"] < 0.5 and record["of_run"] is None


def test_changed_pictures_are_said_and_moved_ones_are_not(
    run: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, images = run
    moved = shutil.move(images, tmp_path / "elsewhere")
    plain = json.loads((folder / "config.json").read_text())
    plain["data"]["name"] = f"folder:{moved}"
    (folder / "config.json").write_text(json.dumps(plain))
    record, err = said(capsys, folder)
    assert record["of_run"] is True and err == ""
    again = shutil.copytree(moved, tmp_path / "again")
    record = said(capsys, folder, "--data.name", f"folder:{again}")[0]  # wherever they lie, the test split is measured
    assert record["of_run"] is True and record["split"] == "test"
    record, err = said(capsys, folder, "--data.limit", "6")
    assert record["of_run"] is False and "not those of the run: they were changed since, or these flags choose" in err
    for n in range(20):
        Image.new("L", (8, 8), n).save(Path(moved) / "cat" / f"{n}.png")
    record, err = said(capsys, folder)
    assert record["of_run"] is False and "the test images are not those of the run" in err
    assert record["by_class"][1]["found"] < 4


def test_other_data_are_matched_by_name_and_read_as_the_run_reads(
    run: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """In colour, larger, with one class missing: labels 0 and 1 there are 0 and 2 here."""
    other = pictures(tmp_path / "other", ("bee", "dog"), colour=True, side=16, seed=1)
    record, _ = said(capsys, run[0], "--data.name", f"folder:{other}", "--split", "all")
    assert (record["images"], record["of_run"], record["split"]) == (40, False, "all")
    found = {each["class"]: (each["images"], each["found"]) for each in record["by_class"]}
    assert found["cat"] == (0, 0) and found["bee"][0] == found["dog"][0] == 20
    assert record["accuracy"] >= 0.95
    shutil.move(other / "dog", other / "cow")
    assert main(["evaluate", str(run[0]), "--data.name", f"folder:{other}"]) == 2
    assert "'cow' is none of the model's" in capsys.readouterr().err


def test_other_pictures_are_measured_all_unless_some_are_their_test_split(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fifth, which would be drawn to train on the rest, had been measured without a word."""
    other = pictures(tmp_path / "other", ("bee", "dog"), colour=True, side=16, seed=1)
    record, _ = said(capsys, run[0], "--data.name", f"folder:{other}")
    assert (record["images"], record["split"]) == (40, "all")
    rows = [f"{path.relative_to(tmp_path)},{path.parent.name}\n" for path in sorted(other.rglob("*.png"))]
    (tmp_path / "other.csv").write_text("path,label\n" + "".join(rows))
    record, _ = said(capsys, run[0], "--data.name", f"list:{tmp_path / 'other.csv'}")
    assert (record["images"], record["split"]) == (40, "all")
    (tmp_path / "parted" / "test").mkdir(parents=True)
    shutil.copytree(other, tmp_path / "parted" / "train")
    for name in ("bee", "dog"):
        (tmp_path / "parted" / "test" / name).mkdir()
        shutil.copy(other / name / "0.png", tmp_path / "parted" / "test" / name)
    record, _ = said(capsys, run[0], "--data.name", f"folder:{tmp_path / 'parted'}")
    assert (record["images"], record["split"]) == (2, "test")


def test_a_run_of_pictures_that_are_no_squares_reads_others_as_it_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the height and width that were given, or that its pictures had."""
    random = np.random.default_rng(0)
    for folder, height, width in (("own", 12, 20), ("other", 24, 50)):
        for label, name in enumerate(("dark", "light")):
            (tmp_path / folder / name).mkdir(parents=True)
            for n in range(12):
                pixels = random.integers(120 * label, 120 + 120 * label, (height, width), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / folder / name / f"{n}.png")
    for name, size, expected in (("as they are", None, (12, 20)), ("given", (8, 16), (8, 16))):
        data = DataConfig(f"folder:{tmp_path / 'own'}", image_size=size)
        run = fit(tiny_config(tmp_path / name, {"width": 8}, data=data, epochs=2, batch_size=4)).folder
        assert RunFolder(run).read_config().data == data and RunFolder(run).read_manifest().input.size == expected
        found, _ = said(capsys, run, "--data.name", f"folder:{tmp_path / 'other'}")
        assert (found["images"], found["split"]) == (24, "all")
        assert main(["predict", str(run), str(tmp_path / "other" / "dark" / "0.png")]) == 0
        assert "0.png" in capsys.readouterr().out


def test_other_data_are_standardised_as_the_run_s_were(run: tuple[Path, Path], tmp_path: Path) -> None:
    dark = pictures(tmp_path / "dark")
    for path in dark.rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(path)) // 4).save(path)
    one = evaluate_run(run[0], DataConfig(f"folder:{dark}", standardise="dataset"), "all", "cpu")
    own = evaluate_run(run[0], split="all", device="cpu")
    assert one.score.loss != pytest.approx(own.score.loss, rel=0.1)  # by their own mean and std they would be equal


@pytest.mark.parametrize(("flags", "message"), [
    (["--split", "some"], "split"),
    (["--data.name", "digits"], "the classes [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], and the model [bee, cat, dog]"),
    (["--data.nme", "digits"], "--data.nme"),
])  # fmt: skip
def test_what_is_wrong_is_said(
    run: tuple[Path, Path], flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run[0]), *flags]) == 2
    assert message in capsys.readouterr().err


def test_labels_and_label_sets_are_moved_to_the_classes_of_the_model() -> None:
    pixels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    one = with_classes(Images(pixels, torch.tensor([0, 1, 0]), ("c", "a")), ("a", "b", "c"))
    assert one.labels.tolist() == [2, 0, 2] and one.classes == ("a", "b", "c")
    sets = torch.tensor([[1, 0], [1, 1], [0, 1]], dtype=torch.uint8)
    several = with_classes(Images(pixels, sets, ("c", "a")), ("a", "b", "c"))
    assert several.labels.tolist() == [[0, 0, 1], [1, 0, 1], [1, 0, 0]]
    digits = load_data(DataConfig("multimnist", compose=ComposeConfig("digits", epoch=8, held=8))).train
    names = ("x", *digits.classes)
    indices = torch.arange(8)
    assert torch.equal(with_classes(digits, names).targets(indices)[:, 1:], digits.targets(indices))


def test_measures_by_hand() -> None:
    watch = Watch(LossConfig("margin"))
    watch(torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.7, 0.6]]), torch.tensor([0, 2]))
    watch(torch.tensor([[0.5, 0.4, 0.3]]), torch.tensor([2]))
    record = describe_measured(watch.measured(), ("a", "b", "c"), "test", 3)
    assert record["accuracy"] == pytest.approx(1 / 3)
    assert record["top"] == pytest.approx({"1": 1 / 3, "2": 2 / 3})  # of three classes the third says nothing
    assert [(each["images"], each["found"], each["accuracy"]) for each in record["by_class"]] == [
        (1, 1, 1.0), (0, 0, None), (2, 0, 0.0)]  # fmt: skip
    assert record["confused"] == [{"shown": "c", "taken_for": "a", "images": 1},
                                  {"shown": "c", "taken_for": "b", "images": 1}]  # fmt: skip
    assert record["calibration"]["error"] == pytest.approx((0.1 + 0.7 + 0.5) / 3)


def test_of_other_data_the_run_s_own_choice_of_images_counts_for_nothing(
    run: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The run's test set, share and limit had been taken of the others, and of two nothing could be held out."""
    plain = json.loads((run[0] / "config.json").read_text())
    plain["data"] |= {"test": f"folder:{run[1]}", "fraction": 0.5, "limit": 6}
    (run[0] / "config.json").write_text(json.dumps(plain))
    other = pictures(tmp_path / "other", ("bee", "dog"), seed=1)
    record, _ = said(capsys, run[0], "--data.name", f"folder:{other}")
    assert (record["images"], record["split"]) == (40, "all")
    record, _ = said(capsys, run[0], "--data.name", f"folder:{other}", "--data.limit", "6")
    assert record["images"] < 20
    for name in ("bee", "dog"):
        for n in range(1, 20):
            (other / name / f"{n}.png").unlink()
    record, _ = said(capsys, run[0], "--data.name", f"folder:{other}")
    assert (record["images"], record["split"]) == (2, "all")


def test_what_a_network_that_says_nothing_ranks_first_is_what_it_predicts() -> None:
    """Equal scores had put each class among the first, and so had scores that are no numbers."""
    for scores in (torch.zeros(10, 10), torch.full((10, 10), torch.nan)):
        watch = Watch(LossConfig("cross-entropy"))
        watch(scores, torch.arange(10))
        measured = watch.measured()
        record = describe_measured(measured, list("abcdefghij"), "test", 10)
        assert record["top"]["1"] == (record["accuracy"] if scores.isfinite().all() else 0.0)
        assert record["top"]["5"] == (0.5 if scores.isfinite().all() else 0.0)
