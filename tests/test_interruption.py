"""Runs that are killed, stopped, or cannot write, and go on as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from weakref import ref

import pytest
from forked import start, train, train_on_full_disk, train_until
from safetensors.torch import load_file
from tiny import tiny_config

from torchcaps import cli
from torchcaps.cli import reporting
from torchcaps.config import Config, ScheduleConfig
from torchcaps.papers import registry
from torchcaps.train import Interrupted, fit, fitting, loop
from torchcaps.train.checkpoint import load_state, present
from torchcaps.train.given import Given
from torchcaps.train.interrupt import Interruption
from torchcaps.train.processes import build_fabric
from torchcaps.train.run import RunFolder

CLOCK = ("seconds", "images_per_second")
EPOCHS = 30  # of five steps, for the run that is killed ten times before it ends


def everything(out: Path, **changes) -> Config:
    """All that a checkpoint must bring back, and one after every step."""
    return tiny_config(
        out,
        {"norm": True, "dropout": 0.2},
        average=0.9,
        **({"schedule": ScheduleConfig("one-cycle"), "clip": 1.0, "checkpoint_every": 0.0, "epochs": 3} | changes),
    )


def outcome(folder: Path) -> tuple[list, dict, dict]:
    """The metrics without times, the weights of both checkpoints, the result without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    weights = {
        (which, name): value.contiguous().numpy().tobytes()
        for which in ("last", "best")
        for name, value in load_file(folder / which / "model.safetensors").items()
    }
    result = json.loads((folder / "result.json").read_text())
    return (
        [{key: line[key] for key in line if key not in CLOCK} for line in lines],
        weights,
        result | {"seconds": 0, "cpu_seconds": 0},
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list, dict, dict]:
    """What an uninterrupted run gives."""
    return outcome(fit(everything(tmp_path_factory.mktemp("whole"))).folder)


def finish(config: Config) -> Path:
    """Resume, to the end, the only run in the folder `config.out`, or start it where it was killed before that."""
    folders = sorted(config.out.iterdir()) if config.out.exists() else []
    result = fit(config, resume=bool(folders) and (folders[0] / "config.json").exists())
    assert not [path for path in result.folder.rglob("*") if path.suffix in (".tmp", ".old")]
    return result.folder


def killed_after_moving(process, folder: Path, seconds: float) -> bool:
    """Kill `process` so long after its first own checkpoint in `folder`; False where it has ended before."""
    seen = identity(folder / "last")
    while process.is_alive() and identity(folder / "last") == seen:
        time.sleep(0.005)
    process.join(seconds)
    alive = process.is_alive()
    process.kill()
    process.join()
    return alive


def identity(folder: Path) -> int | None:
    """What differs between a folder and the one that replaces it."""
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return None


@pytest.mark.parametrize("count", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_run_killed_at_random_moments_ends_as_if_it_never_was(tmp_path: Path, count: int) -> None:
    whole = outcome(fit(everything(tmp_path / "whole", epochs=EPOCHS)).folder)
    config = everything(tmp_path / "runs", epochs=EPOCHS)
    kills = 0
    for _ in range(count):
        begun = (config.out / "tiny-0" / "config.json").exists()
        kills += killed_after_moving(start(train, config, begun), config.out / "tiny-0", random.uniform(0, 0.15))
    assert kills == count
    assert outcome(finish(config)) == whole


@pytest.mark.parametrize(
    ("name", "count", "step"),
    [
        ("rename", 0, None),  # the first checkpoint is written, but not in place
        ("rename", 7, 3),  # between the old one stepping aside and the new one taking its place
        ("replace", 1, None),  # between temporary file and rename, of model.json
        ("replace", 3, 4),  # of the metrics, of which best/ has an epoch more than last/
        ("fsync", 9, None),  # within a checkpoint
        ("fsync", 31, 4),
    ],
)
def test_run_killed_inside_a_write_ends_as_if_it_never_was(
    tmp_path: Path, whole: tuple, name: str, count: int, step: int | None
) -> None:
    """The checkpoint of `step` is there, or none yet."""
    config = everything(tmp_path / "runs")
    process = start(train_until, config, False, name, count)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    last = config.out / "tiny-0" / "last"
    assert (load_state(last)["position"]["step"] if present(last) else None) == step
    assert outcome(finish(config)) == whole


def test_full_disk_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path, whole: tuple) -> None:
    config, output = everything(tmp_path / "runs"), tmp_path / "output"
    process = start(train_until, config, False, "rename", 7)
    process.join()
    process = start(train_on_full_disk, config, True, 3000, output)
    process.join()
    assert process.exitcode == 1
    folder = config.out / "tiny-0"
    said = output.read_text()
    (said,) = (line for line in said.splitlines() if not line.startswith("batch norm: "))
    assert said.startswith(f"torchcaps: error: cannot write {folder / 'last'} (")
    assert "what was there is kept; make room, then continue with --resume" in said
    assert not (folder / "last.tmp").exists()
    assert outcome(finish(config)) == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_signal_saves_at_the_end_of_the_step_and_says_how_to_go_on(
    tmp_path: Path, whole: tuple, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """The clock would not have saved: `checkpoint_every` is long."""
    config, step = everything(tmp_path / "runs", checkpoint_every=1e6), loop.Trainer.step

    def struck(trainer: loop.Trainer, *batch):
        if trainer.position.epoch * 5 + trainer.position.step == 6:
            os.kill(os.getpid(), number)
        return step(trainer, *batch)

    before = signal.getsignal(number)
    monkeypatch.setitem(registry._RECIPES, "tiny", lambda: config)
    monkeypatch.setattr(reporting, "report", lambda *args, **kwargs: None)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "step", struck)
        assert cli.main(["train", "tiny", "--checkpoint-every", "9e9"]) == 130
    assert signal.getsignal(number) == before
    said = capfd.readouterr().err.splitlines()
    assert "torchcaps: stopping after this step; once more stops at once, unsaved" in said
    assert said[-1] == (
        f"torchcaps: stopped after step 7 of 15, saved in {config.out / 'tiny-0'}; "
        "to continue: torchcaps train tiny --checkpoint-every 9e9 --resume"
    )
    assert load_state(config.out / "tiny-0" / "last")["position"]["step"] == 2
    assert outcome(finish(config)) == whole


