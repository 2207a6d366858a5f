"""A run's folder may come from a stranger: it is read, never obeyed, and nothing is written through its links."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import tiny_config

from torchcaps import files, list_models, load, memory
from torchcaps.cli import main
from torchcaps.config import DataConfig, ModelConfig
from torchcaps.data import load_data
from torchcaps.data.tree import list_tree
from torchcaps.deploy.packing import load_packed
from torchcaps.files import SUMS
from torchcaps.models import Model, Output, register_model
from torchcaps.report import write_report
from torchcaps.tables.records import describe_run
from torchcaps.train import RunFolder, fit, load_run
from torchcaps.train.checkpoint import MODEL, load_weights, save_checkpoint
from torchcaps.train.start import find_start

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links and pipes of Unix")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tiny_config(tmp_path_factory.mktemp("finished"))).folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_file_is_made_exclusively_and_takes_the_place_of_a_link(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "a.json"
    victim.write_text("mine")
    path.symlink_to(victim)
    with files.replacing(path) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".json" and temporary.name.startswith(".a.")
        assert len(temporary.name) > 16 and not temporary.is_symlink()
        temporary.write_text("new")
    assert victim.read_text() == "mine" and path.read_text() == "new" and not path.is_symlink()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.json", "victim"]
    fresh = tmp_path / "fresh"
    fresh.write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(fresh.stat().st_mode)


def test_every_file_of_a_run_has_the_mode_of_a_new_file_there(finished: Path, tmp_path: Path) -> None:
    """Weights too, whose writers have modes of their own."""
    fresh = tmp_path / "fresh"
    fresh.write_text("")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in finished.rglob("*") if path.is_file()}
    assert MODEL in modes and set(modes.values()) == {stat.S_IMODE(fresh.stat().st_mode)}, modes


def test_what_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a"
    files.replace_text(path, "old")
    with pytest.raises(KeyError), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert [each.name for each in tmp_path.iterdir()] == ["a"] and path.read_text() == "old"


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "metrics.jsonl has no line of an epoch"), ("{", "metrics.jsonl is damaged"), ("[]\n", "it holds a list"),
     ('{"epoch": 1}\n', "metrics.jsonl is damaged"), (None, "it has no train_loss")],
    ids=["empty", "cut", "list", "fields", "curve"],
)  # fmt: skip
def test_a_damaged_history_makes_no_line_of_results(run: Path, text: str | None, said: str) -> None:
    assert describe_run(run)["steps"] > 0
    path = run / "metrics.jsonl"
    if text is None:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        text = "".join(json.dumps({name: line[name] for name in line if name != "train_loss"}) + "\n" for line in lines)
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        describe_run(run)


@pytest.mark.parametrize(
    "name",
    [
        "report.html",
        pytest.param("report.html.tmp", marks=pytest.mark.slow),
        pytest.param("metrics.jsonl.tmp", marks=pytest.mark.slow),
        pytest.param("evaluation.json", marks=pytest.mark.slow),
    ],
)
def test_a_report_writes_through_no_link(run: Path, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "site.pth"
    victim.write_text("untouched")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(victim)
    write_report(run)
    assert victim.read_text() == "untouched"


def test_figures_are_written_into_a_folder_of_the_run_s_own(run: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (run / "figures").symlink_to(elsewhere)
    with pytest.raises(ValueError, match="figures is a link"):
        write_report(run)
    assert not list(elsewhere.iterdir())


def test_a_figure_writes_through_no_link(run: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (run / "figures").mkdir()
    for name in ("loss.png", "accuracy.png", "curves.png"):
        (run / "figures" / name).symlink_to(victim)
    write_report(run)
    assert victim.read_text() == "untouched"


def test_a_report_may_be_written_elsewhere(run: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(["inspect", str(run), "--out", str(tmp_path / "page")]) == 0
    assert (tmp_path / "page" / "report.html").exists() and (tmp_path / "page" / "figures").is_dir()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize(
    "name", ["config.json", "model.json", "metrics.jsonl", "best/model.safetensors", f"best/{SUMS}"]
)
@pytest.mark.parametrize("kind", ["pipe", pytest.param("device", marks=pytest.mark.slow)])
def test_a_pipe_is_refused_and_waited_for_by_nobody(
    run: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a device, which a link can lead to: /dev/zero has no end."""
    (run / name).unlink()
    if kind == "pipe":
        os.mkfifo(run / name)
    else:
        (run / name).symlink_to("/dev/zero")
    status = main(["inspect", str(run)])
    said = capsys.readouterr()
    if name.startswith(("best", "model")):  # a page without the model is made, and says why
        assert f"is a {kind}" in (run / "report.html").read_text()
    else:
        assert status == 2 and f"is a {kind}" in said.err and said.err.count("\n") == 1


