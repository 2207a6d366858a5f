"""Folders of runs, changed as a whole: each value, file, link and pipe in them, read by every command that reads a run.

Whatever a folder holds, the answer is a result, or one line that names the file; nothing outside of it is written,
nothing in it is imported, no address is asked, no process started.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_bad_input_cli import snapshot
from test_fuzz import changes, mutate
from tiny import tiny_config

import torchcaps
from torchcaps import cli, create_model
from torchcaps.examine.examination import examine_run, write_examination
from torchcaps.inspect import figures
from torchcaps.report import report
from torchcaps.train import fit, load_run
from torchcaps.train.start import find_start

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes and sockets of Unix")

QUICK, LONG = 200, 2000  # folders in `make test`, and in `make test-all`
SECONDS = 60  # of computing that any of them may take, and of waiting for what never comes
IDLE = 1e-3  # seconds of computing in `SECONDS`, which no process that goes on falls below
RUN = "stranger-0"  # what the folder is called, and what each message has to name
OF_RUN = RUN.partition("-")[0]  # its recipe
BEST, LAST = "best/model.safetensors", "last/model.safetensors"
JSON = ("config.json", "model.json", "environment.json", "result.json", "metrics.jsonl", "examination.json")
FILES = (*JSON, BEST, "best/SHA256SUMS", "best", LAST, "last", "report.html", "figures")
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 10, 1.5, 1e-300, 1e300, 65_536, 1_000_000, 2**63, 10**40, float("nan"),
    float("inf"),
    "", "x", "evil", "evil.run", "../outside", "/outside", "\n", "\0", "\ud800", "\x1b[31m", "a" * 5_000, "%s{0}",
    "https://example.invalid/x", "npz:../outside/x", "folder:../outside", "resnet18.dynamic", "cuda:99", "none",
    "dataset",
    [], [[]], [0], [28, 28], [1.5, None], ["evil"], {}, {"name": "evil"}, {"": {}}, {"__class__": "evil"},
]  # fmt: skip
KINDS = ["absent", "empty", "folder", "pipe", "socket", "link", "broken link", "circle", "deep"]
COMMANDS: dict[str, Callable[[], object]] = {
    "inspect": lambda: _run("inspect", RUN),
    "evaluate": lambda: _run("evaluate", RUN),
    "predict": lambda: _run("predict", RUN, "outside/picture.png"),
    "predict weights": lambda: _run("predict", f"{RUN}/{BEST}", "outside/picture.png"),
    "export": lambda: _run("export", RUN, "--format", "packed"),
    "runs": lambda: _run("runs", "."),
    "start": lambda: find_start(RUN).give(create_model("tiny", num_classes=10, in_channels=1, image_size=8)),
    "load_run": lambda: load_run(RUN),
    "load": lambda: torchcaps.load(RUN)("outside/picture.png"),
    "examine": lambda: _run("examine", RUN, "--images", "20"),
    "publish": lambda: _run("publish", RUN, f"{RUN}/shared"),
    "go on": lambda: fit(tiny_config(Path(), recipe=OF_RUN, epochs=2), resume=True),
}
watched: list[str] | None = None  # what `_watch` has seen; None: nobody looks


class Refused(Exception):
    """A command has ended with an error of one line."""


def _run(*args: str) -> None:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = cli.main([*args])
    lines = said.getvalue().splitlines()
    errors = [line for line in lines if "error: " in line]
    assert len(errors) == (status != 0) and "Traceback" not in said.getvalue(), said.getvalue()
    assert said.getvalue().replace("\n", "").isprintable(), said.getvalue()
    if status:
        assert status == 2, errors
        raise Refused(errors[0])


def _watch(event: str, arguments: tuple) -> None:
    """An audit hook, which stays for the life of the process."""
    if watched is None:
        return
    if event == "subprocess.Popen" and arguments[0] == "git" and str(Path(torchcaps.__file__).parent) in arguments[1]:
        return  # a run that begins asks which commit it is of
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        watched.append(f"{event} {arguments}")
    if event == "import" and str(arguments[0]).startswith("evil"):
        watched.append(f"import {arguments[0]}")


sys.addaudithook(_watch)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a finished run and, outside of it, what it must not touch."""
    place = tmp_path_factory.mktemp("original")
    assert fit(tiny_config(place, recipe=OF_RUN, epochs=1)).folder == place / RUN
    write_examination(examine_run(place / RUN, images=20, device="cpu"), place / RUN)
    outside = place / "outside"
    outside.mkdir()
    (outside / "evil.py").write_text("raise SystemExit(77)\n")
    (outside / "victim").write_text("untouched")
    Image.new("L", (8, 8), 99).save(outside / "picture.png")
    drawn: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.syspath_prepend(str(outside))
        patch.setattr(figures, "save_figure", lambda figure, path: None)  # what is slow, and reads no file
        patch.setattr(report, "draw_examples", lambda *args: drawn)
        yield place


def nodes(content: Any, at: tuple = ()) -> Iterator[tuple]:
    """The places of all values in what JSON holds."""
    yield at
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from nodes(value, (*at, key))


