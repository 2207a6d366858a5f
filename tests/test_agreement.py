"""Figure 2's agreement of votes with their parents, against loops over dense votes, and its picture."""

import json
import math
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_config
from torch import nn

from torchcaps import create_model
from torchcaps.config import ModelConfig
from torchcaps.data import load_data
from torchcaps.inspect.agreement import Agreement, measure_agreement, read_agreement
from torchcaps.inspect.couplings import visiting
from torchcaps.inspect.drawings import draw_agreement
from torchcaps.inspect.probes import find_probes
from torchcaps.report import write_report
from torchcaps.tables.records import describe_run
from torchcaps.train import fit, loop
from torchcaps.train.run import RunFolder


def build(routing):
    torch.manual_seed(0)
    options = {"types": 2, "channels": 2, "grid": 2}
    return create_model(f"capnet-6-{routing}", num_classes=3, in_channels=1, image_size=8, **options)


def batches():
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(n, 1, 8, 8, generator=generator), torch.randint(3, (n,), generator=generator)) for n in (3, 2)]


def loops(model, steps, true_class):
    """Percentages and mean lengths of each layer, a vote at a time."""
    number, length, seen = {}, {}, {}

    def visit(name, layer, children, t, step):
        seen[name] = layer.votes(children).dense()[:, 0], step.capsules.poses  # [b, i, j, d], [b, j, d]

    with torch.no_grad(), visiting(model.eval(), visit):
        for images, labels in batches():
            model(images)
            for name, (votes, parents) in seen.items():
                top = parents.shape[1] == 3
                for b, i, j in torch.cartesian_prod(*map(torch.arange, votes.shape[:3])).tolist():
                    if top and true_class and j != labels[b]:
                        continue
                    vote, parent = votes[b, i, j].tolist(), parents[b, j].tolist()
                    size = math.hypot(*vote)
                    cosine = sum(x * y for x, y in zip(vote, parent, strict=True)) / (size * math.hypot(*parent))
                    step = min(int((cosine + 1) / 2 * steps), steps - 1)
                    number.setdefault(name, [0] * steps)[step] += 1
                    length.setdefault(name, [0.0] * steps)[step] += size
    return {
        name: (
            [100 * n / sum(counts) for n in counts],
            [total / max(n, 1) for total, n in zip(length[name], counts, strict=True)],
        )
        for name, counts in number.items()
    }


@pytest.mark.parametrize("routing", ["dynamic", "em"])
@pytest.mark.parametrize("true_class", [True, False])
def test_equals_the_loops(routing, true_class):
    model = build(routing).train()
    found = measure_agreement(model, batches(), steps=6, true_class=true_class)
    assert model.training
    wanted = loops(model, 6, true_class)
    assert list(found) == list(wanted) == ["stack.0", "stack.1"]
    for name, agreement in found.items():
        assert agreement.routing == routing and sum(agreement.share) == pytest.approx(100)
        assert agreement.share == pytest.approx(wanted[name][0])
        assert agreement.length == pytest.approx(wanted[name][1], rel=1e-4)


def test_convolutional_capsules_and_label_sets_are_measured_too():
    model = create_model("capsnet", image_size=12, channels=4, primary=2, kernel=3)
    (agreement,) = measure_agreement(model, [(torch.rand(2, 1, 12, 12), torch.eye(10)[:2])]).values()
    assert sum(agreement.share) == pytest.approx(100) and len(agreement.share) == 20


def test_votes_without_a_direction_count_as_at_right_angles():
    model = build("dynamic")
    with torch.no_grad():
        for layer in model.stack.layers:
            layer.transform.weight.zero_()
    for agreement in measure_agreement(model, batches(), steps=4).values():
        assert agreement == Agreement("dynamic", (0, 0, 100, 0), (0, 0, 0, 0))


def test_the_figure_has_a_row_for_each_routing_and_a_panel_for_each_epoch(tmp_path):
    rows = {
        routing: {epoch: measure_agreement(build(routing), batches())["stack.0"] for epoch in epochs}
        for routing, epochs in (("dynamic", (1, 20, 80)), ("em", (1, 20)))
    }
    figure = draw_agreement(rows)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == [f"dynamic, epoch {n}" for n in (1, 20, 80)] + [f"em, epoch {n}" for n in (1, 20)]
    figure.savefig(tmp_path / "agreement.png")


