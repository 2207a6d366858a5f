"""What routing does in a network, on networks that are built so that each measure is known."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layers import children, layer
from routings import FIRST, SPECS
from tiny import tiny_config
from torch import Tensor, nn

from torchcaps.capsules import Capsules, lengths
from torchcaps.cli import main
from torchcaps.config import DataConfig, LossConfig, ModelConfig, from_plain, to_plain
from torchcaps.data import Batches, Images
from torchcaps.examine.capsules import measure_layers
from torchcaps.examine.equivariance import held_out_r2, measure_equivariance
from torchcaps.examine.examination import examine, examine_run, read_examination, write_examination
from torchcaps.examine.figures import draw_robustness
from torchcaps.examine.found import CapsuleLayerFacts, Examination, Trees
from torchcaps.examine.negation import measure_negation
from torchcaps.examine.placebos import (
    ONE,
    OTHER,
    RANDOM,
    SAME,
    UNIFORM,
    coupled,
    find_donors,
    measure_placebos,
    share_at_random,
)
from torchcaps.examine.robustness import measure_robustness
from torchcaps.examine.sample import Move, Sample
from torchcaps.examine.trees import measure_trees
from torchcaps.layers import CapsuleLayer, CapsuleStack, LinearTransform
from torchcaps.layers.decoders import chosen_class, chosen_poses
from torchcaps.models import Model, Output
from torchcaps.report.examined import examined
from torchcaps.routing import Routing
from torchcaps.routing.interface import Spec
from torchcaps.train import fit

PLANTED = Spec("planted", "", "", "", iterative=True, couplings=True)


class Planted(Routing):
    """Coupling of a child: its own pose, from the second iteration on; uniform in the first. Parents are the sums."""

    spec = PLANTED

    def couple(self, votes: Any, state: Any, t: int) -> Tensor | None:
        return votes.poses.squeeze(-2)[..., : votes.parents] if t else None  # [b, p, i, j]

    def update(self, votes: Any, coupling: Any, state: Any, t: int) -> tuple[Capsules, Any]:
        return Capsules(votes.combine(coupling)), None


class Static(Planted):
    """Each child goes to the parent of its own number, whatever the image."""

    def couple(self, votes: Any, state: Any, t: int) -> Tensor:
        return torch.eye(votes.children, votes.parents)[None, None]


class Known(Model):
    """An image's pixels, cut into children; every vote is the child's last element. The first `classes` are scored."""

    def __init__(self, children: int, parents: int, pose: int, routing: type[Routing] = Planted, classes: int = 0):
        super().__init__()
        self.cut, self.classes = (children, pose), classes or parents
        transform = LinearTransform(children, parents, pose, 1)
        weight = torch.zeros_like(transform.weight)
        weight[..., -1, 0] = 1.0
        transform.weight = nn.Parameter(weight)
        self.stack = CapsuleStack([CapsuleLayer(transform, routing(transform.sizes))], 2)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        (step,) = self.stack(Capsules(images.flatten(1).unflatten(1, self.cut)))
        return Output(lengths(step.capsules.poses)[:, : self.classes], (step.capsules,), {})


def sample(pixels: Tensor, labels: list[int], classes: int, loss: str = "cross-entropy", size: int = 3) -> Sample:
    """Of images in [0, 1], [n, h, w] or [n, pixels]."""
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels[:, None, None]
    names = tuple(f"class {n}" for n in range(classes))
    images = Images((pixels * 255).round().to(torch.uint8), torch.tensor(labels), names)
    return Sample(Batches(images, 4), LossConfig(loss), 1000, size)  # pyright: ignore[reportArgumentType]


def one_hot(classes: list[int], count: int) -> Tensor:
    """Images whose first `count` pixels name the class, and whose last pixel is white."""
    return torch.cat([torch.eye(count)[classes], torch.ones(len(classes), 1)], 1)


def test_placebos_of_a_network_that_is_nothing_but_its_couplings() -> None:
    labels = [0, 0, 1, 1, 2, 2, 3, 3]
    model, looked_at = Known(1, 4, 5), sample(one_hot(labels, 4), labels, 4)
    found = {each.name: each for each in measure_placebos(model, looked_at)}
    assert list(found) == [ONE, UNIFORM, RANDOM, SAME, OTHER]
    for name in (ONE, UNIFORM):  # all classes are equal
        assert (found[name].accuracy, found[name].changed) == (0.25, 0.75)
    assert found[RANDOM].changed > 0.2 and found[RANDOM].accuracy == 1 - found[RANDOM].changed
    assert (found[SAME].accuracy, found[SAME].changed, found[SAME].images) == (1.0, 0.0, 8)
    assert (found[OTHER].accuracy, found[OTHER].changed, found[OTHER].images) == (0.0, 1.0, 8)
    assert model.stack.iterations == 2 and "couple" not in vars(model.stack.layers[0].routing)


def test_couplings_at_random_are_dirichlet_and_of_each_image() -> None:
    """Exponentials that are divided by their sum: uniform on the simplex."""
    module, capsules = layer("linear-vector", "dynamic"), children("linear-vector")
    votes = module.votes(Capsules(capsules.poses.repeat(400, 1, 1)))
    drawn = share_at_random(torch.Generator().manual_seed(0))("", module.routing, votes, None, 0)
    parents = votes.parents
    assert drawn is not None
    torch.testing.assert_close(drawn.sum(-1), torch.ones_like(drawn.sum(-1)))
    expected = (parents - 1) / (parents**2 * (parents + 1))
    assert drawn.var().item() == pytest.approx(expected, rel=0.05)
    assert not torch.equal(drawn[0], drawn[1])


def test_placebos_change_nothing_where_routing_does_nothing() -> None:
    """Static couplings are every image's, and images that are alone in their class have no twin."""
    labels = [0, 1, 2]
    model = Known(3, 3, 2, Static)
    looked_at = sample(torch.eye(3).unsqueeze(-1).expand(3, 3, 2).flatten(1), labels, 3)
    found = {each.name: each for each in measure_placebos(model, looked_at)}
    assert SAME not in found
    assert (found[OTHER].accuracy, found[OTHER].changed) == (1.0, 0.0)