def set_value(content: Any, at: tuple, how: str, value: Any) -> Any:
    if not at:
        return {"x": value} if how == "add" else value
    inner = content[at[0]]
    if len(at) > 1:
        content[at[0]] = set_value(inner, at[1:], how, value)
    elif how == "add" and isinstance(inner, dict):
        inner["x" if not isinstance(value, str) else value] = value
    elif how == "remove":
        del content[at[0]]
    else:
        content[at[0]] = value
    return content


def change_value(path: Path, share: float, how: str, value: Any) -> None:
    """Change the value that lies at `share` of all in the file."""
    content = [json.loads(line) for line in path.read_text().splitlines()] if path.suffix == ".jsonl" else None
    content = json.loads(path.read_text()) if content is None else content
    places = list(nodes(content))
    content = set_value(content, places[int(share * len(places))], how, value)
    lines = content if path.suffix == ".jsonl" and isinstance(content, list) else [content]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")


def change_kind(path: Path, kind: str) -> None:
    """Put something of another kind in the place of a file or folder."""
    outside = next(each for each in path.parents if each.name == RUN).parent / "outside"
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    match kind:
        case "empty":
            path.write_bytes(b"")
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
                made.bind(path.name)
        case "link":
            path.symlink_to(outside if path.name in ("best", "last", "figures") else outside / "victim")
        case "broken link":
            path.symlink_to(outside / "nothing")
        case "circle":
            path.symlink_to(path.name)
        case "deep":
            path.write_text('{"a":' * 100_000)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise where the block computes longer than `SECONDS`, or does nothing as long: to open a pipe, say, waits for
    ever. A machine that is busy with other things stops nobody."""
    began = seen = time.process_time()

    def stop(number: int, frame: object) -> None:
        nonlocal seen
        before, seen = seen, time.process_time()
        if seen - before < IDLE or seen - began > SECONDS:
            raise AssertionError(f"no answer in {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def try_folder(original: Path, place: Path, command: str, steps: list[tuple], sums: bool) -> str:
    """The answer of `command` to a run that was changed by `steps`: "" or its error, which is judged."""
    global watched
    shutil.copytree(original, place)
    for file, how, *rest in steps:
        path = place / RUN / file
        if how == "kind":
            change_kind(path, rest[0])
        elif how == "bytes" and path.is_file():
            path.write_bytes(mutate(path.read_bytes(), rest[0]))
        elif how not in ("kind", "bytes") and path.is_file():
            with contextlib.suppress(
                ValueError, IndexError, KeyError, RecursionError
            ):  # another step has spoilt it already
                change_value(path, rest[0], how, rest[1])
    if not sums and (listed := place / RUN / "best/SHA256SUMS").is_file():
        listed.unlink()
    kept = _outside(place)
    watched = []
    said = ""
    with contextlib.chdir(place), limited():
        try:
            COMMANDS[command]()
        except (Refused, ValueError, FileNotFoundError) as error:
            said = str(error)
            assert RUN in said, f"names no file: {said}"
            assert "\n" not in said, said
        finally:
            seen, watched = watched, None
    assert not seen, seen
    assert _outside(place) == kept
    return said


def _outside(place: Path) -> dict[str, bytes | str]:
    """What lies beside the run, and beside others of its recipe."""
    beside = [path for path in place.iterdir() if not path.name.strip(".").startswith(OF_RUN)]
    names = {str(path): os.readlink(path) if path.is_symlink() else "" for path in beside}
    return names | {str(path): "" for path in (place / "outside").rglob("*")} | snapshot(place / "outside")


shares = st.floats(0, 1, exclude_max=True)
step = st.one_of(
    st.tuples(st.sampled_from(JSON), st.sampled_from(["set", "set", "add", "remove"]), shares, st.sampled_from(VALUES)),
    st.tuples(st.sampled_from(JSON), st.just("set"), shares, st.sampled_from(VALUES)),
    st.tuples(st.sampled_from(FILES), st.just("kind"), st.sampled_from(KINDS)),
    st.tuples(st.sampled_from(FILES), st.just("bytes"), changes),
)
FOLDERS = {
    "command": st.sampled_from(sorted(COMMANDS)),
    "steps": st.lists(step, min_size=1, max_size=3),
    "sums": st.booleans(),
}


def fuzz(count: int) -> Callable[[Callable], Callable]:
    checked = settings(
        max_examples=count,
        deadline=None,
        derandomize=count == QUICK,
        database=None,
        phases=[Phase.generate] if count == LONG else list(Phase),  # at most three changes: nothing to make smaller
        suppress_health_check=list(HealthCheck),
    )
    return lambda function: checked(given(**FOLDERS)(function))


@fuzz(QUICK)
def test_folders(
    original: Path, tmp_path_factory: pytest.TempPathFactory, command: str, steps: list, sums: bool
) -> None:
    try_folder(original, tmp_path_factory.mktemp("case") / "place", command, steps, sums)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@fuzz(LONG)
def test_many_folders(
    original: Path, tmp_path_factory: pytest.TempPathFactory, command: str, steps: list, sums: bool
) -> None:
    try_folder(original, tmp_path_factory.mktemp("case") / "place", command, steps, sums)
