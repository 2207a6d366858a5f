"""Heads beside the dense layers that they replace: what is timed is equal, and is shown."""

import json

import heads
import torch
import xnodr_blocks


def test_packed_heads_are_equal_and_every_form_is_timed():
    with torch.no_grad():
        name, values = heads.compare("mobilenetv2_100", 2, 1)
    assert name == "heads/mobilenetv2_100" and values["largest_difference"] < heads.TOLERANCE
    forms = ("dense", *heads.ROUTED, "xnodr_packed", "midpoint_packed", "both_packed")
    assert all(values[f"{form}_ms"] > 0 for form in forms)
    weights = 160 * 10 * 8 * 16
    assert values["xnodr_bytes"] == 4 * weights and values["xnodr_packed_bytes"] == weights / 8 * (1 + 16 / 8)
    assert values["dense_bytes"] == 4 * 821_386


def test_the_page_shows_the_newest_line_of_each_batch_and_says_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(xnodr_blocks, "RESULTS", tmp_path)
    path = tmp_path / "benchmarks.jsonl"
    path.write_text("")
    assert "Not measured yet: `python benchmarks/heads.py`" in xnodr_blocks.heads("")
    times = dict.fromkeys((f"{form}_ms" for form in xnodr_blocks.FORMS), 0.125)
    lines = [
        {"benchmark": "heads/resnet50", "batch": batch, "threads": 1, **times, "dense_ms": dense}
        for batch, dense in ((1, 7.0), (1, 1234.5), (128, 2.0))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    head, *rows = xnodr_blocks.heads("")
    assert head[:4] == ("features of", "batch", "threads", "dense (ms)")
    assert [row[1:5] for row in rows] == [("1", "1", "1,234", "0.125"), ("128", "1", "2", "0.125")]
