"""The networks of Tsai et al. 2020: their published sizes, the inputs they take, schedules, and label sets."""

import json

import pytest
import torch
import torch.nn.functional as F

from torchcaps import create_model
from torchcaps.backbones.interface import Window, count_positions
from torchcaps.backbones.resnet import BasicBlock, ResNetBackbone, Stage, capsule_resnet
from torchcaps.backbones.simple import SimpleBackbone
from torchcaps.capsules import lengths
from torchcaps.layers import CapsuleStack, PrimaryPoses
from torchcaps.models import rebuild_model
from torchcaps.packed import pack
from torchcaps.train.checkpoint import load_weights, save_checkpoint

PARAMETERS = {
    "attention-resnet-cifar10": 1_828_817,
    "attention-resnet-cifar100": 2_799_629,
    "attention-simple-cifar10": 561_297,
    "attention-simple-cifar100": 1_462_989,
    "attention-diverse-multimnist-matrix": 9_982_401,
    "attention-diverse-multimnist-vector": 42_496_449,
    "attention-diverse-multimnist-wide": 41_611_713,
    "cnn-simple-cifar10": 18_919_434,
    "cnn-simple-cifar100": 19_011_684,
    "cnn-diverse-multimnist-pooling": 19_571_594,
    "cnn-diverse-multimnist-dense": 42_509_194,
    "dynamic-simple-cifar10": 7_992_576,
    "dynamic-simple-cifar100": 31_585_536,
    "dynamic-resnet-cifar10": 6_616_128,  # ours: the text does not determine it
    "dynamic-resnet-cifar100": 30_209_088,  # ours
    "dynamic-diverse-multimnist": 42_497_089,  # ours: none is published
    "em-simple-cifar10": 453_044,
    "em-simple-cifar100": 499_304,
    "em-resnet-cifar10": 1_710_580,
    "em-resnet-cifar100": 1_756_840,
    "resnet18-cifar10": 11_173_962,
    "resnet18-cifar100": 11_220_132,
}
NARROW = {
    "attention": {"channels": 4, "capsules": 3, "pose": 4},
    "cnn": {"channels": 4},
    "dynamic": {"channels": 4, "capsules": 2, "pose": 4},
    "em": {"channels": 4, "capsules": 3, "pose": 4},
    "resnet18": {"channels": 2},
}


def narrow(name, **options):
    torch.manual_seed(0)
    return create_model(name, **NARROW[name.split("-")[0]] | options)


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_a_network_has_the_papers_parameters(name, count):
    with torch.device("meta"):
        model = create_model(name, num_classes=100 if name.endswith("cifar100") else 10)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


@pytest.mark.parametrize(("size", "channels", "classes"), [((28, 36), 1, 7), ((21, 17), 2, 1)])
@pytest.mark.parametrize("name", [name for name in PARAMETERS if not name.endswith(("100", "wide"))])
def test_a_network_takes_other_images_and_all_of_it_learns(name, size, channels, classes):
    model = narrow(name, num_classes=classes, in_channels=channels, image_size=size)
    output = model(torch.randn(2, channels, *size))
    assert output.scores.shape == (2, classes) and output.scores.isfinite().all()
    (output.scores * torch.randn(2, classes)).sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_tables_8_to_11_have_their_positions():
    def spaces(name):
        images = torch.randn(1, 3, *((36, 36) if "multimnist" in name else (32, 32)))
        return [tuple(capsules.poses.shape[1:-1]) for capsules in narrow(name)(images).capsules]

    assert spaces("attention-simple-cifar10") == [(16, 16, 3), (7, 7, 3), (5, 5, 3), (10,)]
    assert spaces("attention-resnet-cifar100") == [(16, 16, 3), (7, 7, 3), (5, 5, 3), (20,), (100,)]
    assert spaces("attention-diverse-multimnist-vector") == [(8, 8, 3), (6, 6, 3), (10,)]
    assert spaces("dynamic-simple-cifar10") == spaces("dynamic-resnet-cifar10") == [(8, 8, 2), (10,)]


@pytest.mark.parametrize("name", ["attention-simple-cifar10", "dynamic-simple-cifar10", "em-simple-cifar10"])
def test_iterations_can_be_changed_after_training(name):
    model, other = narrow(name, iterations=1), narrow(name, iterations=3)
    images = torch.randn(2, 3, 32, 32)
    before, wanted = model(images).scores, other(images).scores
    assert model.iterations == 1
    model.iterations = 3
    assert torch.equal(model(images).scores, wanted) and not torch.equal(before, wanted)
    with pytest.raises(ValueError, match="iterations is 0"):
        model.iterations = 0