@pytest.mark.parametrize("steps", [4, 5, 14])
def test_request_to_stop_at_the_end_of_an_epoch_is_kept(tmp_path: Path, whole: tuple, steps: int) -> None:
    """In the last step of an epoch; in the validation that follows; in the last step of all."""
    config, interruption = everything(tmp_path, checkpoint_every=1e6), Interruption()
    trainer = loop.Trainer(build_fabric(config), config, False, interruption)
    step, evaluate = trainer.step, trainer.evaluate
    taken = []

    def struck(*batch):
        taken.append(batch)
        interruption.asked |= len(taken) == steps + 1 and steps != 5
        return step(*batch)

    def validated(split, model):
        interruption.asked |= steps == 5
        return evaluate(split, model)

    trainer.step, trainer.evaluate = struck, validated
    with pytest.raises(Interrupted, match=rf"^stopped after step {steps + (steps != 5)} of 15, saved in {tmp_path}"):
        trainer.run()
    assert outcome(finish(config)) == whole


def test_second_signal_stops_at_once() -> None:
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert interruption.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = everything(tmp_path / "runs", epochs=10_000)
    process = start(train, config, False)
    folder = RunFolder(config.out / "tiny-0")
    while not present(folder.last):
        time.sleep(0.01)
    assert folder.in_use
    os.kill(process.pid, signal.SIGSTOP)  # else its own saving comes between the two looks at the folder
    time.sleep(0.1)
    before = set(folder.path.iterdir())
    with pytest.raises(ValueError, match=r"tiny-0 is being trained by another process"):
        fit(config, resume=True)
    assert process.is_alive() and before == set(folder.path.iterdir())
    process.kill()
    process.join()
    assert not folder.in_use


def test_metrics_of_a_resumed_run_are_those_of_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that was written after the last checkpoint is gone as soon as the run goes on."""
    config, step = everything(tmp_path), loop.Trainer.step
    process = start(train_until, config, False, "replace", 5)
    process.join()
    metrics = tmp_path / "tiny-0" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + metrics.read_text())
    seen = []
    monkeypatch.setattr(
        loop.Trainer, "step", lambda *args: seen.append(len(metrics.read_text().splitlines())) or step(*args)
    )
    fit(config, resume=True)
    assert seen[0] == 2


def test_a_stopped_process_holds_nothing_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the group of processes outlives its leaving, and one of its threads may abort the process at its end."""
    trainers = []

    class Kept(loop.Trainer):
        def __init__(self, *args) -> None:
            super().__init__(*args)
            trainers.append(ref(self))

    monkeypatch.setattr(fitting, "Trainer", Kept)
    config = tiny_config(tmp_path)
    fabric, interruption = build_fabric(config), Interruption()
    interruption.asked = True
    stopped = fitting._train(config, False, interruption, (), Given(), fabric)
    assert isinstance(stopped, Interrupted) and str(stopped).startswith("stopped after step 1 of")
    assert len(trainers) == 1 and trainers[0]() is None
