"""The networks of FM agreement: the published counts, any image, every setting, and Keras' padding by loops."""

import math

import numpy as np
import oracles
import pytest
import torch
from torch import nn

from torchcaps.backbones.resnet_v2 import PreactivatedBlock, ResNetV2
from torchcaps.capsules import Capsules, squash
from torchcaps.config import Config, ModelConfig
from torchcaps.layers.keras import SameConv2d, SameConvTranspose2d
from torchcaps.layers.normalised import NormalisedPrimary, NormalisedTransform
from torchcaps.models import create_model
from torchcaps.revisions import read_older, revisions_of

TINY = {"blocks": (1, 1), "width": 2, "primary": 2, "pose": 4, "capsules": (3,)}


def trainable(name, **options):
    with torch.device("meta"):
        model = create_model(name, **options)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


CIFAR, EXPANDED, PAIRS, NORB = (
    {"in_channels": 3, "image_size": 32},
    {"image_size": 40},
    {"image_size": 36},
    {"image_size": 32, "num_classes": 5},
)


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("fm-resnet-cifar10", CIFAR, 903_760),
        ("fm-resnet-cifar10", CIFAR | {"blocks": (9, 8, 8)}, 908_432),
        ("fm-resnet-cifar10", CIFAR | {"blocks": (8, 9, 8)}, 922_320),
        ("fm-resnet-cifar10", CIFAR | {"blocks": (8, 8, 9)}, 977_744),
        ("fm-resnet-affnist", EXPANDED, 195_376),
        ("fm-resnet-affnist", EXPANDED | {"decoder": True}, 195_376 + 186_145),
        ("fm-resnet-affnist", EXPANDED | {"decoder": True, "score": "squash", "halved": False}, 381_521),
        ("fm-resnet-affnist", EXPANDED | {"routing": "dynamic"}, 195_376),
        ("fm-resnet-affnist", EXPANDED | {"routing": "em"}, 195_396),
        ("cnn-affnist", EXPANDED, 195_450),
        ("fm-resnet-multimnist", PAIRS, 389_808),
        ("fm-resnet-multimnist", PAIRS | {"decoder": True}, 389_808 + 163_041),
        ("fm-resnet-smallnorb", NORB, 196_720),
        ("fm-resnet-smallnorb", NORB | {"routing": "dynamic"}, 196_720),
        ("fm-resnet-smallnorb", NORB | {"routing": "em"}, 196_730),
        ("capsnet", EXPANDED | {"masked": False}, 13_401_920),
        ("capsnet", PAIRS, 11_361_808),
        ("fm-capsnet", {"image_size": 28}, 6_804_256),
        ("fm-capsnet", CIFAR | {"channels": 64, "primary": 8, "l2": False, "batch_norm": "none"}, 1_002_816),
        ("capsnet", CIFAR | {"channels": 64, "primary": 8, "decoder": False}, 1_002_816),
    ],
)
def test_trainable_parameters(name, options, count):
    assert trainable(name, **options) == count


