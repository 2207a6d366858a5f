"""The pictures of FM agreement's paper: Tables 4 and 5, and the pairs of figure 1, also in the report of a run."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from browser import Browser, find_browser
from tiny import tiny_config

from torchcaps.config import LossConfig, ModelConfig
from torchcaps.inspect import (
    decode_classes,
    draw_inputs_and_outputs,
    draw_segmentations,
    trace_pairs,
)
from torchcaps.inspect.couplings import Box
from torchcaps.inspect.drawings import draw_overlaps, draw_pairs, draw_reconstructions
from torchcaps.inspect.figures import draw_couplings, draw_tiles, pale
from torchcaps.inspect.pictures import colour_parts, heat
from torchcaps.inspect.reconstruction import absent_class
from torchcaps.models import Model, create_model
from torchcaps.report import write_report
from torchcaps.train import fit

SMALL = {"blocks": (1, 1), "width": 4, "primary": 2, "pose": 4, "capsules": (), "decoder": True}


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return create_model("fm-resnet-multimnist", num_classes=4, image_size=12, **SMALL)


def pictures(figure) -> list[torch.Tensor]:
    return [torch.as_tensor(each.get_array()) for each in figure.axes[0].images]


def texts(figure) -> list[str]:
    return [each.get_text() for each in figure.axes[0].texts]


def test_inputs_stand_above_what_is_decoded_of_them(model: Model) -> None:
    groups = {"shifted": torch.rand(3, 1, 12, 12), "affine": torch.rand(2, 1, 12, 12)}
    figure = draw_inputs_and_outputs(model, groups)
    shown, images = pictures(figure), torch.cat(list(groups.values()))
    torch.testing.assert_close(torch.stack(shown[:5]), images[:, 0])
    torch.testing.assert_close(torch.stack(shown[5:]), model(images).aux["reconstruction"][:, 0].detach())
    assert texts(figure) == ["", "shifted", "", "", "affine"]


def test_segmentations_say_what_is_decoded_and_what_is_there(model: Model) -> None:
    images = torch.rand(3, 1, 12, 12)
    targets = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 1, 0]]).bool()
    predicted = targets.clone()
    predicted[1] = torch.tensor([0, 1, 1, 0]).bool()
    figure = draw_segmentations(model, images, targets, predicted, absent=1)
    output = model(images)
    neither = int(absent_class(output.scores, targets, predicted)[0].nonzero())
    assert neither in (2, 3)
    assert texts(figure) == ["R:(0,1)\nL:(0,1)", "R:P:(1,2)\nL:(1,3)", "R:(0,2)\nL:(0,2)", f"*R:(1,{neither})\nL:(0,1)"]
    shown = pictures(figure)
    for column, (image, classes) in enumerate([(0, [0, 1]), (1, [1, 2]), (2, [0, 2]), (0, [1, neither])]):
        torch.testing.assert_close(shown[column], images[image, 0])
        decoded = decode_classes(model, output.capsules[-1].poses[image : image + 1], torch.tensor([classes]))
        overlaid = colour_parts(decoded, torch.zeros(1, 1, 12, 12))[0].movedim(0, -1)
        torch.testing.assert_close(shown[4 + column], overlaid)
        assert not overlaid[..., 1].allclose(overlaid[..., 2])


def test_no_class_is_left_to_be_absent(model: Model) -> None:
    targets = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1]]).bool()
    predicted = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]]).bool()
    figure = draw_segmentations(model, torch.rand(2, 1, 12, 12), targets, predicted)
    first, second, again = texts(figure)
    assert (first, second) == ("R:P:(2,3)\nL:(0,1)", "R:(1,3)\nL:(1,3)") and again.startswith("*R:")
    assert again.endswith("L:(1,3)")  # the second image: of the first every class is shown or was found


def test_nothing_predicted_is_black(model: Model) -> None:
    none = torch.zeros(1, 4, dtype=torch.bool)
    figure = draw_segmentations(
        model, torch.rand(1, 1, 12, 12), none.clone().index_fill_(1, torch.tensor([2]), True), none, 0
    )
    assert texts(figure) == ["R:P:()\nL:(2)"] and not pictures(figure)[1].any()


def test_pairs_are_lines_between_places(model: Model) -> None:
    images = torch.rand(1, 1, 12, 12)
    (layer,) = trace_pairs(model, images, parents=2, pairs=5)
    assert layer.top
    figure = draw_pairs(images[0], layer.products[0], layer.places[0], ["a", "b"])
    lines = figure.axes[0].lines
    assert len(lines) == 2 * 5 and texts(figure) == ["a", "b"]
    (y1, x1), (y2, x2) = layer.places[0, 1, 0].tolist()
    assert lines[5].get_xdata() == pytest.approx([1 + 0.94 * x1, 1 + 0.94 * x2])
    assert lines[5].get_ydata() == pytest.approx([0.94 * y1, 0.94 * y2])
    assert max(line.get_alpha() for line in lines) == pytest.approx(1.0)


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_images_of_any_channels_are_shown_by_their_first(channels: int) -> None:
    image, names = torch.rand(channels, 6, 6), ["a"]
    products, places = torch.ones(1, 1), torch.rand(1, 1, 2, 2)
    for ring in (None, torch.rand(3, 2)):
        assert torch.equal(pictures(draw_pairs(image, products, places, names, ring))[0], image[0])


def test_photographs_are_no_negatives_and_line_art_is_ink() -> None:
    photograph, strokes = 0.2 + 0.8 * torch.rand(1, 6, 6), torch.eye(6)[None]
    for image, colours in ((photograph, "gray"), (strokes, "gray_r")):
        tiles = draw_tiles({"input": image[None]})
        alone = draw_pairs(image, torch.ones(1, 1), torch.rand(1, 1, 2, 2), ["a"], torch.rand(3, 2))
        assert [each.axes[0].images[0].get_cmap().name for each in (tiles, alone)] == [colours] * 2
    assert pale(photograph).flatten().argmax() == photograph.flatten().argmin()
    assert torch.equal(pale(strokes), 0.6 * strokes)


def test_images_that_are_no_squares_keep_their_proportions() -> None:
    """Of 4 x 8 pixels: half as high as wide, in the middle of the tile, and what lies over them too."""
    image = torch.rand(1, 4, 8)
    routed = draw_couplings(image, torch.rand(1, 1, 2, 2), ["a"], Box(0.5, 0.5, 0.5, 0.5), 0.5)
    assert routed.axes[0].images[0].get_extent() == pytest.approx([0, 0.94, 0.705, 0.235])
    assert routed.axes[0].images[1].get_extent() == pytest.approx([0.47, 0.94, 0.705, 0.47])
    paired = draw_pairs(image, torch.ones(1, 1), torch.tensor([[[[0.0, 0.0], [1.0, 1.0]]]]), ["a"])
    (line,) = paired.axes[0].lines
    assert line.get_xdata() == pytest.approx([0, 0.94]) and line.get_ydata() == pytest.approx([0.235, 0.705])


def test_children_without_positions_are_no_stripes_over_the_image() -> None:
    maps = torch.tensor([[[[0.9, 0.1, 0.5]], [[0.1, 0.9, 0.5]]]])  # [t, j, 1, i]
    figure = draw_couplings(torch.rand(1, 6, 6), maps, ["a", "b"], None, 0.5)
    assert len(figure.axes) == 2 and all(len(axes.images) == 1 for axes in figure.axes)
    colours = torch.stack([torch.as_tensor(axes.images[0].get_array()) for axes in figure.axes])  # [j, 1, i, 4]
    torch.testing.assert_close(colours, heat(maps[0] - 0.5, 0.4).movedim(1, -1))
    for axes, name in zip(figure.axes, "ab", strict=True):
        assert (axes.get_title(), axes.get_xlabel()) == (name, "child")
        assert axes.images[0].get_extent() == [0.5, 3.5, 0, 1] and axes.get_xticks().tolist() == [1, 3]
    assert "these children stand nowhere in the image" in " ".join(figure.get_supxlabel().split())


def test_classes_are_called_by_their_names_where_these_are_given(model: Model) -> None:
    images, names = torch.rand(2, 1, 12, 12), ["ant", "bee", "cat", "dog"]
    targets, predicted = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1]]).bool(), torch.tensor([[1, 1, 0, 0]] * 2).bool()
    assert texts(draw_overlaps(model, images, targets, predicted, names)) == ["ant, bee"] * 2
    assert texts(draw_overlaps(model, images, targets, predicted)) == ["0,1"] * 2
    shown = [" ".join(each.split()) for each in texts(draw_segmentations(model, images, targets, predicted, 0, names))]
    assert shown == ["R:(ant, bee) L:(ant, bee)", "R:P:(ant, bee) L:(bee, dog)"]
    winner = int(model(images).scores[0].argmax())
    labels = torch.tensor([winner, (winner + 1) % 4])
    figure = draw_reconstructions(model, images[[0, 0]], labels, classes=names)
    said = [" ".join(each.split()) for each in texts(figure)]
    assert said == [names[winner], f"{names[winner]}, is {names[labels[1]]}"]


def test_a_pose_sweep_stands_below_how_far_it_goes(model: Model) -> None:
    figure = draw_reconstructions(model, torch.rand(2, 1, 12, 12), torch.tensor([0, 1]), sweep=1, rows=3)
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["input", "decoded"] and len(first.texts) == 2
    moved = [text.get_text() for text in second.texts]
    assert len(moved) == 11 and (moved[0], moved[5], moved[10]) == ("-0.25", "image 2", "+0.25")
    assert len(second.images) == 3 * 11


def test_pairs_of_a_deep_networks_classes_are_on_a_circle() -> None:
    torch.manual_seed(0)
    model = create_model(
        "fm-resnet-cifar10", num_classes=3, image_size=12, **SMALL | {"capsules": (6,), "decoder": False}
    )
    images = torch.rand(1, 3, 12, 12)
    placed, top = trace_pairs(model, images, parents=2, pairs=4)
    assert placed.ring is None and not placed.top and top.ring is not None and top.top
    figure = draw_pairs(images[0], top.products[0], top.places[0], ["ship \u2713", "bird"], top.ring)
    image, *others = figure.axes
    torch.testing.assert_close(pictures(figure)[0], images[0].movedim(0, -1))
    assert [axes.get_title() for axes in (image, *others)] == ["image", "ship \u2713", "bird"]
    for n, axes in enumerate(others):
        *lines, dots = axes.lines
        assert len(lines) == 4 and len(dots.get_xdata()) == 6
        assert [each.get_text() for each in axes.texts] == ["1", "2", "3", "4", "5", "6"]
        (y1, x1), (y2, x2) = top.places[0, n, 0].tolist()
        assert lines[0].get_xdata() == pytest.approx([x1, x2]) and lines[0].get_ydata() == pytest.approx([y1, y2])


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [(), (6,)])
def test_report_of_a_run_shows_the_pairs(tmp_path: Path, hidden: tuple[int, ...]) -> None:
    config = tiny_config(tmp_path, epochs=1, batch_size=128, loss=LossConfig("margin", reconstruction=0.0005))
    run = fit(replace(config, model=ModelConfig("fm-resnet-affnist", SMALL | {"capsules": hidden}))).folder
    page = write_report(run)
    top = len(hidden)
    assert (run / "figures" / "pairs-stack-0.png").exists() and (run / "figures" / f"pairs-stack-{top}.png").exists()
    data = json.loads(
        re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)[0]
    )
    for example in data["examples"]:
        layer = example["agreed"][-1]
        assert len(example["agreed"]) == top + 1 and (layer["ring"] is None) == (not hidden)
        assert layer["top"] and len(layer["parents"]) == 4 == len(layer["activations"]) == len(layer["lines"])
        assert all(0 <= number <= 1 for parent in layer["lines"] for pair in parent for number in pair)
    path = find_browser()
    if path is not None:
        with Browser(path) as browser:
            browser.open(page)
            layers = data["examples"][0]["agreed"]
            lines = sum(len(parent) for layer in layers for parent in layer["lines"])
            dots = sum(len(layer["lines"]) * len(layer["ring"] or []) for layer in layers)
            assert browser.run("document.querySelectorAll('.agree svg circle').length") == dots
            assert browser.run("document.querySelectorAll('.agree svg line').length") == lines
            assert browser.faults == []
