"""What is said on a terminal goes one way, in which names cannot steer it."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

import pytest

import torchcaps
from torchcaps import terminal
from torchcaps.data import notes
from torchcaps.train.display import Display

SOURCE = Path(torchcaps.__file__).parent
EVIL = "a\x1b[31mb\r\n\x00\u202e\udcff\U000e0041é ü"
PLAIN = "a\\x1b[31mb\\x0d\\x0a\\x00\\u202e\\udcff\\U000e0041é ü"
ELSEWHERE = {  # where `print` is called all the same
    "terminal.py": 2,
    "__main__.py": 1,  # what to install, where nothing else can be imported
    "cli/__init__.py": 1,  # that empties a broken pipe
}


def test_control_characters_are_written_out() -> None:
    assert terminal.printable(EVIL) == PLAIN
    assert terminal.printable("tab\tstays") == "tab\tstays"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0 s"), (59.4, "59.4 s"), (59.96, "1 min 0 s"), (90, "1 min 30 s"), (6000, "1 h 40 min"),
     (7199.9, "2 h 0 min"), (360_000, "100 h 0 min")],
)  # fmt: skip
def test_times_are_shown_in_hours_minutes_and_seconds(seconds: float, shown: str) -> None:
    assert terminal.show_time(seconds) == shown


def test_every_way_of_saying_writes_them_out(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    terminal.say(EVIL)
    terminal.note(EVIL)
    Display(1, 1).say(f"{EVIL}[red]:smile:[/nothing]")
    said = capsys.readouterr()
    assert said.out == f"{PLAIN}\n" and said.err == f"{PLAIN}\n{PLAIN}[red]:smile:[/nothing]\n"
    terminal.say_lines("one\n\x1btwo\n")
    assert capsys.readouterr().out == "one\n\\x1btwo\n"
    with caplog.at_level(logging.WARNING, "torchcaps"):
        notes.say(EVIL)
    assert caplog.messages == [f"torchcaps: {PLAIN}"]


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_nothing_is_said_otherwise(path: Path) -> None:
    """No module prints or logs by itself; what rich draws is no string, or numbers."""
    name = path.relative_to(SOURCE).as_posix()
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    names = [node.id for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Name)]
    assert names.count("print") == ELSEWHERE.get(name, 0)
    named = [ast.unparse(call.func) for call in calls]
    written = {each for each in named if each.startswith("sys.std") and each.endswith(".write")}
    assert not written
    logged = [ast.unparse(call) for call in calls if ast.unparse(call.func).endswith("getLogger")]
    assert all("'torchcaps'" not in each for each in logged) or name == "terminal.py"
    drawn = [call for call in calls if ast.unparse(call.func).endswith("console.print")]
    assert not any(isinstance(call.args[0], ast.Constant | ast.JoinedStr) for call in drawn)
