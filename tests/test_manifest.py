"""What a run holds so that its model can be used anywhere: written whole, read with care, and of older runs in part."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tiny import tiny_config

from torchcaps import create_model, list_models
from torchcaps.config import ComposeConfig, DataConfig, LossConfig
from torchcaps.data import Images, load_data
from torchcaps.data.digest import digest
from torchcaps.forms import Digest, InputForm, ScoreForm
from torchcaps.manifest import KEY, Manifest, from_json, read
from torchcaps.models import describe_model, rebuild_model
from torchcaps.models.registry import find_factory
from torchcaps.train import fit, load_run
from torchcaps.train.run import RunFolder


def pictures(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 12, side: int = 8) -> Path:
    """An image folder of grey noise, the same for the same names."""
    random = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for n in range(each):
            pixels = random.integers(0, 256, (side, side), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{n}.png")
    return folder


def config_of(tmp_path: Path, **data: Any):
    return tiny_config(tmp_path / "runs", epochs=1, batch_size=4, data=DataConfig(**data))


def digests(config: DataConfig) -> dict[str, Digest]:
    data = load_data(config)
    return {split: data.digest(split) for split in ("train", "validation", "test")}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Of pictures of eight pixels a side, padded to ten, cut to nine and standardised."""
    place = tmp_path_factory.mktemp("held")
    config = config_of(place, name=f"folder:{pictures(place / 'animals')}", pad=10, crop=9, standardise="dataset")
    return RunFolder(fit(replace(config, loss=LossConfig("cross-entropy"))).folder)


def test_a_run_holds_what_using_its_model_needs(run: RunFolder) -> None:
    held = run.read_manifest()
    assert held.model == {
        "name": "tiny", "num_classes": 2, "in_channels": 1, "image_size": (9, 9),
        "width": 4, "norm": False, "dropout": 0.0, "coefficient": True,
    }  # fmt: skip
    assert held.classes == ("cat", "dog") and held.missing == []
    data = load_data(run.read_config().data)
    assert held.input is not None and held.input.size == (8, 8) and held.input.image_size == (9, 9)
    assert held.input.mode == "L" and (held.input.pad, held.input.crop) == (10, 9)
    assert held.input.mean == tuple(data.mean.tolist()) and held.input.std == tuple(data.std.tolist())
    assert held.score == ScoreForm("logit", "softmax")
    assert held.data.name == "folder:animals"  # no path of whoever trained it
    assert {"torchcaps", "torch"} < held.versions.keys() and held.format == 2
    assert str(run.path.parent.parent) not in (run.path / "model.json").read_text()


def test_weights_say_the_same_of_themselves(run: RunFolder) -> None:
    for folder in (run.best, run.last):
        with safe_open(folder / "model.safetensors", "pt") as file:
            assert from_json(file.metadata()[KEY]) == run.read_manifest()


def test_digests_stay_where_pictures_move_and_change_with_them(run: RunFolder, tmp_path: Path) -> None:
    held = run.read_manifest().data
    assert (held.train.images, held.validation.images, held.test.images) == (17, 2, 5)
    assert held.train.of == "files" and held.train.sha256 != held.test.sha256
    moved = pictures(tmp_path / "elsewhere")

    def found(**changes: Any) -> dict:
        return digests(replace(run.read_config().data, name=f"folder:{moved}", **changes))

    assert found() == {name: getattr(held, name) for name in ("train", "validation", "test")}
    assert found(pad=None, crop=None, image_size=9)["train"] == held.train  # before they are resized
    picture = moved / "cat" / "0.png"
    Image.fromarray(255 - np.asarray(Image.open(picture))).save(picture)
    assert sum(one != getattr(held, name) for name, one in found().items()) == 1
    shutil.move(moved / "dog", moved / "hound")
    assert all(one != getattr(held, name) for name, one in found().items())


def test_digest_of_large_files_is_of_paths_and_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data(DataConfig(f"folder:{pictures(tmp_path / 'p')}"))
    assert isinstance(data.train, Images)
    monkeypatch.setattr("torchcaps.data.digest.LIMIT", 1000)
    assert data.digest("train").of == "paths and sizes"
    whole = data.digest("train")
    os.utime(data.train.paths[0])
    assert digest(data.train) == whole
    with open(data.train.paths[0], "ab") as file:
        file.write(b"0")
    assert digest(data.train) != whole


