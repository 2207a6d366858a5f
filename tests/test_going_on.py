"""Runs that begin with another's weights or go on from a finished one, and what is done about unequal classes."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny, tiny_config

from torchcaps.cli import main, parse_flags, reporting
from torchcaps.config import ComposeConfig, Config, DataConfig, LossConfig, ScheduleConfig
from torchcaps.data import Batches, load_data
from torchcaps.data.splits import balanced
from torchcaps.losses import build_criterion
from torchcaps.models import Output
from torchcaps.papers import create_recipe, registry
from torchcaps.report.reproduce import reproduce_command
from torchcaps.train import Interrupted, Result, RunFolder, checkpoint, fit, learner, processes
from torchcaps.train.classes import class_weights
from torchcaps.train.given import give
from torchcaps.train.loop import Trainer
from torchcaps.train.meter import Meter, Score
from torchcaps.train.position import Position
from torchcaps.train.processes import build_fabric
from torchcaps.train.resuming import runs_of
from torchcaps.train.start import find_start, take_weights

KEPT = ("conv.weight", "conv.bias", "decoder.bias")  # tensors of `tiny` whose shape has nothing of the classes


def lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics without times."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "second" not in key} for line in found]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run of one epoch."""
    return fit(tiny_config(tmp_path_factory.mktemp("finished"), epochs=1))


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The recipe `tiny`, of one epoch, without its report."""
    config = tiny_config(tmp_path / "runs", epochs=1)
    monkeypatch.setitem(registry._RECIPES, "tiny", lambda: config)
    monkeypatch.setattr(reporting, "report", lambda *args: None)
    return config


def test_other_class_counts_keep_the_stem_and_what_is_new_is_named(finished: Result) -> None:
    start, kept = find_start(finished.folder), load_file(finished.folder / "best" / "model.safetensors")
    model = tiny(3, 1, (8, 8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    said = start.give(model)
    assert "but for 4 of 7 tensors: scale [3] (there [10]), head.weight [3, 36] (there [10, 36])" in said
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[name] if name in KEPT else before[name]), name
    assert "all 7 tensors" in start.give(tiny(10, 1, (8, 8)))
    with pytest.raises(ValueError, match="holds no tensor that has the name"):
        start.give(torch.nn.Linear(2, 2))
    with pytest.raises(FileNotFoundError, match="is not the folder of a run"):
        find_start(finished.folder.parent)


def test_what_shares_memory_is_taken_once() -> None:
    weight = torch.zeros(2)
    assert take_weights({"a": weight, "b": weight, "c": torch.zeros(1)}, {"a": torch.ones(2)}) == ["c"]
    assert weight.tolist() == [1, 1]


def test_a_run_from_another_begins_with_its_weights_and_says_so(
    finished: Result, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, given = tiny_config(tmp_path), give(finished.folder, None, None)
    trainer = Trainer(build_fabric(config), given.settle(config, False), False, given=given)
    kept = load_file(finished.folder / "best" / "model.safetensors")
    assert all(torch.equal(value, kept[name]) for name, value in trainer.model.state_dict().items())
    trainer.run()
    assert f"the weights are those of {finished.folder} at first, all 7 tensors of them" in caplog.text
    caplog.clear()
    (trainer.folder.path / "result.json").unlink()
    fit(RunFolder(trainer.folder.path).read_config(), resume=True, start=finished.folder)
    assert "at first" not in caplog.text  # its own weights are there by now


def test_the_record_says_whose_weights_they_were(
    finished: Result, recipe: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "tiny", "--from", str(finished.folder)]) == 0
    run = RunFolder(recipe.out / "tiny-0")
    config = run.read_config()
    name, digest = config.start.split()
    assert name == "tiny-0" and len(digest) == 64 and config.changed == (f"start={config.start}",)
    assert "--from tiny-0" in reproduce_command(config, run.path)
    with pytest.raises(ValueError, match=r"began with the weights of tiny-0: give its folder as start"):
        fit(config)
    assert main(["train", "tiny", "--from", "nowhere"]) == 2
    assert "nowhere is not the folder of a run" in capsys.readouterr().err
    assert main(["train", "tiny", "--start", "x"]) == 2
    assert "--start is written by the command line itself" in capsys.readouterr().err


def test_more_epochs_go_on_from_the_end_of_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short, long = tiny_config(tmp_path / "a", epochs=1), tiny_config(tmp_path / "a", epochs=2)
    before = fit(short)
    kept = {path: path.read_bytes() for path in before.folder.rglob("*") if path.is_file() and path.name != ".lock"}
    after, whole = fit(long, resume=True), fit(replace(long, out=tmp_path / "b"))
    assert after.folder.name == "tiny-0-2" and lines(after.folder) == lines(whole.folder)
    ours, theirs = (load_file(each.folder / "last" / "model.safetensors") for each in (after, whole))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert {path: path.read_bytes() for path in kept} == kept
    config = RunFolder(after.folder).read_config()
    assert config.continued.startswith("tiny-0 1 ") and not config.start
    digits = replace(create_recipe("digits"), epochs=20, continued=f"digits-0 10 {'a' * 64}")
    first, again = reproduce_command(digits, after.folder).split(" && ")
    assert "--epochs 10" in first and again == first.replace("--epochs 10", "--epochs 20") + " --resume"
    with pytest.raises(ValueError, match=r"does not exist or is finished; a finished run goes on where --epochs says"):
        fit(long, resume=True)


@pytest.mark.parametrize("name", ["one-cycle", "cosine", "step"])
def test_the_rate_goes_on_as_in_the_longer_run(tmp_path: Path, name: Any) -> None:
    schedule = ScheduleConfig(name, milestones=(1,) if name == "step" else ())
    config = tiny_config(tmp_path / "a", epochs=1, schedule=schedule)
    fit(config)
    longer = replace(config, epochs=3)
    after, whole = fit(longer, resume=True), fit(replace(longer, out=tmp_path / "b"))
    rates = [[line["lr"] for line in lines(each.folder)] for each in (after, whole)]
    assert rates[0][1:] == pytest.approx(rates[1][1:], rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", ["one-cycle", "cosine"])
def test_a_bad_loss_in_an_extension_is_traced_by_its_own_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any
) -> None:
    """The steps before it are repeated from the end of the shorter run, whose schedule had been moved on twice."""
    config = tiny_config(tmp_path / "a", epochs=1, schedule=ScheduleConfig(name), checkpoint_every=1e9)
    fit(config)
    step, rates = learner.step_phases, []

    def spoil(fabric: Any, model: Any, wrapped: Any, optimizer: Any, *args: Any) -> Any:
        taken = step(fabric, model, wrapped, optimizer, *args)
        rates.append(optimizer.param_groups[0]["lr"])
        return taken._replace(loss=taken.loss * torch.nan) if len(rates) == 3 else taken

    monkeypatch.setattr(learner, "step_phases", spoil)
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 8 \(epoch 2\); not so when the steps"):
        fit(replace(config, epochs=3), resume=True)
    assert rates[:3] == pytest.approx(rates[-3:])


def test_damaged_weights_are_not_signed_anew(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, epochs=1)
    folder = fit(config).folder
    for kind in ("last", "best"):
        file = folder / kind / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    with pytest.raises(ValueError, match="do not match SHA256SUMS"):
        fit(replace(config, epochs=2), resume=True)
    with pytest.raises(ValueError, match="do not match SHA256SUMS"):
        fit(tiny_config(tmp_path / "other"), start=folder)
    assert [run.path.name for run in runs_of(config)] == ["tiny-0"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of Unix")
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_not_copied_where_a_run_goes_on(tmp_path: Path, kind: str) -> None:
    """A pipe nobody writes to would be waited for, and /dev/zero has no end."""
    config = tiny_config(tmp_path, epochs=1)
    file = fit(config).folder / "best" / "model.safetensors"
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=rf"best/model.safetensors is damaged .* is a {kind}; it must be a file"):
        fit(replace(config, epochs=2), resume=True)
    assert [run.path.name for run in runs_of(config)] == ["tiny-0"]


class Masked(torch.nn.Module):
    """A linear network with a mask of -inf, which is no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(64, 10)
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(images.flatten(1))


