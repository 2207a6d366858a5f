"""Decoders: sizes, what they are fed with, and that the parts of overlapped images are compared one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_config

from torchcaps.config import AugmentConfig, ComposeConfig, Config, DataConfig, LossConfig
from torchcaps.data import Batches, load_data
from torchcaps.layers import DenseDecoder, chosen_class
from torchcaps.layers.decoders import DeconvDecoder, chosen_poses
from torchcaps.losses import build_criterion, multi_hot, reconstruction_loss
from torchcaps.models import create_model
from torchcaps.train import build_phases
from torchcaps.train.phases import Batch, LossModule, step_weights
from torchcaps.train.processes import build_fabric

PAIRS = DataConfig("multimnist", compose=ComposeConfig(base="digits", held=64))


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_sizes_of_the_decoders() -> None:
    assert parameters(DeconvDecoder(16, (1, 40, 40))) == 186_145
    assert parameters(DeconvDecoder(16, (1, 36, 36))) == 163_041
    assert parameters(DenseDecoder(10, 16, (1, 40, 40), masked=False)) == 2_174_016


@pytest.mark.parametrize("image", [(1, 8, 8), (3, 9, 14), (1, 1, 1)])
def test_deconvolutions_make_any_image_of_the_chosen_pose_alone(image: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    decoder = DeconvDecoder(5, image, widths=(4, 3, 2)).eval()
    poses = torch.randn(3, 4, 5)
    chosen = torch.tensor([2, 0, 3])
    images = decoder(poses, chosen)
    assert images.shape == (3, *image) and (images > 0).all() and (images < 1).all()
    others = torch.randn(3, 4, 5)
    others[torch.arange(3), chosen] = poses[torch.arange(3), chosen]
    assert torch.equal(decoder(others, chosen), images)
    moved = torch.zeros(3, 4, 5)
    moved[:, 1] = poses[torch.arange(3), chosen]
    assert torch.equal(decoder(moved, torch.ones(3, dtype=torch.int64)), images)


every_decoder = pytest.mark.parametrize(
    "decoder",
    [
        DeconvDecoder(5, (1, 6, 7), (4, 3, 2)),
        DenseDecoder(4, 5, (1, 6, 7)),
        DenseDecoder(4, 5, (1, 6, 7), masked=False),
    ],
    ids=["deconv", "dense", "dense-alone"],
)


@every_decoder
def test_several_classes_are_decoded_as_each_would_be(decoder: torch.nn.Module) -> None:
    torch.manual_seed(0)
    decoder.eval()
    poses, chosen = torch.randn(2, 4, 5), torch.tensor([[3, 0, 1], [2, -1, -1]])
    images = decoder(poses, chosen)
    assert images.shape == (2, 3, 1, 6, 7)
    for b, m in ((0, 0), (0, 1), (0, 2), (1, 0)):
        torch.testing.assert_close(images[b, m], decoder(poses[b : b + 1], chosen[b : b + 1, m])[0])
    assert not images[1, 1:].any()


def test_labels_choose_and_sets_leave_the_choice_to_the_scores() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.6, 0.2, 0.7]])
    assert chosen_class(scores, None).tolist() == [1, 2]
    assert chosen_class(scores, torch.tensor([2, 1])).tolist() == [2, 1]
    assert chosen_class(scores, torch.tensor([[2, -1], [1, 0]])).tolist() == [[2, -1], [1, 0]]
    sets = torch.tensor([[1, 0, 1], [1, 1, 0]], dtype=torch.uint8)
    assert chosen_class(scores, sets).tolist() == [2, 0]
    for kind in (torch.int32, torch.uint8):
        assert chosen_class(scores, torch.tensor([2, 1], dtype=kind)).tolist() == [2, 1]
    for wrong in (torch.tensor([2.0, 1.0]), sets[:, :2], sets[None]):
        with pytest.raises(ValueError, match=r"they must be class indices \[b\] or int64 \[b, m\], or sets \[2, 3\]"):
            chosen_class(scores, wrong)
    poses = torch.arange(12.0).view(2, 3, 2)
    assert chosen_poses(poses, torch.tensor([2, 1])).tolist() == [[4, 5], [8, 9]]


def test_parts_are_those_of_the_images_of_the_same_step() -> None:
    """Clipped and summed they are the images, also where these are moved at random; absent ones are black."""
    data = load_data(PAIRS)
    for augment in (None, AugmentConfig(shift=2, flip=True)):
        batches = Batches(data.train, 16, seed=3, augment=augment, shuffle=True)
        images, sets = next(batches.epoch(1, start=2))
        parts = batches.parts(1, 2)
        assert parts is not None and parts.pixels.shape == (16, 2, *images.shape[1:])
        torch.testing.assert_close(parts.pixels.sum(1).clamp(max=1), images)
        assert torch.equal(torch.nn.functional.one_hot(parts.labels, 10).sum(1), sets.long())
    shared = [Batches(data.train, 16, seed=3, shuffle=True, rank=rank, world=2).parts(1, 2) for rank in (0, 1)]
    joint = Batches(data.train, 16, seed=3, shuffle=True).parts(1, 2)
    assert joint is not None
    assert torch.equal(torch.cat([each.labels for each in shared if each is not None]), joint.labels)
    assert load_data(DataConfig("digits")).evaluation("test", 8).parts(0, 0) is None


def test_each_shown_class_is_compared_with_its_own_part(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = load_data(PAIRS)
    config: Config = tiny_config(tmp_path, loss=LossConfig("margin", reconstruction=0.5))
    shape = {"image_size": data.image_size, "num_classes": 10}
    model = create_model("capsnet", **shape, channels=4, primary=2, kernel=5, stride=4, class_pose=4)
    batches = data.training(PAIRS, 8, seed=0)
    images, sets = next(batches.epoch(0))
    parts = batches.parts(0, 0)
    assert parts is not None
    module = LossModule(model, build_phases(model, config)[0])
    targets = multi_hot(sets, 10)
    loss, scores, *_ = module(images, sets, targets, 1.0, parts)
    expected = build_criterion(LossConfig("margin"))(model(images), images, targets)
    poses = model(images).capsules[-1].poses
    for m in range(2):
        decoded = model.reconstruct(poses, parts.labels[:, m])
        expected = expected + 0.5 * (decoded - parts.pixels[:, m]).square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(scores, model(images).scores)
    alone = module(images, sets, targets)[0]
    assert not alone.isclose(loss)

    fabric = build_fabric(config)
    phase = build_phases(model, config)[0]
    wrapped, optimizer = fabric.setup(LossModule(model, phase), phase.optimizer)
    step_weights(fabric, wrapped, optimizer, Batch(images, sets, targets, parts=parts), clip=None)
    assert module(images, sets, targets, 1.0, parts)[0] < loss


def test_reconstruction_of_parts_sums_over_them() -> None:
    a, b = torch.rand(3, 2, 1, 4, 4), torch.rand(3, 2, 1, 4, 4)
    each = [reconstruction_loss(a[:, m], b[:, m]) for m in range(2)]
    torch.testing.assert_close(reconstruction_loss(a, b), each[0] + each[1])


@every_decoder
def test_no_class_is_black_beside_others_and_alone(decoder: torch.nn.Module) -> None:
    decoder.eval()
    images = decoder(torch.randn(2, 4, 5), torch.tensor([-1, 0]))
    assert not images[0].any() and images[1].any()