def test_donors_are_the_next_of_the_same_and_of_another_class() -> None:
    same, other = find_donors(torch.tensor([[1, 0], [0, 1], [1, 0], [1, 1]]).bool())
    assert same.tolist() == [2, -1, 0, -1] and other.tolist() == [1, 2, 3, 0]
    assert [each.tolist() for each in find_donors(torch.tensor([[True]]))] == [[-1], [-1]]


@pytest.mark.parametrize("classes", [1, 2, 5, 40])
@pytest.mark.parametrize("n", [1, 2, 30])
def test_donors_are_those_that_loops_find(classes: int, n: int) -> None:
    labels = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(n)).tolist()
    found = find_donors(torch.eye(classes)[labels].bool())
    for wanted, donors in zip((True, False), found, strict=True):
        for i, donor in enumerate(donors.tolist()):
            others = [(i + step) % n for step in range(1, n)]
            assert donor == next((j for j in others if (labels[j] == labels[i]) == wanted), -1)


def test_donors_of_many_images_take_no_square_of_their_number() -> None:
    """A square would be 64 GB of labels that are compared."""
    labels = torch.arange(200_000) % 10
    same, other = find_donors(torch.eye(10)[labels].bool())
    assert same[:3].tolist() == [10, 11, 12] and other[:3].tolist() == [1, 2, 3] and other[-1] == 0


@pytest.mark.parametrize(("routing", "options"), [each for each in FIRST if SPECS[each[0]].couplings])
def test_every_routing_shares_out_as_much_by_other_couplings(routing: str, options: dict) -> None:
    """What a child, or of competing children a parent, gets in all is what the routing's own coupling gives."""
    module, capsules = layer("linear-vector", routing, **options), children("linear-vector")
    votes = module.votes(capsules)
    own = module.step(votes, module.routing.start(votes), 0, couplings=True).coupling
    shape = (3, 1, 7, 3)
    own = torch.full(shape, 1 / 3, dtype=torch.float64) if own is None else own.expand(shape)
    over = 2 if options.get("over") == "children" else 3
    for logits in (None, torch.randn(shape, dtype=torch.float64)):
        found = module.routing.compete(votes, logits).expand(shape)
        torch.testing.assert_close(found.sum(over), own.sum(over))


