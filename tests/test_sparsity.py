"""Which capsules a network needs, and what another network's decoder makes of them."""

import pytest
import torch
from tiny import tiny_config

from torchcaps import create_model
from torchcaps.config import DataConfig, LossConfig
from torchcaps.data import load_data
from torchcaps.inspect.figures import draw_kept
from torchcaps.inspect.measured import measure
from torchcaps.inspect.sparsity import accuracy_by_kept, child_importance
from torchcaps.inspect.transplants import draw_transplants, transplant
from torchcaps.train.processes import build_fabric

DIGITS = DataConfig("digits")


def network(name="discriminative-capsnet", seed=0, **options):
    torch.manual_seed(seed)
    return create_model(name, image_size=8, channels=4, primary=2, kernel=3, **options)


def images(count=6):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_importance_is_length_times_what_leaves_the_capsule():
    model = network()
    layer = model.stack.layers[0]
    torch.nn.init.normal_(layer.routing.coefficient)
    poses = model(images()).capsules[0].poses  # [b, h, w, i, d]
    found = child_importance(model, images())
    for child, (kind, y, x) in enumerate([(k, y, x) for k in range(2) for y in range(2) for x in range(2)]):
        length = sum(pose.norm().item() for pose in poses[:, y, x, kind]) / len(poses)
        b, w = layer.routing.coefficient[child], layer.transform.weight[:, child]
        size = sum((b[j] * w[j]).square().sum().item() for j in range(10)) ** 0.5
        assert found[child].item() == pytest.approx(length * size, rel=1e-4)


def test_accuracy_with_all_capsules_is_that_of_the_network(tmp_path):
    model, data, fabric = network(initial=1.0), load_data(DIGITS), build_fabric(tiny_config(tmp_path))
    batches, loss = data.evaluation("validation", 64), LossConfig("margin")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    curve = accuracy_by_kept(fabric, model, batches, loss, [1, 8])
    assert [count for count, _ in curve] == [1, 8]
    assert curve[1][1] == measure(fabric, model, batches, loss).right.float().mean().item()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    (axes,) = draw_kept({"ours": curve, "trained": [(4, 0.5)]}).axes
    assert [line.get_xdata().tolist() for line in axes.lines] == [[1, 8], [4]]
    with pytest.raises(ValueError, match="9 capsules cannot be kept: there are 8"):
        accuracy_by_kept(fabric, model, batches, loss, [4, 9])


def test_other_routings_have_no_importance():
    with pytest.raises(ValueError, match="'dynamic' has no coefficients"):
        child_importance(network("capsnet"), images())


def test_a_network_s_own_capsules_decode_as_in_training():
    model, labels = network("capsnet"), torch.arange(6)
    own = transplant(model, model, images(), labels)
    torch.testing.assert_close(own.images, model(images(), labels).aux["reconstruction"])
    assert own.right.tolist() == (model(images()).scores.argmax(1) == labels).tolist()


def test_the_decoder_sees_the_other_network_s_capsules():
    decoder, other = network("capsnet"), network(seed=1)
    labels = other(images()).scores.argmax(1)  # so that all are right
    moved = transplant(other, decoder, images(), labels)
    wanted = decoder.reconstruct(other(images()).capsules[-1].poses, labels)
    torch.testing.assert_close(moved.images, wanted)
    assert moved.right.all()
    assert moved.error == pytest.approx((wanted - images()).square().sum((1, 2, 3)).mean().item(), rel=1e-5)


def test_rows_are_the_images_that_all_classify_rightly():
    decoder = network("capsnet")
    labels = decoder(images()).scores.argmax(1)
    (axes,) = draw_transplants(decoder, {"again": decoder}, images(), labels, columns=4).axes
    names = [tick.get_text().split("\n")[0] for tick in axes.get_yticklabels()]
    assert names == ["input", "its own", "again"] and len(axes.images) == 3 * 4


@pytest.mark.parametrize(
    ("network_", "decoder", "message"),
    [
        (lambda: network(), lambda: network(), "no decoder"),
        (lambda: network("capsnet", class_pose=8), lambda: network("capsnet"), r"\(10, 8\) \(classes, pose\)"),
    ],
)
def test_what_cannot_be_transplanted_is_named(network_, decoder, message):
    with pytest.raises(ValueError, match=message):
        transplant(network_(), decoder(), images(), torch.arange(6))