def test_a_buffer_may_hold_infinity_from_the_start(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, epochs=1, loss=LossConfig("cross-entropy"))
    folder = fit(config, model=Masked()).folder
    kept = load_file(folder / "last" / "model.safetensors")
    assert kept["model.mask"].isinf().any() if "model.mask" in kept else any(v.isinf().any() for v in kept.values())
    broken = Masked()
    with torch.no_grad():
        broken.linear.weight[0] = torch.nan
    with pytest.raises(FloatingPointError, match="weights are not finite before the first step"):
        fit(replace(config, seed=1), model=broken)


def test_a_failed_start_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer.step

    def fail(self: Trainer, images: Any, labels: Any, at: int = 0) -> Any:
        if self.position.step == at:
            raise RuntimeError("out of memory")
        return step(self, images, labels)

    with monkeypatch.context() as patch, pytest.raises(MemoryError, match="try --batch-size"):
        patch.setattr(Trainer, "step", fail)
        fit(tiny_config(tmp_path / "first"))
    assert not list((tmp_path / "first").iterdir())
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Trainer, "step", lambda self, images, labels: fail(self, images, labels, 3))
        fit(tiny_config(tmp_path / "third"))
    assert (tmp_path / "third" / "tiny-0" / "config.json").exists()
    with pytest.raises(ValueError, match="class_weights has 2 numbers"):
        fit(tiny_config(tmp_path / "data", loss=LossConfig(class_weights=(1.0, 2.0))))
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
def test_resuming_is_hinted_at_where_it_would_work(recipe: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "tiny"]) == 0
    (recipe.out / "tiny-0" / "result.json").unlink()
    assert main(["train", "tiny", "--optimiser.lr", "0.01"]) == 0
    assert "--resume" not in capsys.readouterr().err
    assert main(["train", "tiny"]) == 0
    assert "tiny-0 is unfinished; the same command with --resume continues it" in capsys.readouterr().err
    assert main(["train", "tiny", "--epochs", "2"]) == 0
    assert "tiny-0-3 ended after 1 epochs; the same command with --resume continues it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["margin", "spread", "squared-hinge", "cross-entropy", "normalised-cross-entropy", "binary-cross-entropy"]
)
def test_a_weighted_loss_is_the_mean_of_each_images_loss_times_its_weight(name: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(6, 3, dtype=torch.float64, generator=generator)
    labels, weights = torch.tensor([0, 1, 2, 2, 1, 0]), torch.tensor([0.5, 2.0, 3.0])
    targets, images = torch.nn.functional.one_hot(labels, 3).double(), torch.zeros(6, 1, 1, 1)
    plain = build_criterion(LossConfig(name))
    each = [plain(Output(scores[n : n + 1]), images[n : n + 1], targets[n : n + 1]) for n in range(6)]
    expected = sum(float(weights[label]) * float(loss) for label, loss in zip(labels, each, strict=True)) / 6
    weighted = build_criterion(LossConfig(name), weights)
    assert float(weighted(Output(scores), images, targets)) == pytest.approx(expected, rel=1e-9)
    same = build_criterion(LossConfig(name), torch.ones(3))(Output(scores), images, targets)
    assert float(same) == pytest.approx(float(plain(Output(scores), images, targets)), rel=1e-9)
    several = torch.tensor([[1, 1, 0.0], [0, 0, 0]])
    found = build_criterion(LossConfig("squared-hinge"), weights)(Output(scores[:2]), images[:2], several)
    pair = [plain_of(scores[n : n + 1], several[n : n + 1]) for n in range(2)]
    assert float(found) == pytest.approx((1.25 * pair[0] + pair[1]) / 2, rel=1e-9)


def plain_of(scores: torch.Tensor, targets: torch.Tensor) -> float:
    return float(build_criterion(LossConfig("squared-hinge"))(Output(scores), torch.zeros(1, 1, 1, 1), targets))


def test_balanced_weights_count_each_class_alike(tmp_path: Path) -> None:
    train = load_data(DataConfig("digits")).train
    config = tiny_config(tmp_path, loss=LossConfig(class_weights="balanced"))
    weights, counts = class_weights(config, train), torch.bincount(train.targets(torch.arange(len(train))))
    assert weights is not None
    torch.testing.assert_close(weights * counts, torch.full((10,), len(train) / 10))
    assert class_weights(tiny_config(tmp_path), train) is None
    with pytest.raises(ValueError, match=r"class_weights has 2 numbers, but digits has 10 classes: 0, 1"):
        class_weights(tiny_config(tmp_path, loss=LossConfig(class_weights=(1.0, 2.0))), train)
    for wrong in ((0.0, 0.0), (-1.0, 1.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="class_weights is"):
            fit(tiny_config(tmp_path, loss=LossConfig(class_weights=wrong)))
    stream = load_data(DataConfig("multimnist", limit=50, compose=ComposeConfig(base="digits"))).train
    with pytest.raises(ValueError, match="have no list to count: give a number a class"):
        class_weights(config, stream)
    with pytest.raises(ValueError, match=r"data\.balance is of images that show one class each"):
        Batches(stream, 2, shuffle=True, balance=True)


def test_balanced_batches_show_each_class_as_often_as_any_other() -> None:
    labels = torch.tensor([0] * 50 + [1] * 7 + [2] * 3)
    for epoch in range(2):
        order = balanced(labels, 0, epoch)
        assert len(order) == 60 and torch.equal(order, balanced(labels, 0, epoch))
        assert (labels[order].reshape(20, 3).sort(1).values == torch.arange(3)).all()
        rare = order[labels[order] == 2]
        assert all(sorted(rare[n : n + 3].tolist()) == [57, 58, 59] for n in range(0, 18, 3))
    assert not torch.equal(balanced(labels, 0, 0), balanced(labels, 0, 1))
    data = load_data(DataConfig("digits"))
    batches = data.training(DataConfig("digits", balance=True), 20, seed=1)
    for _, shown in batches.epoch(0):
        assert torch.bincount(shown, minlength=10).tolist() == [2] * 10
    halves = [data.training(DataConfig("digits", balance=True), 20, 1, rank, 2) for rank in range(2)]
    joint = torch.cat([next(iter(half.epoch(3)))[1] for half in halves])
    assert torch.equal(joint, next(iter(batches.epoch(3)))[1])


def test_the_mean_of_the_classes_selects_where_it_is_asked_to() -> None:
    meter = Meter(torch.device("cpu"), classes=3)
    scores = torch.eye(3)[torch.tensor([0, 0, 0, 0, 1])]
    meter.update(torch.tensor(0.0), scores, torch.tensor([0, 0, 0, 1, 1]))
    assert meter.compute().mean_class_accuracy == pytest.approx((1 + 0.5) / 2)  # of class 2 there is no image
    common = Score(1.0, 1, 10, mean_class_accuracy=0.5)
    fair = Score(1.0, 2, 10, mean_class_accuracy=0.8)
    for by, best in (("accuracy", 1), ("mean-class-accuracy", 2)):
        position = Position(epoch=1)
        assert position.select(common, by)
        position.epoch = 2
        assert position.select(fair, by) == (best == 2) and position.selected_epoch == best
    older = Position(epoch=5, selected_epoch=2, selected_accuracy=0.95, selected_loss=0.0)  # of an older checkpoint
    assert not older.select(common)


def test_each_is_a_flag(recipe: Config, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--loss.name normalised-cross-entropy --loss.smoothing 0.1 --loss.class-weights balanced --data.balance"
    assert main(["train", "tiny", *flags.split(), "--average", "0.9", "--select", "mean-class-accuracy"]) == 0
    run = RunFolder(recipe.out / "tiny-0")
    config, (line,) = run.read_config(), lines(run.path)
    assert config.loss == LossConfig("normalised-cross-entropy", smoothing=0.1, class_weights="balanced")
    assert config.data.balance and config.average == 0.9 and config.select == "mean-class-accuracy"
    assert 0 < line["validation_mean_class_accuracy"] < 1
    assert run.read_result()["test_mean_class_accuracy"] > 0
    assert parse_flags(recipe, ["--loss.class-weights", "1", "2.5"])[0].loss.class_weights == (1.0, 2.5)


def test_an_extension_that_is_killed_is_no_run_and_can_be_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had been found as an unfinished run, which began from new weights, or ended without its best ones."""
    config = tiny_config(tmp_path, epochs=1)
    fit(config)
    longer = replace(config, epochs=2)

    class Killed(BaseException):
        pass

    copy = shutil.copyfile

    def killed_after(copies: int, *paths: Path) -> object:
        done.append(paths)
        if len(done) > copies:
            raise Killed
        return copy(*paths)

    for copies in (0, 1):  # of the last weights, and of the best
        done: list[tuple[Path, ...]] = []
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(checkpoint.shutil, "copyfile", partial(killed_after, copies))
            patch.setattr(RunFolder, "remove", lambda self: None)  # nobody cleans up after a kill
            fit(longer, resume=True)
    assert [run.path.name for run in runs_of(longer)] == ["tiny-0"]
    after, whole = fit(longer, resume=True), fit(replace(longer, out=tmp_path / "whole"))
    assert lines(after.folder) == lines(whole.folder)


def test_a_start_that_was_cut_before_its_first_weights_needs_them_again(
    finished: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path, epochs=1)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="gone"):
        patch.setattr(Trainer, "save", lambda self: (_ for _ in ()).throw(OSError("gone")))
        patch.setattr(RunFolder, "remove", lambda self: None)
        fit(config, start=finished.folder)
    begun = RunFolder(tmp_path / "tiny-0").read_config()
    with pytest.raises(ValueError, match=r"was cut before it had its first weights, those of tiny-0: give that run's"):
        fit(begun, resume=True)
    assert fit(begun, resume=True, start=finished.folder).folder == tmp_path / "tiny-0"


def test_a_run_does_not_go_on_with_its_images_in_another_order(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0)
    for n in range(38):
        Image.fromarray(drawn.integers(0, 255, (8, 8), dtype=np.uint8)).save(tmp_path / f"{n}.png")
    head, table = "path,split,label\n", tmp_path / "table.csv"
    rows = [f"{n}.png,{'train' if n < 30 else 'test'},{'cat' if n % 2 else 'dog'}\n" for n in range(38)]
    table.write_text(head + "".join(rows))
    config = tiny_config(tmp_path / "runs", data=DataConfig(f"list:{table}", validation=0.0), batch_size=8)
    with pytest.raises(Interrupted):
        fit(config, max_minutes=0)
    table.write_text(head + "".join(rows[1:] + rows[:1]))
    with pytest.raises(ValueError, match=r"tiny-0: its train images are in another order than when it began; put them"):
        fit(config, resume=True)
    table.write_text(head + "".join(rows))
    fit(config, resume=True)


def test_a_run_does_not_go_on_with_other_images(tmp_path: Path) -> None:
    """One more would have drawn the splits anew, so that training images had been tested on."""
    images = torch.randint(0, 255, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.arange(40) % 2

    def write(count: int, names: tuple[str, str]) -> DataConfig:
        for n in range(count):
            folder = tmp_path / "pictures" / names[int(labels[n])]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[n, 0].numpy()).save(folder / f"{n}.png")
        return DataConfig(f"folder:{tmp_path / 'pictures'}")

    config = tiny_config(tmp_path / "runs", data=write(38, ("ant", "bee")), batch_size=8)
    with pytest.raises(Interrupted):
        fit(config, max_minutes=0)
    record = (tmp_path / "runs" / "tiny-0" / "model.json").read_bytes()
    write(40, ("ant", "bee"))
    with pytest.raises(ValueError, match=r"cannot resume .*tiny-0: its train images were changed since it began"):
        fit(config, resume=True)
    for name in ("38.png", "39.png"):
        next((tmp_path / "pictures").rglob(name)).unlink()
    (tmp_path / "pictures" / "ant").rename(tmp_path / "pictures" / "cow")
    with pytest.raises(ValueError, match=r"its classes were ant, bee, and are bee, cow"):
        fit(config, resume=True)
    assert (tmp_path / "runs" / "tiny-0" / "model.json").read_bytes() == record
    (tmp_path / "pictures" / "cow").rename(tmp_path / "pictures" / "ant")
    held = json.loads(record)
    (tmp_path / "runs" / "tiny-0" / "model.json").write_text(json.dumps(held | {"classes": []}))  # of an older run
    assert fit(config, resume=True).test_images


def test_a_log_of_a_run_whose_epochs_were_done_has_its_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tmp_path, epochs=1)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Trainer, "_test", lambda self: (_ for _ in ()).throw(Interrupted()))
        fit(config, loggers=["csv"])
    assert "test_accuracy" in max((fit(config, resume=True, loggers=["csv"]).folder).rglob("metrics.csv")).read_text()


def test_a_validation_loss_that_is_no_number_is_said_and_chooses_no_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    evaluate = Trainer.evaluate

    def spoilt(self: Trainer, split: Any, model: Any) -> Any:
        score = evaluate(self, split, model)._replace(errors=3)
        return score._replace(loss=float("nan")) if split == "validation" and self.position.epoch == 0 else score

    monkeypatch.setattr(Trainer, "evaluate", spoilt)
    result = fit(tiny_config(tmp_path, epochs=2))
    found = RunFolder(result.folder).read_history()
    assert found[0]["validation_loss"] is None and found[1]["validation_loss"] > 0 and result.selected_epoch == 2
    assert "epoch 1: the validation loss is nan" in caplog.text


@pytest.mark.parametrize("minutes", [float("nan"), -1.0, float("inf")])
def test_minutes_are_a_number(tmp_path: Path, minutes: float) -> None:
    with pytest.raises(ValueError, match=r"max_minutes is .*; it must be a number of minutes, at least 0"):
        fit(tiny_config(tmp_path), max_minutes=minutes)


def test_a_rise_of_one_step_is_one(tmp_path: Path) -> None:
    """Torch divides by one step fewer."""
    result = fit(tiny_config(tmp_path, schedule=ScheduleConfig("one-cycle", warmup=0.1)))
    assert [line["step"] for line in lines(result.folder)] == [5, 10]


def test_a_run_that_goes_on_in_another_precision_says_so_and_keeps_it(tmp_path, monkeypatch, caplog):
    """What "auto" stands for is chosen on the machine that goes on, and the record had been of that one alone."""
    config = tiny_config(tmp_path, precision="auto")
    monkeypatch.setattr(processes, "choose_precision", lambda *_: "bf16-mixed")
    with pytest.raises(Interrupted):
        fit(config, max_minutes=0)
    monkeypatch.setattr(processes, "choose_precision", lambda *_: "32-true")
    fit(config, resume=True)
    environment = json.loads((tmp_path / "tiny-0" / "environment.json").read_text())
    assert environment["precision"] == "32-true" and environment["began"] == {"precision": "bf16-mixed"}
    assert "this run was begun with precision bf16-mixed, and goes on with 32-true" in caplog.text