@pytest.mark.parametrize("name", ["capsnet", "small-resnet.inverted-attention", "fm-resnet-affnist"])
def test_every_model_with_routed_capsules_has_iterations(name):
    model = create_model(name, image_size=40 if name.startswith("fm") else 28, iterations=1)
    model.iterations = 5
    assert [each.iterations for each in model.modules() if isinstance(each, CapsuleStack)] == [5]
    assert rebuild_model(model.origin).iterations == 5  # as a checkpoint or an export makes it anew


@pytest.mark.parametrize("name", ["attention-simple-cifar10", "em-simple-cifar10"])
def test_the_schedule_can_be_changed_after_training(name):
    """Of networks whose builder takes one, and of others."""
    model, images = narrow(name, iterations=3), torch.randn(2, 3, 32, 32)
    before = model(images).scores
    assert model.schedule == ("concurrent" if name.startswith("attention") else "sequential")
    other = "sequential" if name.startswith("attention") else "concurrent"
    model.schedule = other
    assert {each.schedule for each in model.modules() if isinstance(each, CapsuleStack)} == {other}
    after = model(images).scores
    assert not torch.equal(before, after)
    again = rebuild_model(json.loads(json.dumps(model.origin)))
    again.load_state_dict(model.state_dict())
    assert again.schedule == other and torch.equal(again(images).scores, after)
    assert again.origin == model.origin


def test_a_schedule_is_one_of_two_and_of_routed_capsules():
    model = narrow("attention-simple-cifar10")
    with pytest.raises(ValueError, match="schedule is 'parallel'; it must be 'sequential' or 'concurrent'"):
        model.schedule = "parallel"
    assert model.schedule == "concurrent" and model.origin.get("schedule") is None
    with pytest.raises(ValueError, match="PlainNetwork routes no capsules, so it has no schedule"):
        create_model("cnn-simple-cifar10").schedule = "sequential"


def test_a_packed_model_keeps_the_schedule():
    model = create_model("small-resnet.xnodr", image_size=16, width=4)
    model.schedule = "concurrent"
    assert pack(model).schedule == "concurrent"
    assert rebuild_model(model.origin).schedule == "concurrent"


@pytest.mark.parametrize("positions", ["shared", "pooled"])
@pytest.mark.parametrize(
    ("name", "own", "less"),
    [
        ("attention-simple-cifar10", 561_297, 768 * 10 * 16),
        ("attention-resnet-cifar10", 1_828_817, 768 * 10 * 16),
        ("attention-simple-cifar100", 1_462_989, 768 * 20 * 36),
        ("attention-diverse-multimnist-vector", 42_496_449, 560 * 10 * 64 * 64),
    ],
)
def test_the_class_layer_need_not_grow_with_the_image(name, own, less, positions):
    """25 of 32 types at 25 places, or 36 of 16, share their transforms, or are one."""
    for size in (32, 64):
        size += 4 if "diverse" in name else 0
        with torch.device("meta"):
            model = create_model(name, image_size=size, positions=positions)
        assert sum(p.numel() for p in model.parameters()) == own - less
    model = narrow(name, positions=positions, iterations=3)
    output = model(torch.randn(2, 3, *(model.origin or {})["image_size"]))
    output.scores.square().sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_without_coordinates_the_first_pass_of_shared_transforms_is_that_of_pooled_ones():
    """A sum over 25 places is 25 times the mean; coordinates tell more."""
    images = torch.randn(2, 3, 32, 32)
    shared, pooled = (narrow("attention-simple-cifar10", positions=each, iterations=1) for each in ("shared", "pooled"))
    pooled.load_state_dict(shared.state_dict())
    pooled.stack.layers[-1].transform.weight.data *= 25
    torch.testing.assert_close(shared(images).scores, pooled(images).scores, rtol=1e-4, atol=1e-5)
    placed = narrow("attention-simple-cifar10", positions="shared", coordinates=True, iterations=1)
    placed.load_state_dict(shared.state_dict(), strict=False)
    assert (placed(images).scores - shared(images).scores).abs().max() > 1e-3