def test_scores_of_a_tree_that_each_image_chooses() -> None:
    """Uniform first, then one parent each: T is 0, then 1; a quarter of the images goes to each of four parents."""
    labels = [0, 1, 2, 3]
    model, looked_at = Known(1, 5, 6, classes=4), sample(one_hot(labels, 5), labels, 4)
    below, above = measure_layers(model, looked_at)
    assert (below.name, below.routing, below.t_score) == ("stack.children", "", ())
    assert (above.name, above.routing) == ("stack.0", "planted")
    assert above.t_score == pytest.approx((0.0, 1.0)) and above.d_score == pytest.approx((0.0, math.sqrt(3) / 4))
    within, between = 4 * (1 / 4 * 3 / 4), 5 * (4 * (1 / 4) ** 2 / 5 - (1 / 5) ** 2)
    assert above.image_share == pytest.approx((0.0, within / (within + between)))
    assert above.activation == pytest.approx(1 / 5)
    assert above.dead == above.starved == pytest.approx(1 / 5)  # the fifth, which no score reads


def test_the_gradient_is_that_of_the_class_that_is_there() -> None:
    """A network whose loss is almost that of its decoder alone, where class 1 always wins and both are painted."""

    class Painted(Known):
        def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
            output = super().forward(images)
            poses = output.capsules[-1].poses[:, : self.classes]
            painted = chosen_poses(poses, chosen_class(output.scores, labels)).mean(1)
            return output._replace(aux={"reconstruction": painted[:, None, None, None].expand_as(images)})

    looked_at = sample(one_hot([1, 1, 1], 3), [0, 1, 0], 2)
    model = Painted(1, 3, 4, classes=2)
    loss = LossConfig("cross-entropy", reconstruction=1000.0)
    above = measure_layers(model, replace(looked_at, loss=loss))[1]
    assert above.starved == pytest.approx(1 / 3)  # the third, which nobody paints


def test_where_no_gradient_reaches_a_layer_none_of_it_is_starved_beside_others() -> None:
    """The margin loss of lengths 1 and 0 is zero, and so is its gradient."""
    labels = [0, 1, 2, 3]
    looked_at = replace(sample(one_hot(labels, 5), labels, 4), loss=LossConfig("margin"))
    above = measure_layers(Known(1, 5, 6, classes=4), looked_at)[1]
    assert (above.gradient, above.starved) == (0.0, None)


def test_a_page_says_where_there_is_no_gradient() -> None:
    for gradient, shown in ((0.0, "<td>0</td>"), (None, "<td>none</td>")):
        layer = CapsuleLayerFacts("stack.0", "em", (0.5,), (0.0,), (0.1,), 0.25, 0.0, gradient, None)
        _, _, text = examined(Examination("test", 1, 1.0, 3, layers=(layer,)), {})
        assert shown in text and "<td>no gradient</td>" in text, text


def test_static_routing_is_a_tree_that_no_image_chooses() -> None:
    looked_at = sample(torch.rand(4, 6, generator=torch.Generator().manual_seed(0)), [0, 1, 2, 0], 3)
    above = measure_layers(Known(3, 3, 2, Static), looked_at)[1]
    assert above.t_score == pytest.approx((1.0, 1.0)) and above.image_share == (0.0, 0.0)


def test_children_count_by_their_activation() -> None:
    """A long child that goes to one of two parents, and a short one that goes to both: (1 * 4 + 0 * 1) / 5."""
    pixels = torch.tensor([[1.0, 0.0, 0.0, 0.2, 0.2, 0.0]])
    pixels[0, 2] = math.sqrt(4**2 * 0.08 - 1)  # the first child is four times as long
    above = measure_layers(Known(2, 2, 3), sample(pixels, [0], 2))[1]
    assert above.t_score[1] == pytest.approx(4 / 5, abs=0.01)


def test_parse_trees_are_counted_by_class() -> None:
    """Child 1 goes to the class; child 2 by a half, or not at all: of class 0 two trees in four images, 1 bit."""
    rows = [[1.0, 0, 1, half, 0, 0] for half in (0.0, 0.0, 0.5, 0.5)] + [[0, 1.0, 1, 0, 1, 0]]
    pixels = torch.tensor(rows).float()
    pixels[2:4, 4] = 0.5
    first, second = measure_trees(Known(2, 2, 3), sample(pixels, [0, 0, 0, 0, 1], 2))
    assert (first.shown, first.images, first.distinct, first.entropy) == ("class 0", 4, 2, 1.0)
    assert (second.shown, second.images, second.distinct, second.entropy) == ("class 1", 1, 1, 0.0)