@pytest.mark.parametrize("skip", [False, True])
def test_a_pipe_among_pictures_is_named(tmp_path: Path, skip: bool) -> None:
    for number in range(4):
        for name in ("cat", "dog"):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("L", (8, 8), number).save(tmp_path / name / f"{number}.png")
    os.mkfifo(tmp_path / "cat" / "z.png")
    config = DataConfig(f"folder:{tmp_path}", skip_unreadable=skip)
    if skip:
        assert len(load_data(config).train) <= 8
        return
    with pytest.raises(ValueError, match=r"z\.png is a pipe"):
        load_data(config)


def test_runs_that_may_only_be_read_are_listed(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "result.json").unlink()
    (run / ".lock").touch()

    def refused(path: Path, seconds: float = 0) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("torchcaps.train.run.hold", refused)
    assert main(["runs", str(run.parent)]) == 0
    assert run.name in capsys.readouterr().out


def test_a_link_to_a_run_is_refused_before_anything_is_written(run: Path) -> None:
    link = run.with_name("latest")
    link.symlink_to(run.name)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(["inspect", str(link)]) == 2
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize("kind", ["pipe", "link that leads in a circle"])
def test_weights_to_start_from_are_a_file(run: Path, kind: str) -> None:
    weights = run / "best" / MODEL
    weights.unlink()
    if kind == "pipe":
        os.mkfifo(weights)
    else:
        weights.symlink_to(MODEL)
    with pytest.raises(ValueError, match=rf"{MODEL} is a {kind}; it must be a file"):
        find_start(run)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"recipe": "x\nimport os"}, "must be one plain name"),
        ("config.json", {"recipe": "../../x"}, "must be one plain name"),
        ("config.json", {"recipe": 3}, "recipe is 3"),
        ("config.json", {"model": {"name": "../../evil", "options": {}}}, "list models"),
        ("config.json", {"data": {"name": "digits\x1b[31m"}}, "data.name is"),
        ("config.json", {"changed": ["a\nb"]}, "must be NAME=VALUE"),
        ("config.json", {"imports": ["my nets.py 0"]}, "imports holds 'my nets.py 0'; it must be the name of a file"),
        ("config.json", {"imports": ["a\nb.py " + 64 * "0"]}, "imports holds"),
        ("config.json", {"newer": 1}, "is of a later version: Config has no newer; it has recipe"),
        ("result.json", {"test_accuracy": "high"}, "test_accuracy is 'high'"),
        ("result.json", {"seconds": float("inf")}, "seconds is 'inf'"),
        ("result.json", {"selected_epoch": 1.5}, "selected_epoch is"),
        ("result.json", {"test_errors": 10**40}, "test_errors is"),
        ("config.json", {"loss": "margin"}, "loss is 'margin'"),
    ],
)
def test_values_of_a_run_are_checked(
    run: Path, file: str, change: dict, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((run / file).read_text())
    (run / file).write_text(json.dumps(content | change))
    assert main(["inspect", str(run)]) == 2
    said = capsys.readouterr().err
    assert message in said and file in said and said.count("\n") == 1 and "\x1b" not in said


@pytest.mark.parametrize("line", ["[1]", '{"epoch": "first"}', '{"train_loss": "low"}', '{"train_loss": NaN}', "{"])
def test_lines_of_a_run_are_checked(run: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "metrics.jsonl").write_text(line + "\n")
    assert main(["inspect", str(run)]) == 2
    assert "metrics.jsonl is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plain: {}, "name of the model is"),
        (lambda plain: plain | {"model": plain["model"] | {"image_size": [1_000_000, 1_000_000]}}, "1 .. 65536"),
        (lambda plain: plain | {"model": plain["model"] | {"width": 5}}, "but its weights have"),
        (lambda plain: plain | {"score": {"kind": "logit"}}, "must have to_probability"),
    ],
)
def test_a_model_that_cannot_be_is_said_before_it_is_built(
    run: Path, change: Callable[[dict], dict], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "model.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    assert main(["evaluate", str(run)]) == 2
    said = capsys.readouterr().err
    assert message in said and "model.json" in said and said.count("\n") == 1


class Mean(Model):
    """Of which no weight depends on the size of a picture."""

    def __init__(self, num_classes: int, in_channels: int, image_size: tuple[int, int]):
        super().__init__()
        self.conv, self.head = torch.nn.Conv2d(in_channels, 8, 3), torch.nn.Linear(8, num_classes)

    def forward(self, images: torch.Tensor, labels: torch.Tensor | None = None) -> Output:
        return Output(self.head(self.conv(images).mean((2, 3))).sigmoid(), ())


@pytest.fixture(scope="module")
def any_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "mean-test" not in list_models():
        register_model("mean-test")(Mean)
    place = tmp_path_factory.mktemp("any-size")
    return fit(tiny_config(place, model=ModelConfig("mean-test", {}), epochs=1)).folder


LARGE = 4_000  # pixels a side, 64 MB in float32


@pytest.mark.parametrize("command", ["evaluate", "predict", "predict weights", "export", "inspect", "load"])
def test_a_size_that_no_memory_holds_is_refused_before_it_is_taken(
    any_size: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights say nothing against it, where they do not depend on it."""
    run, picture = Path(shutil.copytree(any_size, tmp_path / "run")), tmp_path / "picture.png"
    Image.new("L", (8, 8)).save(picture)
    plain = json.loads((run / "config.json").read_text())
    plain["data"]["image_size"] = LARGE
    (run / "config.json").write_text(json.dumps(plain))
    plain = json.loads((run / "model.json").read_text())
    plain["model"]["image_size"] = plain["input"]["size"] = [LARGE, LARGE]
    (run / "model.json").write_text(json.dumps(plain))
    weights = run / "best" / MODEL
    save_file(load_file(weights), weights, {"torchcaps": json.dumps(plain)})
    (run / "best" / SUMS).write_text(f"{hashlib.sha256(weights.read_bytes()).hexdigest()}  {MODEL}\n")
    monkeypatch.setattr(memory, "_available", lambda: 100_000_000)
    monkeypatch.setattr(torch.Tensor, "float", lambda *args: pytest.fail("a picture was made"))
    if command == "load":
        with pytest.raises(ValueError, match=r"run.*image_size is \[4000, 4000\]: for one picture"):
            load(run)
        return
    line = {"predict weights": ["predict", str(weights)]}.get(command, [command, str(run)])
    status = main([*line, *([str(picture)] if "predict" in command else [])])
    said = capsys.readouterr().err
    if command == "inspect":  # a page without the model is made, and says why
        said = (run / "report.html").read_text()
    assert "image_size is [4000, 4000]: for one picture of that size its model takes 0.511 GB" in said
    assert status == (0 if command == "inspect" else 2) and str(run) in said


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"image_size": 60_000}, "data.image_size is (60000, 60000), but the model of the run was"),
        ("config.json", {"pad": 60_000}, "data.pad is 60000, but the model of the run was trained with None"),
        ("config.json", {"enlarge": 60_000}, "data.enlarge is 60000, but"),
        ("config.json", {"crop": 5}, "data.crop is 5, but"),
        ("model.json", {"size": [60_000, 60_000], "crop": 8}, "data.crop is None, but the model of the run was"),
    ],
)
def test_pictures_are_made_in_no_size_but_the_model_s(
    run: Path, file: str, change: dict, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = json.loads((run / file).read_text())
    plain["data" if file == "config.json" else "input"].update(change)
    (run / file).write_text(json.dumps(plain))
    assert main(["evaluate", str(run)]) == 2
    said = capsys.readouterr().err
    assert message in said and str(run) in said and said.count("\n") == 1


def test_a_picture_that_is_cut_later_is_not_made_too_large_before(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_available", lambda: 100_000_000)
    plain = json.loads((run / "model.json").read_text())
    plain["input"].update(size=[65_000, 65_000], crop=8)
    (run / "model.json").write_text(json.dumps(plain))
    with pytest.raises(ValueError, match=r"run"):
        load(run)
    save_file(load_file(run / "best" / MODEL), tmp_path / "alone.safetensors", {"torchcaps": json.dumps(plain)})
    with pytest.raises(ValueError, match=r"alone\.safetensors cannot answer for a picture: one picture of 8x8 pixels"):
        load(tmp_path / "alone.safetensors")


def test_images_that_memory_does_not_hold_once_they_are_resized_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.image_size is 60000: the images of digits would take 6\.47e\+03 GB"):
        load_data(DataConfig("digits", image_size=60_000))
    with pytest.raises(ValueError, match=r"data\.pad is 60000: the images of digits would take"):
        load_data(DataConfig("digits", pad=60_000))


def test_a_result_and_a_line_lack_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Found by `test_fuzz_runs`: what was missing ended in a KeyError."""
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({"test_accuracy": 0.5}))
    assert main(["inspect", str(run)]) == 2
    assert "result.json is damaged or not of this run: it has no " in capsys.readouterr().err
    (run / "result.json").write_text(json.dumps(result))
    (run / "metrics.jsonl").write_text('{"epoch": 1}\n')
    assert main(["inspect", str(run)]) == 2
    assert "metrics.jsonl is damaged or not of this run: it has no validation_loss" in capsys.readouterr().err


def test_values_that_no_run_has_name_the_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(plain | {"batch_size": -1}))
    assert main(["evaluate", str(run)]) == 2
    assert "config.json: batch_size is -1" in capsys.readouterr().err