@pytest.mark.parametrize("wrong", [0, 2.5, "3", None, True])
def test_iterations_are_a_whole_number(wrong):
    model = create_model("capsnet")
    with pytest.raises(ValueError, match=f"iterations is {wrong!r}; it must be a whole number"):
        model.iterations = wrong
    assert model.iterations == 3


def test_a_network_without_routing_has_no_iterations():
    with pytest.raises(ValueError, match="PlainNetwork routes no capsules"):
        create_model("cnn-simple-cifar10", in_channels=3, image_size=32).iterations = 2


@pytest.mark.parametrize("name", ["attention-simple-cifar10", "dynamic-simple-cifar10", "em-simple-cifar10"])
def test_a_checkpoint_holds_all_of_a_network(name, tmp_path):
    model, other = narrow(name), narrow(name)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    images = torch.randn(2, 3, 32, 32)
    save_checkpoint(tmp_path / "last", model)
    load_weights(tmp_path / "last", other)
    assert torch.equal(other(images).scores, model(images).scores)


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize(
    "ablation", [{"layer_norm": False}, {"schedule": "sequential"}, {"activations": True}], ids=["A", "B", "C"]
)
def test_the_ablations_learn_in_all_their_parameters(ablation, iterations):
    model = narrow("attention-simple-cifar10", iterations=iterations, **ablation)
    images = torch.randn(2, 3, 32, 32)
    scores = model(images).scores
    F.cross_entropy(scores, torch.tensor([3, 7])).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    full = narrow("attention-simple-cifar10", iterations=iterations)
    same = torch.equal(full(images).scores, scores)
    assert same == (ablation == {"schedule": "sequential"} and iterations == 1)


@pytest.mark.parametrize(
    ("name", "times"), [("attention-simple-cifar10", 3), ("attention-diverse-multimnist-vector", 5)]
)
def test_undivided_agreements_spread_the_first_couplings_several_times_as_far(name, times):
    """Of 16 elements and of 64: the relative spread over the classes, in the first step that routes."""
    spread = {}
    for scaled in (True, False):
        torch.manual_seed(0)
        model, couplings = create_model(name, channels=16, capsules=4, scaled=scaled), []
        primary = model.primary(model.backbone(torch.randn(2, 3, *(model.origin or {})["image_size"])))
        model.stack(primary, visit=lambda level, t, step, found=couplings: found.append(step.coupling))
        spread[scaled] = (couplings[-1].std(-1) / couplings[-1].mean(-1)).mean()
    assert spread[False] > times * spread[True]


def test_a_convolutional_parent_sees_nine_positions():
    """The authors' code mixes pose and position: its parents see dozens."""
    model = narrow("attention-simple-cifar10")
    primary = model.primary(model.backbone(torch.randn(1, 3, 32, 32)))
    poses = primary.poses.detach().requires_grad_()
    parents = model.stack.layers[0](primary._replace(poses=poses), iterations=2).capsules.poses
    (gradient,) = torch.autograd.grad(parents[0, 2, 1].square().sum(), poses)
    seen = gradient[0].abs().sum((2, 3)).nonzero().tolist()
    assert seen == [[y, x] for y in (4, 5, 6) for x in (2, 3, 4)]


def test_lengths_live_through_layers_of_dynamic_routing():
    model = narrow("dynamic-diverse-multimnist", channels=32, capsules=4, pose=16)
    primary, *parents = model(torch.randn(2, 3, 36, 36)).capsules
    assert lengths(primary.poses).mean() > 0.1
    assert all(0.2 < lengths(each.poses).mean() < 0.9 for each in parents)


def test_the_linear_head_of_dynamic_routing_reads_poses_as_long_as_layer_norm_makes_them():
    model = narrow("dynamic-diverse-multimnist", pose=9)
    images = torch.randn(2, 3, 36, 36)
    output = model(images)
    wanted = F.linear(3 * output.capsules[-1].poses, model.head.linear.weight, model.head.linear.bias).squeeze(-1)
    torch.testing.assert_close(output.scores, wanted)
    as_they_are = narrow("dynamic-diverse-multimnist", pose=9, gain=1.0)
    as_they_are.load_state_dict(model.state_dict())
    scores, bias = as_they_are(images).scores, model.head.linear.bias
    torch.testing.assert_close(3 * (scores - bias), output.scores - bias)


