"""Command lines and files that nobody would write: an answer in one line, no hang, no file overwritten."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_bad_input_cli import LAST, TRAIN_MNIST, TRAIN_NPZ, arrays, labels_idx, snapshot
from tiny import tiny_config

import torchcaps.train
from torchcaps import cli, files
from torchcaps.cli import reporting
from torchcaps.config import Config
from torchcaps.papers import registry
from torchcaps.train import fit

QUICK, LONG = 24, 1000  # inputs in `make test`, and in `make test-all`
SECONDS = 20  # that any input may take
NUMBERS_GONE = re.compile("not finite|the loss is")  # status 1: a learning rate, say, that no run survives


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a finished run, an unfinished one, an .npz file and an MNIST of 30 images."""
    place = tmp_path_factory.mktemp("original")
    config = tiny_config(Path("runs"), epochs=1)
    run, clip = fit(replace(config, out=place)).folder, fit
    run.rename(place / "run")
    shutil.copytree(place / "run", place / "runs" / "tiny-0")
    (place / "runs/tiny-0/result.json").unlink()
    text = (place / "run/config.json").read_text().replace(str(place), "runs")
    (place / "runs/tiny-0/config.json").write_text(text)
    arrays()(place)
    labels_idx(place)
    labels = place / "MNIST/raw/train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "sync", lambda path: None)  # to the disk, which is slow
        patch.setattr(reporting, "report", lambda *args, **kwargs: None)
        patch.setitem(registry._RECIPES, "tiny", lambda: config)
        patch.setattr(
            torchcaps.train,
            "fit",
            lambda config, resume=False, *rest, **more: clip(
                replace(config, epochs=min(config.epochs, 2)), resume, *rest, **more
            ),
        )
        yield place


@contextlib.contextmanager
def copied(original: Path) -> Iterator[Path]:
    """In a copy of the folder `original`, as the current one."""
    back = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "place"
        shutil.copytree(original, place)
        os.chdir(place)
        try:
            yield place
        finally:
            os.chdir(back)


