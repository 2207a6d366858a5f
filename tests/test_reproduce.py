"""`torchcaps reproduce` and `torchcaps table`, end to end on the digits with a tiny network."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import collect
import pytest
from tiny import tiny_config

from torchcaps.cli import main, reporting
from torchcaps.config import ComposeConfig, Config, DataConfig, LossConfig, ModelConfig
from torchcaps.data.facts import data_facts
from torchcaps.papers import find_cell
from torchcaps.tables import cells, fill, measure, summary
from torchcaps.tables.budgets import apply_budget
from torchcaps.tables.cells import Cell, Combine, Count, Impossible, Narrow, Paper, Published, Quoted, Train
from torchcaps.tables.measure import count_parameters, latencies
from torchcaps.tables.metrics import ACCURACY, PARAMETERS
from torchcaps.tables.plan import plan
from torchcaps.tables.records import find_run, read_records
from torchcaps.tables.summary import describe_gap, estimate_hours, this_machine
from torchcaps.train import Interrupted, RunFolder, fit
from torchcaps.train.devices import choose_device
from torchcaps.train.loop import Trainer

PAPER = Paper("tiny", "Nobody 2000")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in which the table tiny/table1 is registered for one test."""
    monkeypatch.setattr(cells, "_TABLES", {})
    monkeypatch.setattr(reporting, "report", lambda *args: None)
    monkeypatch.chdir(tmp_path)
    config = replace(tiny_config(Path("elsewhere"), {"width": 3}), device="auto")

    @cells.table(PAPER, "table1", "Table 1", "accuracy (%)")
    def table1():
        narrow = Train(lambda: config, Narrow("2-wide", {"width": 2}), seeds=2)
        other = Train(lambda: replace(config, optimiser=replace(config.optimiser, lr=1e-3)), seeds=1)
        yield Cell("plain", "plain | row", "digits", narrow, (Published("77.77", "mean", "0.5"),), ACCURACY, "a note")
        yield Cell("shared", "plain again", "digits", narrow, (Published("88.88", "best", runs=2),), ACCURACY)
        yield Cell("slow", "slower", "digits", other, (Published("fail"),), ACCURACY)
        parts = ("tiny/table1/plain", "tiny/table1/slow")
        yield Cell("best", "best of both", "digits", Combine("best", parts), (Published("66.66"),), ACCURACY)
        yield Cell("mean", "mean of both", "digits", Combine("mean", parts), (), ACCURACY)
        yield Cell(
            "size", "plain", "# params", Count(lambda: config, count_parameters), (Published("0.5"),), PARAMETERS
        )
        yield Cell("quoted", "theirs", "digits", Quoted(), (Published("99.99"),), ACCURACY)
        yield Cell("never", "lost", "digits", Impossible("nobody knows"), (Published("55.55"),), ACCURACY)
        svhn = Train(lambda: replace(config, data=DataConfig("svhn")))
        yield Cell("absent", "plain", "SVHN", svhn, (Published("44.44"),), ACCURACY)

    monkeypatch.setenv("TORCHCAPS_DATA", str(tmp_path / "none"))
    return tmp_path


def lines(place: Path) -> list[dict]:
    return [json.loads(text) for text in (place / "results/runs.jsonl").read_text().splitlines()]