def test_primary_poses_are_neighbouring_channels_normalised():
    primary = PrimaryPoses(5, 3, 4, layer_norm=True, activations=True)
    features = torch.randn(2, 5, 6, 6)
    capsules = primary(features)
    maps = primary.conv(features)
    torch.testing.assert_close(capsules.poses[1, 2, 0, 1], F.layer_norm(maps[1, 4:8, 2, 0], (4,)))
    assert capsules.activations is not None and primary.activation is not None
    torch.testing.assert_close(capsules.activations[1, 2, 0, 1], primary.activation(features)[1, 1, 2, 0].sigmoid())


def test_a_basic_block_adds_before_its_last_relu():
    block = BasicBlock(3, 5, stride=2).eval()
    x = torch.randn(2, 3, 7, 7)
    hidden = F.conv2d(x, block.conv1.weight, stride=2, padding=1).relu()
    sum_ = F.conv2d(hidden, block.conv2.weight, padding=1) + F.conv2d(x, block.shortcut[0].weight, stride=2)
    torch.testing.assert_close(block(x), sum_.relu(), rtol=1e-4, atol=1e-4)  # fresh norms divide by sqrt(1 + 1e-5)
    assert isinstance(BasicBlock(3, 3).shortcut, torch.nn.Identity)


def test_backbones_leave_the_positions_they_name():
    for size in ((32, 32), (27, 33)):
        for backbone in (capsule_resnet(3, 4), SimpleBackbone(3, 4), SimpleBackbone(3, 4, Window(4, 2, 1), True)):
            features = backbone(torch.randn(2, 3, *size))
            assert features.shape[2:] == count_positions(size, backbone.windows) and features.shape[1] == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: narrow("attention-simple-cifar10", image_size=12), "12x12 .* smallest side that works is 13"),
        (lambda: narrow("attention-resnet-cifar10", image_size=(32, 9)), "32x9 .* smallest side that works is 13"),
        (lambda: narrow("attention-diverse-multimnist-matrix", image_size=12), "smallest side that works is 13"),
        (lambda: narrow("dynamic-simple-cifar10", image_size=16), "smallest side that works is 17"),
        (lambda: narrow("dynamic-resnet-cifar10", image_size=16), "smallest side that works is 17"),
        (lambda: narrow("em-simple-cifar10", image_size=13), "smallest side that works is 14"),
        (lambda: narrow("cnn-simple-cifar10", image_size=4), "smallest side that works is 5"),
        (lambda: narrow("cnn-diverse-multimnist-dense", image_size=12), "smallest side that works is 13"),
        (lambda: narrow("attention-simple-cifar10", pose=6), "4, 9, 16"),
        (lambda: narrow("attention-simple-cifar10", capsules=0), "capsules is 0"),
        (lambda: narrow("attention-simple-cifar10", channels=0), "channels is 0"),
        (lambda: narrow("attention-resnet-cifar10", channels=3), "channels is 3"),
        (lambda: narrow("attention-simple-cifar10", backbone="resnet50"), "backbone is 'resnet50'"),
        (lambda: narrow("attention-simple-cifar10", schedule="parallel"), "schedule"),
        (lambda: narrow("attention-simple-cifar10", iterations=0), "iterations is 0"),
        (lambda: narrow("attention-simple-cifar10", positions="all"), "positions"),
        (lambda: narrow("attention-simple-cifar10", coordinates=True), "but positions is 'own'"),
        (lambda: narrow("dynamic-diverse-multimnist", head="norm"), "head is 'norm'"),
        (lambda: narrow("dynamic-diverse-multimnist", gain=0.0), "gain is 0.0"),
        (lambda: narrow("resnet18-cifar10", channels=0), "channels"),
        (lambda: ResNetBackbone(3, (Stage(4, 0),)), "blocks"),
        (lambda: create_model("attention-resnet-cifar"), "nearest is 'attention-resnet-cifar10'"),
        (lambda: narrow("attention-simple-cifar10", chanels=8), "nearest is 'channels'"),
        (lambda: narrow("attention-simple-cifar10", hidden=20), "hidden"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_smallest_sides_that_are_named_work():
    for name, side in (("attention-simple-cifar10", 13), ("dynamic-resnet-cifar10", 17), ("em-simple-cifar10", 14)):
        assert narrow(name, image_size=side)(torch.randn(2, 3, side, side)).scores.isfinite().all()
    model = narrow("cnn-simple-cifar10", image_size=5).eval()
    assert model(torch.randn(2, 3, 5, 5)).scores.isfinite().all()