def test_digest_of_arrays_and_of_composed_images() -> None:
    pixels, labels = torch.arange(32, dtype=torch.uint8).view(2, 1, 4, 4), torch.tensor([0, 1])
    one = digest(Images(pixels, labels, ("a", "b")))
    assert one == digest(Images(pixels.clone(), labels, ("a", "b"))) and one.of == "arrays" and one.images == 2
    others = [(pixels.view(2, 1, 2, 8), labels, ("a", "b")), (pixels, labels.flip(0), ("a", "b"))]
    others += [(pixels + 1, labels, ("a", "b")), (pixels, labels, ("a", "c"))]
    assert all(digest(Images(*other)) != one for other in others)
    assert digest(Images(pixels[:0], labels[:0], ("a", "b"))).sha256 == ""
    compose = ComposeConfig("digits", epoch=64, held=16)
    streams = [
        digests(DataConfig("multimnist", compose=settings, image_size=size))
        for settings, size in ((compose, None), (compose, 20), (replace(compose, seed=1), None))
    ]
    assert streams[0] == streams[1] and streams[0]["train"] != streams[2]["train"]
    assert streams[0]["train"].of == "a stream" and streams[0]["train"] != streams[0]["test"]


def test_every_option_of_every_model_is_written_down() -> None:
    shape = {"num_classes": 10, "in_channels": 3, "image_size": (32, 32)}
    for name in list_models():
        described = describe_model({"name": name, **shape})
        held = Manifest(described)
        assert from_json(held.to_json()) == held
        accepted = inspect.signature(find_factory(name)).parameters.keys() - {"routing_options"}
        assert {"name", *accepted} == {key for key in described if not key.startswith("routing_")}


BUILT = ["capsnet", "fm-capsnet", "small-resnet.em", "test_efficientnet.xnodr", "em-simple-cifar10"]


@pytest.mark.parametrize("name", BUILT)
def test_what_is_written_down_builds_the_same_model(name: str) -> None:
    model = create_model(name, num_classes=3, in_channels=3, image_size=32)
    assert model.origin is not None
    held = Manifest(describe_model(model.origin))
    again = rebuild_model(from_json(held.to_json()).origin)
    shapes, found = ({key: value.shape for key, value in each.state_dict().items()} for each in (model, again))
    assert shapes == found and str(again) == str(model)


def test_options_of_a_routing_are_options_of_its_model() -> None:
    model = create_model("small-resnet.em", num_classes=2, in_channels=1, image_size=16, routing_growth=0.5)
    assert model.origin is not None
    described = describe_model(model.origin)
    assert described["routing_growth"] == 0.5 and described["routing_temperature"] == 0.01
    by_dictionary = {**model.origin, "routing_options": {"growth": 0.5}}
    del by_dictionary["routing_growth"]
    assert describe_model(by_dictionary) == described


def test_options_that_were_given_stand_before_defaults() -> None:
    model = create_model("capsnet", channels=8, primary=2, kernel=3, image_size=10, decoder=False)
    assert model.origin is not None
    described = describe_model(model.origin)
    assert described["channels"] == 8 and described["routing"] == "dynamic" and described["iterations"] == 3
    again = create_model(**described)
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }
    assert model.origin.keys() == {"name", "num_classes", "in_channels", "image_size", "channels", "primary", "kernel",
                                   "decoder"}  # fmt: skip


def test_a_run_of_format_1_loads_and_says_what_it_lacks(tmp_path: Path) -> None:
    config = config_of(tmp_path, name="digits", limit=16, standardise="dataset", image_size=10)
    run = RunFolder(fit(config).folder)
    model, _ = load_run(run.path)
    flat = {"name": "tiny", "num_classes": 10, "in_channels": 1, "image_size": [10, 10]}
    run.write("model.json", flat)
    held = run.read_manifest()
    assert held.format == 1 and held.classes == tuple("0123456789")  # which the named set gives
    assert held.input == InputForm((10, 10), 1, standardise="dataset")
    assert held.score == ScoreForm("length", "none")
    assert held.missing == ["mean and std of the training images", "digests of the splits"]
    images = torch.rand(3, 1, 10, 10)
    again, _ = load_run(run.path)
    torch.testing.assert_close(again(images).scores, model(images).scores)