def test_a_run_is_measured_in_batches_that_no_record_makes_endless(run: Path) -> None:
    plain = json.loads((run / "config.json").read_text())
    assert load_run(run)[1].batch_size == plain["batch_size"]
    (run / "config.json").write_text(json.dumps(plain | {"batch_size": 10**9}))
    assert load_run(run)[1].batch_size == 4096


def test_measuring_a_run_fetches_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchcaps.inspect import evaluation

    plain = json.loads((run / "config.json").read_text())
    plain["data"]["download"] = True
    (run / "config.json").write_text(json.dumps(plain))
    asked, load = [], evaluation.load_data
    monkeypatch.setattr(evaluation, "load_data", lambda data, device: asked.append(data) or load(data, device))
    assert main(["evaluate", str(run)]) == 0
    assert [each.download for each in asked] == [False]


def test_an_export_takes_the_place_of_a_link(run: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (run / "model.pt2").symlink_to(victim)
    assert main(["export", str(run), "--format", "pt2"]) == 0
    assert victim.read_text() == "untouched" and not (run / "model.pt2").is_symlink()
    assert not [path for path in run.iterdir() if path.is_dir() and path.name.startswith(".")]


@pytest.mark.parametrize("metadata", [{}, {"format": "torchcaps-packed-2"}, {"format": "torchcaps-packed-1"}])
def test_a_packed_file_of_a_stranger_is_a_value_error(tmp_path: Path, metadata: dict[str, str]) -> None:
    path = tmp_path / "packed.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata | {"scales": "float32"})
    for read in (load_packed, load):
        with pytest.raises(ValueError, match=r"packed\.safetensors (is not|cannot)"):
            read(path)


def test_an_empty_test_split_is_said_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchcaps.train import given

    data = load_data(DataConfig("digits"))
    empty = replace(data, test=data.test.subset(torch.arange(0)))  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(given, "load_data", lambda *args: empty)
    with pytest.raises(ValueError, match="the test split of digits is empty"):
        fit(tiny_config(tmp_path))


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems hold UTF-8 alone")
def test_class_folders_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    pixels = Image.new("L", (8, 8))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pixels.save(tmp_path / name / "1.png")
    (tmp_path / "c").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"c is a link to .*gone, which is not there"):
        list_tree(tmp_path)
    (tmp_path / "c").unlink()
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    with pytest.raises(ValueError, match="is not UTF-8: rename it"):
        list_tree(tmp_path)


