"""`fit` with a module, tensors, a Dataset or DataLoaders of the user's own, and loggers."""

from __future__ import annotations

import csv
import json
import random
import signal
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_config
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate

import torchcaps
from torchcaps.cli import main, reporting
from torchcaps.config import AugmentConfig, Config, DataConfig, LossConfig
from torchcaps.cost import measure_cost
from torchcaps.data.digest import digest
from torchcaps.data.given import given_data
from torchcaps.deploy.export import export_pt2
from torchcaps.models import Output, create_model
from torchcaps.papers import registry
from torchcaps.train import Callback, Interrupted, RunFolder, fit, load_run
from torchcaps.train.loggers import Logged, flatten

GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.arange(60) % 3
FLOATS = torch.randn(60, 2, 6, 5, generator=GENERATOR) + LABELS[:, None, None, None]
BYTES = torch.randint(0, 255, (60, 1, 6, 6), generator=GENERATOR, dtype=torch.uint8) // 4 + 60 * LABELS[
    :, None, None, None
].to(torch.uint8)


class Net(nn.Module):
    def __init__(self, size: int = 60, classes: int = 3):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(size, 8), nn.ReLU(), nn.Linear(8, classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Pairs(Dataset[Any]):
    """Items as torchvision gives them, with the names of the classes."""

    classes = ("low", "middle", "high")

    def __init__(self, images: Any, labels: Tensor):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return self.images[row], int(self.labels[row])


def own_config(out: Path, **changes: Any) -> Config:
    """A recipe for logits, of two epochs of four batches."""
    return tiny_config(out, **({"loss": LossConfig("cross-entropy"), "batch_size": 10} | changes))


def test_a_module_and_tensors_of_floats(tmp_path: Path) -> None:
    module = Net()
    result = fit(own_config(tmp_path), model=module, data=(FLOATS, LABELS))
    run = RunFolder(result.folder)
    config, manifest = run.read_config(), run.read_manifest()
    assert (config.model.name, config.data.name) == ("external", "external")
    assert manifest.model == {"name": "external", "num_classes": 3, "in_channels": 2, "image_size": (6, 5)}
    assert manifest.input is None and manifest.data.train.of == "arrays"
    assert result.test_images == 12 and len(manifest.data.train.sha256) == 64
    with pytest.raises(
        ValueError, match=r"handed to fit: in Python, give it again, as torchcaps\.load\('.*model=\.\.\."
    ):
        load_run(result.folder)
    loaded, _ = load_run(result.folder, Net())
    trained = module.eval()(FLOATS)  # the module has the selected weights
    assert torch.equal(loaded(FLOATS).scores, trained)
    with pytest.raises(ValueError, match="is damaged or not of this run"):
        load_run(result.folder, Net(classes=4))
    assert main(["evaluate", str(result.folder)]) == 2
    again = fit(own_config(tmp_path), model=Net(), data=(FLOATS, LABELS), start=result.folder)
    assert RunFolder(again.folder).read_config().start.startswith("tiny-0 ")
    with pytest.raises(ValueError, match=r"model\.name is 'external': fit needs the model itself again"):
        fit(config)


def test_pictures_in_tensors_are_changed_as_any_are_and_the_run_answers_for_new_ones(tmp_path: Path) -> None:
    config = own_config(
        tmp_path, data=DataConfig(standardise="dataset", image_size=8, augment=AugmentConfig(shift=1, brightness=0.1))
    )
    result = fit(config, model=Net(64), data={"train": (BYTES, LABELS), "test": (BYTES[:9], LABELS[:9])})
    assert result.test_images == 9
    classifier = torchcaps.load(result.folder, model=Net(64))
    assert classifier(BYTES[0, 0].numpy()).label in ("0", "1", "2") and classifier.input.image_size == (8, 8)
    with pytest.raises(ValueError, match="give it again"):
        torchcaps.load(result.folder)
    named = fit(
        tiny_config(tmp_path / "named", batch_size=16), data=(BYTES, LABELS)
    )  # a registered model needs no module again
    assert load_run(named.folder)[1].data.name == "external"
    assert main(["evaluate", str(named.folder)]) == 2


def test_a_dataset_is_split_and_its_classes_have_their_names(tmp_path: Path) -> None:
    arrays = [np.repeat(image.permute(1, 2, 0).numpy(), 3, 2) for image in BYTES]
    data = given_data(Pairs(arrays, LABELS), DataConfig(validation=0.25))
    assert data.train.classes == ("low", "middle", "high") and data.train.shape == (3, 6, 6)
    assert [len(each) for each in (data.train, data.validation, data.test)] == [36, 12, 12]
    images, labels = next(iter(data.training(DataConfig(), 12, seed=0).epoch(0)))
    assert images.dtype == torch.float32 and images.max() <= 1 and labels.dtype == torch.int64
    assert digest(data.train).images == 36 and not digest(data.train).sha256
    result = fit(own_config(tmp_path), model=Net(), data=Pairs(FLOATS, LABELS))
    assert RunFolder(result.folder).read_manifest().classes == Pairs.classes
    tensors = fit(own_config(tmp_path / "b"), model=Net(), data=TensorDataset(FLOATS, LABELS))
    assert RunFolder(tensors.folder).read_manifest().data.train.sha256


def test_a_dataset_and_its_tensors_give_the_same_batches() -> None:
    config = DataConfig(standardise="dataset", augment=AugmentConfig(flip=True, shift=1))
    both = [given_data(each, config) for each in ((FLOATS, LABELS), Pairs(FLOATS, LABELS))]
    first, second = (next(iter(each.training(config, 8, seed=3).epoch(1))) for each in both)
    torch.testing.assert_close(first[0], second[0])
    assert torch.equal(first[1], second[1])
    torch.testing.assert_close(both[0].mean, both[0].train.fetch(torch.arange(len(both[0].train))).mean((0, 2, 3)))


class Named(Pairs):
    classes = ("middle", "high", "low")


class Noisy(Pairs):
    """Items that random transforms have changed, as torchvision's do: by the generators that all share."""

    def __getitem__(self, row: int) -> tuple[Any, int]:
        drawn = torch.rand(1).item(), np.random.rand(), random.random()
        return self.images[row] + torch.tensor(drawn).sum() * torch.ones(6, 5), int(self.labels[row])


def drawn_now() -> tuple[float, float, float]:
    return torch.rand(1).item(), np.random.rand(), random.random()


def test_what_a_dataset_draws_depends_on_seed_epoch_and_place_alone() -> None:
    config = DataConfig(validation=0.0)
    data = given_data({"train": Noisy(FLOATS, LABELS), "test": Noisy(FLOATS, LABELS)}, config)

    def read(epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> list[Tensor]:
        images = []
        for each, _ in data.training(config, 10, 3, rank, world).epoch(epoch, start):
            images.append(each)
            drawn_now()  # as a step with dropout does
        return images

    drawn_now()
    first, other = read(1), read(2)
    assert all(map(torch.equal, read(1, 4), first[4:])) and not torch.equal(first[0].sort().values, other[0])
    halves = zip(read(1, rank=0, world=2), read(1, rank=1, world=2), strict=True)
    assert all(torch.equal(torch.cat(both), one) for both, one in zip(halves, first, strict=True))
    noise = torch.cat(first) - FLOATS[data.training(config, 10, 3)._order(1)]
    assert len(noise.mean((1, 2, 3)).unique()) == 60
    tested = [torch.cat([each for each, _ in data.evaluation("test", size).epoch(0)]) for size in (7, 60)]
    assert torch.equal(*tested) and torch.equal(data.test.fetch(torch.arange(60)), tested[0])


@pytest.mark.parametrize("how", ["dataset", "loader"])
def test_the_caller_draws_what_he_would_have_drawn(how: str) -> None:
    def seed() -> None:
        torch.manual_seed(5)
        np.random.seed(5)
        random.seed(5)

    seed()
    expected = drawn_now(), drawn_now(), drawn_now()
    seed()
    noisy: Any = Noisy(FLOATS, LABELS)
    part = noisy if how == "dataset" else DataLoader(noisy, 16, shuffle=True)
    config = DataConfig(validation=0.0)
    data = given_data({"train": part, "test": part}, config)
    first = drawn_now()
    batches = data.training(config, 16, 0).epoch(0)
    next(batches)
    second = drawn_now()
    for left in (batches, data.evaluation("test", 16).epoch(0)):
        list(left)
    assert (first, second, drawn_now()) == expected


class Interrupting(Callback):
    """Presses Ctrl-C so early in a step that the run stops after it."""

    def __init__(self, step: int):
        self.step = step

    def on_step(self, step: int, loss: float, accuracy: float) -> None:
        if step == self.step - 1:  # which is told while the next step is under way
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("how", ["dataset", "loader"])
def test_a_run_on_items_that_are_drawn_is_the_same_again_and_when_it_was_cut(tmp_path: Path, how: str) -> None:
    torch.manual_seed(1)
    first = Net().state_dict()
    noisy: Any = Noisy(FLOATS, LABELS)
    data = dict.fromkeys(("train", "validation", "test"), noisy if how == "dataset" else DataLoader(noisy, 16, True))

    def run(name: str, **more: Any) -> Any:
        net = nn.Sequential(nn.Dropout(0.2), Net())
        net[1].load_state_dict(first)
        fit(own_config(tmp_path / name, epochs=3), model=net, data=data, **more)
        return list(net.parameters())

    whole = run("whole")
    drawn_now()
    assert all(map(torch.equal, run("again"), whole))
    for number, step in enumerate((2, 6)):  # in the first epoch and in the second
        with pytest.raises(Interrupted, match=f"after step {step} of"):
            run("cut", resume=bool(number), callbacks=[Interrupting(step)])
        drawn_now()
    assert all(map(torch.equal, run("cut", resume=True), whole))


def test_of_a_loader_that_is_read_no_batch_stays_but_the_last() -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def collate(items: list[Any]) -> tuple[Tensor, Tensor]:
        nonlocal most
        images, labels = default_collate(items)
        alive.append(weakref.ref(images))
        most = max(most, sum(each() is not None for each in alive))
        return images, labels

    part: Any = DataLoader(Pairs(FLOATS, LABELS), 4, collate_fn=collate)
    data = given_data({"train": part, "test": part}, DataConfig())
    assert len(data.train) == 60 and data.train.classes == Pairs.classes and len(alive) == 30 and most <= 2


def loaders(shuffle: bool = True) -> dict[str, DataLoader[Any]]:
    whole = TensorDataset(FLOATS, LABELS)
    return {
        "train": DataLoader(whole, 16, shuffle=shuffle),
        "validation": DataLoader(whole, 16),
        "test": DataLoader(whole, 16),
    }


def curve(folder: Path) -> list[float]:
    return [json.loads(line)["train_loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_stopped_run_of_a_loader_begins_the_epoch_again_and_says_so(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = Net().state_dict()

    def fresh() -> Net:
        net = Net()
        net.load_state_dict(first)
        return net

    whole = fit(own_config(tmp_path / "whole"), model=fresh(), data=loaders())
    config = own_config(tmp_path / "cut")
    with pytest.raises(Interrupted, match=r"after step 1 of 8, saved in .* at the end of epoch 0: a DataLoader begins"):
        fit(config, model=fresh(), data=loaders(), max_minutes=0)
    cut = fit(config, resume=True, model=fresh(), data=loaders())
    assert curve(cut.folder) == curve(whole.folder) and RunFolder(cut.folder).read_config().batch_size == 16


def test_a_run_of_a_loader_that_was_stopped_by_the_last_step_of_an_epoch_goes_on(tmp_path: Path) -> None:
    one = dict.fromkeys(("train", "validation", "test"), DataLoader(TensorDataset(FLOATS, LABELS), 60))
    config = own_config(tmp_path)
    with pytest.raises(Interrupted, match="after step 1 of 2"):
        fit(config, model=Net(), data=one, max_minutes=0)
    assert len(curve(fit(config, resume=True, model=Net(), data=one).folder)) == 2


def test_label_sets_are_rows_of_0_and_1(tmp_path: Path) -> None:
    sets = torch.stack([LABELS == 0, LABELS > 0, LABELS == 2], 1).float()
    config = own_config(tmp_path, loss=LossConfig("binary-cross-entropy"))
    result = fit(config, model=Net(), data=(FLOATS, sets))
    assert result.test_label_accuracy is not None
    with pytest.raises(ValueError, match=r"select is 'mean-class-accuracy', which is of images that show one class"):
        fit(replace(config, select="mean-class-accuracy"), model=Net(), data=(FLOATS, sets))


class Endless(IterableDataset[Any]):
    def __iter__(self):
        while True:
            yield FLOATS[0], 0


class Empty(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((1, 2, 3))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"data": 3}, r"data train is a int; it must be a pair of tensors"),
    "split": ({"data": {"train": (FLOATS, LABELS), "trial": 1}}, "data has a split 'trial'; splits are called train"),
    "no-train": ({"data": {"test": (FLOATS, LABELS)}}, "data has no 'train'"),
    "type": ({"data": (FLOATS.long(), LABELS)}, r"images torch\.int64 \[60, 2, 6, 5\]; they must be uint8 or floats"),
    "labels": ({"data": (FLOATS, LABELS[:9])}, r"labels torch\.int64 \[9\] of 60 images"),
    "halves": ({"data": (FLOATS, LABELS + 0.5)}, "they must be a whole number each"),
    "negative": ({"data": (FLOATS, LABELS - 1)}, "label -1 is outside"),
    "negative-loaded": (
        {"data": dict.fromkeys(("train", "test"), DataLoader(TensorDataset(FLOATS, LABELS - 1), 4))},
        "label -1 is outside",
    ),
    "halves-loaded": (
        {"data": dict.fromkeys(("train", "test"), DataLoader(TensorDataset(FLOATS, LABELS + 0.4), 4))},
        r"labels torch\.float32 \[4\]: they must be a whole number each",
    ),
    "soft": ({"data": (FLOATS, torch.rand(60, 3))}, r"train has labels torch\.float32 \[60, 3\]: they must be a whole"),
    "soft-loaded": (
        {"data": dict.fromkeys(("train", "test"), DataLoader(TensorDataset(FLOATS, torch.rand(60, 3)), 4))},
        "or a row of 0 and 1",
    ),
    "beyond-a-byte": ({"data": (FLOATS, torch.full((60, 3), 257))}, "or a row of 0 and 1"),
    "other-names": (
        {"data": {"train": Pairs(FLOATS, LABELS), "test": Named(FLOATS, LABELS)}},
        "data test has the classes middle, high, low, and data train low, middle, high: a label is a number",
    ),
    "other-names-inside": (
        {"data": {"train": Subset(Pairs(FLOATS, LABELS), range(60)), "validation": Named(FLOATS, LABELS)}},
        "data validation has the classes middle, high, low, and data train low, middle, high",
    ),
    "other-names-loaded": (
        {"data": {"train": DataLoader(Pairs(FLOATS, LABELS), 4), "test": DataLoader(Named(FLOATS, LABELS), 4)}},
        "data test has the classes middle, high, low, and data train low, middle, high",
    ),
    "dictionaries": (
        {"data": [{"image": image, "label": 0} for image in FLOATS]},
        "an item of a Dataset must be an image and a label, a pair of them: item 0 is a dictionary of image, label",
    ),
    "short": ({"data": Pairs(FLOATS[:9], LABELS)}, "a pair of them: IndexError index 9 is out of bounds"),
    "palette": (
        {"data": Pairs([Image.new("P", (6, 5))] * 60, LABELS)},
        r'has mode P, numbers of colours in a palette: have the Dataset convert it, as image\.convert\("RGB"\) does',
    ),
    "text": (
        {"data": Pairs(["a.png"] * 60, LABELS)},
        r"an image of the Dataset is a str, as an array <U5 \[\];",
    ),
    "two-kinds": (
        {"data": Pairs([*BYTES[:30], *BYTES[30:] / 255], LABELS)},
        r"item 3\d of the Dataset has an image torch\.float32 \[1, 6, 6\], and item 0 torch\.uint8 \[1, 6, 6\]",
    ),
    "two-kinds-loaded": (
        {"data": dict.fromkeys(("train", "test"), DataLoader(Pairs([*BYTES[:30], *BYTES[30:] / 255], LABELS), 10))},
        "is a DataLoader of uint8 and of floats; all its images must be of one kind",
    ),
    "nan": ({"data": (FLOATS / 0, LABELS)}, "values that are not finite"),
    "endless": ({"data": Endless()}, "put it into a DataLoader"),
    "no-length": ({"data": DataLoader(Endless(), 4)}, "does not know its length"),
    "no-test": ({"data": DataLoader(TensorDataset(FLOATS, LABELS), 4)}, "a DataLoader cannot be split"),
    "mixed": ({"data": loaders() | {"test": (FLOATS, LABELS)}}, "test is no DataLoader, but others are"),
    "other-type": (
        {"data": {"train": (BYTES, LABELS), "test": (BYTES / 255, LABELS)}},
        "not both uint8 or both floats",
    ),
    "outputs": ({"model": Net(classes=4)}, r"Net, for images \[2, 2, 6, 5\], returns \[2, 4\]; it must return"),
    "shape": ({"model": Empty()}, r"Empty, for images .*, returns \[2\]; it must return scores \[2, 3\]"),
    "size": ({"model": Net(7)}, r"Net, for images \[2, 2, 6, 5\], fails: .*shapes"),
    "processes": ({"data": loaders(), "processes": 2, "batch_size": 16}, "each of which would see all of it"),
    "augment": ({"data": loaders(), "config": DataConfig(augment=AugmentConfig(flip=True))}, "a DataLoader gives are"),
    "share": ({"data": loaders(), "config": DataConfig(fraction=0.1)}, r"data\.fraction is 0\.1, but images that a"),
    "views": ({"data": loaders(), "config": DataConfig(views=5)}, r"data\.views is 5, but images that a DataLoader"),
    "other-test": ({"config": DataConfig(test="mnist")}, r"data\.test is 'mnist', but data is given"),
    "no-images": (
        {"data": {"train": (FLOATS, LABELS), "test": (FLOATS[:0], LABELS[:0])}},
        "the test split of external is empty",
    ),
    "size-of-floats": ({"config": DataConfig(image_size=9)}, r"data\.image_size is 9, but images that are floats"),
    "loss": ({"loss": LossConfig("margin")}, "scores of the module are outside .*: take 'cross-entropy'"),
    "logger": ({"loggers": ["paper"]}, "log is 'paper'; it must be 'csv', 'tensorboard' or 'wandb'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_said_in_a_line(tmp_path: Path, name: str) -> None:
    given, message = BAD[name]
    changes = {key: given[key] for key in ("processes", "batch_size", "loss") if key in given}
    config = own_config(tmp_path, data=given.get("config", DataConfig()), **changes)
    more = {key: given[key] for key in ("model", "data", "loggers") if key in given}
    with pytest.raises(ValueError, match=message):
        fit(config, **({"model": Net(), "data": (FLOATS, LABELS)} | more))
    assert not list(tmp_path.iterdir())


def test_cost_and_exports_ask_the_model_for_its_input(tmp_path: Path) -> None:
    model = create_model("capsnet", image_size=(20, 24), in_channels=2, num_classes=3, channels=8, primary=2)
    assert model.input_shape == (2, 20, 24)
    assert measure_cost(model) == measure_cost(model, (20, 24), 2)
    result = fit(own_config(tmp_path), model=Net(), data=(FLOATS, LABELS))
    own, _ = load_run(result.folder, Net())
    assert own.input_shape == (2, 6, 5) and measure_cost(own).multiply_adds == 60 * 8 + 8 * 3
    written = export_pt2(own, tmp_path / "own.pt2")
    assert written.difference == 0
    own.origin = None
    with pytest.raises(ValueError, match="does not say what it was made for: give image_size and channels"):
        measure_cost(own)
    with pytest.raises(
        ValueError, match="built by create_model and does not say what it was made for: give channels, height"
    ):
        export_pt2(own, tmp_path / "own.pt2")


def test_a_module_that_returns_an_output_and_says_its_scores(tmp_path: Path) -> None:
    class Said(Net):
        scores = "length"

        def forward(self, images: Tensor) -> Any:
            return Output(self.layers(images).sigmoid())

    result = fit(own_config(tmp_path, loss=LossConfig("margin")), model=Said(), data=(FLOATS, LABELS))
    score = RunFolder(result.folder).read_manifest().score
    assert score is not None and score.kind == "length"
    with pytest.raises(ValueError, match="the scores of the module are lengths: take 'margin'"):
        fit(own_config(tmp_path), model=Said(), data=(FLOATS, LABELS))


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    config = tiny_config(tmp_path / "runs", epochs=2)
    monkeypatch.setitem(registry._RECIPES, "tiny", lambda: config)
    monkeypatch.setattr(reporting, "report", lambda *args: None)
    return config


def test_the_csv_has_each_step_and_each_epoch(recipe: Config) -> None:
    assert main(["train", "tiny", "--log", "csv"]) == 0
    run = recipe.out / "tiny-0"
    rows = list(csv.DictReader((run / "csv" / "version_0" / "metrics.csv").open()))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = {int(row["step"]): float(row["step_loss"]) for row in rows if row["step_loss"]}
    assert list(steps) == list(range(1, 11))
    ends = {int(row["step"]): float(row["validation_accuracy"]) for row in rows if row.get("validation_accuracy")}
    assert ends == {line["step"]: pytest.approx(line["validation_accuracy"]) for line in lines}
    assert [row for row in rows if row.get("test_accuracy")]


def test_tensorboard_sees_each_step_and_each_epoch(recipe: Config) -> None:
    pytest.importorskip("tensorboard", reason="the extra log is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # pyright: ignore[reportMissingImports]

    assert main(["train", "tiny", "--log", "tensorboard"]) == 0
    seen = EventAccumulator(str(recipe.out / "tiny-0" / "tensorboard" / "version_0"))
    seen.Reload()
    assert [each.step for each in seen.Scalars("step_loss")] == list(range(1, 11))
    assert [each.step for each in seen.Scalars("validation_accuracy")] == [5, 10]


def test_weights_and_biases_is_told_each_step_and_each_epoch(recipe: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what its package is asked for, which need not be there."""
    told: list[tuple] = []

    class Run:
        project, id = "torchcaps", "1"
        config = SimpleNamespace(update=lambda params, allow_val_change: told.append(("config", params["batch_size"])))
        log = staticmethod(lambda metrics: told.append((metrics.pop("global_step"), sorted(metrics))))
        define_metric = staticmethod(lambda name, step_metric: None)
        finish = staticmethod(lambda exit_code: told.append(("end", exit_code)))

    opened: dict[str, object] = {}
    for name in ("WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    package = SimpleNamespace(run=None, init=lambda **given: opened.update(given) or Run())
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.setattr("torchcaps.train.loggers.find_spec", lambda name: name)
    assert main(["train", "tiny", "--log", "wandb"]) == 0
    assert opened == {"project": "torchcaps", "name": "tiny-0", "dir": str(recipe.out / "tiny-0")}
    assert told[0] == ("config", recipe.batch_size) and told[-1] == ("end", 0)
    steps = [step for step, names in told[1:-1] if "step_loss" in names]
    assert steps == list(range(1, 11)) and told[-2] == (10, ["test_accuracy"])
    assert [step for step, names in told[1:-1] if "validation_accuracy" in names] == [5, 10]
    opened.clear()
    package.run = Run()  # as within a sweep, whose run goes on afterwards
    assert main(["train", "tiny", "--log", "wandb"]) == 0
    assert not opened and told[-1] == (10, ["test_accuracy"])


def test_loggers_of_the_package_lightning_are_taken_too(tmp_path: Path) -> None:
    """Its classes are copies of Fabric's, and no subclasses of them."""
    twin = SimpleNamespace(log_metrics=print, log_hyperparams=print, save=print, finalize=print)
    assert Logged([twin]).asked == (twin,)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="log is 'comet'; it must be 'csv', 'tensorboard' or 'wandb'"):
        Logged(["comet"])  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="a logger is 3; it must be one of Fabric, or a name: csv, tensorboard, wandb"):
        Logged([3])  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_weights_and_biases_sees_a_run_offline(recipe: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra log is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert main(["train", "tiny", "--log", "wandb"]) == 0
    assert list((recipe.out / "tiny-0" / "wandb").glob("offline-run-*/run-*.wandb"))


def test_a_logger_that_is_not_installed_says_what_to_install(
    recipe: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torchcaps.train.loggers.find_spec", lambda name: None)
    assert main(["train", "tiny", "--log", "wandb"]) == 2
    assert 'this needs wandb, which is not installed: pip install "torchcaps[log]"' in capsys.readouterr().err
    assert not recipe.out.exists()


def test_records_in_records_have_both_names() -> None:
    record = {"loss": 1, "penalties": {"a": 2.0}, "none": None, "text": "x", "flag": True}
    assert flatten(record) == {"loss": 1.0, "penalties/a": 2.0}


def test_runs_are_listed_with_what_was_asked_and_what_came_out(
    recipe: Config, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["train", "tiny", "--epochs", "1"]) == 0
    assert main(["train", "tiny", "--seed", "1", "--model.options", "width", "2"]) == 0
    assert main(["train", "tiny", "--seed", "2", "--max-minutes", "0"]) == 130
    (recipe.out / "broken").mkdir()
    (recipe.out / "broken" / "config.json").write_text("{")
    capsys.readouterr()
    assert main(["runs", str(recipe.out)]) == 0
    said = capsys.readouterr()
    rows = said.out.splitlines()
    assert rows[0].split()[:3] == ["name", "model", "data"] and "config.json is damaged" in said.err
    assert [row.split()[0] for row in rows[1:]] == ["tiny-0", "tiny-1", "tiny-2"]
    assert "finished" in rows[1] and "epochs=1" in rows[1] and "1/1" in rows[1]
    assert "0/2" in rows[3] and "unfinished" in rows[3] and "model.options.width=2" in rows[2]
    assert main(["runs", str(recipe.out), "--json", "--sort", "test"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in found][2] == "tiny-2" and found[0]["test"] >= found[1]["test"]
    result = json.loads((recipe.out / found[0]["name"] / "result.json").read_text())
    assert found[0]["result"] == result and found[2]["state"] == "unfinished"
    assert main(["runs", str(tmp_path / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err