PLAIN: dict[str, Any] = {
    "model": {"name": "tiny", "num_classes": 2, "in_channels": 1, "image_size": [8, 8]},
    "classes": ["a", "b"],
    "input": {"size": [8, 8], "channels": 1},
    "score": {"kind": "length", "to_probability": "none"},
    "format": 2,
}
WRONG: dict[str, tuple[str, Any, str]] = {  # part, what stands there, what is said of it
    "path": ("model.name", "../../tiny", "must be one of `torchcaps list models`"),
    "address": ("model.name", "hf-hub:owner/name.dynamic", "must be one of"),
    "no-name": ("model.name", None, "must be one of"),
    "keyword": ("model.__class__", 1, "which no model has"),
    "nested": ("model.width", {"a": 1}, "width is {'a': 1}; it must be a number"),
    "nested-2": ("model.width", [[1]], "it must be a number"),
    "infinite": ("model.width", 1e999, "must be finite"),
    "long": ("model.width", "x" * 5000, "has 5000 characters"),
    "classes": ("model.num_classes", 3, "classes has 2 names, but the model has 3"),
    "many": ("model.num_classes", 10**9, "must be a whole number, 1 .. 65536"),
    "size": ("model.image_size", [8], "must be height and width"),
    "huge": ("input.size", [8, 10**7], "must be a whole number, 1 .. 65536"),
    "other-size": ("input.size", [8, 9], "the model takes image_size (8, 8), but input gives (8, 9)"),
    "truth": ("input.channels", True, "channels is True; it must be int"),
    "fit": ("input.fit", "melt", "fit is 'melt'; it must be 'stretch', 'crop' or 'pad'"),
    "crop": ("input.crop", 9, "input.crop is 9; it must be at most 8"),
    "pad": ("input.pad", 7, "input.pad is 7; it must be at least 8"),
    "enlarge": ("input.enlarge", 7, "input.enlarge is 7; it must be at least 8"),
    "range": ("input.range", [0.0, 255.0], "only [0, 1] is known"),
    "mean": ("input.mean", [0.5, 0.5], "must be a number a channel (1)"),
    "std": ("input.std", [0.0], "must be above 0"),
    "unknown": ("input.code", "import os", "InputForm has no code"),
    "unknown-2": ("code", "import os", "Manifest has no code"),
    "shown": ("score.shown", 3, "score.shown is 3, but the model has 2 classes"),
    "kind": ("score.kind", "odds", "kind is 'odds'; it must be"),
    "digest": ("data", {"train": {"sha256": "0x"}}, "must be 64 digits of base 16"),
    "later": ("format", 3, "its format is '3', and this torchcaps reads 1 and 2: update it"),
    "no-model": ("model", 5, "does not say what its model is"),
    "names": ("classes", ["a", 1], "classes is ('a', 1)"),
    "twice": ("classes", ["cat", "cat"], "two classes are called 'cat': rename one of them"),
    "rounds": ("model.iterations", 10**15, "iterations of the model is 1000000000000000; it must be at most 1000"),
    "count": ("model.blocks", 10**6, "blocks of the model is 1000000; it must be at most 65536"),
    "counts": ("model.blocks", [8, -(10**6)], "it must be at most 65536"),
    "endless": ("model.hidden", [1] * 1001, "hidden of the model has 1,001 values; it may have 1,000"),
    "no-size": ("model", {"name": "tiny", "num_classes": 2}, "it does not say in_channels, image_size of its model"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_a_stranger_wrote_is_refused_in_one_line(name: str) -> None:
    place, value, message = WRONG[name]
    plain = json.loads(json.dumps(PLAIN))
    read(plain)
    part, _, leaf = place.rpartition(".")
    (plain[part] if part else plain)[leaf] = value
    with pytest.raises(ValueError) as caught:
        read(plain)
    assert message in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "{", '"a"'])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        from_json(text)