def test_negation_is_seen_with_a_bias_alone() -> None:
    """squash(x + b) of x = 1, b = 3: 16/17, of -x 4/5."""

    class One(Known):
        def __init__(self, bias: float | None):
            super().__init__(1, 1, 1)
            transform = self.stack.layers[0].transform
            layer = CapsuleLayer(transform, "uniform", bias=bias is not None)
            if bias is not None:
                layer.routing.bias.data.fill_(bias)
            self.stack = CapsuleStack([layer], 1)

    looked_at = sample(torch.ones(2, 1), [0, 0], 1)
    (plain,), (biased,) = measure_negation(One(None), looked_at), measure_negation(One(3.0), looked_at)
    assert (plain.cosine, plain.difference) == pytest.approx((-1.0, 0.0), abs=1e-6)
    assert (biased.cosine, biased.difference) == pytest.approx((1.0, 1 - 4 / 5 * 17 / 16))


class Halves(Model):
    """How much ink the left and the right half hold."""

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        left, right = images.flatten(1, 2).sum(1).unflatten(1, (2, -1)).sum(2).unbind(1)
        return Output(torch.stack([left, right], 1), (), {})


def test_robustness_counts_what_is_kept_of_what_was_right() -> None:
    """A dot beside the middle of 8 pixels; of eight images the third is moved right and the eighth left, across it."""
    pixels = torch.zeros(8, 8, 8)
    pixels[:4, 3, 3] = pixels[4:, 3, 4] = 1
    curves = {each.by: each for each in measure_robustness(Halves(), sample(pixels, [1, 0, 0, 0, 1, 1, 1, 1], 2))}
    assert curves["shift"].values == (0.0, 1.0, 2.0)
    assert curves["shift"].accuracy == pytest.approx((7 / 8, 5 / 8, 5 / 8))
    assert curves["shift"].kept == pytest.approx((1, 5 / 7, 5 / 7))
    for by, values in {"angle": 6, "scale": 5, "shear": 5}.items():
        assert len(curves[by].values) == len(curves[by].accuracy) == values
    assert curves["angle"].accuracy[0] == curves["scale"].accuracy[2] == curves["shear"].accuracy[0] == 7 / 8
    assert curves["scale"].accuracy == (7 / 8,) * 5


def test_where_nothing_was_right_nothing_is_kept(tmp_path: Path) -> None:
    pixels = torch.zeros(4, 8, 8)
    pixels[:, 3, 3] = 1
    curves = measure_robustness(Halves(), sample(pixels, [1] * 4, 2))
    assert curves[0].kept == (None,) * len(curves[0].values) and curves[0].accuracy[0] == 0
    shown = draw_robustness(curves).axes[0]
    assert [line.get_label() for line in shown.lines] == ["accuracy"]
    found = Examination("test", 4, 0.0, None, robustness=tuple(curves))
    assert read_examination(write_examination(found, tmp_path).parent) == found


def test_robustness_moves_by_each_value_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[Move] = []

    def answers(seen: Sample, model: Model, move: Move | None = None) -> Tensor:
        if move is not None:
            moves.append(move)
        return seen.targets

    monkeypatch.setattr(Sample, "answers", answers)
    curves = {each.by: each for each in measure_robustness(Halves(), sample(torch.rand(4, 8, 8), [0, 1, 0, 1], 2))}
    none, places = Move.none(4), 0
    for by, field in (("angle", "angle"), ("scale", "scale"), ("shear", "shear")):
        given = [each for each in moves if not torch.equal(getattr(each, field), getattr(none, field))]
        wanted = [value for value in curves[by].values if value != getattr(none, field)[0].item()]
        assert [abs(getattr(each, field)[0].item()) for each in given] == pytest.approx([abs(v) for v in wanted]), by
        if by != "scale":
            assert all(getattr(each, field)[1] == -getattr(each, field)[0] for each in given)
        for each in given:
            assert torch.equal(replace(each, **{field: getattr(none, field)}).down, none.down)
            others = {"angle", "scale", "shear"} - {field}
            assert all(torch.equal(getattr(each, other), getattr(none, other)) for other in others)
        places += len(given)
    assert places == 5 + 4 + 4


