"""Processes that torchrun or srun has started are one run; parts of a plan are the plan, and can be jobs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_config

from torchcaps.cli import main
from torchcaps.cli.jobs import Command, read_settings
from torchcaps.papers import find_tables
from torchcaps.plugins import HANDED_ON
from torchcaps.ranks import Ranks, first_host, given_ranks
from torchcaps.tables.fill import Outcome
from torchcaps.tables.parts import read_part, take_part
from torchcaps.tables.plan import choose_cells, plan
from torchcaps.tables.records import append_record, config_hash, merge_records, read_records
from torchcaps.train import RunFolder
from torchcaps.train.processes import _together, build_fabric, join_ranks

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "WORLD_SIZE": "4",
    "RANK": "3",
    "LOCAL_WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "here",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_JOB_ID": "20012",
    "SLURM_STEP_ID": "0",
}
FROZEN = """
import sys
from pathlib import Path
import torch
from torch import nn
from torchcaps.config import Config, DataConfig, LossConfig, OptimiserConfig
from torchcaps.train import fit

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.Linear(36, 10)
        self.norm.running_mean.uniform_(-0.1, 0.1)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()  # frozen: each process would have statistics of its own share
        return self

    def forward(self, images):
        return self.head(torch.relu(self.norm(self.conv(images))).flatten(1))

config = Config(
    recipe="pair", data=DataConfig("digits"), loss=LossConfig("cross-entropy"),
    optimiser=OptimiserConfig("sgd", lr=0.1), epochs=1, batch_size=128, precision="fp32", device="cpu",
    out=Path(sys.argv[1]),
)
fit(config, model=Net())
"""


def test_ranks_are_read_of_torchrun_and_srun() -> None:
    assert given_ranks({}) is None and given_ranks(TORCHRUN | {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}) is None
    assert given_ranks({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None  # a batch script is one process
    assert given_ranks(TORCHRUN) == Ranks(4, 3, 2, 1, "torchrun", "here", 29500)
    found = given_ranks(SRUN)
    assert found == Ranks(4, 2, 2, 0, "srun", "node07", 20012) and found.node == 1
    assert given_ranks(SRUN | {"MASTER_ADDR": "a", "MASTER_PORT": "1"}) == Ranks(4, 2, 2, 0, "srun", "a", 1)
    for wrong in (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "3,1"}, TORCHRUN | {"LOCAL_WORLD_SIZE": "3"}):
        with pytest.raises(ValueError, match="not as many on each machine"):
            given_ranks(wrong)
    with pytest.raises(ValueError, match="would meet at port 0, where they never find each other"):
        given_ranks(TORCHRUN | {"MASTER_PORT": "0"})
    with pytest.raises(ValueError, match="variables of torchrun or srun cannot be read"):
        given_ranks(TORCHRUN | {"RANK": "x"})
    hosts = {"a": "a", "a,b": "a", "n[3,5]": "n3", "n[3-5]x,c": "n3x", "r1-n[01-02],q": "r1-n01", "a1,b[2-3]": "a1"}
    assert {names: first_host(names) for names in hosts} == hosts


def test_a_task_takes_the_one_gpu_that_it_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By srun --gpus-per-task, where both tasks of a machine see a first GPU, which are two."""
    assert not given_ranks(SRUN).bound
    assert given_ranks(SRUN | {"SLURM_TRES_PER_TASK": "cpu=2,gres/gpu=1"}).bound
    for name, value in (SRUN | {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_GPUS_PER_TASK": "1"}).items():
        monkeypatch.setenv(name, value)
    asked: dict[str, Any] = {}
    monkeypatch.setattr("torchcaps.train.processes.Fabric", lambda **given: asked.update(given))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    build_fabric(tiny_config(tmp_path, processes=4, batch_size=8, device="auto"))
    (joined,) = asked["plugins"]
    assert (asked["accelerator"], asked["devices"], asked["num_nodes"]) == ("cuda", 1, 4)
    assert (joined.local_rank(), joined.global_rank(), joined.world_size(), joined.node_rank()) == (0, 3, 4, 3)
    build_fabric(tiny_config(tmp_path, processes=4, batch_size=8, device="cpu"))
    assert (asked["accelerator"], asked["devices"], asked["num_nodes"]) == ("cpu", 2, 2)
    assert asked["plugins"][0].local_rank() == 1


def test_a_config_takes_as_many_processes_as_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tmp_path)
    assert join_ranks(config) == config
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert join_ranks(config).processes == 4
    with pytest.raises(ValueError, match="processes is 2, but torchrun has started 4: leave it out"):
        join_ranks(tiny_config(tmp_path, processes=2))


def test_tables_are_not_filled_by_all_of_them_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    words = ["reproduce", "fm/table2", "--budget", "smoke", "--out", str(tmp_path / "runs")]
    assert main([*words, "--results", str(tmp_path / "results")]) == 2
    assert "torchrun has started 4 processes, which would all do the same" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert main(["list", "routings"]) == 0
    assert capsys.readouterr().out == ""  # the first speaks for all
    assert main(["list", "planets"]) == 2
    assert "planets" in capsys.readouterr().err


def outcome(folder: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()], load_file(folder / "last" / "model.safetensors")


def alike(pair: Path, alone: Path) -> None:
    """Hold two runs to each other: 1e-5 in float32."""
    (ours, weights), (theirs, others) = outcome(pair), outcome(alone)
    for a, b in zip(ours, theirs, strict=True):
        for name in ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy"):
            assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-5), name
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], rtol=1e-5, atol=1e-5)


