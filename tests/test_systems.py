"""What lets the package run on Windows and macOS, as far as can be held from here, and in pipes and odd terminals."""

from __future__ import annotations

import ast
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_config
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode

import torchcaps
from torchcaps import files, shell
from torchcaps.cli import main, tables
from torchcaps.data import cache
from torchcaps.data.counter import bits, unit
from torchcaps.data.files import Form, ImageFiles
from torchcaps.data.images import Images
from torchcaps.data.load import moments
from torchcaps.data.sending import sent
from torchcaps.inspect import figures
from torchcaps.tables import measure
from torchcaps.train.checkpoint import MODEL, present, write_folder, write_text
from torchcaps.train.meter import Meter
from torchcaps.train.processes import build_fabric

UNIX = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix", "curses", "readline"}
SOURCES = sorted(Path(torchcaps.__file__).parent.rglob("*.py"))


def heads(tree: ast.Module) -> Iterator[str]:
    """The modules that a file imports when it is imported itself."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_no_unix_module_is_imported_at_the_head_of_a_file() -> None:
    found = {path.name: UNIX & set(heads(ast.parse(path.read_text("utf-8")))) for path in SOURCES}
    assert len(found) > 100 and not {name: modules for name, modules in found.items() if modules}


def test_text_is_read_and_written_in_utf8_by_name() -> None:
    """Every call of read_text, write_text and open of text names its encoding, whatever the system's is."""
    texts = {path: path.read_text("utf-8") for path in SOURCES}
    trees = {path: ast.parse(text) for path, text in texts.items() if "open(" in text or "text" in text}
    calls = [(path, node) for path, tree in trees.items() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert len(calls) > 1000 and not [f"{path.name}:{call.lineno}" for path, call in calls if is_of_text(call)]


def is_of_text(call: ast.Call) -> bool:
    """Whether a call reads or writes text in an encoding that it does not name."""
    function = call.func
    if isinstance(function, ast.Attribute):
        name, owner = function.attr, getattr(function.value, "id", "")
    else:
        name, owner = getattr(function, "id", ""), ""
    given = [each.value for each in call.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    if any(word.arg == "encoding" for word in call.keywords) or {"ascii", "utf-8"} & set(given):
        return False
    if any(word.arg in ("text", "universal_newlines") for word in call.keywords) and owner == "subprocess":
        return True
    if name == "open":
        return owner not in ("os", "Image") and not any("b" in mode for mode in given)
    return name in ("read_text", "write_text") and isinstance(function, ast.Attribute)


HIDE = """
import builtins, io, sys, warnings
from pathlib import Path

UNIX = {unix}
plain = builtins.__import__


def hide(name, globals=None, *others, **more):
    if name in UNIX and (globals or {{}}).get("__name__", "").startswith("torchcaps"):
        raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
    return plain(name, globals, *others, **more)


builtins.__import__ = hide
warnings.filterwarnings("error", category=EncodingWarning, module="torchcaps")
assert sys.flags.warn_default_encoding
from torchcaps.cli import main

for command in {commands}:
    status = main(command)
    assert status == 0, (command, status)
print("all done")
"""


@pytest.mark.slow
def test_commands_without_unix_modules_and_encodings_in_a_folder_with_spaces(tmp_path: Path) -> None:
    """Each command, where the system's encoding is never used, Unix modules are hidden, and the terminal is cp1252."""
    place = tmp_path / "my pictures, größer"
    for split in ("train", "test"):
        for kind, name in enumerate(("猫 cat", "dog")):
            for number in range(8):
                path = place / "data set" / split / name / f"{number} Ж.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((28, 28), 100 * kind + number, np.uint8)).save(path)
    picture = str(place / "data set/test/dog/0 Ж.png")
    tiny = ["--model.options", "channels", "8", "primary", "2", "--device", "cpu", "--batch-size", "4"]
    run = str(place / "the runs/capsnet-mnist-0")
    commands = [
        ["train", "capsnet-mnist", "--data.name", f"folder:{place}/data set", "--epochs", "1", *tiny,
         "--loss.reconstruction", "0", "--out", str(place / "the runs")],
        ["evaluate", run],
        ["predict", run, picture],
        ["inspect", run],
        ["export", run],
        ["data", "list"],
        ["data", "show", f"folder:{place}/data set", "--out", str(place / "the sheets")],
        *(["list", kind] for kind in ("models", "recipes", "routings", "data", "tables")),
        ["cost", "capsnet"],
        ["table", "discriminative/table2", "--results", str(place / "results")],
        ["compare", "--show", "--results", str(place / "results")],
        ["--version"],
    ]  # fmt: skip
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "OMP_NUM_THREADS": "1"}
    (tmp_path / "all.py").write_text(HIDE.format(unix=UNIX, commands=commands), encoding="utf-8")
    command = [sys.executable, "-X", "warn_default_encoding", str(tmp_path / "all.py")]
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, check=False)
    assert done.returncode == 0 and done.stdout.rstrip().endswith(b"all done"), done.stderr.decode("cp1252")[-2000:]
    assert b"Automatic Mixed Precision" not in done.stderr


