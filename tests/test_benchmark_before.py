"""Steps of another checkout beside ours: what is asked, recorded and shown."""

import json
import subprocess
import sys

import before
import draw_speed
import pytest
import report

CELL = "fm/table2/ours-cifar10"


@pytest.mark.slow
def test_a_folder_that_is_no_checkout_is_named(tmp_path):
    run = [sys.executable, before.__file__, str(tmp_path)]
    answer = subprocess.run(run, capture_output=True, text=True, check=False)
    assert answer.returncode == 2 and f"{tmp_path} is no checkout of torchcaps" in answer.stderr


@pytest.mark.slow
def test_a_checkout_beside_itself_is_measured_in_pairs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    before.compare(before.NETWORKS[2], before.HERE, batch=2, repeats=3)
    line = json.loads((tmp_path / "benchmarks.jsonl").read_text())
    assert line["benchmark"] == f"before/{before.NETWORKS[2]}" and line["commits"][0] == line["commits"][1]
    assert min(line["before_ms"], line["now_ms"]) > 1 and line["ratios"][0] <= line["ratio"] <= line["ratios"][1]


def test_lines_become_a_table():
    line = {
        "benchmark": f"before/{CELL}",
        "batch": 8,
        "before_ms": 1234.4,
        "now_ms": 617.2,
        "ratio": 2.0,
        "ratios": [1.91, 2.09],
        "commits": ["aaaaaaa", "bbbbbbb+"],
        "environment": {"cpu": "a CPU", "torch": "2.15.0"},
    }
    row = f"| `{CELL}` | 8 | 1,234 ms | 617 ms | 2.00 (1.91 to 2.09) | aaaaaaa → bbbbbbb+ | a CPU, torch 2.15.0 |"
    assert row in draw_speed.before([line])
    assert draw_speed.before([]) == ""


def test_rows_of_another_machine_are_marked_and_names_that_do_not_tell_machines_apart_are_said():
    row = draw_speed.marked(lambda line: iter((line["name"], 2)), "a CPU (family 1)")
    here, there, old = ({"name": "x", "environment": {"cpu": cpu}} for cpu in ("a CPU (family 1)", "b (family 2)", "b"))
    assert row(here) == ["x", 2] and row(there) == ["x †", 2]
    assert draw_speed.other_machines([here], "a CPU (family 1)") == ""
    assert draw_speed.other_machines([here, there], "a CPU (family 1)").endswith(": b (family 2)")
    said = draw_speed.other_machines([here, there, old], "a CPU (family 1)")
    assert ": b, b (family 2) (b stand" in said


def test_a_first_step_is_held_to_plain_steps_in_this_process_and_the_next():
    line = {"benchmark": "first-step/em", "first_seconds": 7.0, "again_seconds": 2.75, "plain_seconds": 2.0}
    _, _, _, _, first, later = draw_speed.first_row(line | {"over_plain": [5.0, 1.5]})
    assert first == "5.0 s (in 2 measurements 1.5 to 5.0), missed" and later == "0.8 s, missed"
    _, _, _, _, first, later = draw_speed.first_row(line | {"first_seconds": 6.9, "again_seconds": 2.25})
    assert first == "4.9 s, reached" and later == "0.2 s, reached"