@pytest.mark.parametrize(
    ("options", "size", "channels", "classes"),
    [
        ({}, 28, 1, 10),
        ({"batch_norm": "pair", "decoder": True}, (13, 22), 3, 2),
        ({"batch_norm": "child", "capsules": ()}, 9, 2, 1),
        ({"batch_norm": "none", "l2": False, "matrix": False}, 5, 1, 7),
        ({"score": "squash", "decoder": True, "halved": False}, 17, 1, 3),
        ({"mean": False}, 1, 1, 2),
        ({"routing": "dynamic", "decoder": True}, 12, 1, 3),
        ({"routing": "dynamic", "batch_norm": "pair"}, 12, 1, 3),
        ({"routing": "em", "batch_norm": "pair", "iterations": 2}, 12, 1, 3),
        ({"routing": "em", "batch_norm": "none"}, 12, 1, 3),
        ({"routing": "uniform", "batch_norm": "child"}, 12, 1, 3),
        ({"routing": "inverted-attention"}, 12, 1, 3),
    ],
)
def test_network_takes_any_image_and_every_setting(options, size, channels, classes):
    torch.manual_seed(0)
    shape = {"num_classes": classes, "in_channels": channels, "image_size": size}
    model = create_model("fm-resnet-cifar10", **shape, **{**TINY, **options})
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.rand(3, channels, height, width)
    output = model(images, torch.zeros(3, dtype=torch.int64))
    assert output.scores.shape == (3, classes) and output.scores.isfinite().all()
    assert output.capsules[0].poses.shape == (3, math.ceil(height / 4), math.ceil(width / 4), 2, 4)
    loss = output.scores.square().sum()
    if "decoder" in options:
        assert output.aux["reconstruction"].shape == images.shape
        loss = loss + output.aux["reconstruction"].square().sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        if size != 1 and "bias" not in name and not name.startswith("stack"):
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_scores_are_the_agreement_of_the_primary_capsules_by_loops():
    """A whole small network after its primary capsules, in evaluation and in training mode, against the formula."""
    torch.manual_seed(0)
    model = create_model("fm-resnet-affnist", image_size=9, num_classes=3, **{**TINY, "capsules": ()}).double()
    (layer,) = model.stack.layers
    nn.init.normal_(layer.routing.norm.weight, 1.0, 0.3)
    nn.init.normal_(layer.routing.norm.bias)
    images = torch.rand(2, 1, 9, 9, dtype=torch.float64)
    for training in (True, False):
        output = model.train(training)(images)
        poses = output.capsules[0].poses.detach().numpy()  # [b, h, w, i, d]
        children = np.stack([poses[:, y, x, k] for k in range(2) for y in range(3) for x in range(3)], 1)
        seen = oracles.linear_votes(children, layer.transform.weight.detach().numpy(), rows=2)
        norm = layer.routing.norm
        mean, variance = norm.running_mean.numpy(), norm.running_variance.numpy()
        if training:
            mean, variance, _ = oracles.vote_statistics(seen, "element")
        scale = norm.weight.detach().numpy() / np.sqrt(variance + 1e-3)
        sums, activations = oracles.fm(seen, True, True, True, 1e-12, scale, norm.bias.detach().numpy() - mean * scale)
        np.testing.assert_allclose(output.scores.detach(), activations[:, 0], rtol=1e-9, atol=1e-12)
        unit = sums[:, 0] / np.linalg.norm(sums[:, 0], axis=-1, keepdims=True)
        np.testing.assert_allclose(output.capsules[-1].poses.detach(), unit, rtol=1e-9, atol=1e-12)


def test_the_codes_score_is_the_length_of_the_squashed_sum():
    torch.manual_seed(0)
    model = create_model("fm-resnet-affnist", image_size=9, score="squash", decoder=True, **{**TINY, "capsules": ()})
    output = model.eval()(torch.rand(2, 1, 9, 9))
    square = output.capsules[-1].poses.square().sum(-1)
    torch.testing.assert_close(output.scores, square / (1 + square))
    poses = squash(output.capsules[-1].poses)
    torch.testing.assert_close(output.aux["reconstruction"], model.decoder(poses, output.scores.argmax(1)))


def test_fm_in_the_network_of_sabour_scores_by_agreement():
    torch.manual_seed(0)
    model = create_model("fm-capsnet", image_size=12, channels=4, primary=2, kernel=3, batch_norm="pair")
    output = model(torch.rand(3, 1, 12, 12))
    torch.testing.assert_close(output.scores, output.capsules[-1].activations)
    torch.testing.assert_close(output.capsules[-1].poses.norm(dim=-1), torch.ones(3, 10))


@pytest.mark.parametrize("name", ["fm-capsnet", "capsnet"])
def test_first_weights_are_those_of_the_released_code(name):
    """Keras': a uniform, and two normals cut at two deviations; children count in the fans of a transform."""
    torch.manual_seed(0)
    options = {"decoder": False} if name == "capsnet" else {}
    model = create_model(name, image_size=28, channels=64, primary=8, start="keras", **options)
    (layer,) = model.stack.layers
    assert layer.transform.weight.std().item() == pytest.approx(0.0064, abs=5e-5)
    fans = {"stem": (81 + 64 * 81, 6), "primary": (64 * 81, 2), "transform": (288 * 8 + 288 * 160, 2)}
    weights = {"stem": model.stem.weight, "primary": model.primary.conv.weight, "transform": layer.transform.weight}
    for place, (fan, factor) in fans.items():
        weight, deviation = weights[place].detach(), math.sqrt(2 / fan)
        assert weight.std().item() == pytest.approx(deviation, rel=0.02) and abs(weight.mean()) < 0.1 * deviation
        largest = math.sqrt(6 / fan) if factor == 6 else 2 * deviation / 0.8796
        assert 0.97 * largest < weight.abs().max() <= largest * (1 + 1e-4)
    assert not model.stem.bias.any() and not model.primary.conv.bias.any()
    with pytest.raises(ValueError, match="start is 'glorot'; it must be 'torch' or 'keras'"):
        create_model(name, image_size=28, channels=64, primary=8, start="glorot")


