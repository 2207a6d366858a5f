"""Registered models: their counts, the inputs they take, and what they say of those they cannot."""

import copy
import importlib
import json
import pickle
import pkgutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import torchcaps
from torchcaps import create_model, list_models, register_model
from torchcaps.capsules import squash
from torchcaps.models import Output, registry


def parameters(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def small(name, **options):
    return create_model(name, image_size=21, channels=8, primary=2, **options)


def test_capsnet_has_the_papers_parameters():
    assert parameters(create_model("capsnet", num_classes=10, in_channels=1, image_size=28)) == 8_215_568


@pytest.mark.parametrize(("size", "channels", "classes"), [(28, 1, 10), ((17, 20), 3, 2), (40, 1, 1), (32, 3, 100)])
def test_capsnet_takes_any_image(size, channels, classes):
    height, width = (size, size) if isinstance(size, int) else size
    model = create_model(
        "capsnet", num_classes=classes, in_channels=channels, image_size=size, channels=8, primary=3, class_pose=6
    )
    images = torch.rand(2, channels, height, width)
    output = model(images)
    assert output.scores.shape == (2, classes) and (output.scores < 1).all()
    assert output.aux["reconstruction"].shape == images.shape
    assert output.capsules[-1].poses.shape == (2, classes, 6)
    assert output.capsules[0].poses.ndim == 5


@pytest.mark.parametrize("routing", ["uniform", "dynamic", "inverted-attention", "discriminative"])
def test_capsnet_takes_any_routing_without_activations(routing):
    model = small("capsnet", routing=routing)
    output = model(torch.rand(3, 1, 21, 21))
    output.scores.sum().backward()
    assert model.stem.weight.grad is not None and model.stem.weight.grad.abs().sum() > 0
    assert bool(model.coefficients()) == (routing == "discriminative")


@pytest.mark.parametrize("name", ["capsnet", "fm-resnet-affnist"])
def test_scores_of_layer_normed_capsules_tell_images_apart(name):
    """All their lengths are the same."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, in_channels=1, image_size=28, routing="inverted-attention").eval()
    for transform in (layer.transform for layer in model.stack.layers):
        transform.weight.data *= 100  # far from the epsilon of the norm
    scores = model(torch.rand(4, 1, 28, 28)).scores
    assert model.scores == "logit"
    assert (scores.std(0) > 1e-3).all() and (scores.std(1) > 1e-3).all()


def test_the_label_chooses_what_is_decoded_and_the_scores_do_without_one():
    model = small("capsnet")
    images = torch.rand(4, 1, 21, 21)
    free = model(images)
    chosen = free.scores.argmax(1)
    assert torch.equal(model(images, chosen).aux["reconstruction"], free.aux["reconstruction"])
    assert not torch.equal(model(images, (chosen + 1) % 10).aux["reconstruction"], free.aux["reconstruction"])


def test_a_primary_pose_is_read_off_neighbouring_channels():
    """Poses scrambled by a view are the commonest error of capsule code."""
    primary = small("capsnet").primary
    features = torch.rand(2, 8, 13, 13)
    maps = primary.conv(features)
    pose = primary(features).poses[1, 2, 0, 1]  # image 1, row 2, column 0, type 1
    torch.testing.assert_close(pose, squash(maps[1, 8:16, 2, 0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create_model("capsnt"), "nearest is 'capsnet'"),
        (lambda: create_model("capsnet", chanels=8), "nearest is 'channels'"),
        (lambda: create_model("capsnet", image_size=16), "smallest side that works is 17"),
        (lambda: create_model("capsnet", image_size=(30, 8)), "30x8"),
        (lambda: create_model("capsnet", num_classes=0), "num_classes is 0"),
        (lambda: create_model("capsnet", in_channels=0), "in_channels is 0"),
        (lambda: create_model("capsnet", num_classes=10.0), "num_classes is 10.0; it must be a whole number"),
        (lambda: create_model("capsnet", image_size="28"), "image_size is '28'; it must be a side of at least 1 pixel"),
        (lambda: create_model("capsnet", image_size=28.0), "image_size is 28.0; it must be a side of at least 1 pixel"),
        (lambda: create_model("capsnet", bias=True), "nearest is 'routing_bias'"),
        (lambda: create_model("capsnet", zzz=True), "no option of model 'capsnet' is named 'zzz'"),
        (lambda: create_model("small-resnet.dynamic", bias=True), "nearest is 'routing_bias'"),
        (lambda: create_model("small-resnet.linear", inchannels=3), "'inchannels'; there is 'width', 'hidden'"),
        (lambda: create_model("capsnet", routing="dynamics"), "nearest is 'dynamic'"),
        (lambda: small("capsnet", routing="em")(torch.rand(1, 1, 21, 21)), "needs activations"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["", "linear", "x-twin", "my.cap", "My-cap", "a b"])
def test_names_that_no_command_takes_are_refused(name):
    with pytest.raises(ValueError, match=f"a model is named {name!r}; "):
        register_model(name)


def test_a_model_defined_again_takes_the_place_of_what_it_was(monkeypatch):
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))

    def define(classes):
        @register_model("twice-test")
        def build(num_classes, in_channels, image_size):
            return classes

        return build

    assert [define(n) is registry.find_factory("twice-test") for n in (1, 2)] == [True, True]
    with pytest.raises(
        ValueError, match=r"model 'capsnet' is torchcaps\.models\.capsnet\.CapsNet already: give .*build"
    ):
        register_model("capsnet")(registry.find_factory("twice-test"))


def test_a_decorator_without_its_name_registers_nothing_in_silence():
    with pytest.raises(TypeError, match=r"it takes a name: @register_model\("):
        register_model(lambda num_classes, in_channels, image_size: None)


def test_counts_may_be_of_numpy():
    model = create_model(
        "small-resnet.dynamic", num_classes=np.int64(3), in_channels=np.int64(2), image_size=np.int64(16)
    )
    assert json.loads(json.dumps(model.origin))["num_classes"] == 3


def test_an_output_is_copied_and_pickled():
    bare, full = Output(torch.ones(2, 3)), Output(torch.ones(2, 3), aux={"penalty": torch.ones(())})
    for again in (copy.deepcopy, copy.copy, lambda x: pickle.loads(pickle.dumps(x))):
        assert torch.equal(again(bare).scores, bare.scores) and again(bare).aux is bare.aux
        assert again(full).aux == full.aux and type(again(full)) is Output


def test_list_models_takes_a_pattern():
    assert "capsnet" in list_models() and "capsnet" in list_models("caps*") and list_models("no-such-*") == []


def test_the_public_names_are_what_a_user_builds_with():
    assert set(torchcaps.__all__) == {
        *("LinearTransform", "ConvTransform", "PooledTransform", "PrimaryCapsules", "Capsules"),
        *("CapsuleLayer", "CapsuleStack", "CapsuleHead", "HeadedModel"),
        *("Routing", "register_routing", "create_routing", "list_routings"),
        *("create_model", "list_models", "register_model", "Config", "fit", "load", "choose"),
    }
    for name in torchcaps.__all__:
        assert getattr(torchcaps, name) is not None
    with pytest.raises(AttributeError, match="capsul"):
        torchcaps.capsul  # noqa: B018


@pytest.mark.parametrize("name", ["torchcaps", "torchcaps.cost", "torchcaps.data", "torchcaps.inspect"])
def test_no_name_that_is_found_on_first_use_is_also_a_module(name):
    """Importing the module would put it in the place of what is meant."""
    package = importlib.import_module(name)
    assert not {each.name for each in pkgutil.iter_modules(package.__path__)} & set(package.__all__)


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_package_imports_no_more_than_torch():
    """`import torchcaps` alone imports not even torch; of all public names only `fit` needs more than torch."""
    assert run("import sys, torchcaps; print('torch' in sys.modules)").strip() == "False"
    code = (
        "import sys, torch, torch.utils.checkpoint, torch.utils.flop_counter\n"  # which import Triton, where it is
        "before = {name.split('.')[0] for name in sys.modules}\n"
        "import torchcaps\n"
        "assert all(getattr(torchcaps, name) for name in torchcaps.__all__ if name != 'fit')\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} - before))"
    )
    assert run(code).strip() == "['torchcaps']"


@pytest.mark.parametrize(
    ("name", "classes", "channels", "side", "count"),
    [
        ("fm-resnet-cifar10", 10, 3, 32, 903_760),
        ("fm-resnet-smallnorb", 5, 1, 32, 196_720),
        ("fm-resnet-affnist", 10, 1, 40, 195_376),
        ("attention-resnet-cifar100", 100, 3, 32, None),
        ("dynamic-diverse-multimnist", 10, 3, 36, None),
        ("capsnet", 10, 1, 28, None),
    ],
)
def test_names_of_data_sets_say_what_images_a_model_takes(name, classes, channels, side, count):
    model = create_model(name)
    origin = model.origin or {}
    assert (origin["num_classes"], origin["in_channels"], origin["image_size"]) == (classes, channels, (side, side))
    assert count in (None, parameters(model))
    told = create_model(name, num_classes=3, in_channels=2, image_size=(28, 29)).origin or {}
    assert (told["num_classes"], told["in_channels"], told["image_size"]) == (3, 2, (28, 29))
