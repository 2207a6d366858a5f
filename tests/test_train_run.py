"""The folder of a run: names, configs read back, and writes that are whole or not there."""

from __future__ import annotations

import errno
import json
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_config
from torch import nn

from torchcaps import files
from torchcaps.config import AugmentConfig, Config, DataConfig, ModelConfig, ScheduleConfig, from_plain, to_plain
from torchcaps.train import fit
from torchcaps.train.checkpoint import load_state, load_weights, present, save_checkpoint, write_text
from torchcaps.train.resuming import create_run, find_unfinished, runs_of, unfinished_runs
from torchcaps.train.run import Result

RICH = Config(
    recipe="x",
    model=ModelConfig("capsnet", {"channels": 64, "share": 0.5, "deep": True, "kind": "a"}),
    data=DataConfig("digits", root=Path("/data"), image_size=12, augment=AugmentConfig(shift=1, rotate=2.5)),
    schedule=ScheduleConfig("step", milestones=(3, 5)),
    clip=2.0,
)
RESULT = Result(0.9, 1, 10, None, 2, 100, 1.5, Path("somewhere"))


@pytest.mark.parametrize("config", [Config(), RICH], ids=["default", "rich"])
def test_config_is_read_back_exactly(config: Config) -> None:
    assert from_plain(Config, json.loads(json.dumps(to_plain(config)))) == config


def test_config_of_a_newer_version_is_refused_and_of_an_older_one_completed() -> None:
    with pytest.raises(ValueError, match="DataConfig has no tint"):
        from_plain(Config, {"data": {"tint": 1}})
    assert from_plain(Config, {"epochs": 3}) == Config(epochs=3)


def test_runs_of_one_name_take_numbers(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "new")
    runs = [create_run(config), create_run(replace(config, epochs=9)), create_run(replace(config, seed=1))]
    assert [run.path.name for run in runs] == ["tiny-0", "tiny-0-2", "tiny-1"]
    assert [run.read_config().epochs for run in runs] == [2, 9, 2]


def test_a_gap_in_the_numbers_hides_no_run(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    made = [create_run(config) for _ in range(11)]
    (tmp_path / "tiny-0-x").mkdir()
    (tmp_path / "tiny-0-02").mkdir()
    for number in (0, 3):
        made[number].remove()
    left = [run.path for n, run in enumerate(made) if n not in (0, 3)]
    assert [run.path for run in runs_of(config)] == left
    assert find_unfinished(config).path == made[-1].path
    assert create_run(config).path == made[0].path


def test_resume_finds_the_newest_unfinished_run_of_the_same_config(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    with pytest.raises(ValueError, match=r"nothing to resume: .*tiny-0 does not exist or is finished"):
        find_unfinished(config)
    first, second, other = create_run(config), create_run(config), create_run(replace(config, epochs=9))
    assert find_unfinished(replace(config, checkpoint_every=1.0)) == second
    second.write_result(RESULT)
    assert find_unfinished(config) == first
    assert unfinished_runs(config) == [first, other]
    with pytest.raises(
        ValueError, match=r"tiny-0-3, which was .* epochs was 9, not 4; optimiser.lr was 0.003, not 0.1"
    ):
        find_unfinished(replace(config, epochs=4, optimiser=replace(config.optimiser, lr=0.1)))


def test_text_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old")

    def cut(*paths: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", cut)
        write_text(path, "new")
    assert path.read_text() == "old"
    write_text(path, "newer")
    assert path.read_text() == "newer"
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def linear(value: float) -> nn.Linear:
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, value)
    return model


@pytest.mark.parametrize("renames", [0, 1])
def test_checkpoint_cut_anywhere_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    folder, done, rename = tmp_path / "last", [], os.rename
    assert present(folder) is None
    save_checkpoint(folder, linear(1.0), {"step": 1})

    def cut(source: Path, target: Path) -> None:
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(source)
        rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rename", cut)
        save_checkpoint(folder, linear(2.0), {"step": 2})
    for value in (1, 3):
        model = linear(0.0)
        load_weights(folder, model)
        assert load_state(folder) == {"step": value}
        assert torch.equal(model.weight, torch.full((2, 2), float(value)))
        save_checkpoint(folder, linear(3.0), {"step": 3})
    assert [each.name for each in tmp_path.iterdir()] == ["last"]


def test_weights_that_are_not_there_are_missed_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no checkpoint in {tmp_path}/last"):
        load_weights(tmp_path / "last", linear(0.0))


@pytest.mark.parametrize("margins", [[0.2], [0.2, 0.9, 0.9], [0.2, "a"]])
def test_a_tuple_of_another_length_is_refused(margins: list) -> None:
    with pytest.raises(ValueError, match="spread_margin is"):
        from_plain(Config, {"loss": {"spread_margin": margins}})
    assert from_plain(Config, {"schedule": {"milestones": [1, 2, 3]}}).schedule.milestones == (1, 2, 3)


def test_plain_values_in_python_are_checked_and_converted_as_flags_are() -> None:
    config = Config(out="runs", schedule={"milestones": [1, 2]})  # pyright: ignore[reportArgumentType]
    assert config.out == Path("runs") and config.schedule == ScheduleConfig(milestones=(1, 2))
    wrong = {"out": 3, "epochs": "3", "loss": "margin", "data": {"nam": 1}, "clip": "1", "precision": "fp8"}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=rf"{name} is|DataConfig has no nam"):
            Config(**{name: value})


@pytest.mark.parametrize(
    ("code", "mend"), [(errno.EACCES, "allow writing there"), (errno.ENOSPC, "make room"), (errno.EROFS, "allow")]
)
def test_what_cannot_be_written_says_what_would_help(tmp_path: Path, monkeypatch, code: int, mend: str) -> None:
    def refuse(path: Path, text: str) -> None:
        raise OSError(code, "no")

    monkeypatch.setattr(files, "replace_text", refuse)
    with pytest.raises(OSError, match=f"what was there is kept; {mend}"):
        write_text(tmp_path / "a", "b")


def test_a_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"the folder .*gone is gone; start a new run"):
        write_text(tmp_path / "gone" / "a", "b")


def test_a_run_leaves_the_random_numbers_of_its_caller_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that draws its next rate after each run would else draw one and the same."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(()).item()

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = draw()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    fit(replace(tiny_config(tmp_path), epochs=1))
    assert draw() == expected
    assert "PL_GLOBAL_SEED" not in os.environ
