"""The benchmark that watches the Jacobian's singular values: a line for each layer, before training and after it."""

import json
from dataclasses import replace

import pytest
import singular

from torchcaps.config import DataConfig


@pytest.mark.slow
def test_lines_of_a_short_run(tmp_path):
    config = singular.build("no-mean", "fashion-mnist", 3, tmp_path / "runs")
    narrow = {"width": 4, "capsules": (16, 8)}
    assert config.model.options == {**narrow, "mean": False} and config.epochs == 10
    model = replace(config.model, options={**config.model.options, "blocks": (1, 1, 1), "primary": 2})
    config = replace(config, model=model, data=DataConfig("digits", standardise="image", validation=0.1), epochs=1)
    out = tmp_path / "singular.jsonl"
    singular.Watched(config, "no-mean", out).run()
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["epoch"], line["of"], line["layer"]) for line in lines] == [
        (epoch, of, f"stack.{n}") for epoch in (0, 1) for of in ("activations", "poses") for n in range(3)
    ]
    assert all(line["largest"] >= line["smallest"] > 0 and line["seed"] == 3 for line in lines)
    assert lines[0]["validation_accuracy"] is None and 0 < lines[-1]["validation_accuracy"] <= 1
    root = 2**0.5  # of two children: each one's slope is the other's vote, of length one
    assert lines[0]["largest"] == pytest.approx(root, rel=1e-4) and lines[0]["smallest"] == pytest.approx(
        root, rel=1e-4
    )
