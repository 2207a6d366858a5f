"""Files of lines that several processes share: whole lines or none, whatever happens to their writers."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from torchcaps.papers import find_tables
from torchcaps.tables import lines
from torchcaps.tables.fill import Settings, _claimed
from torchcaps.tables.lines import append_line, read_lines
from torchcaps.tables.plan import plan
from torchcaps.tables.records import read_records

LONG = {"long": "x" * 100_000}  # more than a pipe or a buffer takes at once


def child(code: str, path: Path) -> subprocess.Popen:
    start = "import sys; from pathlib import Path; from torchcaps.tables.lines import append_line; "
    return subprocess.Popen([sys.executable, "-c", start + code, str(path)], stderr=subprocess.PIPE, text=True)


def test_lines_are_read_as_they_were_appended(tmp_path: Path) -> None:
    path = tmp_path / "made" / "runs.jsonl"
    assert read_lines(path) == []
    for content in ({"a": 1}, {"b": "ü\u2028"}, {}):
        append_line(path, content)
    assert read_lines(path) == [{"a": 1}, {"b": "ü\u2028"}, {}]
    assert path.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_json_has_not_is_refused(tmp_path: Path, number: float) -> None:
    with pytest.raises(ValueError, match=r"a line for .*runs\.jsonl holds what JSON cannot"):
        append_line(tmp_path / "runs.jsonl", {"a": [number]})
    assert read_lines(tmp_path / "runs.jsonl") == []


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """The system takes a part of the line and refuses the rest, here at a limit of 64 KiB."""
    path = tmp_path / "runs.jsonl"
    append_line(path, {"a": 1})
    before = path.read_bytes()
    limited = child(
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)); "
        "append_line(Path(sys.argv[1]), {'long': 'x' * 100_000})",
        path,
    )
    _, said = limited.communicate()
    assert limited.returncode == 1 and f"cannot add a line to {path} (File too large), which is as it was" in said
    assert path.read_bytes() == before
    append_line(path, LONG)
    assert read_lines(path) == [{"a": 1}, LONG]


def test_an_interruption_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "runs.jsonl", os.write

    def cut(file: int, data: bytes) -> int:
        write(file, data[:5])
        raise KeyboardInterrupt

    append_line(path, {"a": 1})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(lines.os, "write", cut)
        append_line(path, {"b": 2})
    assert path.read_text() == '{"a": 1}\n'


@pytest.mark.parametrize("torn", ['{"seed": 3, "conf', '{"a"', "7", "\ufffd"])
def test_a_torn_last_line_is_passed_over_and_then_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, torn: str
) -> None:
    path, aside = tmp_path / "runs.jsonl", tmp_path / "runs.jsonl.torn"
    path.write_text('{"a": 1}\n' + torn)
    assert read_lines(path) == [{"a": 1}]
    assert path.read_text().endswith(torn) and f"the last line of {path} was cut off" in caplog.text
    caplog.clear()
    append_line(path, {"b": 2})
    assert read_lines(path) == [{"a": 1}, {"b": 2}] and aside.read_text() == torn + "\n"
    assert [each.levelno for each in caplog.records] == [logging.WARNING] and str(aside) in caplog.text


def test_a_last_line_that_lacks_its_end_alone_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text('{"a": 1}')
    assert read_lines(path) == [{"a": 1}]
    append_line(path, {"b": 2})
    assert path.read_text() == '{"a": 1}\n{"b": 2}\n' and not path.with_name("runs.jsonl.torn").exists()


def test_a_file_that_holds_only_a_torn_line_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text('{"a')
    assert read_lines(path) == []
    append_line(path, {"b": 2})
    assert read_lines(path) == [{"b": 2}]


def test_writers_side_by_side_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    code = "[append_line(Path(sys.argv[1]), {'who': %d, 'long': 'x' * 100_000}) for _ in range(20)]"
    writers = [child(code % number, path) for number in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    found = [line["who"] for line in read_lines(path)]
    assert sorted(found) == [0] * 20 + [1] * 20 + [2] * 20


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of Unix")
def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for function in (read_lines, lambda path: append_line(path, {})):
        with pytest.raises(ValueError, match="pipe is not a file of lines"):
            function(pipe)
    with pytest.raises(ValueError, match="is not a file of lines"):
        read_lines(tmp_path)
    with pytest.raises(IsADirectoryError, match=r"cannot add a line to .* \(Is a directory\)"):
        append_line(tmp_path, {})


RUN = {"budget": "cpu", "config_hash": "abc", "seed": 0}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[]", "line 2 of {path} is not a JSON object: mend it, or take it out"),
        (b"", "line 2 of {path} is not a JSON object"),
        (b'{"cell": "\xff"}', "line 2 of {path} is not a JSON object"),
        (b"[" * 100_000, "line 2 of {path} is not a JSON object"),
        (json.dumps({**RUN, "seed": None}).encode(), "line 2 of {path}: it has no seed: mend the line, or take it out"),
        (json.dumps({**RUN, "seed": "0"}).encode(), "line 2 of {path}: seed is '0', which must be of another type"),
        (json.dumps({**RUN, "curve": [1]}).encode(), r"line 2 of {path}: curve is \[1\], which must"),
        (b'{"budget": "full", "seed": 1}', "line 2 of {path}: it has no config_hash"),
    ],
)
def test_a_line_that_is_none_of_a_run_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_bytes(json.dumps(RUN).encode() + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match=message.format(path=path)):
        read_records(path)


@pytest.mark.parametrize(("field", "place"), [("out", "b"), ("records", "other/runs.jsonl")])
def test_a_run_is_had_by_one_process_wherever_it_is_put(tmp_path: Path, field: str, place: str) -> None:
    """Two writers of one file of lines do not double a seed; nor do two files of lines share one run's folder."""
    table = find_tables("discriminative/table2")[0]
    first, second = plan(table.cells[:1], "smoke", 2)
    mine = Settings(tmp_path / "results" / "runs.jsonl", out=tmp_path / "a")
    theirs = replace(mine, **{field: tmp_path / place})
    with _claimed(first, mine) as held:
        assert held
        with _claimed(first, theirs) as again, _claimed(second, theirs) as free:
            assert not again and free
    with _claimed(first, theirs) as later:
        assert later