def test_a_panel_without_votes_has_an_axis_of_lengths():
    empty = Agreement("fm", (0.0,) * 20, (0.0,) * 20)
    beside = draw_agreement({"fm": {1: empty}}).axes[-1]
    assert beside.get_ylabel() == "mean length" and not beside.lines
    assert all(label.get_text() != ".-" for label in beside.get_yticklabels())


@pytest.mark.parametrize("weight", ["stack", "all"])
def test_the_layer_whose_votes_are_not_finite_is_named(weight):
    model = build("dynamic")
    for name, each in model.named_parameters():
        if weight == "all" or name.startswith("stack."):
            nn.init.constant_(each, math.nan)
    with pytest.raises(ValueError, match=r"votes or parents of layer 'stack\.0' are not finite"):
        measure_agreement(model, batches())


def test_bad_steps_are_named():
    with pytest.raises(ValueError, match="steps is 1"):
        measure_agreement(build("dynamic"), batches(), steps=1)


def training(out, **changes):
    model = ModelConfig("capnet-6-em", {"types": 2, "channels": 2, "grid": 2})
    return tiny_config(out, model=model, agreement=11, epochs=3, **changes)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = training(tmp_path_factory.mktemp("agreement"))
    return fit(config, callbacks=find_probes(config)).folder


def test_each_epoch_says_what_its_weights_agree_to(run):
    config, found = training(run.parent), lines(run)
    model = RunFolder(run).rebuild()
    kept = found[RunFolder(run).read("result.json")["selected_epoch"] - 1]
    other = next(line for line in found if line is not kept)
    model.load_state_dict(load_file(run / "best" / "model.safetensors"))
    first = list(islice(load_data(config.data).evaluation("train", 11).epoch(0), 1))
    expected = measure_agreement(model, first)
    assert list(kept["agreement"]) == list(expected) == ["stack.0", "stack.1"]
    for name, agreement in expected.items():
        assert kept["agreement"][name]["share"] == pytest.approx(agreement.share, abs=0.1)  # votes at an edge
        assert other["agreement"][name]["share"] != kept["agreement"][name]["share"]


def test_training_goes_on_as_if_it_were_not_measured(run, tmp_path):
    without = fit(replace(training(tmp_path), agreement=0)).folder
    assert "agreement" not in lines(without)[0]
    assert [line["train_loss"] for line in lines(without)] == [line["train_loss"] for line in lines(run)]
    weights = [load_file(folder / "last" / "model.safetensors") for folder in (run, without)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_a_run_that_was_cut_has_the_agreement_of_all_its_epochs(run, tmp_path, monkeypatch):
    step = loop.Trainer.step

    def cut(trainer, *batch):
        if trainer.position.epoch == 1:
            raise KeyboardInterrupt
        return step(trainer, *batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Trainer, "step", cut)
        fit(training(tmp_path), callbacks=find_probes(training(tmp_path)))
    resumed = fit(training(tmp_path), True, find_probes(training(tmp_path))).folder
    assert [line["agreement"] for line in lines(resumed)] == [line["agreement"] for line in lines(run)]


@pytest.mark.slow
def test_the_line_of_a_run_keeps_four_stages_and_its_report_the_picture(run):
    stages, found = describe_run(run)["agreement"], lines(run)
    assert [stage["epoch"] for stage in stages] == [1, 1, 1, 3]
    assert [stage["layers"] for stage in stages] == [found[stage["epoch"] - 1]["agreement"] for stage in stages]
    write_report(run)
    assert Path(run / "figures" / "agreement.png").exists()


def test_epochs_that_are_drawn_are_evenly_spaced():
    one = {"stack.0": asdict(Agreement("em", (100.0, 0.0), (1.0, 0.0)))}
    history = [{"epoch": epoch, "agreement": one} for epoch in range(1, 201)]
    assert list(read_agreement(history)["stack.0"]) == [1, 51, 101, 150, 200]
    assert list(read_agreement(history[:2])["stack.0"]) == [1, 2]
    assert list(read_agreement(history[:1])["stack.0"]) == [1]
    assert read_agreement([{"epoch": 1}, {"epoch": 2, "agreement": {}}]) == {}
