"""What is read from a model: couplings of every routing, confusion, calibration, mistakes, colours; and the command."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torchcaps.capsules import Capsules, lengths
from torchcaps.cli import parse_flags
from torchcaps.config import Config, DataConfig, LossConfig
from torchcaps.data import load_data
from torchcaps.inspect import decode_classes, pose_sweep, trace_routing
from torchcaps.inspect import examples as looked_into
from torchcaps.inspect.couplings import Box, share_maps
from torchcaps.inspect.examples import CLASSES, _classes, look_into
from torchcaps.inspect.measured import (
    Measured,
    Watch,
    calibrate,
    calibrate_measured,
    choose_right,
    class_accuracy,
    confusion,
    measure,
    to_probabilities,
    worst,
)
from torchcaps.inspect.measures import describe_measured
from torchcaps.inspect.pictures import colour_parts, data_uri, heat, to_bytes, to_sheet
from torchcaps.layers import CapsuleLayer, CapsuleStack, ConvTransform, LinearTransform, PrimaryCapsules
from torchcaps.models import Model, Output, create_model
from torchcaps.papers import create_recipe
from torchcaps.report import reproduce_command
from torchcaps.routing import Step, list_routings, routing_class
from torchcaps.train.processes import build_fabric

SHARED = [spec.name for spec in list_routings() if spec.couplings]
SMALL = {"channels": 4, "primary": 2, "kernel": 3, "class_pose": 4}


class Two(Model):
    """Primary capsules with activations, a convolutional layer of three kinds, a linear layer of four classes."""

    def __init__(self, routing: str):
        super().__init__()
        self.primary = PrimaryCapsules(1, 2, 4, kernel=3, stride=1)
        hidden = routing_class(routing).spec.hidden  # elements of a vote that a parent has not
        conv = ConvTransform(2, 3, 4, 4 + hidden, kernel=3, stride=2, padding=1)
        linear = LinearTransform(3 * 3 * 4, 4, 4, 5 + hidden)
        self.stack = CapsuleStack([CapsuleLayer(conv, routing), CapsuleLayer(linear, routing)])

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        primary = self.primary(images)
        children = primary._replace(activations=lengths(primary.poses).sigmoid())
        steps = self.stack(children)
        return Output(lengths(steps[-1].capsules.poses), (children, *(step.capsules for step in steps)))


@pytest.mark.parametrize("routing", SHARED)
def test_couplings_of_every_routing_are_shares_of_each_place(routing: str) -> None:
    torch.manual_seed(0)
    model = Two(routing)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    layers = trace_routing(model, torch.rand(2, 1, 7, 9))
    assert [layer.name for layer in layers] == ["stack.0", "stack.1"]
    assert [layer.routing for layer in layers] == [routing] * 2
    assert [layer.maps.shape[1:] for layer in layers] == [(2, 3, 5, 7), (2, 4, 3, 4)]
    for layer in layers:
        sums = layer.maps.abs().sum(2)
        assert (sums <= 1 + 1e-5).all() and (sums > 0).all()
        if (layer.maps >= 0).all():
            torch.testing.assert_close(sums, torch.ones_like(sums))
        assert layer.strength.shape == layer.maps.shape[:3]
    assert not any(layer.transform.training for layer in model.stack.layers)


def test_map_is_the_mean_of_a_place_weighted_by_strength() -> None:
    """By loops, for a convolution whose windows overlap and leave the image, and for children without positions."""
    torch.manual_seed(1)
    layer = CapsuleLayer(ConvTransform(2, 3, 4, 4, kernel=3, stride=2, padding=1))
    children = Capsules(torch.randn(1, 4, 5, 2, 4), torch.rand(1, 4, 5, 2))
    coupling = torch.rand(1, 2 * 3, 3 * 3 * 2, 3)
    maps = share_maps(layer, children, Step(Capsules(torch.zeros(1, 2, 3, 3, 4)), coupling, None))
    given = torch.zeros(4, 5, 2, 3)
    for row in range(2):
        for column in range(3):
            for y in range(3):
                for x in range(3):
                    top, left = 2 * row - 1 + y, 2 * column - 1 + x
                    if 0 <= top < 4 and 0 <= left < 5:
                        window = coupling[0, 3 * row + column].view(3, 3, 2, 3)
                        given[top, left] += window[y, x]
    shares = given / given.sum(-1, keepdim=True)  # [h, w, i, j]
    assert children.activations is not None
    weight = children.activations[0, ..., None]
    expected = (shares * weight).sum(2) / weight.sum(2)
    torch.testing.assert_close(maps[0], expected.movedim(-1, 0), atol=1e-4, rtol=1e-4)

    flat = CapsuleLayer(LinearTransform(6, 2, 4, 3))
    step = Step(Capsules(torch.zeros(1, 2, 3)), torch.tensor([0.25, 0.75]).expand(1, 1, 6, 2), None)
    row = share_maps(flat, Capsules(torch.randn(1, 6, 4)), step)
    torch.testing.assert_close(row[0], torch.tensor([0.25, 0.75]).view(2, 1, 1).expand(2, 1, 6))


def test_places_lie_where_the_fields_of_their_capsules_do() -> None:
    """CapsNet 3x3 then 3x3 stride 2 on 13 x 11: fields of 5, middles 2.5, 4.5, ... of the side."""
    model = create_model("capsnet", num_classes=3, image_size=(13, 11), **SMALL)
    (layer,) = trace_routing(model, torch.rand(3, 1, 13, 11))
    assert layer.maps.shape == (3, 3, 3, 5, 4)
    assert layer.box == pytest.approx(Box(1.5 / 13, 1.5 / 11, 10 / 13, 8 / 11))
    torch.testing.assert_close(layer.maps[0], torch.full_like(layer.maps[0], 1 / 3))
    assert not layer.maps[2].allclose(layer.maps[0])


def test_layers_that_only_share_out_equally_are_left_out() -> None:
    torch.manual_seed(0)
    model = create_model("attention-simple-cifar10", channels=4, capsules=2, pose=4, iterations=2)
    images = torch.randn(1, 3, 32, 32)
    assert [layer.name for layer in trace_routing(model, images)] == ["stack.2"]
    model.iterations = 4
    layers = trace_routing(model, images)
    assert [(layer.name, len(layer.maps)) for layer in layers] == [("stack.0", 2), ("stack.1", 3), ("stack.2", 4)]
    unseen = layers[0].maps[1, ..., -1, :]  # 7 windows of 3 with stride 2 do not reach the 16th row
    torch.testing.assert_close(unseen, torch.full_like(unseen, 1 / 2))
    assert ((layers[0].maps[1, ..., :-1, :-1] - 1 / 2).abs() > 1e-3).float().mean() > 0.9


def test_the_class_layer_is_the_one_whose_parents_are_the_classes() -> None:
    """Though it may not be traced, and the layer below it is."""
    model, images = Two("dynamic"), torch.rand(2, 1, 7, 9)
    assert [layer.top for layer in trace_routing(model, images)] == [False, True]
    model.stack.layers[1] = CapsuleLayer(LinearTransform(3 * 3 * 4, 4, 4, 5), "uniform")
    assert [(layer.name, layer.top) for layer in trace_routing(model, images)] == [("stack.0", False)]


def test_a_pooled_type_has_one_share_everywhere_and_scrambled_windows_have_none() -> None:
    sizes: dict[str, int] = {"channels": 4, "capsules": 2, "pose": 4, "iterations": 4}
    pooled = create_model("attention-simple-cifar10", positions="pooled", **sizes)
    images = torch.randn(2, 3, 32, 32)
    top = trace_routing(pooled, images)[-1]
    assert top.maps.shape == (4, 2, 10, 5, 5)
    torch.testing.assert_close(top.maps.sum(2), torch.ones(4, 2, 5, 5))
    scrambled = create_model("attention-simple-cifar10", scrambled=True, **sizes)
    assert [layer.name for layer in trace_routing(scrambled, images)] == ["stack.2"]


def test_confusion_of_labels_and_of_label_sets() -> None:
    hot = torch.eye(3, dtype=torch.bool)
    labels, predicted = hot[[0, 1, 1, 2]], hot[[0, 1, 2, 2]]
    assert confusion(labels, predicted).tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]
    assert class_accuracy(labels, predicted).tolist() == [1, 0.5, 1]
    sets, found = hot[[0, 0]] | hot[[1, 2]], hot[[0, 1]] | hot[[1, 2]]  # {0 1}, {0 2} as {0 1}, {1 2}
    assert confusion(sets, found).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]


def test_calibration_by_hand() -> None:
    found = calibrate(torch.tensor([0.05, 0.95, 0.85, 0.95, 1.0]), torch.tensor([False, True, False, True, True]))
    assert found.counts.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 1, 3]
    assert found.accuracy[[0, 8, 9]].tolist() == [0, 0, 1]
    assert found.error == pytest.approx((0.05 + 0.85 + 0.1) / 5, abs=1e-6)
    scores = torch.tensor([[2.0, 0.5]])
    assert to_probabilities(scores, "margin").tolist() == [[1.0, 0.5]]
    torch.testing.assert_close(to_probabilities(scores, "cross-entropy"), scores.softmax(1))


@pytest.mark.parametrize("spoilt", [1, 4])
def test_calibration_of_what_is_no_number_is_none(spoilt: int) -> None:
    """It was taken for perfect."""
    scores = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    scores[:spoilt] = torch.nan
    watch = Watch(LossConfig("cross-entropy"))
    watch(scores, torch.zeros(4, dtype=torch.int64))
    measured = watch.measured()
    found = calibrate_measured(measured)
    assert math.isnan(found.error) and found.counts.sum() == 4 and found.counts[0] >= spoilt
    told = describe_measured(measured, "abc", "test", 4)["calibration"]
    assert told["error"] is None and told["bins"][0]["probability"] is None and told["bins"][0]["images"] >= spoilt


def test_of_scores_above_one_the_highest_wins() -> None:
    """Cut to [0, 1] they are equal, and the first class was taken for the one that is said."""
    scores, labels = torch.tensor([[1.2, 1.5, 0.0], [3.0, 1.1, 2.0]]), torch.tensor([1, 0])
    watch = Watch(LossConfig("margin"))
    watch(scores, labels)
    found = watch.measured()
    assert found.right.all() and found.probabilities[:, :2].eq(1).all()
    calibration = calibrate_measured(found)
    assert calibration.error == 0 and calibration.accuracy[-1] == 1
    many = torch.tensor([2.0, 1.0, 3.0, 0.5, *[0.0] * CLASSES])
    assert _classes(many, torch.arange(len(many)) == len(many) - 1) == [
        2,
        0,
        1,
        3,
        *range(4, CLASSES - 1),
        len(many) - 1,
    ]


def test_worst_are_sure_and_wrong_and_right_ones_differ_in_class() -> None:
    hot = torch.eye(2, dtype=torch.bool)
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7], [0.9, 0.1]])
    measured = Measured(p, p, hot[[1, 1, 0, 1, 0]], hot[[0, 0, 0, 1, 0]], torch.arange(5), False, torch.zeros(5))
    assert worst(measured, 9).tolist() == [0, 1]
    assert choose_right(measured, 2).tolist() == [2, 3]
    assert choose_right(measured, 9).tolist() == [2, 3, 4]


def test_the_class_that_wins_is_shown_though_many_others_are_there() -> None:
    """Of eleven labels, none of them found, the winner is a twelfth class: it was called undefined."""
    scores = torch.linspace(0, 0.4, CLASSES + 4)
    there = torch.arange(len(scores)) <= CLASSES
    chosen = _classes(scores, there)
    assert chosen == [CLASSES + 3, *range(CLASSES, -1, -1)] and there.sum() == CLASSES + 1


def test_measure_takes_batches_evenly_spaced() -> None:
    data = load_data(DataConfig("digits"))
    model = create_model("capsnet", image_size=8, **SMALL)
    config = Config(device="cpu", precision="fp32")
    measured = measure(build_fabric(config), model, data.evaluation("test", 32), config.loss, limit=100)
    assert measured.indices.tolist() == [n for step in (0, 3, 6, 9) for n in range(32 * step, 32 * step + 32)]
    whole = measure(build_fabric(config), model, data.evaluation("test", 32), config.loss)
    assert whole.indices.tolist() == list(range(360))
    torch.testing.assert_close(whole.probabilities[measured.indices], measured.probabilities)


def test_decoded_classes_and_the_middle_of_a_sweep_are_reconstructions() -> None:
    torch.manual_seed(0)
    model = create_model("capsnet", num_classes=4, image_size=9, **SMALL).eval()
    images = torch.rand(2, 1, 9, 9)
    output = model(images)
    decoded = decode_classes(model, output.capsules[-1].poses, torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]]))
    best = output.scores.argmax(1)
    torch.testing.assert_close(decoded[0, best[0]], output.aux["reconstruction"][0])
    torch.testing.assert_close(decoded[1, 3 - best[1]], output.aux["reconstruction"][1])
    sweep = pose_sweep(model, images[0], steps=5)
    assert sweep.shape == (4, 5, 1, 9, 9)
    torch.testing.assert_close(sweep[:, 2], output.aux["reconstruction"][:1].expand(4, -1, -1, -1))
    assert not sweep[:, 0].allclose(sweep[:, 4])


def test_examples_of_overlapped_digits_tell_them_apart() -> None:
    config = DataConfig("multimnist", compose=replace(DataConfig().compose, base="digits", held=64))
    data = load_data(config)
    torch.manual_seed(0)
    model = create_model("capsnet", image_size=data.image_size, **SMALL, stride=4)
    run = Config(device="cpu", precision="fp32")
    batches = data.evaluation("test", 32)
    measured = measure(build_fabric(run), model, batches, run.loss)
    assert measured.several and (measured.targets.sum(1) == 2).all() and (measured.predicted.sum(1) == 2).all()
    examples = look_into(model, batches, measured, decoder=True)
    assert any(not example.right for example in examples)
    for example in examples:
        assert example.parts is not None and example.parts.shape == (3, 3, *data.image_size)
        assert example.absent not in {*example.targets, *example.predicted}
        assert torch.equal(example.image * 255, data.test.fetch(torch.tensor([example.index]))[0].float())


def test_label_sets_are_decoded_on_the_device_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(_: Model, poses: Tensor, sets: Tensor, images: Tensor) -> Tensor:
        assert {poses.device, sets.device, images.device} == {poses.device}
        return torch.zeros(3, 3, 2, 2)

    monkeypatch.setattr(looked_into, "colour_sets", decode)
    poses, there = torch.zeros(1, 4, 2, device="meta"), torch.tensor([True, False, False, False])
    found = looked_into._parts(Two("dynamic"), poses, torch.arange(4.0), there, ~there, torch.zeros(1, 2, 2))
    assert found[0].shape == (3, 3, 2, 2) and found[1] is None


def test_pictures_keep_their_pixels() -> None:
    tiles = torch.arange(2 * 3 * 4).reshape(2, 3, 1, 2, 2)
    assert to_sheet(tiles)[:2, 2:4, 0].tolist() == tiles[0, 1, 0].tolist()
    assert to_bytes(torch.tensor([-1.0, 0.5, 2.0])).tolist() == [0, 128, 255]
    assert data_uri(torch.zeros(2, 2, 4, dtype=torch.uint8)).startswith("data:image/png;base64,")
    black, parts = torch.zeros(1, 1, 1, 1), torch.tensor([1.0, 0.0]).view(1, 2, 1, 1, 1)
    first, both = colour_parts(parts, black), colour_parts(torch.ones_like(parts), black)
    assert first[0, 1] > first[0, 2] and both[0, 1] == both[0, 2] == 1
    torch.testing.assert_close(colour_parts(parts * 0, black + 0.5), torch.full((1, 3, 1, 1), 0.15))
    more, less, none = heat(torch.tensor([[0.2, -0.1, 0.0]]), 0.2)[..., 0, :].T
    assert more[3] == 255 and less[3] == 128 and none[3] == 0 and more[0] > more[2] and less[2] > less[0]


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--seed 3 --clip 0.5 --data.augment.flip --data.augment.shift 0 --out 'a b'",
        "--schedule.milestones 4 6 --data.validation 0 --model.options channels 64 deep True kind 'x y'",
        "--data.root /tmp/x --data.compose.base digits --precision bf16 --data.image-size None",
    ],
)
def test_command_reproduces_the_config(flags: str) -> None:
    config, _ = parse_flags(create_recipe("digits"), shlex.split(flags))
    command = shlex.split(reproduce_command(config, Path("runs/x")))
    assert command[:3] == ["torchcaps", "train", "digits"]
    assert parse_flags(create_recipe("digits"), command[3:]) == (config, False)


def test_command_of_a_run_without_recipe_reads_its_folder() -> None:
    config = create_recipe("digits")
    assert "read_config" in reproduce_command(replace(config, recipe="mine"), Path("runs/x y"))
    fewer = replace(config, model=replace(config.model, options={}))
    assert shlex.split(reproduce_command(fewer, Path("runs/x y")))[-1] == "runs/x y"