def test_moves_are_of_whole_pixels_and_known_angles() -> None:
    pixels = torch.randint(0, 256, (3, 2, 5, 5), dtype=torch.uint8)
    none = Move.none(3)
    assert torch.equal(none(pixels), pixels)
    assert torch.equal(replace(none, angle=torch.full((3,), 90.0))(pixels), pixels.rot90(1, (2, 3)))
    moved = replace(none, down=torch.tensor([1, 0, -2]), right=torch.tensor([0, 2, 0]))(pixels)
    assert torch.equal(moved[0, :, 1:], pixels[0, :, :-1]) and not moved[0, :, 0].any()
    assert torch.equal(moved[1, :, :, 2:], pixels[1, :, :, :-2]) and not moved[1, :, :, :2].any()
    assert torch.equal(moved[2, :, :3], pixels[2, :, 2:]) and not moved[2, :, 3:].any()


def test_moves_of_floats_keep_their_shades() -> None:
    pixels = torch.rand(2, 1, 5, 5)
    moved = replace(Move.none(2), right=torch.tensor([1, -1]))(pixels)
    torch.testing.assert_close(moved[0, :, :, 1:], pixels[0, :, :, :-1])
    torch.testing.assert_close(moved[1, :, :, :-1], pixels[1, :, :, 1:])


class Places(Model):
    """Two class capsules, each the place of the ink, or the same for all images."""

    def __init__(self, constant: bool):
        super().__init__()
        self.constant = constant

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        ink = images.sum(1)
        y, x = (torch.arange(n).float() for n in ink.shape[1:])
        place = torch.stack([(ink.sum(2) * y).sum(1), (ink.sum(1) * x).sum(1)], 1) / ink.sum((1, 2))[:, None]
        poses = torch.ones_like(place) if self.constant else place
        poses = poses[:, None].expand(-1, 2, -1)
        return Output(torch.tensor([[1.0, 0.0]]).expand(len(images), 2), (Capsules(poses),), {})


def test_poses_that_hold_the_place_tell_how_far_an_image_was_moved() -> None:
    pixels = torch.zeros(8, 16, 16)
    pixels[:, 8, 7] = 1
    looked_at = sample(pixels, [0] * 8, 2)
    held = {each.by: each for each in measure_equivariance(Places(False), looked_at)}
    assert held["down"].r2 == pytest.approx(1, abs=1e-4) and held["right"].r2 == pytest.approx(1, abs=1e-4)
    assert held["right"].images == 4
    told = measure_equivariance(Places(True), looked_at)
    assert all(each.r2 is not None and each.r2 <= 1e-9 for each in told)
    assert all(each.r2 is None for each in measure_equivariance(Places(False), sample(pixels[:1], [0], 2)))


