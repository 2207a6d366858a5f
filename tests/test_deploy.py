"""From a run to an answer for a new picture: by torch and ONNX Runtime, wherever the run lies, without its data."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from tiny import tiny_config

import torchcaps
from torchcaps.cli import main
from torchcaps.config import Config, DataConfig, ModelConfig, OptimiserConfig
from torchcaps.data import Images, load_data
from torchcaps.deploy import Classifier
from torchcaps.deploy.classifier import Answer
from torchcaps.deploy.export import export_onnx, export_packed, export_pt2
from torchcaps.deploy.many import predict_files
from torchcaps.deploy.onnx import OnnxRunner
from torchcaps.forms import InputForm, ScoreForm
from torchcaps.manifest import Manifest
from torchcaps.models import CapsuleHead, HeadedModel, Model
from torchcaps.train import RunFolder
from torchcaps.train import fit as fit_run

SMALL = ModelConfig("capsnet", {"channels": 8, "primary": 2, "kernel": 3, "decoder": False})
CLASSES = ("cat", "dog")
EQUAL = {"rtol": 0.0, "atol": 1e-5}


def pictures(folder: Path, colour: bool = False, size: tuple[int, int] = (12, 12)) -> Path:
    """Noise, of two classes that differ in brightness; as large as `size` (height, width)."""
    random = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for n in range(10):
            shape = (*size, 3) if colour else size
            pixels = random.integers(96 * label, 160 + 96 * label, shape).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{n}.png")
    return folder


def trained(place: Path, colour: bool = False, **data: Any) -> Path:
    """A run of a small capsule network on pictures that are gone, in a place that is another than it was trained in."""
    images = pictures(place / "images", colour)
    config = Config(
        recipe="own",
        model=SMALL,
        data=DataConfig(f"folder:{images}", **data),
        optimiser=OptimiserConfig(lr=0.01),
        epochs=4,
        batch_size=4,
        precision="fp32",
        device="cpu",
        out=place / "runs",
    )
    folder = fit_run(config).folder
    shutil.rmtree(images)
    return Path(shutil.move(folder, place / "moved"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("grey"))


@pytest.fixture(scope="module")
def colour_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Resized, padded to a square and standardised over the data set."""
    return trained(tmp_path_factory.mktemp("colour"), True, image_size=14, crop=12, standardise="dataset")


def test_a_classifier_names_what_it_says(run: Path, tmp_path: Path) -> None:
    classifier = torchcaps.load(run)
    place = pictures(tmp_path / "new")
    said = classifier([place / "cat" / "0.png", place / "dog" / "0.png"])
    assert [each.label for each in said] == ["cat", "dog"] and said[0].labels == ("cat",)
    one = said[0]
    assert one.probability == one.probabilities["cat"] == one.scores["cat"]  # of the margin loss: a length
    assert one.top(5) == [(name, one.probabilities[name]) for name in CLASSES]
    capsule = one.capsules["cat"]
    assert capsule.pose.shape == (16,) and capsule.activation == pytest.approx(one.scores["cat"], abs=1e-6)
    assert isinstance(classifier.model, Model) and not classifier.model.training
    assert classifier.classes == CLASSES and classifier.manifest.data.name == "folder:images"


def test_every_form_of_a_picture_gets_the_same_answer(colour_run: Path, tmp_path: Path) -> None:
    classifier = torchcaps.load(colour_run)
    path = pictures(tmp_path / "new", colour=True) / "dog" / "3.png"
    image = Image.open(path)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    wanted = classifier(path)
    for form in (str(path), image, array, tensor, array.astype(np.float32) / 255, tensor / 255):
        assert np.array_equal(classifier.read(form), classifier.read(path))
        same([classifier(form)], [wanted])
    for several in ([path, image, array, tensor], array[None], tensor[None]):
        same(classifier(several), [wanted] * len(several))
    same(list(classifier.predict(iter([path] * 5), batch=2)), [wanted] * 5)
    assert classifier([]) == []


