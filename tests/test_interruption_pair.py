"""A run of two processes, of which one is killed, or which is asked to stop."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from torchcaps.train.checkpoint import present
from torchcaps.train.run import RunFolder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="workers are found in /proc"),
]
OPTIONS = "--epochs 3 --processes 2 --device cpu --checkpoint-every 0.2 --model.options channels 8 primary 2"


def launch(out: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torchcaps", "train", "digits", *OPTIONS.split(), "--out", str(out), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def workers(process: subprocess.Popen) -> list[int]:
    """The process ids of rank 0 and rank 1."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def wait_for_steps(process: subprocess.Popen, folder: Path) -> None:
    while not (folder / "metrics.jsonl").read_text() if (folder / "metrics.jsonl").exists() else True:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def finish(out: Path) -> list[dict]:
    """The metrics of the resumed run, without times."""
    process = launch(out, "--resume")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    lines = [json.loads(line) for line in (out / "digits-0" / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    out = tmp_path_factory.mktemp("whole")
    process = launch(out)
    assert process.wait(120) == 0
    lines = [json.loads(line) for line in (out / "digits-0" / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


@pytest.mark.parametrize("rank", [0, 1])
def test_killing_one_process_ends_both_and_the_pair_resumes(tmp_path: Path, whole: list[dict], rank: int) -> None:
    process = launch(tmp_path)
    folder = tmp_path / "digits-0"
    wait_for_steps(process, folder)
    pids = workers(process)
    begin = time.monotonic()
    subprocess.run(["kill", "-KILL", str(pids[rank])], check=True)
    _, said = process.communicate(timeout=60)
    seconds = time.monotonic() - begin
    assert process.returncode == 1 and seconds < 15, (seconds, said)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    errors = [line for line in said.splitlines() if line.startswith("torchcaps: error")]
    assert len(errors) == 1 and "so the run of 2 processes; --resume continues it" in errors[0], said
    assert "Traceback" not in said
    print(f"both ended {seconds:.1f} s after the kill: {errors[0]}")
    assert present(folder / "last") and not RunFolder(folder).in_use
    assert finish(tmp_path) == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_first_process_saves_and_the_pair_resumes(
    tmp_path: Path, whole: list[dict], number: signal.Signals
) -> None:
    process = launch(tmp_path)
    wait_for_steps(process, tmp_path / "digits-0")
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.splitlines()[-1].startswith("torchcaps: stopped after step") and "Traceback" not in said
    assert finish(tmp_path) == whole


def test_minutes_end_a_pair_too(tmp_path: Path, whole: list[dict]) -> None:
    """The clock had been left with the process that started both, and takes no step."""
    process = launch(tmp_path, "--max-minutes", "0.001")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and "torchcaps: stopped after step" in said, said
    assert finish(tmp_path) == whole