def test_r2_is_of_images_that_the_map_was_not_fitted_to() -> None:
    """Half of the amount is in the pose, the other half is noise of as much variance: R^2 is a half."""
    generator = np.random.default_rng(0)
    seen, noise = torch.from_numpy(generator.standard_normal((2, 20_000)))
    rows = torch.arange(20_000)
    found, images = held_out_r2(seen[:, None], 0 * rows, seen + noise, rows // 4, rows % 2 == 0)
    assert found == pytest.approx(0.5, abs=0.02) and images == 5_000


def test_what_does_not_apply_is_said() -> None:
    pixels = torch.zeros(4, 8, 8)
    pixels[:, 3, 3] = 1
    found = examine(Halves(), sample(pixels, [0] * 4, 2))
    assert found.accuracy == 1 and found.robustness and not found.placebos
    assert found.absent["placebos"] == "the network has no layer of routed capsules"
    assert found.absent["equivariance"] == "the network has no capsule of each class"
    assert set(found.absent) == {"placebos", "layers", "trees", "negation", "equivariance"}
    with pytest.raises(ValueError, match="images is 0; a network is examined on at least 1"):
        Sample(Batches(Images(torch.zeros(1, 1, 2, 2).byte(), torch.tensor([0]), ("a",)), 1), LossConfig(), 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = {"channels": 4, "primary": 2, "kernel": 3, "stride": 1, "class_pose": 4, "decoder": False}
    config = tiny_config(tmp_path_factory.mktemp("runs"), batch_size=32, epochs=1, loss=LossConfig("margin"))
    data = DataConfig("digits", validation=0.2, limit=64)
    return fit(replace(config, model=ModelConfig("capsnet", options), data=data)).folder


def test_the_command_prints_and_writes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["examine", str(run), "--images", "30", "--out", str(tmp_path)]) == 0
    printed = from_plain(Examination, json.loads(capsys.readouterr().out))
    assert printed == read_examination(tmp_path) and printed.images == 30
    assert (printed.split, printed.iterations) == ("test", 3)
    assert {each.name for each in printed.placebos} == {ONE, UNIFORM, RANDOM, SAME, OTHER}
    assert printed.absent == {} and [each.name for each in printed.layers] == ["stack.children", "stack.0"]
    assert not (run / "report.html").exists() and read_examination(run) is None


@pytest.mark.slow
def test_the_report_of_a_run_shows_what_was_examined(run: Path, tmp_path: Path) -> None:
    assert main(["examine", str(run), "--images", "20"]) == 0
    page = (run / "report.html").read_text()
    for text in ("What routing does", "of another image, other class", "Parse trees", "R² held out", "stack.0"):
        assert text in page
    assert (run / "figures" / "robustness.png").exists()


def test_an_unfinished_run_is_examined_on_its_validation_split(run: Path, tmp_path: Path) -> None:
    """The test split is for the end."""
    other = Path(shutil.copytree(run, tmp_path / "run"))
    (other / "result.json").unlink()
    assert examine_run(other, images=2).split == "validation"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("[1]", "it holds a list"),
        ('{"split": "test"}', "must have images"),
        ('{"split": "test", "images": 1, "accuracy": NaN, "iterations": null}', "number nan"),
        ('{"split": "test", "images": 1, "accuracy": 1, "iterations": null, "placebos": [3]}', "placebos is"),
    ],
)
def test_a_damaged_examination_is_named(tmp_path: Path, wrong: str, said: str) -> None:
    assert read_examination(tmp_path) is None
    (tmp_path / "examination.json").write_text(wrong)
    with pytest.raises(ValueError, match=f"examination.json is damaged .*{said}"):
        read_examination(tmp_path)


def test_an_examination_comes_back_as_it_was_written(tmp_path: Path) -> None:
    pixels = torch.zeros(4, 8, 8)
    found = examine(Halves(), sample(pixels, [0] * 4, 2))
    assert read_examination(write_examination(found, tmp_path).parent) == found
    assert from_plain(Examination, to_plain(found)) == found


def test_names_are_escaped_in_the_section_of_the_report() -> None:
    trees, absent = (Trees("<script>alert(1)</script>", 1, 1, 0.0),), {"<b>": "<i>"}
    name, _, section = examined(Examination("test", 1, 1.0, None, trees=trees, absent=absent), {})
    assert name == "examined" and "<script" not in section and "&lt;script&gt;alert(1)" in section
    assert "<b>" not in section and "<i>" not in section


def test_couplings_are_put_back_after_a_failure() -> None:
    model = Known(1, 4, 5)

    def fail(*_: object) -> Tensor:
        raise RuntimeError("no coupling")

    with pytest.raises(RuntimeError, match="no coupling"), coupled(model, fail):
        model(torch.zeros(1, 1, 1, 5))
    assert "couple" not in vars(model.stack.layers[0].routing)
    assert model(torch.zeros(1, 1, 1, 5)).scores.shape == (1, 4)


class Spoilt(Halves):
    """Scores of images that show anything are NaN."""

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        scores = super().forward(images, labels).scores
        return Output(scores + images.amax((1, 2, 3))[:, None] * torch.nan, (), {})


def test_a_network_whose_scores_are_not_finite_is_not_examined(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the network's scores of 4 of 4 images are not finite, of which nothing can"):
        examine(Spoilt(), sample(torch.ones(4, 8, 8), [0] * 4, 2))


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_an_examination_that_could_not_be_read_is_not_written(tmp_path: Path, number: float) -> None:
    layer = CapsuleLayerFacts("stack.0", "em", (0.5,), (0.0,), (0.1,), number, 0.0, 0.01, 0.0)
    with pytest.raises(ValueError, match=f"layers.0.activation holds the number {number}"):
        write_examination(Examination("test", 1, 1.0, 3, layers=(layer,)), tmp_path)
    assert not list(tmp_path.iterdir())