def rows(place: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """The printed table, by row and column."""
    capsys.readouterr()
    assert main(["table", "tiny/table1"]) == 0
    table = [
        re.split(r"(?<!\\)\| ", line)[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")
    ]
    return {f"{row[0].strip()}, {row[1].strip()}": [cell.strip(" |") for cell in row[2:]] for row in table[2:]}


def test_runs_are_done_once_and_shown(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "tiny/table1"]) == 0
    said = capsys.readouterr().err
    assert "tiny/table1: 7 runs with the budget full" in said  # plain and shared have the same two runs
    assert "tiny/table1/absent seed 0: data not at hand: svhn lacks SVHN/train_32x32.mat" in said
    records = lines(place)
    assert [(each["cell"].split("/")[-1], each["seed"]) for each in records] == [
        ("plain", 0),
        ("slow", 0),
        ("size", 0),
        ("plain", 1),
    ]
    first = records[0]
    assert first["budget"] == "full" and first["validation_accuracy"] is None and first["width"] == ""
    assert first["config"]["data"]["validation"] == 0 and "out" not in first["config"]
    assert first["peak_memory"] > 1e6 and first["steps"] == 10 and len(first["curve"]["train_accuracy"]) == 2
    assert {each["environment"]["device"] for each in records} == {choose_device("auto")}
    assert first["environment"]["torch"] and first["seconds"] > 0 and str(place) not in json.dumps(records)
    assert main(["reproduce", "tiny/table1"]) == 0
    assert lines(place) == records

    accuracies = [100 * records[number]["test_accuracy"] for number in (0, 3)]
    mean, gap = sum(accuracies) / 2, abs(accuracies[0] - accuracies[1])
    shown = rows(place, capsys)
    ours = f"{mean:.2f} ± {gap / 2**0.5:.2f} (2)"
    plain = shown[r"plain \| row, digits [1]"]
    assert plain == ["77.77 ± 0.5", ours, f"{max(accuracies):.2f}", f"{mean - 77.77:+.2f}", ""]
    assert shown["plain again, digits"][3] == f"{max(accuracies) - 88.88:+.2f}"
    slow = 100 * records[1]["test_accuracy"]
    assert shown["slower, digits"] == ["fail", f"{slow:.2f} (1)", "", "", ""]
    assert shown["best of both, digits"][1] == (ours if mean > slow else f"{slow:.2f} (1)")
    assert shown["mean of both, digits"][1] == f"{(accuracies[0] + slow) / 2:.2f} (1)"
    assert shown["plain, # params"][1] == f"{records[2]['value']:.2f}"
    assert shown["theirs, digits"] == ["99.99", "quoted", "", "", ""]
    assert shown["lost, digits"] == ["55.55", "cannot be reproduced: nobody knows", "", "", ""]
    assert shown["plain, SVHN"] == ["44.44", "data not at hand: svhn lacks SVHN/train_32x32.mat", "", "", ""]


def test_nothing_published_is_shown_as_measured(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without lines there is no number but the published ones, in their own column."""
    for row in rows(place, capsys).values():
        assert not re.search(r"\d\.\d", " ".join(row[1:]))
    assert rows(place, capsys)["slower, digits"] == ["fail", "not run", "", "", ""]


@pytest.mark.slow
def test_cpu_runs_are_evidence_in_a_column_of_their_own(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "tiny/table1", "--cells", "plain", "--seeds", "1", "--budget", "cpu"]) == 0
    (record,) = lines(place)
    assert (record["budget"], record["width"], record["recipe"]) == ("cpu", "2-wide", "tiny.table1.plain.cpu.2-wide")
    assert record["validation_accuracy"] is not None and record["config"]["model"]["options"]["width"] == 2
    shown = rows(place, capsys)
    assert shown["best of both, digits"][1:] == ["not run", "", "", ""]
    plain = shown[r"plain \| row, digits [1]"]
    assert plain[1:] == ["not run", "", "", f"{100 * record['test_accuracy']:.2f} (1), cpu, 2-wide"]


def test_cut_run_goes_on_and_ends_as_if_it_had_not_been(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reproduce", "tiny/table1", "--cells", "slow"]
    assert main([*command, "--results", "whole", "--out", "whole/runs"]) == 0
    end_epoch = Trainer.end_epoch

    def interrupt(self, display):
        os.kill(os.getpid(), signal.SIGINT)
        end_epoch(self, display)

    monkeypatch.setattr(Trainer, "end_epoch", interrupt)
    assert main(command) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert read_records(Path("results/runs.jsonl")) == []
    monkeypatch.setattr(Trainer, "end_epoch", end_epoch)
    assert main(command) == 0
    assert [path.name for path in Path("runs").iterdir() if path.is_dir()] == ["tiny.table1.slow.full-0"]
    (cut,), (whole,) = lines(place), read_records(Path("whole/runs.jsonl"))
    assert cut["curve"] == whole["curve"] and cut["test_accuracy"] == whole["test_accuracy"]


def test_run_that_ended_without_its_line_is_only_noted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["reproduce", "tiny/table1", "--cells", "slow"]
    assert main(command) == 0
    (before,) = lines(place)
    (place / "results/runs.jsonl").unlink()
    capsys.readouterr()
    assert main(command) == 0
    assert "was finished in" in capsys.readouterr().err
    measured = ("peak_memory", "step_seconds", "step_images")  # by the process that trained
    assert lines(place) == [{key: value for key, value in before.items() if key not in measured}]


def test_failed_run_is_a_result(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args):
        raise FloatingPointError("the loss is nan")

    monkeypatch.setattr(Trainer, "report", fail)
    assert main(["reproduce", "tiny/table1", "--cells", "slow"]) == 0
    assert lines(place)[0]["failure"] == "the loss is nan"
    assert rows(place, capsys)["slower, digits"][1] == "1 failed: the loss is nan"
    monkeypatch.undo()


def test_hours_end_between_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "tiny/table1", "--max-hours", "0"]) == 0
    said = capsys.readouterr().err
    assert "0 h are over" in said and said.endswith("to see them: torchcaps table tiny/table1\n")
    assert not Path("results/runs.jsonl").exists()
    assert main(["reproduce", "tiny/table1", "--max-hours", "0", "--results", "my results"]) == 0
    assert capsys.readouterr().err.endswith("to see them: torchcaps table tiny/table1 --results 'my results'\n")


@pytest.mark.slow
def test_a_dry_run_says_what_is_left_and_writes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs that are done are not ahead; the sum is that of the others."""
    command = ["reproduce", "tiny/table1", "--dry-run", "--seeds", "2"]
    assert main([*command, "--cells", "slow"]) == 0
    said = capsys.readouterr().err
    each = re.findall(r"tiny/table1/slow seed ([01]): ahead: \d+ epochs? of [\d,]+ steps of \d+ images.* a step", said)
    assert each == ["0", "1"] and re.search(r"tiny/table1: about \S+ \S+ in all on this machine", said)
    assert not Path("results").exists() and not Path("runs").exists()
    assert main(["reproduce", "tiny/table1", "--cells", "slow", "--seeds", "1"]) == 0
    capsys.readouterr()
    assert main([*command, "--cells", "slow"]) == 0
    said = capsys.readouterr().err
    assert "slow seed 0" not in said and "slow seed 1: ahead: " in said
    assert main([*command, "--submit", "local"]) == 2
    assert "--dry-run submits nothing: leave out --submit local" in capsys.readouterr().err


def test_run_of_another_process_is_left_to_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torchcaps.tables.fill.hold", lambda path: None)
    assert main(["reproduce", "tiny/table1", "--cells", "slow"]) == 0
    assert "tiny/table1/slow seed 0: another process has it" in capsys.readouterr().err


def test_a_run_that_does_not_fit_is_left_and_the_others_are_done(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fit_some(config: Config, *args):
        if config.optimiser.lr != 1e-3:
            raise MemoryError("cpu has too little memory for batch_size 256")
        return fit(config, *args)

    monkeypatch.setattr("torchcaps.train.fit", fit_some)
    assert main(["reproduce", "tiny/table1", "--cells", "[ps]l*", "--seeds", "1"]) == 2
    said = capsys.readouterr().err
    assert "tiny/table1/plain seed 0: cpu has too little memory for batch_size 256\n" in said
    assert "tiny/table1: 1 of 2 runs are done" in said
    (error,) = [line for line in said.splitlines() if line.startswith("torchcaps: error: ")]
    assert error.startswith("torchcaps: error: 1 of the runs") and error.endswith(": tiny/table1/plain seed 0")
    assert [line["cell"] for line in lines(place)] == ["tiny/table1/slow"]


def slow_config(**changes) -> Config:
    """The config of the cell "slow", as `reproduce` trains it and `train` does."""
    cell = find_cell("tiny/table1/slow")
    assert isinstance(cell.how, Train)
    return replace(apply_budget(cell.how.build(), "full", cell), out=Path("runs"), device="auto", **changes)


def test_a_run_that_is_being_trained_otherwise_is_left(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Interrupted):
        fit(slow_config(), max_minutes=0)
    with RunFolder(Path("runs/tiny.table1.slow.full-0")).hold():
        assert main(["reproduce", "tiny/table1", "--cells", "[ps]l*", "--seeds", "1"]) == 2
    said = capsys.readouterr().err
    assert "slow seed 0: runs/tiny.table1.slow.full-0 is being trained by another process" in said
    assert [line["cell"] for line in lines(place)] == ["tiny/table1/plain"]


def test_a_run_that_went_on_from_a_shorter_one_fills_no_cell(place: Path) -> None:
    """Nor does `reproduce` go on with it: its line would be found by no cell."""
    fit(slow_config(epochs=1, changed=("epochs=1",)))
    with pytest.raises(Interrupted):
        fit(slow_config(), resume=True, max_minutes=0)
    assert main(["reproduce", "tiny/table1", "--cells", "slow"]) == 0
    (line,) = lines(place)
    assert line["config"]["continued"] == "" and find_run([line], slow_config(), "full") is line
    assert not (place / "runs/tiny.table1.slow.full-0-2/result.json").exists()


def test_smoke_runs_give_the_hours_of_the_others(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "tiny/table1", "--cells", "slow", "--budget", "smoke"]) == 0
    shown = rows(place, capsys)["slower, digits"]
    assert re.fullmatch(r"not run \(about \S+ h a run here\)", shown[1]) and shown[2:] == ["", "", ""]


def test_what_is_done_is_done_without_its_data(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "tiny/table1", "--cells", "slow"]) == 0
    monkeypatch.setattr(fill, "missing_data", lambda *_: "digits are gone")
    capsys.readouterr()
    assert main(["reproduce", "tiny/table1", "--cells", "slow"]) == 0
    assert "not at hand" not in capsys.readouterr().err
    monkeypatch.setattr(summary, "missing_data", lambda config, root: f"looked for in {root}")
    assert "data not at hand: looked for in there" in describe_gap(
        find_cell("tiny/table1/absent"), [], root=Path("there")
    )


def test_a_damaged_run_is_passed_by(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["reproduce", "tiny/table1", "--cells", "slow"]) == 0
    (folder,) = Path("runs").glob("tiny.table1.slow*")
    damaged = folder.with_name(f"{folder.name}-1")
    shutil.copytree(folder, damaged)
    (damaged / "config.json").write_text("{")
    (place / "results/runs.jsonl").unlink()
    folder.rename(folder.with_name("under.another.name"))
    assert main(["reproduce", "tiny/table1", "--cells", "slow"]) == 0
    assert "passed by: " in caplog.text and len(lines(place)) == 1


@pytest.mark.slow
def test_hours_are_those_of_the_steps_that_this_machine_took(place: Path) -> None:
    assert main(["reproduce", "tiny/table1", "--cells", "slow", "--budget", "smoke"]) == 0
    (line,) = lines(place)
    cell, here = find_cell("tiny/table1/slow"), this_machine()
    assert isinstance(cell.how, Train)
    config = apply_budget(cell.how.build(), "full", cell)
    steps = config.epochs * (data_facts(config.data).images // config.batch_size)
    records = [line | {"step_seconds": 7.2}]
    assert estimate_hours(cell, records, here) == pytest.approx(steps * 7.2 / 3600)
    assert estimate_hours(cell, records, here | {"cpu": "another"}) is None
    assert estimate_hours(cell, [], here) is None


def test_pages_are_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "tiny/*", "--write", "--format", "html"]) == 0
    printed = capsys.readouterr().out
    folder = place / "results/tables/tiny"
    assert printed == (folder / "table1.html").read_text()
    assert "<script" not in printed and "plain | row" in printed
    assert "torchcaps reproduce tiny/table1" in (folder / "table1.md").read_text()