@pytest.mark.parametrize("each", ["element", "child"])
def test_primary_capsules_are_normalised_element_by_element(each):
    torch.manual_seed(0)
    primary = NormalisedPrimary(3, 2, 4, positions=6, each=each).double()
    nn.init.normal_(primary.norm.weight)
    nn.init.normal_(primary.norm.bias)
    features = torch.randn(5, 3, 4, 6, dtype=torch.float64)
    maps = primary.conv(features)
    poses, activations = primary(features)
    over = [(n, y, x, k) for n in range(5) for y in range(2) for x in range(3) for k in range(2)]
    for n, y, x, k in ((0, 0, 0, 0), (4, 1, 2, 1), (2, 0, 1, 1)):
        pose = []
        for d in range(4):
            mine = [m for m in over if each == "element" or m[1:] == (y, x, k)]
            values = torch.stack([maps[m[0], 4 * m[3] + d, m[1], m[2]] for m in mine])
            place = d if each == "element" else ((y * 3 + x) * 2 + k) * 4 + d
            normal = (maps[n, 4 * k + d, y, x] - values.mean()) / (values.var(unbiased=False) + 1e-3).sqrt()
            pose.append(normal * primary.norm.weight[place] + primary.norm.bias[place])
        torch.testing.assert_close(poses[n, y, x, k], squash(torch.stack(pose)))
    torch.testing.assert_close(activations, poses.norm(dim=-1))


def test_a_block_adds_to_what_it_is_given():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 5, 5)
    for activated in (False, True):
        block = PreactivatedBlock(3, 3, activated=activated).eval()
        nn.init.zeros_(block.conv2.weight)
        assert torch.equal(block(x), block.norm1(x).relu() if activated else x)
        wider = PreactivatedBlock(3, 4, stride=2, activated=activated).eval()
        nn.init.zeros_(wider.conv2.weight)
        past = (wider.norm1(x).relu() if activated else x)[..., ::2, ::2]
        torch.testing.assert_close(wider(x), torch.einsum("bchw,dc->bdhw", past, wider.shortcut.weight[..., 0, 0]))


