"""Capsule heads on timm's backbones and on networks of one's own: names, counts, scores, gradients and errors."""

import math
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

from torchcaps import Capsules, create_model, list_models
from torchcaps.backbones.timm_backbone import TimmBackbone, halved
from torchcaps.capsules import lengths, squash
from torchcaps.compare.heads import all_heads
from torchcaps.cost import measure_cost
from torchcaps.layers import CapsuleLayer, LinearTransform, PrimaryCapsules, XnorConv2d, use_implementation
from torchcaps.models import CapsuleHead, DenseHead, HeadedModel, rebuild_model
from torchcaps.models.primary_heads import PrimaryHead, start
from torchcaps.routing import Routing, Spec, Takes, list_routings, register_routing, registry
from torchcaps.routing.inverted_attention import InvertedAttention

ROUTINGS = [spec.name for spec in list_routings()]
SMALL = "test_efficientnet"  # timm's own for tests: 256 features


def parameters(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def on_meta(name, **options):
    with torch.device("meta"):
        return create_model(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("mobilenetv2_100.xnidr", {}, 2_428_672),
        ("mobilenetv2_100.xnodr", {"small_stem": True, "image_size": 32}, 2_428_672),
        ("mobilenetv2_100.dynamic", {"small_stem": True, "image_size": 36}, 2_428_672),
        ("mobilenetv2_100.linear", {"hidden": (512, 256, 128)}, 3_045_258),
        ("mobilenetv2_100.linear", {"hidden": (1024, 512)}, 2_223_872 + 1_841_674),
        ("resnet50.xnidr", {}, 23_835_712),
        # PrimaryCapsules has a bias in place of the scale and shift of batch norm
        ("mobilenetv2_100.convcaps.xnodr", {"small_stem": True, "image_size": 32}, 2_647_552),
        ("mobilenetv2_100.xnor-convcaps.xnodr", {"small_stem": True, "image_size": 32}, 2_647_552),
        ("mobilenetv2_100.primary.xnodr", {}, 2_428_672 - 2 * 1280 + 1280),
        ("mobilenetv2_100.xnor-primary.xnidr", {"small_stem": True, "image_size": 32}, 2_427_392),
        ("resnet50.primary.xnidr", {}, 23_835_712 - 2 * 2048 + 2048),
        # 32 types on a 2x2 map: PrimaryCapsules, 3x3 capsules, W
        (
            "mobilenetv2_100.convcaps.xnodr",
            {"small_stem": True, "image_size": 32},
            2_223_872 - 320 * 1280 - 2560 + 321 * 256 + 9 * 32 * 32 * 64 + 32 * 4 * 10 * 128,
        ),
    ],
)
def test_heads_have_the_papers_parameters(name, options, expected):
    assert parameters(on_meta(name, **options)) == expected


KERAS_BIASES = 64 + sum(n * (2 * width + 4 * width) + 4 * width for n, width in ((3, 64), (4, 128), (6, 256), (3, 512)))