def test_peak_of_memory_without_unix_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure.peak_memory("cpu") > 1e6
    monkeypatch.setattr(Path, "exists", lambda path: False)  # no /proc
    assert measure.peak_memory("cpu") > 1e6
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(measure, "_peak_on_windows", lambda: 7)
    assert measure.peak_memory("cpu") == 7


def test_commands_are_quoted_for_the_shell_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["torchcaps", "inspect", "my runs/a-0"]
    assert shell.typed(words) == "torchcaps inspect 'my runs/a-0'"
    monkeypatch.setattr(shell.os, "name", "nt")
    assert shell.typed(words) == 'torchcaps inspect "my runs/a-0"'
    words = ["--data.name", r"folder:C:\R&D\pics", "32,16", r"C:\runs\a-0"]
    assert shell.typed(words) == r'--data.name "folder:C:\R&D\pics" "32,16" C:\runs\a-0'
    words = ['a" & calc & "', "%PATH%", "$(calc)", "“`calc", "C:\\R&D\\", ""]
    assert shell.typed(words) == r'"a? & calc & ?" "?PATH?" "?(calc)" "??calc" "C:\R&D\\" ""'


class WithoutDouble(TorchFunctionMode):
    """As on an Apple GPU: a tensor is float64 only once it has been brought to the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.on_host: list[torch.Tensor] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.double and not any(args[0] is each for each in self.on_host):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        found = function(*args, **(kwargs or {}))
        if function is torch.Tensor.cpu:
            self.on_host.append(found)
        return found


def test_no_number_is_float64_on_the_device() -> None:
    meter = Meter(torch.device("cpu"), classes=3)
    with WithoutDouble():
        meter.update(torch.tensor(0.0), torch.eye(3), torch.tensor([0, 1, 1]))
        assert meter.compute().mean_class_accuracy == 0.75
    pixels = torch.rand(6, 2, 3, 3)
    floats = Images(torch.zeros(6, 2, 3, 3, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64), ("a",))
    with WithoutDouble(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Images, "fetch", lambda self, indices: pixels[indices])
        mean, _ = moments(floats)
    assert torch.equal(mean, pixels.double().mean((0, 2, 3)).float())
    with FakeTensorMode():
        places = {device: unit(bits(1, torch.zeros(2, dtype=torch.int64, device=device))) for device in ("cuda", "mps")}
    assert {device: found.device.type for device, found in places.items()} == {"cuda": "cuda", "mps": "cpu"}


@pytest.mark.parametrize(("device", "waits"), [("cpu", True), ("mps", True), ("cuda", False), ("cuda:1", False)])
def test_only_a_cuda_device_is_sent_what_may_be_freed_before_it_is_there(
    device: str, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(torch.Tensor, "to", lambda x, device, non_blocking=False: asked.append(non_blocking) or x)
    for each in (device, torch.device(device)):
        sent(torch.zeros(1), each)
    assert asked == [not waits] * 2


def test_readings_alone_are_copied_without_waiting() -> None:
    found = [path.name for path in SOURCES if "non_blocking=True" in path.read_text("utf-8")]
    assert found == ["readback.py"]  # which waits for an event of its own


class Scanner:
    """A program of Windows' that holds files and folders open: what it holds is neither renamed nor removed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *held: Path, tries: int = 2**62) -> None:
        self.held, self.left, self.waited = held, tries, 0.0
        monkeypatch.setattr(files, "WINDOWS", True)
        monkeypatch.setattr(files.time, "sleep", self.wait)
        for module, name in ((os, "rename"), (os, "replace"), (shutil, "rmtree")):
            monkeypatch.setattr(module, name, self.refuse(getattr(module, name)))

    def wait(self, seconds: float) -> None:
        self.waited += seconds

    def refuse(self, act):
        def refused(*paths, **options):
            if self.left > 0 and any(Path(path) in self.held for path in paths):
                self.left -= 1
                if options.get("ignore_errors"):
                    return None
                raise PermissionError(13, "The process cannot access the file", str(paths[0]))
            return act(*paths, **options)

        return refused


def written(folder: Path, text: str) -> None:
    write_folder(folder, {MODEL: lambda path: path.write_text(text, encoding="utf-8")})


def read(folder: Path) -> str:
    found = present(folder)
    assert found is not None
    return (found / MODEL).read_text("utf-8")


def test_what_another_program_holds_open_for_a_moment_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = tmp_path / "last", tmp_path / "metrics.jsonl"
    written(folder, "one")
    scanner = Scanner(monkeypatch, folder, file, tries=7)
    written(folder, "two")
    assert read(folder) == "two" and scanner.left == 0 and 0.5 < scanner.waited < 3
    scanner.left = 5
    write_text(file, "whole")
    assert file.read_text() == "whole" and sorted(path.name for path in tmp_path.iterdir()) == ["last", file.name]


