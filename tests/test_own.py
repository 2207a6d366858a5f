"""Recipes for one's own pictures, and the stage of a run in which a head alone learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_config
from torch import nn

from torchcaps.cli import main, parse_flags
from torchcaps.cli.flags import given_fields
from torchcaps.cli.training import finish
from torchcaps.config import Config, DataConfig, ModelConfig
from torchcaps.data.facts import data_facts
from torchcaps.models import DenseHead, HeadedModel, create_model, register_model
from torchcaps.papers import create_recipe
from torchcaps.report.reproduce import reproduce_command
from torchcaps.train import RunFolder, fit
from torchcaps.train.checkpoint import load_weights
from torchcaps.train.loop import Trainer
from torchcaps.train.processes import build_fabric


@register_model("staged-tiny")
def staged(num_classes: int, in_channels: int, image_size: tuple[int, int]) -> HeadedModel:
    backbone = nn.Sequential(nn.Conv2d(in_channels, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    size = 4 * ((image_size[0] - 1) // 2) * ((image_size[1] - 1) // 2)
    return HeadedModel(backbone, DenseHead(size, num_classes))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eighty pictures of 50x40 pixels in two classes."""
    random, folder = np.random.default_rng(0), tmp_path / "pictures"
    for label, name in enumerate(("light", "dark")):
        (folder / name).mkdir(parents=True)
        for n in range(40):
            pixels = random.integers(90 * label, 255 - 90 * (1 - label), (40, 50, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{n}.png")
    return folder


def chosen(recipe: str, *flags: str) -> Config:
    base = create_recipe(recipe)
    return finish(recipe, base, parse_flags(base, list(flags))[0], given_fields(flags))


def test_facts_of_a_folder_are_read_from_names_and_heads(pictures: Path) -> None:
    facts = data_facts(DataConfig(f"folder:{pictures}"))
    assert facts == (64, (40, 50), 2, True, True, True, None)
    assert data_facts(DataConfig("digits")).images == 1437
    rows = "".join(f"{file},{file.parent.name}\n" for file in sorted(pictures.glob("*/*.png")))
    (pictures.parent / "all.csv").write_text(rows)
    assert data_facts(DataConfig(f"list:{pictures.parent / 'all.csv'}")) == facts


def test_classify_follows_model_and_pictures(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = chosen("classify", "--data.name", f"folder:{pictures}", "--model.name", "small-resnet.fm")
    assert (config.loss.name, config.data.image_size, config.batch_size, config.epochs) == ("cross-entropy", 32, 8, 100)
    (line,) = capsys.readouterr().err.splitlines()
    assert "small-resnet.fm gives logits: loss cross-entropy; 64 training pictures of about 50x40: image size" in line
    config = chosen("classify", "--data.name", f"folder:{pictures}", "--epochs", "3", "--data.image-size", "20")
    assert (config.epochs, config.data.image_size, config.loss.name) == (3, 20, "margin")
    assert chosen("classify", "--data.name", "mnist").epochs == 10
    assert chosen("classify", "--model.name", "resnet18.em", "--data.name", f"folder:{pictures}").data.image_size == 64


@pytest.mark.parametrize(("budget", "epochs"), [("fast", 30), ("short", 8), ("cpu", 10), ("smoke", 1)])
def test_a_budget_sets_the_epochs_of_one_that_chooses(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, budget: str, epochs: int
) -> None:
    """What follows from the pictures would be 100."""
    seen: list[Config] = []
    monkeypatch.setattr("torchcaps.tables.ahead.look_ahead", lambda config: seen.append(config) or "")
    for more in ([], ["--epochs", "3"]):
        flags = ["--budget", budget, "--data.name", f"folder:{pictures}", "--dry-run", *more]
        assert main(["train", "classify", *flags]) == 0
    assert [config.epochs for config in seen] == [epochs, 3]
    assert seen[0].batch_size == (16 if budget == "smoke" else 8)


def test_a_share_of_the_pictures_is_what_batches_and_epochs_are_chosen_for() -> None:
    config = chosen("classify", "--data.name", "digits", "--data.fraction", "0.05")
    assert config.batch_size == 8 and config.epochs == 100


def test_the_command_of_a_finished_recipe_gives_what_was_chosen(pictures: Path) -> None:
    config = chosen("classify", "--data.name", f"folder:{pictures}", "--epochs", "30")
    command = reproduce_command(config, Path("run")).split()
    assert command[:3] == ["torchcaps", "train", "classify"]
    assert replace(chosen(*command[2:]), changed=()) == replace(config, changed=())


@pytest.mark.slow
def test_classify_trains_from_the_command_line(pictures: Path, tmp_path: Path) -> None:
    flags = ["--data.name", f"folder:{pictures}", "--epochs", "1", "--device", "cpu", "--out", str(tmp_path / "runs")]
    assert main(["train", "classify", *flags, "--model.name", "small-resnet.fm"]) == 0
    score = RunFolder(tmp_path / "runs" / "classify-0").read_manifest().score
    assert score is not None and score.kind == "logit"


def test_tune_takes_pretrained_weights_of_a_file(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    weights = timm.create_model("mobilenetv2_035", num_classes=3).state_dict()
    save_file(weights, tmp_path / "mine.safetensors")
    path = str(tmp_path / "mine.safetensors")
    config = chosen("tune", "--model.name", "mobilenetv2_035.linear", "--model.options", "pretrained", path)
    assert config.model.options == {"pretrained": path} and config.head_epochs == 2
    model = create_model(config.model.name, image_size=64, in_channels=3, pretrained=path)
    assert torch.equal(model.get_parameter("backbone.model.conv_stem.weight"), weights["conv_stem.weight"])
    assert chosen("tune").model.options == {"pretrained": True}
    with pytest.raises(ValueError, match="tune takes a timm model with a head"):
        chosen("tune", "--model.name", "capsnet")
    with pytest.raises(ValueError, match="there is no such file of weights"):
        create_model("mobilenetv2_035.linear", image_size=64, pretrained=str(tmp_path / "none"))
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"pretrained weights of mobilenetv2_035 cannot be had"):
        create_model("mobilenetv2_035.linear", image_size=64, pretrained=str(tmp_path / "bad.pt"))


def staged_config(out: Path, **changes: Any) -> Config:
    return replace(tiny_config(out), model=ModelConfig("staged-tiny"), head_epochs=1, **changes)


def test_the_head_learns_first_and_then_all(tmp_path: Path) -> None:
    config, states = staged_config(tmp_path, average=0.5), []

    class Seen(Trainer):
        def save(self) -> None:
            states.append({name: value.clone() for name, value in self.model.state_dict().items()})
            super().save()

    Seen(build_fabric(config), config, resume=False).run()
    start, first, last = states
    for name, value in start.items():
        if "num_batches" not in name:
            assert torch.equal(value, first[name]) == name.startswith("backbone."), name
            assert not torch.equal(value, last[name]), name


def test_a_staged_run_goes_on_bit_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit(staged_config(tmp_path / "whole"))
    end = Trainer.end_epoch

    def stop(self: Trainer, display: Any) -> None:
        end(self, display)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "end_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(staged_config(tmp_path / "cut"))
    cut = fit(staged_config(tmp_path / "cut"), resume=True)
    models = [staged(10, 1, (8, 8)) for _ in range(2)]
    for model, result in zip(models, (whole, cut), strict=True):
        load_weights(RunFolder(result.folder).last, model)
    for name, value in models[0].state_dict().items():
        assert torch.equal(value, models[1].state_dict()[name]), name


def test_what_has_no_backbone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tiny is no backbone under a head"):
        fit(tiny_config(tmp_path, head_epochs=1))
