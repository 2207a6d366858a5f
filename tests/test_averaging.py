"""The running mean of the weights, and runs that are evaluated by it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny, tiny_config
from torch import nn

from torchcaps.config import AugmentConfig, ComposeConfig, Config, DataConfig
from torchcaps.data import Batches, load_data
from torchcaps.data.splits import coins
from torchcaps.train import RunFolder, fit
from torchcaps.train.averaging import Average
from torchcaps.train.check import check_config
from torchcaps.train.statistics import count_batches


def test_the_mean_is_its_formula() -> None:
    model, weight = nn.Linear(1, 1, bias=False), 0.0
    nn.init.zeros_(model.weight)
    average = Average(model, 0.5)
    for step in range(6):
        nn.init.constant_(model.weight, float(step + 1))
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        weight = decay * weight + (1 - decay) * (step + 1)
        assert average.averaged(model).weight.item() == pytest.approx(weight, rel=1e-6)
    assert model.weight.item() == 6.0  # training's own are as they were


def test_a_run_keeps_the_mean_and_trains_as_without_it(tmp_path: Path) -> None:
    plain = fit(tiny_config(tmp_path / "plain", {"norm": True}))
    mean = fit(tiny_config(tmp_path / "mean", {"norm": True}, average=0.9))
    last, best = (
        [load_file(run.folder / each / "model.safetensors") for run in (plain, mean)] for each in ("last", "best")
    )
    for name, value in last[0].items():
        assert torch.equal(value, last[1][name]), name
    assert any(not torch.equal(value, best[1][name]) for name, value in best[0].items())


def test_a_decay_is_below_1() -> None:
    with pytest.raises(ValueError, match=r"average is 1\.0; it is a decay in \[0, 1\)"):
        check_config(Config(average=1.0))


def test_alternate_flips_mirror_every_image_in_every_other_epoch() -> None:
    data = load_data(DataConfig("digits", validation=0.0, limit=40))
    plain = Batches(data.train, 8, seed=3, augment=AugmentConfig())
    flips = Batches(data.train, 8, seed=3, augment=AugmentConfig(flip=True, alternate=True))
    whole = torch.cat([images for images, _ in plain.epoch(0)])
    seen = [torch.cat([images for images, _ in flips.epoch(epoch)]) for epoch in range(3)]
    thrown = coins(torch.arange(40), 3)
    assert 0 < thrown.sum() < 40
    for epoch, images in enumerate(seen):
        for n, image in enumerate(images):
            assert torch.equal(image, whole[n].flip(-1) if bool(thrown[n]) ^ bool(epoch % 2) else whole[n])


def test_coins_are_fair_and_depend_on_the_seed_alone() -> None:
    thrown = coins(torch.arange(10_000), 0)
    assert 0.48 < thrown.float().mean() < 0.52
    assert torch.equal(thrown[[5, 3]], coins(torch.tensor([5, 3]), 0))
    assert 0.48 < (thrown ^ coins(torch.arange(10_000), 1)).float().mean() < 0.52


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DataConfig("digits", augment=AugmentConfig(alternate=True)), r"set augment\.flip too"),
        (
            DataConfig(
                "multimnist",
                compose=ComposeConfig(base="digits"),
                augment=AugmentConfig(flip=True, alternate=True),
            ),
            "a stream's do not",
        ),
    ],
)
def test_alternate_flips_need_flips_and_images_that_come_again(data: DataConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(data).training(data, 8, 0, 0, 1)


def test_a_mean_is_evaluated_with_statistics_of_its_own(tmp_path: Path) -> None:
    """Also after so many steps that running statistics would do for the weights themselves."""
    model, data = tiny(10, 1, (8, 8), norm=True), load_data(DataConfig("digits"))
    batches = data.training(DataConfig("digits"), 256, 0)
    assert count_batches(model, batches, 20) == 0 and count_batches(model, batches, 20, averaged=True) == len(batches)
    run = fit(replace(tiny_config(tmp_path, {"norm": True}, average=0.9), epochs=1))
    assert RunFolder(run.folder).read("environment.json")["statistics_batches"] == 5


def test_the_mean_of_a_run_is_that_of_its_weights_after_each_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recomputed beside it."""
    seen: list[dict[str, torch.Tensor]] = []
    begin, update = Average.__init__, Average.update

    def note(average: Average) -> None:
        seen.append({name: value.detach().clone() for name, value in average.model.named_parameters()})

    monkeypatch.setattr(Average, "__init__", lambda self, *given: (begin(self, *given), note(self))[0])
    monkeypatch.setattr(Average, "update", lambda self: (update(self), note(self))[0])
    run = fit(replace(tiny_config(tmp_path, average=0.5), epochs=1))
    best = load_file(run.folder / "best" / "model.safetensors")
    assert len(seen) == 6
    for name, mean in seen[0].items():
        for step, weights in enumerate(seen[1:]):
            decay = min(0.5, (1 + step) / (10 + step))
            mean = decay * mean + (1 - decay) * weights[name]
        torch.testing.assert_close(best[name], mean, msg=name)