def answer(args: list[str]) -> tuple[int, str]:
    """Exit status and what stands on standard error, which is judged."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = cli.main(args)
    text = said.getvalue()
    errors = [line for line in text.splitlines() if line.startswith("torchcaps: error: ")]
    assert "Traceback" not in text
    assert len(errors) == (status != 0), text
    assert all(re.search(r"error: (?!\w+Error$).*\w", line) and "----" not in line for line in errors), errors
    assert status in (0, 2) or NUMBERS_GONE.search(errors[0]), errors
    return status, text


def leaves(kind: type, prefix: str = "") -> list[str]:
    found = []
    for field in fields(kind):
        value = getattr(kind(), field.name)
        found += leaves(type(value), f"{prefix}{field.name}.") if is_dataclass(value) else [prefix + field.name]
    return found


AWAY = ("processes", "data.download")  # would start processes; would go to the network
FLAGS = [f"--{name.replace('_', '-')}" for name in leaves(Config) if name not in AWAY] + ["--resume", "--help", "--x"]
VALUES = ["0", "-1", "1", "2", "3.5", "1e-3", "nan", "inf", "-inf", "x", "", "é\U0001f600", "None", "True", "--", "-"]
VALUES += [
    "99999999999999999999",
    "1e400",
    "a b",
    "../x",
    "tiny",
    "digits",
    "npz:own.npz",
    "npz:",
    "folder:run",
    "%s",
    "\n",
]
values = st.one_of(st.sampled_from(VALUES), st.text(st.characters(exclude_characters="\0"), max_size=8))
flags = st.lists(st.tuples(st.sampled_from(FLAGS), st.lists(values, max_size=2)), max_size=3)
heads = st.sampled_from(
    [
        *([["train", "tiny"]] * 6), ["evaluate", "run"], ["evaluate", "runs/tiny-0"], ["evaluate"], ["cost", "tiny"],
        ["list"], ["list", "models"], ["data", "list"], ["train"], ["train", "digits"], [],
    ]
)  # fmt: skip
others = st.lists(
    st.tuples(
        st.sampled_from(["--split", "--device", "--json", "--image-size", "--channels", "--classes", "--options"]),
        st.lists(values, max_size=2),
    ),
    max_size=2,
)  # fmt: skip


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    head = draw(heads)
    if head[:1] == ["train"]:
        rest = draw(flags)
        if head[1:] == ["digits"]:
            rest = [*rest, ("--help", [])]  # its run would take long
    else:
        rest = draw(others)
    return head + [word for flag, given in rest for word in (flag, *given)]


def mutate(content: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    """`content` after each change (what, where as a share of the length, with which bytes)."""
    for what, share, piece in changes:
        at = int(share * len(content))
        match what:
            case "cut":
                content = content[:at]
            case "insert":
                content = content[:at] + piece + content[at:]
            case "delete":
                content = content[:at] + content[at + len(piece) :]
            case "write":
                content = content[:at] + piece + content[at + len(piece) :]
            case "flip":
                content = (
                    content[:at] + bytes([content[at] ^ (1 << len(piece) % 8)]) + content[at + 1 :] if content else b""
                )
            case "double":
                content = content[:at] + content[at // 2 :]
    return content


pieces = st.one_of(
    st.binary(max_size=6), st.sampled_from([b"9", b"-1", b"\xff\xff\xff\xff", b'"', b"[", b"{}", b"1e99"])
)
changes = st.lists(
    st.tuples(
        st.sampled_from(["cut", "insert", "delete", "write", "flip", "double"]),
        st.floats(0, 1, exclude_max=True),
        pieces,
    ),
    min_size=1,
    max_size=4,
)
EVALUATE, RESUME = "evaluate run", "train tiny --resume"
IDX = "MNIST/raw/"
FILES = {  # a file, or a member of an archive, and the command that reads it
    "own.npz": TRAIN_NPZ,
    "own.npz!x_train.npy": TRAIN_NPZ,
    "own.npz!y_test.npy": TRAIN_NPZ,
    IDX + "train-images-idx3-ubyte": TRAIN_MNIST + " --batch-size 4",
    IDX + "t10k-labels-idx1-ubyte": TRAIN_MNIST + " --batch-size 4",
    "run/best/model.safetensors": EVALUATE,
    "run/config.json": EVALUATE,
    "run/model.json": EVALUATE,
    "runs/tiny-0/config.json": RESUME,
    f"{LAST}/model.safetensors": RESUME,
    f"{LAST}/state.pt": RESUME,
    f"{LAST}/state.pt!data.pkl": RESUME,
    f"{LAST}/SHA256SUMS": RESUME,
}


def rewrite(name: str, change: Callable[[bytes], bytes]) -> None:
    """Change a file; of an archive's member the checksums are right again, so that what it says is read."""
    path, _, member = name.partition("!")
    if not member:
        Path(path).write_bytes(change(Path(path).read_bytes()))
        return
    with zipfile.ZipFile(path) as archive:
        contents = {each: archive.read(each) for each in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for each, content in contents.items():
            archive.writestr(each, change(content) if each.endswith(member) else content)


def try_command_line(original: Path, args: list[str]) -> None:
    with copied(original) as place:
        before = snapshot(place)
        answer(args)
        after = snapshot(place)
        resumed = "--resume" in args
        assert {path: after.get(path) for path in before if not (resumed and "runs/tiny-0" in path)} == {
            path: content for path, content in before.items() if not (resumed and "runs/tiny-0" in path)
        }


def try_file(original: Path, name: str, what: list[tuple[str, float, bytes]], sums: bool) -> None:
    with copied(original) as place:
        rewrite(name, lambda content: mutate(content, what))
        if not sums:  # as a stranger, or an older version, would leave it
            for path in place.rglob("SHA256SUMS"):
                path.unlink()
        before = snapshot(place)
        status, _ = answer(FILES[name].split())
        after = snapshot(place)
        kept = before if status else {path: each for path, each in before.items() if "runs/tiny-0" not in path}
        assert {path: after.get(path) for path in kept} == kept


def fuzz(count: int, **given_by: st.SearchStrategy) -> Callable[[Callable], Callable]:
    checked = settings(
        max_examples=count,
        deadline=SECONDS * 1000,
        derandomize=count == QUICK // 2,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    return lambda function: checked(given(**given_by)(function))


FILE = {"name": st.sampled_from(sorted(FILES)), "what": changes, "sums": st.booleans()}


@fuzz(QUICK // 2, args=command_lines())
def test_command_lines(original: Path, args: list[str]) -> None:
    try_command_line(original, args)


@fuzz(QUICK // 2, **FILE)
def test_files(original: Path, name: str, what: list, sums: bool) -> None:
    try_file(original, name, what, sums)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@fuzz(LONG // 2, args=command_lines())
def test_many_command_lines(original: Path, args: list[str]) -> None:
    try_command_line(original, args)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@fuzz(LONG // 2, **FILE)
def test_many_files(original: Path, name: str, what: list, sums: bool) -> None:
    try_file(original, name, what, sums)


def test_resuming_from_a_damaged_checkpoint_leaves_the_record_of_the_machine(original: Path) -> None:
    """Found by `test_many_files`: environment.json was written before the checkpoint was read."""
    with copied(original):
        environment = Path("runs/tiny-0/environment.json")
        environment.write_text('{"cores": 999}')
        rewrite(f"{LAST}/model.safetensors", lambda content: b"")
        assert answer(RESUME.split())[0] == 2
        assert environment.read_text() == '{"cores": 999}'