def clean() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "TORCHCAPS_CACHE": os.environ.get("TORCHCAPS_CACHE", "")}


PAIR = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.slow
def test_torchrun_is_one_run_of_the_module_that_it_is_given(tmp_path: Path) -> None:
    """With batch norm frozen, whose statistics would be those of half a batch."""
    script = tmp_path / "pair.py"
    script.write_text(FROZEN)
    for words, name in (([*PAIR], "pair"), ([sys.executable], "alone")):
        done = subprocess.run([*words, str(script), str(tmp_path / name)], capture_output=True, text=True, env=clean())
        assert done.returncode == 0, done.stderr
        assert [path.name for path in (tmp_path / name).iterdir()] == ["pair-0"]
    alike(tmp_path / "pair" / "pair-0", tmp_path / "alone" / "pair-0")
    assert RunFolder(tmp_path / "pair" / "pair-0").read_config().processes == 2


@pytest.mark.slow
def test_torchrun_trains_digits_as_one_process_does(tmp_path: Path) -> None:
    flags = ["train", "digits", "--epochs", "1", "--data.limit", "400", "--precision", "fp32", "--device", "cpu"]
    for words, name in ((PAIR, "pair"), ([sys.executable], "alone")):
        command = [*words, "-m", "torchcaps", *flags, "--out", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, env=clean())
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == str(tmp_path / name / "digits-0")
        assert done.stderr.count("epoch 1/1") == 1 and len(list((tmp_path / name).iterdir())) == 1
    alike(tmp_path / "pair" / "digits-0", tmp_path / "alone" / "digits-0")
    assert (tmp_path / "pair" / "digits-0" / "report.html").exists()


@pytest.mark.slow
def test_srun_is_one_run_by_its_variables(tmp_path: Path) -> None:
    """Two processes with the variables that srun gives its tasks; no cluster was there to try it on."""
    script = tmp_path / "pair.py"
    script.write_text(FROZEN)
    shared = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_TASKS_PER_NODE": "2"}
    shared |= {"SLURM_NTASKS": "2", "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "MASTER_ADDR": "127.0.0.1"}
    tasks = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "pair")],
            env=clean() | shared | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for task in tasks:
        _, said = task.communicate(timeout=300)
        assert task.returncode == 0, said
    assert [path.name for path in (tmp_path / "pair").iterdir()] == ["pair-0"]
    subprocess.run([sys.executable, str(script), str(tmp_path / "alone")], env=clean(), check=True)
    alike(tmp_path / "pair" / "pair-0", tmp_path / "alone" / "pair-0")


@pytest.mark.parametrize("parts", [1, 3, 16])
def test_parts_together_are_the_plan(parts: int) -> None:
    jobs = plan(choose_cells(find_tables("fm/*"), "*"), "cpu", 3)
    each = [take_part(jobs, number, parts) for number in range(1, parts + 1)]
    assert sorted(job.label for part in each for job in part) == sorted(job.label for job in jobs)
    assert max(map(len, each)) - min(map(len, each)) <= 1


def test_a_part_is_a_number_of_how_many() -> None:
    assert read_part("3/16") == ([3], 16) and read_part("all/3") == ([1, 2, 3], 3)
    for wrong in ("3", "0/2", "4/3", "1/0", "a/2", "1/2/3", "-1/2"):
        with pytest.raises(ValueError, match="part is"):
            read_part(wrong)


def test_what_is_done_does_not_move_the_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    """Jobs drop out of a part only once the plan has been cut."""
    asked: list[list[str]] = []

    def fill(jobs, settings):
        asked.append([job.label for job in jobs])
        return Outcome(0)

    monkeypatch.setattr("torchcaps.cli.tables.fill", fill)
    words = ["reproduce", "fm/table2", "--budget", "smoke", "--seeds", "1", "--results", str(tmp_path)]
    for part in ("1/1", "1/2", "2/2"):
        assert main([*words, "--part", part]) == 0
    whole, *halves = asked
    assert sorted(halves[0] + halves[1]) == sorted(whole) and halves[0] == whole[::2]
    assert "(part 2/2 of the plan)" in capsys.readouterr().err
    assert main([*words, "--part", "all/2"]) == 2
    assert "--part all/2 is of jobs that are submitted" in capsys.readouterr().err
    assert main([*words, "--slurm", "partition=x"]) == 2
    assert "add --submit slurm" in capsys.readouterr().err