@pytest.mark.parametrize(("given", "message"), [
    (3, "a int is no picture"),
    (np.zeros((3, 8, 8), np.uint8), "3x8x8 is read as height, width, channels: it has 8 channels"),
    (torch.zeros(8, 8, 3), "8x8x3 is read as channels, height, width: it has 8 channels"),
    (np.zeros((8, 8), np.int64), "int64 cannot be read: give uint8, or floats"),
    (np.full((8, 8), 1.5), "floats are 1.5 .. 1.5; they must be in"),
    (np.full((8, 8), np.nan), "must be in"),
    (np.zeros(5, np.uint8), "5 is no picture"),
    ("nowhere.png", "cannot read the image nowhere.png"),
])  # fmt: skip
def test_what_is_no_picture_is_refused(run: Path, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torchcaps.load(run)(given)


def same(one: list, other: list) -> None:
    for a, b in zip(one, other, strict=True):
        assert (a.label, a.labels) == (b.label, b.labels)
        np.testing.assert_allclose(list(a.probabilities.values()), list(b.probabilities.values()), **EQUAL)
        for name in CLASSES:
            np.testing.assert_allclose(a.capsules[name].pose, b.capsules[name].pose, **EQUAL)
            assert a.capsules[name].activation == pytest.approx(b.capsules[name].activation, abs=1e-5)


def test_weights_alone_and_onnx_answer_as_the_run(colour_run: Path, tmp_path: Path) -> None:
    images = [*(pictures(tmp_path / "new", colour=True) / "cat").iterdir()]
    wanted = torchcaps.load(colour_run)(images)
    alone = str(shutil.copy(colour_run / "best" / "model.safetensors", tmp_path / "alone.safetensors"))
    same(torchcaps.load(alone)(images), wanted)
    export_onnx(colour_run, tmp_path / "model.onnx")
    same(torchcaps.load(tmp_path / "model.onnx")(images), wanted)
    assert main(["export", alone, "--format", "pt2", "--out", str(tmp_path / "alone.pt2")]) == 0  # needs no run
    same(torchcaps.load(tmp_path / "alone.pt2", trusted=True)(images), wanted)
    with pytest.raises(ValueError, match="which has no module"):
        torchcaps.load(tmp_path / "model.onnx").model  # noqa: B018
    with pytest.raises(ValueError, match=r"device is 'cuda', but .*model.onnx is computed on the CPU"):
        torchcaps.load(tmp_path / "model.onnx", device="cuda")


def test_a_program_is_read_where_it_is_trusted(colour_run: Path, tmp_path: Path) -> None:
    images = [*(pictures(tmp_path / "new", colour=True) / "cat").iterdir()]
    export_pt2(colour_run, tmp_path / "model.pt2")
    with pytest.raises(ValueError, match="reading it can run code: where it is your own, say trusted"):
        torchcaps.load(tmp_path / "model.pt2")
    same(torchcaps.load(tmp_path / "model.pt2", trusted=True)(images), torchcaps.load(colour_run)(images))
    (tmp_path / "bad.pt2").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"bad.pt2 cannot be read by torch.export"):
        torchcaps.load(tmp_path / "bad.pt2", trusted=True)