def keras_convolution(x, weight, stride=1):
    """By matrix products of patches; 'same': the larger half of the zeros below and to the right."""
    kernel, sides = weight.shape[-1], x.shape[2:]
    outs = [-(-side // stride) for side in sides]
    zeros = [max((out - 1) * stride + kernel - side, 0) for out, side in zip(outs, sides, strict=True)]
    padded = x.new_zeros(*x.shape[:2], *(side + z for side, z in zip(sides, zeros, strict=True)))
    padded[..., zeros[0] // 2 : zeros[0] // 2 + sides[0], zeros[1] // 2 : zeros[1] // 2 + sides[1]] = x
    total = 0
    for ky, kx in np.ndindex(kernel, kernel):
        rows, columns = (slice(k, k + (out - 1) * stride + 1, stride) for k, out in zip((ky, kx), outs, strict=True))
        total = total + torch.einsum("bchw,dc->bdhw", padded[:, :, rows, columns], weight[:, :, ky, kx])
    return total


def activate(x, norm, training):
    """Batch norm with Keras' eps, then ReLU."""
    mean, variance = norm.running_mean, norm.running_var
    if training:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    column = (1, -1, 1, 1)
    normal = (x - mean.view(column)) / (variance.view(column) + 1e-3).sqrt()
    return (normal * norm.weight.view(column) + norm.bias.view(column)).clamp_min(0)


def residual_features(net, images, training, activated_stem, activated_projection):
    """The network of Zhao et al.'s code step by step: first convolution, batch norm, ReLU; then the blocks, of which
    the first begins with its convolution, and of which each projection sees what its block was given."""
    blocks = list(net.blocks)
    maps = keras_convolution(images, net.stem.weight)
    active = activate(maps, blocks[0].norm1, training)
    maps = keras_convolution(
        activate(keras_convolution(active, blocks[0].conv1.weight), blocks[0].norm2, training), blocks[0].conv2.weight
    ) + (active if activated_stem else maps)
    for block in blocks[1:]:
        active, stride = activate(maps, block.norm1, training), block.conv1.stride[0]
        hidden = activate(keras_convolution(active, block.conv1.weight, stride), block.norm2, training)
        past = maps
        if block.shortcut is not None:
            past = keras_convolution(active if activated_projection else maps, block.shortcut.weight, stride)
        maps = keras_convolution(hidden, block.conv2.weight) + past
    return activate(maps, net.norm, training)


FORMS = {"released": (True, False), "he": (True, True), "revision 1": (False, True), "neither": (False, False)}


@pytest.mark.parametrize("form", FORMS)
def test_residual_network_is_the_released_one_step_by_step(form):
    """Released is the default: the stem is activated before the first split, a projection sees raw input."""
    torch.manual_seed(0)
    options = (
        {} if form == "released" else dict(zip(("activated_stem", "activated_projection"), FORMS[form], strict=True))
    )
    net = ResNetV2(3, (2, 1, 2), 4, **options).double()
    for name, value in net.named_parameters():
        if "norm" in name:
            nn.init.normal_(value, 1.0 if name.endswith("weight") else 0.0, 0.3)
    images = torch.randn(3, 3, 10, 7, dtype=torch.float64)
    for training in (True, False):
        expected = residual_features(net, images, training, *FORMS[form])
        torch.testing.assert_close(net.train(training)(images), expected, rtol=1e-9, atol=1e-10)
        for other in FORMS.keys() - {form}:
            wrong = residual_features(net, images, training, *FORMS[other])
            assert (wrong - expected).norm() > 0.1 * expected.norm()


@pytest.mark.parametrize("name", ["fm-resnet-cifar10", "cnn-affnist"])
def test_older_forms_are_options_of_as_many_parameters(name):
    """So that a run of revision 1 is read with its weights, and a run of today with its own."""
    size = {"image_size": 12, "in_channels": 1, "width": 4, "blocks": (1, 1)}
    models = [
        create_model(name, **size, **dict(zip(("activated_stem", "activated_projection"), form, strict=True)))
        for form in FORMS.values()
    ]
    images = torch.rand(4, 1, 12, 12)
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    scores = [model.eval()(images).scores for model in models]
    assert all(not torch.allclose(a, b) for n, a in enumerate(scores) for b in scores[:n])
    key = "model " + ("cnn-affnist" if name == "cnn-affnist" else "fm-resnet-*")
    older = dict(zip(("activated_stem", "activated_projection"), FORMS["revision 1"], strict=True))
    assert read_older(ModelConfig(name, {"width": 4}), {}) == older | {"width": 4}
    assert read_older(ModelConfig(name, {"width": 4}), {key: 2}) == {"width": 4}
    assert revisions_of(Config(model=ModelConfig(name), epochs=1000)) == {key: 2}
    assert revisions_of(Config(model=ModelConfig(name, older), epochs=1000)) == {}
    plain = create_model(name, **size).eval()
    plain.load_state_dict(models[0].state_dict())
    assert torch.equal(plain(images).scores, scores[0])


@pytest.mark.parametrize(
    ("side", "kernel", "stride"), [(6, 3, 2), (5, 3, 2), (8, 5, 2), (9, 5, 2), (4, 5, 1), (7, 1, 2)]
)
def test_same_padding_is_that_of_keras(side, kernel, stride):
    """By loops: output o sees input o * stride - before + k, where before is half of the padding, rounded down."""
    torch.manual_seed(0)
    conv = SameConv2d(1, 1, kernel, stride).double()
    image = torch.randn(1, 1, side, side + 1, dtype=torch.float64)
    out, weight = conv(image)[0, 0], conv.weight[0, 0].detach()
    before = []
    for axis in (0, 1):
        count = -(-image.shape[2 + axis] // stride)
        assert out.shape[axis] == count
        before.append(max((count - 1) * stride + kernel - image.shape[2 + axis], 0) // 2)
    for y, x in np.ndindex(*out.shape):
        total = 0.0
        for ky, kx in np.ndindex(kernel, kernel):
            row, column = y * stride - before[0] + ky, x * stride - before[1] + kx
            if 0 <= row < side and 0 <= column < side + 1:
                total += float(weight[ky, kx] * image[0, 0, row, column])
        assert out[y, x].item() == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize(("kernel", "stride"), [(5, 1), (5, 2), (4, 2), (3, 3)])
def test_deconvolution_is_the_adjoint_of_the_convolution(kernel, stride):
    torch.manual_seed(0)
    up = SameConvTranspose2d(2, 3, kernel, stride, bias=False).double()
    down = SameConv2d(3, 2, kernel, stride).double()
    down.weight.data = up.weight.data
    small, large = (
        torch.randn(*shape, dtype=torch.float64) for shape in ((1, 2, 4, 5), (1, 3, 4 * stride, 5 * stride))
    )
    assert up(small).shape == large.shape
    torch.testing.assert_close((up(small) * large).sum(), (small * down(large)).sum())


@pytest.mark.parametrize("each", ["element", "child", "pair"])
def test_votes_with_batch_norm_answer_every_sum_as_the_votes_themselves(each):
    torch.manual_seed(0)
    module = NormalisedTransform(5, 3, 4, 6, matrix=True, each=each).double()
    nn.init.normal_(module.norm.weight)
    nn.init.normal_(module.norm.bias)
    children = Capsules(torch.randn(4, 5, 4, dtype=torch.float64), torch.rand(4, 5, dtype=torch.float64))
    votes = module(children)
    plain = votes.votes.dense()
    over = {"element": (0, 1, 2, 3), "child": (0, 1, 3), "pair": (0, 1)}[each]
    mean, variance = plain.mean(over, keepdim=True), plain.var(over, unbiased=False, keepdim=True)
    dense = (plain - mean) / (variance + 1e-3).sqrt() * module.norm.weight + module.norm.bias

    def close(a, b):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)

    close(votes.dense(), dense)
    coupling = torch.randn(4, 1, 5, 3, dtype=torch.float64)
    close(votes.combine(), dense.sum(2))
    close(votes.combine(coupling), (coupling[..., None] * dense).sum(2))
    parents = torch.randn(4, 1, 3, 6, dtype=torch.float64)
    close(votes.agree(parents), (dense * parents.unsqueeze(2)).sum(-1))
    for shape in ((6,), (4, 1, 3, 6)):
        scale, shift = (torch.randn(*shape, dtype=torch.float64) for _ in range(2))
        wide = (x if x.ndim == 1 else x.unsqueeze(2) for x in (scale, shift))
        moved = dense * next(wide) + next(wide)
        close(votes.combine(coupling, scale, shift), (coupling[..., None] * moved).sum(2))
        close(votes.squares(coupling, scale, shift), (coupling[..., None] * moved.square()).sum(2))
        close(votes.distance(scale, shift), moved.square().sum(-1))
    close(
        votes.squares(coupling, shift=parents), (coupling[..., None] * (dense + parents.unsqueeze(2)).square()).sum(2)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": ()}, "blocks are ()"),
        ({"blocks": (1, 0)}, "at least 1 block"),
        ({"width": 0}, "width is 0"),
        ({"primary": 0}, "capsules is 0"),
        ({"pose": 6}, "matrix poses of 6"),
        ({"capsules": (0,)}, "parents is 0"),
        ({"batch_norm": "batch"}, "batch_norm is 'batch'"),
        ({"score": "length"}, "score is 'length'"),
        ({"routing": "discriminative"}, "no phase for"),
        ({"routing": "dynamic", "l2": False}, "settings of routing 'fm'"),
        ({"iterations": 0}, "iterations is 0"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError) as error:
        create_model("fm-resnet-cifar10", **{**TINY, **options})
    assert message in str(error.value)


def test_binary_routings_refuse_normalised_votes():
    for routing in ("xnodr", "xnidr"):
        model = create_model("fm-resnet-cifar10", in_channels=1, image_size=8, routing=routing, **TINY)
        with pytest.raises(ValueError, match="leave batch norm out"):
            model(torch.rand(2, 1, 8, 8))
    assert create_model("fm-resnet-cifar10", image_size=8, routing="xnodr", batch_norm="none", **TINY) is not None


@pytest.mark.parametrize("routing", ["dynamic", "uniform"])
@pytest.mark.parametrize("name", ["fm-resnet-affnist", "fm-resnet-smallnorb", "fm-resnet-cifar10"])
def test_sums_start_where_the_squash_has_a_slope(name, routing):
    torch.manual_seed(0)
    model = create_model(name, image_size=32, in_channels=1, width=4, routing=routing)
    lengths = model(torch.rand(32, 1, 32, 32)).scores
    assert 0.2 < lengths.mean() < 0.8


def test_classes_start_nearly_one_long_where_batch_norm_has_a_gain_of_one():
    """Why it has another: there the squash is flat."""
    torch.manual_seed(0)
    model = create_model("fm-resnet-affnist", image_size=32, width=4, routing="dynamic")
    nn.init.ones_(model.stack.layers[0].transform.norm.weight)
    assert model(torch.rand(32, 1, 32, 32)).scores.min() > 0.9


def test_classes_of_em_routing_start_nearly_equal():
    torch.manual_seed(0)
    scores = create_model("fm-resnet-affnist", image_size=40, width=4, routing="em")(torch.rand(16, 1, 40, 40)).scores
    assert (scores.amax(1) - scores.amin(1)).max() < 0.05