def test_plain_runs_are_collected_once(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(collect, "RESULTS", place / "results")
    folder = str(fit(tiny_config(place / "runs", epochs=1)).folder)
    for _ in range(2):
        capsys.readouterr()
        collect.main([folder])
        (record,) = lines(place)
        assert capsys.readouterr().out == f"tiny: {100 * record['test_accuracy']:.2f} % test accuracy (1 runs)\n"


SETS = {"single": ("digits", "expanded-mnist"), "double": ("multimnist-fm", None)}


@pytest.mark.slow
@pytest.mark.parametrize("shown", ["single", "double"])
def test_pictures_of_print_are_drawn(place: Path, capsys: pytest.CaptureFixture[str], shown: str) -> None:
    """By reproduce; and by table, where a run has a line and a folder, but no picture yet."""
    name, test = SETS[shown]
    compose = ComposeConfig(base="digits", epoch=64, held=32)
    options = {"blocks": (1, 1), "width": 4, "primary": 2, "pose": 4, "decoder": True}
    config = replace(
        tiny_config(Path("elsewhere")),
        model=ModelConfig("fm-resnet-affnist", options),
        data=DataConfig(name, test=test, image_size=40 if test else None, compose=compose),
        loss=LossConfig("margin", reconstruction=0.0005),
        batch_size=64,
        epochs=1,
    )
    kind = "reconstructions" if test else "segmentations"

    @cells.table(PAPER, "table9", "Table 9", "pictures")
    def table9():
        how = Train(lambda: config, seeds=2)
        yield Cell("a", "Input and output", "one", how, (), ACCURACY, picture=kind)
        yield Cell("b", "Input and output", "two", how, (), ACCURACY, picture=kind)

    assert main(["reproduce", "tiny/table9", "--seeds", "1"]) == 0
    (picture,) = (place / "results/tables/tiny").iterdir()
    assert re.fullmatch(r"table9-[0-9a-f]{12}-0\.png", picture.name) and str(picture.name) in capsys.readouterr().err
    before = picture.read_bytes()
    picture.unlink()
    assert main(["table", "tiny/table9", "--write"]) == 0
    assert picture.read_bytes() == before and len(lines(place)) == 1
    markdown, page = ((picture.parent / f"table9.{kind}").read_text() for kind in ("md", "html"))
    assert markdown.count(f"]({picture.name})") == page.count(f'src="{picture.name}"') == 1
    assert markdown.count("| picture 1; ") == 2 and "*Picture 1: " in markdown and "(full, seed 0).*" in markdown
    (place / "runs").rename(place / "gone")
    assert main(["table", "tiny/table9", "--write"]) == 0
    assert picture.read_bytes() == before and "picture 1; " in capsys.readouterr().out
    picture.unlink()
    assert main(["table", "tiny/table9", "--write"]) == 0
    assert "not drawn, its run or data are not at hand; " in capsys.readouterr().out and not picture.exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("reproduce tiny/table2", "no table is named 'tiny/table2'; the nearest is 'tiny/table1'"),
        ("reproduce tiny/table1 --cells nane", "no cell is named 'nane'; there is 'plain', 'shared'"),
        ("reproduce tiny/table1 --cells quoted", "no cell 'quoted' to run"),
        ("reproduce tiny/table1 --seeds 0", "seeds is 0; it must be at least 1"),
        ("reproduce tiny/table1 --max-hours -1", "max_hours is -1.0; it must be 0 or above"),
        ("reproduce tiny/table1 --max-hours nan", "max_hours is nan; it must be 0 or above"),
        ("reproduce tiny/table1 --max-hours nan --submit local", "max_hours is nan; it must be 0 or above"),
        ("reproduce tiny/table1 --budget huge", "--budget"),
        ("reproduce tiny/table1 --device abacus --cells slow", "device is 'abacus'"),
        ("table tiny", "no table is named 'tiny'"),
        ("table tiny/table1 --results broken", "line 2 of broken/runs.jsonl is not a JSON object"),
    ],
)
def test_user_errors_take_one_line(place: Path, capsys: pytest.CaptureFixture[str], command: str, message: str) -> None:
    Path("broken").mkdir()
    Path("broken/runs.jsonl").write_text('{"budget": "cost"}\n{"bud\n')
    assert main(command.split()) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("torchcaps: error: ")]
    assert message in error


def test_seeds_come_before_second_seeds_and_shared_runs_once(place: Path) -> None:
    jobs = plan(cells.find_tables("tiny/table1")[0].cells, "full")
    assert [job.label.removeprefix("tiny/table1/") for job in jobs] == [
        "plain seed 0",
        "slow seed 0",
        "size",
        "absent seed 0",
        "plain seed 1",
        "absent seed 1",
        "absent seed 2",
    ]


def test_networks_timed_beside_each_other_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = 0.0, []

    def network(config: Config, batch_size: int, device: str) -> tuple[Callable[[], None], str]:
        def forward() -> None:
            nonlocal clock
            order.append(config.seed)
            clock += config.seed / 1000 + (len(order) < 3)  # the first pass of each is a second slower

        return forward, device

    monkeypatch.setattr(measure, "_inference", network)
    monkeypatch.setattr("time.perf_counter", lambda: clock)
    config = tiny_config(tmp_path)
    assert latencies([replace(config, seed=3), replace(config, seed=5)], device="cpu") == pytest.approx([3, 5])
    assert order == [3, 5] * (1 + measure.TURNS)