def as_people_have_them(folder: Path) -> list[Path]:
    """One picture of each kind: grey, RGBA, turned by EXIF, of a palette, 16 bits deep, large, and of one row."""
    folder.mkdir()
    random = np.random.default_rng(1)
    noise = {name: random.integers(0, 256, shape, dtype=np.uint8) for name, shape in {
        "grey": (12, 12), "rgba": (20, 30, 4), "turned": (9, 14, 3), "palette": (12, 17), "large": (900, 1300, 3),
        "row": (1, 50, 3)}.items()}  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, pixels in noise.items():
        image = Image.fromarray(pixels)
        image = image.quantize(7) if name == "palette" else image
        image.save(folder / f"{name}.png", **({"exif": exif} if name == "turned" else {}))
    Image.fromarray(noise["grey"].astype(np.uint16) * 257).save(folder / "deep.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize(
    ("fit", "colour"),
    [
        pytest.param("stretch", "rgb", marks=pytest.mark.slow),
        ("crop", "grey"),
        pytest.param("pad", "rgb", marks=pytest.mark.slow),
    ],
)
def test_pictures_as_people_have_them_get_equal_answers_everywhere(
    fit: Literal["stretch", "crop", "pad"],
    colour: Literal["grey", "rgb"],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A folder that is trained on, torch and ONNX Runtime read them as one and the same input."""
    images = pictures(tmp_path / "images", colour=True, size=(12, 20))
    given = as_people_have_them(tmp_path / "given")
    shutil.copytree(tmp_path / "given", images / "cat", dirs_exist_ok=True)
    data = DataConfig(f"folder:{images}", image_size=12, fit=fit, colour=colour, ground="#204060")
    config = tiny_config(tmp_path / "runs", model=SMALL, epochs=1, batch_size=4, data=data)
    folder = fit_run(config).folder
    loaded, by_name = load_data(config.data), {}
    for split in (loaded.train, loaded.validation, loaded.test):
        assert isinstance(split, Images)
        by_name |= {Path(path).name: pixels for path, pixels in zip(split.paths, split.pixels, strict=True)}
    shutil.rmtree(images)
    moved = Path(shutil.move(folder, tmp_path / "elsewhere"))
    classifier = torchcaps.load(moved)
    for path in given:
        assert np.array_equal(classifier.read(path), by_name[path.name].numpy()), path.name
    if fit != "stretch":  # what computes knows nothing of it, but of colours
        export_onnx(moved, tmp_path / "model.onnx")
        wanted = classifier(given)
        same(torchcaps.load(tmp_path / "model.onnx")(given), wanted)
        for source in (moved, tmp_path / "model.onnx"):
            capsys.readouterr()
            assert main(["predict", str(source), str(tmp_path / "given"), "--json"]) == 0
            said = json.loads(capsys.readouterr().out)
            assert [(each["picture"], each["label"]) for each in said] == [
                (str(path), each.label) for path, each in zip(given, wanted, strict=True)
            ]
            for each, one in zip(said, wanted, strict=True):
                assert each["probability"] == pytest.approx(one.probability, abs=1e-5)


@pytest.mark.slow
def test_an_onnx_file_takes_the_pictures_that_it_says(run: Path, tmp_path: Path) -> None:
    written = export_onnx(run, tmp_path / "net.onnx").path
    with pytest.raises(ValueError, match=r"image is \[1, 20, 20\], but the model was created for \[1, 12, 12\]: leave"):
        export_onnx(run, tmp_path / "large.onnx", image=(1, 20, 20))
    network = onnx.load(written)
    plain = json.loads(network.metadata_props[0].value)
    plain["model"]["image_size"] = plain["input"]["size"] = [20, 20]
    network.metadata_props[0].value = json.dumps(plain)
    onnx.save(network, written)
    with pytest.raises(ValueError, match=r"its graph takes images of \[1, 12, 12\], but it says \[1, 20, 20\]"):
        torchcaps.load(written)
    with pytest.raises(ValueError, match=r"net\.onnx cannot compute images of \[1, 1, 9, 9\]: "):
        OnnxRunner(written)(np.zeros((1, 1, 9, 9), np.float32))


@pytest.mark.parametrize("export", [pytest.param(export_onnx, marks=pytest.mark.slow), export_pt2])
def test_an_export_of_one_s_own_network_answers_for_pictures(export: Callable[..., Any], tmp_path: Path) -> None:
    head = HeadedModel(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(30, 8)), CapsuleHead("dynamic", 8, 2))
    done = export(head, tmp_path / f"own.{export.__name__.rpartition('_')[2]}", image=(1, 6, 5), classes=("cat", "dog"))
    found = torchcaps.load(done.path, trusted=True)(pixels := np.full((6, 5), 128, np.uint8))
    with torch.no_grad():
        wanted = head.eval()(torch.from_numpy(pixels)[None, None] / 255).scores[0]
    torch.testing.assert_close(torch.tensor(list(found.scores.values())), wanted, rtol=0, atol=1e-5)
    assert set(found.scores) == {"cat", "dog"}
    with pytest.raises(ValueError, match="classes has 1 names, but the model has 2 classes"):
        export(head, tmp_path / "other.onnx", image=(1, 6, 5), classes=("cat",))


def test_onnx_is_used_without_torch(run: Path, tmp_path: Path) -> None:
    export_onnx(run, tmp_path / "model.onnx")
    path = pictures(tmp_path / "new") / "dog" / "0.png"
    program = (
        "import sys, torchcaps\n"
        f"said = torchcaps.load({str(tmp_path / 'model.onnx')!r})({str(path)!r})\n"
        "print(said.label, said.probability)\n"
        "print(*(name for name in ('torch', 'lightning', 'torchvision') if name in sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    (label, probability), imported = printed.splitlines()[0].split(), printed.splitlines()[1]
    wanted = torchcaps.load(run)(path)
    assert label == wanted.label and float(probability) == pytest.approx(wanted.probability, abs=1e-5)
    assert imported == ""


def test_a_packed_model_answers_as_the_run(tmp_path: Path) -> None:
    model = ModelConfig("capsnet", SMALL.options | {"routing": "xnodr"})
    config = tiny_config(tmp_path / "runs", model=model, epochs=1, batch_size=16,
                         data=DataConfig("digits", limit=64, image_size=12))  # fmt: skip
    folder = fit_run(config).folder
    export_packed(folder, tmp_path / "packed.safetensors")
    images = torch.rand(4, 1, 8, 8)
    whole, packed = torchcaps.load(folder)(images), torchcaps.load(tmp_path / "packed.safetensors")(images)
    assert [each.label for each in whole] == [each.label for each in packed]
    np.testing.assert_allclose([each.probability for each in whole], [each.probability for each in packed], **EQUAL)


class Fixed:
    """A runner of fixed scores."""

    model = None

    def __init__(self, scores: list[list[float]]):
        self.scores = np.array(scores, np.float32)

    def __call__(self, images: np.ndarray) -> Answer:
        self.images = images
        return Answer(self.scores)


def classifier_of(scores: list[list[float]], form: ScoreForm, **changes: Any) -> Classifier:
    names = tuple("abc")
    taken = InputForm((4, 4), 1, **changes)
    model = {"name": "tiny", "num_classes": 3, "in_channels": 1, "image_size": taken.image_size}
    manifest = Manifest(model, names, taken, form)
    return Classifier(manifest, Fixed(scores))  # pyright: ignore[reportArgumentType]


def test_pictures_that_show_several_classes_give_the_set() -> None:
    picture = np.zeros((4, 4), np.uint8)
    open_ended = classifier_of([[0.2, 0.9, 0.7]], ScoreForm("length", "none", 0.5, None))
    assert open_ended(picture).labels == ("b", "c") and open_ended(picture).label == "b"
    assert classifier_of([[0.1, 0.4, 0.3]], ScoreForm("length", "none", 0.5, None))(picture).labels == ()
    assert classifier_of([[0.1, 0.4, 0.3]], ScoreForm("length", "none", 0.5, 2))(picture).labels == ("b", "c")


@pytest.mark.parametrize(("form", "expected"), [
    (ScoreForm("logit", "softmax"), torch.tensor([1.0, 2.0, -1.0]).softmax(0)),
    (ScoreForm("logit", "sigmoid"), torch.tensor([1.0, 2.0, -1.0]).sigmoid()),
    (ScoreForm("length", "share"), torch.tensor([1.0, 2.0, -1.0]) / 2),
    (ScoreForm("length", "none"), torch.tensor([1.0, 1.0, 0.0])),
])  # fmt: skip
def test_scores_become_probabilities_as_the_run_says(form: ScoreForm, expected: torch.Tensor) -> None:
    said = classifier_of([[1.0, 2.0, -1.0]], form)(np.zeros((4, 4), np.uint8))
    np.testing.assert_allclose(list(said.probabilities.values()), expected.numpy(), atol=1e-6)


def test_scores_that_are_no_probabilities_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    for scores, form, said in (
        ([2.5, 3.5, 0.2], ScoreForm("logit", "none"), True),
        ([0.5, 0.9, 0.2], ScoreForm("length", "none"), False),
        ([2.5, 3.5, 0.2], ScoreForm("logit", "softmax"), False),
    ):
        monkeypatch.setattr("torchcaps.deploy.load", lambda *_, s=scores, f=form: classifier_of([s], f))
        assert main(["predict", "any", str(tmp_path)]) == 0
        printed = capsys.readouterr()
        assert " b " in printed.out
        assert ("1 of 1 pictures have scores above 1, which are read as 1" in printed.err) == said
    assert "no probabilities" in ScoreForm("logit", "none").reading


def test_scores_of_several_views_are_averaged() -> None:
    classifier = classifier_of(
        [[0.0, 1.0, 0.0]] * 5 + [[1.0, 0.0, 0.0]] * 5, ScoreForm("length", "none"), crop=2, views=10
    )
    assert classifier(np.zeros((4, 4), np.uint8)).scores == {"a": 0.5, "b": 0.5, "c": 0.0}


def test_views_count_where_memory_is_short_and_fewer_pictures_are_computed_at_one_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    form = ScoreForm("length", "none")
    monkeypatch.setattr("torchcaps.deploy.classifier.free_memory", lambda: 175)
    with pytest.raises(ValueError, match=r"one picture of 2x2 pixels, in 10 views, takes 1\.76e-07 GB"):
        classifier_of([], form, crop=2, views=10)
    monkeypatch.setattr("torchcaps.deploy.classifier.free_memory", lambda: 500)
    classifier, seen = classifier_of([[0.0, 1.0, 0.0]], form), []
    classifier._runner = lambda images: seen.append(len(images)) or Answer(np.eye(3, dtype=np.float32)[: len(images)])
    assert len(list(classifier.predict(np.zeros((5, 4, 4), np.uint8)))) == 5 and seen == [3, 2]


def test_a_tensor_of_bfloat16_is_a_picture() -> None:
    classifier = classifier_of([[0.0, 1.0, 0.0]], ScoreForm("length", "none"))
    picture = torch.rand(1, 4, 4).bfloat16()
    assert (classifier.read(picture) == classifier.read(picture.float())).all()


@pytest.mark.parametrize("data", [
    {"standardise": "image"}, {"standardise": "dataset", "image_size": 9, "crop": 8, "views": 10},
    {"pad": 15, "crop": 14}, {"standardise": "dataset", "std": (0.3,)},
    {"standardise": "image", "standardise_first": True, "pad": 15, "crop": 11, "views": 5},
    {"standardise": "image", "enlarge": 24}, {"image_size": 11, "crop": 10, "views": 5, "enlarge": 16},
    {"standardise": "channel", "crop": 7},
])  # fmt: skip
def test_a_picture_becomes_the_input_that_measuring_gives_it(data: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "runs", epochs=1, batch_size=4,
                         data=DataConfig(f"folder:{pictures(tmp_path / 'images')}", **data))  # fmt: skip
    run = RunFolder(fit_run(config).folder)
    loaded = load_data(config.data)
    split = next(iter(loaded.evaluation("test", 100).epoch(0)))[0]  # [b, c, h, w], or [b, v, c, h, w]
    assert isinstance(loaded.read.test.paths, tuple) and len(loaded.read.test.paths) == len(split)  # pyright: ignore
    classifier, seen = torchcaps.load(run.path), []
    plain = classifier._runner
    classifier._runner = lambda images: seen.append(images) or plain(images)  # pyright: ignore
    classifier(list(loaded.read.test.paths))  # pyright: ignore
    torch.testing.assert_close(torch.from_numpy(seen[0]), split.flatten(0, -4), rtol=0, atol=1e-6)


def test_a_run_of_format_1_answers_while_its_data_are_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = pictures(tmp_path / "images")
    config = tiny_config(tmp_path / "runs", epochs=1, batch_size=4,
                         data=DataConfig(f"folder:{images}", standardise="dataset"))  # fmt: skip
    run = RunFolder(fit_run(config).folder)
    wanted = torchcaps.load(run.path)(images / "dog" / "0.png")
    run.write("model.json", {"name": "tiny", "num_classes": 2, "in_channels": 1, "image_size": [12, 12]})
    assert torchcaps.load(run.path)(images / "dog" / "0.png").scores == wanted.scores
    assert "it does not say the names of the classes, mean and std of the training images" in caplog.text
    export_pt2(run.path, tmp_path / "old.pt2")  # of which the same is known
    assert torchcaps.load(tmp_path / "old.pt2", trusted=True)(images / "dog" / "0.png").label == wanted.label
    shutil.move(images, tmp_path / "gone")
    with pytest.raises(ValueError, match="cannot answer for a picture: it does not say mean and std of the training"):
        torchcaps.load(run.path)
    run.write("config.json", run.read("config.json") | {"data": {"name": f"folder:{images}"}})
    assert torchcaps.load(run.path).classes == ("0", "1")
    assert "does not say the names of the classes: they are numbers" in caplog.text


def test_what_cannot_be_loaded_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no"):
        torchcaps.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        torchcaps.load(tmp_path / "nothing.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"bad.onnx cannot be read by ONNX Runtime"):
        torchcaps.load(tmp_path / "bad.onnx")
    (tmp_path / "bad.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"bad.safetensors cannot be used"):
        torchcaps.load(tmp_path / "bad.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match="folder holds no weights"):
        torchcaps.load(tmp_path / "folder")
    with pytest.raises(ValueError, match="device is 'gpu'; it must be auto, cpu, cuda or mps"):
        torchcaps.load(run, device="gpu")


@pytest.mark.parametrize("batch", [0, -1, 1.5])
def test_a_batch_is_a_number_of_pictures(batch: Any, run: Path) -> None:
    """Not the end of the pictures before the first of them."""
    classifier = torchcaps.load(run)
    for predict in (classifier.predict, lambda pictures, batch: predict_files(classifier, pictures, batch)):
        with pytest.raises(ValueError, match=rf"batch is {batch}; it must be a whole number, at least 1"):
            predict([], batch)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_answers_in_its_own_precision(dtype: torch.dtype, run: Path) -> None:
    classifier = torchcaps.load(run)
    picture = np.zeros((8, 8), np.uint8)
    wanted = classifier(picture)
    classifier.model.to(dtype)
    found = classifier(picture)
    assert found.scores == pytest.approx(wanted.scores, abs=0.02)