def test_nothing_is_fetched_because_a_run_says_so(run: Path) -> None:
    plain = json.loads((run / "config.json").read_text())
    plain["data"]["download"] = True
    (run / "config.json").write_text(json.dumps(plain))
    assert load_run(run)[1].data.download is False


def test_checksums_cannot_be_switched_off(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    save_checkpoint(tmp_path / "last", model)
    sums = tmp_path / "last" / SUMS
    whole = sums.read_text()
    for text in ("", whole[:30], whole.replace(MODEL, "other"), "0" * 64 + f"  {MODEL}\n"):
        sums.write_text(text)
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
            load_weights(tmp_path / "last", model)
    sums.unlink()
    with pytest.warns(UserWarning, match=rf"is read unchecked: there is no {SUMS}"):
        load_weights(tmp_path / "last", model)


def test_an_aux_belongs_to_one_output() -> None:
    first, second = Output(torch.zeros(1, 2)), Output(torch.zeros(1, 2))
    with pytest.raises(TypeError):
        first.aux["mine"] = 1  # pyright: ignore[reportIndexIssue]
    assert "mine" not in second.aux


def test_two_runs_in_threads_of_one_process_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchcaps.train import loop

    inside, go_on, seen = threading.Event(), threading.Event(), []
    run = loop.Trainer.run

    def slow(trainer: loop.Trainer):
        inside.set()
        go_on.wait(30)
        return run(trainer)

    monkeypatch.setattr(loop.Trainer, "run", slow)
    config = tiny_config(tmp_path)
    first = threading.Thread(target=lambda: seen.append(fit(config)))
    first.start()
    inside.wait(30)
    with pytest.raises(ValueError, match="another run is being trained in this process"):
        fit(replace(config, seed=1))
    go_on.set()
    first.join()
    assert len(seen) == 1
    assert fit(replace(config, seed=1)).folder.name == "tiny-1"


def test_a_run_goes_on_with_the_threads_that_it_began_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, before = tiny_config(tmp_path), torch.get_num_threads()
    folder = RunFolder(fit(config).folder)
    (folder.path / "result.json").unlink()
    folder.write("environment.json", folder.read("environment.json") | {"threads": before + 1})
    used = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    fit(config, resume=True)
    assert used[0] == before + 1 and used[-1] == before
    assert f"was begun with {before + 1} threads" in caplog.text