@pytest.mark.parametrize(
    ("name", "options", "ours", "printed"),
    [
        ("resnet50.linear", {"hidden": (1024, 512)}, 26_136_138, 26.16),
        ("resnet50.dynamic", {"image_size": 108}, 23_835_712, 23.86),
        (
            "resnet50.linear",
            {"hidden": (1024, 512), "small_stem": True, "features": "flattened", "image_size": 32},
            32_419_914,
            32.45,
        ),
        (
            "resnet50.linear",
            {"hidden": (1024, 512), "small_stem": True, "features": "flattened", "image_size": 36},
            42_905_674,
            42.93,
        ),
        ("resnet50.xnodr", {"small_stem": True, "image_size": 32}, 23_828_032, 23.85),
    ],
)
def test_resnet_has_the_papers_parameters_but_for_biases_of_convolutions(name, options, ours, printed):
    """Keras' ResNet-50 has a bias in each of its 53 convolutions, timm's has none; batch norm makes them useless."""
    assert KERAS_BIASES == 26_560
    assert parameters(on_meta(name, **options)) == ours
    assert round((ours + KERAS_BIASES) / 1e6, 2) == printed


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("mobilenetv2_100", {}, (1280, 7, 7)),
        ("mobilenetv2_100", {"image_size": (108, 108)}, (1280, 4, 4)),
        ("mobilenetv2_100", {"image_size": (32, 32), "small_stem": True}, (1280, 2, 2)),
        ("mobilenetv2_100", {"image_size": (36, 36), "small_stem": True}, (1280, 3, 3)),
        ("resnet50", {"image_size": (32, 32), "small_stem": True}, (2048, 4, 4)),
        ("resnet50", {"image_size": (36, 36), "small_stem": True}, (2048, 5, 5)),
    ],
)
def test_the_stem_of_small_images_keeps_their_resolution(name, options, shape):
    options = {"image_size": (224, 224), **options}
    with torch.device("meta"):
        assert TimmBackbone(name, 3, features="spatial", **options).shape == shape


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("features", ["pooled", "spatial"])
def test_every_routing_is_a_head(routing, features):
    torch.manual_seed(0)
    model = create_model(f"{SMALL}.{routing}", num_classes=7, in_channels=1, image_size=(40, 33), features=features)
    use_implementation(model, "plain")  # kernels have tests of their own
    if routing == "self-routing":  # which starts from even couplings, where no score depends on the image
        torch.nn.init.normal_(model.head.stack.layers[0].transform.weight)
    output = model(torch.rand(3, 1, 40, 33))
    assert output.scores.shape == (3, 7) and output.scores.isfinite().all()
    primary, classes = output.capsules
    matrix = routing in ("em", "variational-bayes") or routing.startswith("inverted")
    children = (32, 2, 2) if features == "spatial" else (256 // (16 if matrix else 8),)
    assert primary.poses[0, ..., 0].numel() == math.prod(children) and primary.poses.shape[-1] == (16 if matrix else 8)
    if routing in ("em", "fm", "self-routing", "variational-bayes"):
        assert torch.equal(output.scores, classes.activations)
    elif matrix:
        present = 1 if classes.activations is None else classes.activations
        logits = present * (classes.poses @ model.head.read.linear.weight[0]) + model.head.read.linear.bias
        torch.testing.assert_close(output.scores, logits)
    else:
        assert torch.equal(output.scores, lengths(classes.poses)) and (output.scores < 1).all()
    output.scores.square().sum().backward()
    stem = model.backbone.model.conv_stem.weight.grad
    assert stem.isfinite().all() and (stem != 0).any()
    assert bool(model.coefficients()) == (routing == "discriminative")
    if model.coefficients():
        assert model.objective(output, torch.eye(7)[:3]).isfinite()


def test_a_routing_of_one_s_own_says_how_it_takes_its_children(monkeypatch):
    monkeypatch.setattr(registry, "_ROUTINGS", dict(registry._ROUTINGS))

    @register_routing
    class Own(Routing):
        spec = Spec("own", "nobody", "b I J d", "b J d", False, False, takes=Takes(matrix=True, squashed=False))

        def couple(self, votes, state, t):
            return None

        def update(self, votes, coupling, state, t):
            return Capsules(votes.combine(coupling)), None

    with torch.no_grad():
        features = 9 * torch.rand(2, 64)
        primary, classes = CapsuleHead("own", in_features=64, num_classes=3)(features).capsules
    assert torch.equal(primary.poses, features.unflatten(1, (4, 16))) and classes.poses.shape == (2, 3, 16)
    assert "own-twin" in all_heads()


@pytest.mark.parametrize("name", ["small-resnet.inverted-attention", f"{SMALL}.inverted-attention", "capsnet"])
def test_options_of_a_routing_have_its_name_before_them(name):
    """`scaled` of a head is of its scores, `routing_scaled` of the agreement."""
    more = {"routing": "inverted-attention", "decoder": False, "channels": 4} if name == "capsnet" else {}
    torch.manual_seed(0)
    model = create_model(name, in_channels=3, image_size=32, routing_scaled=True, **more)
    scales = [each.scale for each in model.modules() if isinstance(each, InvertedAttention)]
    assert scales == [0.25]
    again = rebuild_model(model.origin)
    assert again.origin == model.origin and (model.origin or {})["routing_scaled"] is True
    assert [each.scale for each in again.modules() if isinstance(each, InvertedAttention)] == [0.25]
    plain = create_model(name, in_channels=3, image_size=32, **more)
    assert [each.scale for each in plain.modules() if isinstance(each, InvertedAttention)] == [1.0]
    with pytest.raises(ValueError, match="no option of routing 'inverted-attention' is named 'scled'"):
        create_model(name, in_channels=3, image_size=32, routing_scled=True, **more)


def test_a_network_that_takes_no_options_of_its_routing_says_so():
    with pytest.raises(ValueError, match=r"no option of model 'small-resnet\.linear' is named 'routing_scaled'"):
        create_model("small-resnet.linear", routing_scaled=True)


def test_a_capsule_is_made_of_neighbouring_features():
    """Poses scrambled by a view are the commonest error of capsule code."""
    features = torch.rand(2, 24)
    primary = CapsuleHead("dynamic", 24, 5).primary(features)
    torch.testing.assert_close(primary.poses[1, 2], squash(features[1, 16:24]))
    head = CapsuleHead("em", 32, 5)
    primary = head.primary(features.repeat(1, 2)[:, :32])
    torch.testing.assert_close(primary.poses[1, 1], features.repeat(1, 2)[1, 16:32])
    assert primary.activations.shape == (2, 2) and (primary.activations < 1).all()


def test_a_map_of_features_passes_through_primary_capsules():
    head, maps = CapsuleHead("xnidr", (6, 3, 2), 4, primary=5), torch.rand(2, 6, 3, 2)
    assert isinstance(head.primary, PrimaryCapsules)
    assert head(maps).capsules[0].poses.shape == (2, 3, 2, 5, 8)
    assert head.stack.layers[0].transform.shape == (4, 5 * 3 * 2, 8, 16)


@pytest.mark.parametrize("routing", ["xnidr", "em"])
def test_features_that_no_pose_divides_pass_a_linear_layer_and_cost_says_so(routing):
    class Flat(nn.Module):
        def forward(self, images):
            return images.flatten(1)

    pose = 16 if routing == "em" else 8
    model = HeadedModel(Flat(), CapsuleHead(routing, 27, 4))
    widened = math.ceil(27 / pose) * pose
    assert measure_cost(model, 3, 3).widening_parameters == 27 * widened + widened
    assert measure_cost(HeadedModel(Flat(), CapsuleHead(routing, 48, 4)), 4, 3).widening_parameters == 0


@pytest.mark.parametrize(("name", "last"), [(SMALL, "conv_head"), ("resnet18", "layer4.1.conv2")])
def test_a_trunk_is_what_the_last_convolution_takes(name, last):
    torch.manual_seed(0)
    whole = TimmBackbone(name, 3, (32, 32), "spatial").eval()
    torch.manual_seed(0)
    trunk, seen = TimmBackbone(name, 3, (32, 32), "trunk").eval(), []
    conv = whole.model.get_submodule(last)
    conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.rand(2, 3, 32, 32)
    whole(images)
    torch.testing.assert_close(trunk(images), seen[0])
    assert trunk.taken == conv.out_channels and trunk.shape == tuple(seen[0].shape[1:])


@pytest.mark.parametrize("part", ["primary", "xnor-primary"])
def test_primary_capsules_take_the_place_of_the_last_convolution(part):
    torch.manual_seed(0)
    xnorized = part.startswith("xnor")
    thresholds = {"routing_threshold": "midpoint"} | ({"threshold": "midpoint"} if xnorized else {})
    model = create_model(f"{SMALL}.{part}.xnodr", num_classes=3, image_size=32, **thresholds).eval()
    images, primary = torch.rand(2, 3, 32, 32), model.head.primary
    capsules = model(images).capsules
    maps = primary.conv(model.backbone(images)).mean((2, 3))
    torch.testing.assert_close(capsules[0].poses[1, 2], squash(maps[1, 16:24]))
    taken = model.backbone.taken
    assert isinstance(taken, int) and len(capsules) == 2 and capsules[0].poses.shape == (2, taken // 8, 8)
    assert isinstance(primary.conv, XnorConv2d) == xnorized
    assert model.head.stack.layers[0].routing.threshold == getattr(primary.conv, "threshold", "midpoint") == "midpoint"


@pytest.mark.parametrize("routing", ["xnodr", "xnidr", "discriminative"])
def test_convolutional_capsules_stand_on_the_map(routing):
    torch.manual_seed(0)
    model = create_model(f"{SMALL}.xnor-convcaps.{routing}", num_classes=3, image_size=64, primary=4)
    output = model(torch.rand(2, 3, 64, 64))
    side = model.backbone.shape[1]
    assert [tuple(each.poses.shape) for each in output.capsules] == [
        (2, side, side, 4, 8),
        (2, side, side, 4, 8),
        (2, 3, 16),
    ]
    torch.testing.assert_close(output.scores, lengths(output.capsules[-1].poses))
    output.scores.square().sum().backward()
    assert (model.head.primary.conv.weight.grad != 0).any()
    assert len(model.coefficients()) == (2 if routing == "discriminative" else 0)


def test_two_layers_of_capsules_start_in_reach_of_the_squash():
    torch.manual_seed(0)
    layer = CapsuleLayer(LinearTransform(400, 10, 8, 16, std=start(400, 10, 16)), "uniform")
    children = nn.functional.normalize(torch.randn(20, 400, 8), dim=-1) / 2
    assert lengths(layer(Capsules(children)).capsules.poses).mean().item() == pytest.approx(1 / 3, rel=0.05)
    for routing in ("uniform", "dynamic", "xnodr"):
        head = PrimaryHead(routing, (64, 4, 4), 10, 32, conv=True)
        for each in head(torch.randn(4, 64, 4, 4)).capsules[1:]:
            assert 0.1 < lengths(each.poses).mean() < 0.9, routing


def test_a_resnet_is_narrowed_by_its_channels():
    model = on_meta("resnet50.xnodr", channels=(8, 16, 32, 64))
    assert model.head.stack.layers[0].transform.shape == (10, 4 * 64 // 8, 8, 16)
    assert [len(stage) for stage in model.backbone.model.children() if isinstance(stage, nn.Sequential)] == [3, 4, 6, 3]


def test_a_network_of_ones_own_takes_a_head():
    stem = nn.Sequential(nn.Conv2d(2, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = HeadedModel(stem, CapsuleHead("xnodr", in_features=16, num_classes=3, threshold="midpoint"))
    assert model(torch.rand(4, 2, 9, 7)).scores.shape == (4, 3)
    assert model.head.stack.layers[0].routing.threshold == "midpoint"


def test_a_map_is_halved_as_keras_does_it():
    maps = torch.arange(15.0).view(1, 1, 3, 5)
    expected = [[3.0, 5.0, 6.5], [10.5, 12.5, 14.0]]  # the last column and row are means of what is there
    assert halved(maps).squeeze().tolist() == expected
    with torch.device("meta"):
        flat = TimmBackbone("resnet50", 3, (36, 36), "flattened", small_stem=True)
    assert flat.shape == (3 * 3 * 2048,)


def test_transformers_take_any_size_and_have_pooled_features_only():
    with torch.device("meta"):
        assert TimmBackbone("test_vit", 1, (64, 32)).shape == (64,)
        with pytest.raises(ValueError, match="no map of features"):
            TimmBackbone("test_vit", 1, (64, 32), features="spatial")
        with pytest.raises(ValueError, match="no map of features"):
            TimmBackbone("test_vit", 1, (64, 32), features="flattened")


def test_channels_last_backbones_give_maps_too():
    with torch.device("meta"):
        model = TimmBackbone("swin_tiny_patch4_window7_224", 3, (224, 224), "spatial")
    assert model.shape == (768, 7, 7)


def test_nothing_is_fetched_unless_asked_and_then_by_timm(monkeypatch):
    calls = []
    create = timm.create_model

    def offline(name, pretrained=False, **options):
        calls.append(pretrained)
        if pretrained:
            raise OSError("no route to host")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    create_model(f"{SMALL}.xnidr", image_size=32)
    with pytest.raises(ValueError, match=r"pretrained weights of test_efficientnet cannot be had: no route to host"):
        create_model(f"{SMALL}.xnidr", image_size=32, pretrained=True)
    assert calls == [False, True]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create_model("mobilenetv2_10.xnidr"), "no timm model is named 'mobilenetv2_10'; the nearest is 'mobi"),
        (lambda: create_model("mobilenetv2_100.xnid"), "nearest is 'mobilenetv2_100.xnidr'"),
        (lambda: create_model("resnet50.no_such_tag.em"), "no pretrained timm model is named 'resnet50.no_such_tag'"),
        (lambda: create_model("resnet50"), "nearest is 'resnet50."),
        (lambda: create_model("resnet18.em", iteration=2), "nearest is 'iterations'"),
        (lambda: create_model("resnet18.xnidr", features="map"), "features of model 'resnet18.xnidr' is 'map'"),
        (lambda: create_model("test_vit.em", small_stem=True), "does not begin with a convolution"),
        (lambda: create_model("test_vit.em", image_size=8), "does not take images of 8x8"),
        (lambda: create_model(f"{SMALL}.linear", image_size=32, hidden=(3, 0)), "hidden is (3, 0)"),
        (lambda: on_meta("resnet18.fm", routing_threshold="zero"), "option of routing 'fm' is named 'threshold'"),
        (lambda: on_meta("resnet18.xnodr", routing_threshold="mid"), "option threshold of routing 'xnodr' is 'mid'"),
        (
            lambda: on_meta("resnet18.primary.em"),
            "discriminative, dynamic, self-attention, uniform, xnidr, xnodr, xnodr-xnidr take",
        ),
        (lambda: on_meta("resnet18.primary.xnidr", threshold="midpoint"), "threshold is 'midpoint', but this"),
        (lambda: on_meta("resnet18.primary.xnidr", primary=0), "primary is 0"),
        (lambda: on_meta("resnet18.primary.linear"), "no pretrained timm model is named 'resnet18.primary'"),
        (lambda: on_meta("convnext_atto.primary.xnidr"), "convnext_atto does not end in a convolution"),
        (lambda: on_meta(f"{SMALL}.xnidr", channels=(8, 16)), f"channels are (8, 16) of {SMALL}"),
        (lambda: CapsuleHead("xnidr", 0, 3), "in_features is 0"),
        (lambda: CapsuleHead("xnidr", (3, 4), 3), "in_features is (3, 4)"),
        (lambda: CapsuleHead("xnid", 8, 3), "nearest is 'xnidr'"),
        (lambda: CapsuleHead("xnidr", "8", 3), "in_features is '8'; it must be a number, or (channels, height, width)"),
        (lambda: CapsuleHead("xnidr", 8, 3.0), "num_classes is 3.0"),
        (lambda: CapsuleHead("xnidr", 8, 3, hidden=4), "hidden is 4; each layer must have at least 1 capsule"),
        (lambda: CapsuleHead("xnidr", 8, 3, routing_bias=True), "nearest is 'bias'"),
        (
            lambda: CapsuleHead("xnidr", (8, 2, 8), 3)(torch.rand(2, 8, 4, 4)),
            "[8, 4, 4], but the head was built for [8, 2, 8]: build it with in_features=(8, 4, 4)",
        ),
        (lambda: CapsuleHead("xnidr", 8, 3)(torch.rand(2, 8, 4, 4)), "built for [8]: build it with in_features=(8, 4"),
        (
            lambda: CapsuleHead("xnidr", (8, 2, 8), 3)(torch.rand(2, 8)),
            "built for [8, 2, 8]: build it with in_features=8",
        ),
        (lambda: PrimaryHead("xnidr", (8, 2, 8), 3, 4)(torch.rand(2, 9, 3, 3)), "built for [8, any, any]"),
        (lambda: PrimaryHead("xnidr", (8, 2, 8), 3, 4, conv=True)(torch.rand(2, 8, 4, 4)), "built for [8, 2, 8]"),
        (lambda: DenseHead(512, 0), "num_classes is 0"),
        (
            lambda: DenseHead((8, 2), 3)(torch.rand(2, 8)),
            "features of an image are [8], but the head was built for [16]",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)


def test_pooled_primary_capsules_take_a_map_of_any_size():
    head = PrimaryHead("xnidr", (8, 2, 8), 3, 4)
    assert head(torch.rand(2, 8, 5, 3)).scores.shape == (2, 3)


@pytest.mark.parametrize("wrong", ["resnet18", None, timm.create_model, CapsuleHead])
def test_a_model_has_modules_for_its_parts(wrong):
    for parts in ((wrong, DenseHead(8, 3)), (nn.Flatten(), wrong)):
        with pytest.raises(TypeError, match="it must be a module that is built, an instance of nn"):
            HeadedModel(*parts)
    with pytest.raises(TypeError, match="the features are a list; a head takes a tensor"):
        CapsuleHead("xnidr", 8, 3)([torch.rand(2, 8)])
    with pytest.raises(TypeError, match="routing is None"):
        CapsuleHead(None, 8, 3)


def test_a_head_of_torch_gives_scores():
    model = HeadedModel(nn.Flatten(), nn.Linear(8, 3))
    output = model(torch.rand(2, 2, 2, 2))
    assert output.scores.shape == (2, 3) and output.capsules == () and model.scores is None


def test_the_papers_models_are_listed_without_timm():
    listed = list_models("*xnidr*")
    for backbone in ("mobilenetv2_100", "resnet50"):
        assert {f"{backbone}.{head}" for head in (*ROUTINGS, "linear")} <= set(list_models(f"{backbone}.*"))
    assert {"mobilenetv2_100.xnidr", "resnet50.xnidr", "resnet50.xnodr-xnidr"} <= set(listed)
    between = ("primary", "xnor-primary", "convcaps", "xnor-convcaps")
    assert {f"resnet50.{part}.xnidr" for part in between} <= set(listed)
    code = (
        "import sys; from torchcaps import list_models; list_models(); print({'timm', 'torchvision'} & {*sys.modules})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_model_remembers_what_it_was_made_of():
    model = create_model(f"{SMALL}.linear", num_classes=2, image_size=(32, 40), hidden=(4,))
    assert model.origin == {
        "name": f"{SMALL}.linear",
        "num_classes": 2,
        "in_channels": 3,
        "image_size": (32, 40),
        "hidden": (4,),
    }
    again = create_model(**model.origin)
    assert again.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("features", ["spatial", "flattened"])
def test_maps_hold_no_weights_of_what_follows_the_pooling_alone(features):
    """A MobileNet V3 has its last convolution there, which is half of its weights."""
    torch.manual_seed(0)
    model = create_model("mobilenetv3_small_050.dynamic", image_size=64, features=features)
    model(torch.rand(2, 3, 64, 64)).scores.sum().backward()
    assert [name for name, each in model.named_parameters() if each.grad is None] == []
    state = {f"backbone.model.conv_head.{name}": torch.rand(4) for name in ("weight", "bias")} | model.state_dict()
    model.load_state_dict(state)  # of a run of before, which holds them


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18.dynamic", {"primary": 64}, "primary is 64, but pooled features are cut into capsules as they stand"),
        ("variational-bayes-64-8-16-16", {"coordinates": False, "placement": "hinton"}, "placement is 'hinton', but"),
        ("dynamic-diverse-multimnist", {"head": "length", "gain": 7.0}, "gain is 7.0, but head is 'length'"),
        ("capsnet", {"decoder": False, "masked": False}, "masked is False, but decoder is False"),
        ("encapnet-6-master", {"aide": "all"}, "aide is 'all', but version is 'master'"),
        ("encapnet-v1", {"version": "master", "branch_norm": True}, "branch_norm is True, but version is 'master'"),
        (
            "resnet18.dynamic",
            {"routing_over": "children", "routing_options": {"over": "parents"}},
            "routing_over is 'children', but routing_options has over 'parents': give one",
        ),
    ],
)
def test_an_option_that_changes_nothing_is_refused(name, options, message):
    with torch.device("meta"), pytest.raises(ValueError) as error:
        create_model(name, num_classes=10, in_channels=3, image_size=32, **options)
    assert message in str(error.value)