def test_settings_of_jobs_are_names_and_values() -> None:
    assert read_settings(["partition=gpu", "gpus_per_node=1"]) == {"partition": "gpu", "gpus_per_node": 1}
    with pytest.raises(ValueError, match="it takes NAME=VALUE"):
        read_settings(["partition"])


def test_a_job_takes_the_files_that_its_user_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr("torchcaps.cli.jobs.submit_parts", lambda words, *others: given.append(words) or [])
    monkeypatch.setenv(HANDED_ON, json.dumps(["/a/mine.py", "/b/other.py"]))
    assert main(["reproduce", "fm/text-residual", "--out", str(tmp_path), "--submit", "local"]) == 0
    assert given[0][-4:] == ["--import", "/a/mine.py", "--import", "/b/other.py"]


def test_a_job_that_fails_is_seen_to_fail() -> None:
    assert Command(["list", "routings"])() == 0
    with pytest.raises(RuntimeError, match="torchcaps list planets ended with status 2"):
        Command(["list", "planets"])()


@pytest.mark.slow
def test_parts_are_submitted_as_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By submitit's executor of this machine, in whose jobs the variables of SLURM's are set."""
    submitit = pytest.importorskip("submitit", reason="the extra slurm is not installed")
    words = ["reproduce", "fm/text-residual", "--cells", "ours", "--out", str(tmp_path / "runs")]
    assert main([*words, "--results", str(tmp_path), "--submit", "local", "--part", "all/2"]) == 0
    said = capsys.readouterr().err
    names = [line.split(" is job ")[1].split(";")[0] for line in said.splitlines() if " is job " in line]
    assert len(names) == 2
    jobs = [submitit.LocalJob(folder=tmp_path / "runs" / "jobs", job_id=name) for name in names]
    while not all(job.paths.result_pickle.exists() for job in jobs):  # of processes that another executor started
        time.sleep(0.5)
    assert [job.results() for job in jobs] == [[0], [0]]
    assert len(read_records(tmp_path / "runs.jsonl")) == 1


def test_a_job_that_is_put_off_is_submitted_again() -> None:
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    again = Command(["list", "routings"]).checkpoint()
    assert isinstance(again.function, Command) and again.function.words == ["list", "routings"]


def test_without_submitit_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(["reproduce", "fm/table2", "--submit", "slurm", "--out", str(tmp_path / "runs")]) == 2
    assert 'pip install "torchcaps[slurm]"' in capsys.readouterr().err


def test_lines_of_several_machines_are_read_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHCAPS_DATA", str(tmp_path / "none"))
    records = [{"config_hash": "a", "seed": n, "cell": "x"} for n in range(3)]
    assert merge_records([records[:2], records[1:]]) == records
    for name, lines in (("a", records[:2]), ("b", records[1:])):
        for line in lines:
            append_record(tmp_path / name / "runs.jsonl", line)
    assert main(["table", "fm/table2", "--results", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "data not at hand" in capsys.readouterr().out
    assert main(["table", "fm/table2", "--results", str(tmp_path / "a"), str(tmp_path / "c")]) == 2
    assert "--results takes folders that hold lines" in capsys.readouterr().err


def test_a_line_of_another_machine_fills_its_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (job,) = plan(choose_cells(find_tables("fm/table2"), "ours-cifar10"), "full", 1)
    line = {"cell": job.cell.id, "budget": "full", "width": "", "seed": 0, "config_hash": config_hash(job.config)}
    line |= {"test_accuracy": 0.8125, "validation_accuracy": None, "environment": {"cpu": "abacus"}, "seconds": 1.0}
    append_record(tmp_path / "a" / "runs.jsonl", {"config_hash": "other", "seed": 0})
    append_record(tmp_path / "b" / "runs.jsonl", line)
    places = [str(tmp_path / name) for name in ("a", "b")]
    for shown in (places, places[::-1]):
        assert main(["table", "fm/table2", "--results", *shown]) == 0
        assert "81.25" in capsys.readouterr().out
    assert main(["table", "fm/table2", "--results", places[0]]) == 0
    assert "81.25" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("device", "nccl", "by"), [("cuda", False, "gloo"), ("cuda", True, None), ("cpu", False, None)]
)
def test_gpus_are_joined_by_gloo_where_there_is_no_nccl(
    device: str, nccl: bool, by: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows."""
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: nccl)
    assert _together(device, "spawn")._process_group_backend == by
