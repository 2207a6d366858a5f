"""Heads beside the dense layers that they replace: what is timed is equal, and is shown."""

import json

import draw_speed
import heads
import pytest
import torch
import xnodr_blocks


@pytest.mark.slow
def test_packed_heads_are_equal_and_every_form_is_timed():
    with torch.no_grad():
        name, values = heads.compare("mobilenetv2_100", 2, 1, ["eager"])
    assert name == "heads/mobilenetv2_100" and values["largest_difference"] < heads.TOLERANCE
    forms = ("dense", *heads.ROUTED, "discriminative_folded", "xnodr_packed", "midpoint_packed", "both_packed")
    assert all(values[f"{form}_ms"] > 0 for form in forms)
    assert set(values["times_ms"]) == set(forms) and set(values["over_dense"]) == {*forms} - {"dense"}
    weights = 160 * 10 * 8 * 16
    assert values["xnodr_bytes"] == 4 * weights and values["xnodr_packed_bytes"] == weights / 8 * (1 + 16 / 8)
    assert values["dense_bytes"] == 4 * 821_386


@pytest.mark.parametrize("runner", [pytest.param("compiled", marks=pytest.mark.slow), "exported", "onnx"])
def test_every_runner_gives_the_scores_of_the_head(runner):
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    inputs, head = torch.randn(1, 16).relu(), heads.fold(heads.CapsuleHead("discriminative", 16, 3).eval())
    with torch.no_grad():
        torch.testing.assert_close(heads.MAKERS[runner](head, inputs)(inputs), head(inputs).scores)


def test_the_page_of_speed_has_a_row_a_head_and_says_what_reached_its_goal():
    assert draw_speed.heads([]) == ""
    line = {
        "benchmark": "heads/resnet50",
        "batch": 1,
        "times_ms": {"dense": {"eager": 0.1, "onnx": 0.05}, "fm": {"eager": 0.2, "compiled": 0.4}},
        "over_dense": {"fm": 2.04},
        "passed": {"fm": True},
    }
    made = draw_speed.heads([line])
    assert "| `dense` | 0.1 | - | - | 0.05 | 1 |" in made and "| `fm` | 0.2 | 0.4 | - | - | 2.04, reached |" in made
    several = {**line, "all_over_dense": [{"fm": 2.04}, {"fm": 3.5}, {"xnidr": 1.0}]}
    assert "| 2.04 (in 2 measurements 2.04 to 3.50), reached |" in draw_speed.heads([several])
    missed = {**several, "all_passed": [{"fm": True}, {"fm": False}, {"xnidr": True}]}
    assert "| 2.04 (in 2 measurements 2.04 to 3.50), reached, missed elsewhere |" in draw_speed.heads([missed])


def test_the_page_shows_the_newest_line_of_each_batch_and_says_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(xnodr_blocks, "RESULTS", tmp_path)
    path = tmp_path / "benchmarks.jsonl"
    path.write_text("")
    said = xnodr_blocks.heads("")
    assert isinstance(said, str) and "Not measured yet: `python benchmarks/heads.py`" in said
    times = dict.fromkeys((f"{form}_ms" for form in xnodr_blocks.FORMS), 0.125)
    lines = [
        {"benchmark": "heads/resnet50", "batch": batch, "threads": 1, **times, "dense_ms": dense}
        for batch, dense in ((1, 7.0), (1, 1234.5), (128, 2.0))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    head, *rows = xnodr_blocks.heads("")
    assert head[:4] == ("features of", "batch", "threads", "dense (ms)")
    assert [row[1:5] for row in rows] == [("1", "1", "1,234", "0.125"), ("128", "1", "2", "0.125")]