def test_what_stays_open_elsewhere_is_said_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, file = tmp_path / "last", tmp_path / "metrics.jsonl"
    written(folder, "one")
    file.write_text("one")
    with monkeypatch.context() as patch:
        scanner = Scanner(patch, folder, file)
        for write in (partial(written, folder, "two"), partial(write_text, file, "two")):
            with pytest.raises(OSError, match=r"cannot write .*another program has it open.*is kept; close that, then"):
                write()
        assert 2.9 < scanner.waited / 2 < 3.1
    assert read(folder) == "one" and file.read_text() == "one"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    with pytest.raises(FileNotFoundError):
        files.rename(tmp_path / "none", tmp_path / "other")


def test_an_old_checkpoint_that_stays_open_is_passed_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is found after a cut between two renames is the newest, not the oldest."""
    folder = tmp_path / "last"
    written(folder, "one")
    with monkeypatch.context() as patch:
        Scanner(patch, tmp_path / "last.old")
        patch.setattr(os, "rename", lambda source, target, rename=os.rename: rename(source, target))
        os.mkdir(tmp_path / "last.old")
        for text in ("two", "three"):
            written(folder, text)
            assert read(folder) == text and (tmp_path / "last.old").exists()
        assert not (tmp_path / "last.old2").exists()
        os.rename(folder, tmp_path / "last.old2")
        assert read(folder) == "three"
    written(folder, "four")
    assert read(folder) == "four" and [path.name for path in tmp_path.iterdir()] == ["last"]


def test_a_stopped_decode_is_not_hidden_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows removes no file that is open: then PermissionError took the place of Ctrl-C."""
    monkeypatch.setenv("TORCHCAPS_CACHE", str(tmp_path / "cache"))
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    images = ImageFiles((str(tmp_path / "a.png"),), torch.zeros(1, dtype=torch.int64), ("a",), Form((1, 4, 4)))
    unlink, tried = Path.unlink, []

    def unlinked(path: Path, missing_ok: bool = False) -> None:
        tried.append(path.suffix)
        if any(os.path.exists(each) and os.path.samefile(each, path) for each in Path("/dev/fd").iterdir()):
            raise PermissionError(13, "The process cannot access the file", str(path))
        unlink(path, missing_ok)

    def interrupted(self: ImageFiles) -> Iterator[torch.Tensor]:
        yield torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", unlinked)
    monkeypatch.setattr(ImageFiles, "decoded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.open_cached({"train": images})
    assert ".part" in tried and not list((tmp_path / "cache").rglob("*.part"))


@pytest.mark.parametrize("command", [["data", "list"], ["list", "recipes"], ["--help"]])
def test_a_reader_that_has_seen_enough_ends_a_command_quietly(command: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "torchcaps", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 0


def test_the_precision_is_not_announced_before_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By Fabric, in words that tell a user nothing: environment.json says what it is."""
    logger = logging.getLogger("lightning_fabric.utilities.rank_zero")
    monkeypatch.setattr(logger, "disabled", False)
    logger.setLevel(logging.INFO)
    with caplog.at_level(logging.DEBUG):
        build_fabric(tiny_config(tmp_path, precision="bf16"))
    assert not [each for each in caplog.messages if "bfloat16" in each]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"torchcaps {torchcaps.__version__}\n"


def test_tables_outside_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    checkout = Path(torchcaps.__file__).parents[2] / "results"
    assert tables.find_results(tables.RESULTS) == checkout
    assert str(checkout) in capsys.readouterr().err
    assert tables.find_results(Path("own")) == Path("own")
    assert "nothing is shown as run: --results names the folder" in capsys.readouterr().err
    monkeypatch.setattr(torchcaps, "__file__", str(tmp_path / "site-packages/torchcaps/__init__.py"))
    assert tables.find_results(tables.RESULTS) == tables.RESULTS
    assert "nothing is shown as run" in capsys.readouterr().err


def test_names_of_classes_are_shown_whole() -> None:
    names = ["an extraordinarily long name of a class, one", "an extraordinarily long name of a class, two", "cat"]
    with figures.style():
        drawn = figures.draw_class_accuracy(torch.tensor([0.5, 0.6, 1.0]), names)
        confused = figures.draw_confusion(torch.eye(3, dtype=torch.int64), names)
        tiles = figures.draw_tiles({"input": torch.rand(3, 1, 4, 4)}, names)
    for figure in (drawn, confused):
        assert [label.get_text().replace("\n", " ") for label in figure.axes[0].get_yticklabels()] == names
    said = [text.get_text() for text in tiles.axes[0].texts]
    assert ["".join(text.split()) for text in said] == ["".join(name.split()) for name in names]
    page = (Path(torchcaps.__file__).parent / "report" / "web" / "page.css").read_text("utf-8")
    assert "ellipsis" not in page
