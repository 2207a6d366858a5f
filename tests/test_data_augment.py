"""Colours, cuts and several views of an image."""

from __future__ import annotations

import colorsys

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from torchcaps.config import AugmentConfig, DataConfig
from torchcaps.data import Data, Images, colour, load_data, prepare, transforms
from torchcaps.data.batches import Batches

FACTORS = torch.tensor([0.0, 0.6, 1.0, 1.7])


def random_images(channels=3) -> torch.Tensor:
    return torch.rand(4, channels, 6, 5, generator=torch.Generator().manual_seed(0))


class TestColour:
    @pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_as_torchvision_with_a_factor_for_each_image(self, name, channels):
        images = random_images(channels)
        ours = getattr(colour, f"scale_{name}")(images, FACTORS)
        for image, changed, factor in zip(images, ours, FACTORS.tolist(), strict=True):
            theirs = getattr(reference, f"adjust_{name}")(image, factor)
            torch.testing.assert_close(changed, theirs, rtol=0, atol=2e-3)  # torchvision's luma is rounded

    @pytest.mark.parametrize("turn", [-0.5, -0.2, 0.0, 1 / 3, 0.5])
    def test_hue_as_colorsys(self, turn):
        images = random_images()
        images[0, :, 0, 0] = 0.4  # grey has no hue
        images[0, :, 0, 1] = 0.0
        ours = colour.turn_hue(images, torch.full((4,), turn))
        for before, after in zip(images.movedim(1, 3).reshape(-1, 3), ours.movedim(1, 3).reshape(-1, 3), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*before.tolist())
            expected = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
            torch.testing.assert_close(after, torch.tensor(expected), rtol=0, atol=1e-5)

    def test_grey_images_keep_their_one_channel(self):
        pixels = (random_images(1) * 255).to(torch.uint8)
        config = AugmentConfig(saturation=0.5, hue=0.2)
        draws = transforms.draw(config, 4, transforms.np.random.SeedSequence(0))
        assert torch.equal(transforms.augment(pixels, config, draws), pixels / 255)


class TestCuts:
    def test_cut_is_the_window_at_its_place(self):
        images = random_images()
        place = torch.tensor([[0.0, 0.0], [0.999, 0.0], [0.4, 0.999], [0.7, 0.5]])
        cuts = transforms.cut_at(images, place, 4)
        for image, cut, top, left in zip(images, cuts, (0, 2, 1, 2), (0, 0, 1, 1), strict=True):
            assert torch.equal(cut, image[:, top : top + 4, left : left + 4])

    def test_views(self):
        images = random_images()
        views = torch.stack(prepare.crops(images, 4, 10), 1)
        assert views.shape == (4, 10, 3, 4, 4)
        places = [(1, 0), (0, 0), (0, 1), (2, 0), (2, 1)]
        for number, (top, left) in enumerate(places):
            window = images[..., top : top + 4, left : left + 4]
            assert torch.equal(views[:, number], window) and torch.equal(views[:, 5 + number], window.flip(-1))
        assert torch.equal(torch.stack(prepare.crops(images, 4, 5), 1), views[:, :5])

    def test_training_cuts_anywhere_and_tests_from_the_middle(self):
        pixels = torch.arange(36, dtype=torch.uint8).view(1, 1, 6, 6).repeat(64, 1, 1, 1)
        images = Images(pixels, torch.zeros(64, dtype=torch.int64), ("a",))
        data = Data(images, images, images, crop=4, views=5)
        assert data.image_size == (4, 4)
        batch, _ = next(data.training(DataConfig(), 64, seed=0).epoch(0))
        corners = (batch[:, 0, 0, 0] * 255).round().unique().tolist()
        assert corners == [0, 1, 2, 6, 7, 8, 12, 13, 14]
        batch, _ = next(data.evaluation("validation", 64).epoch(0))
        assert batch.shape == (64, 1, 4, 4) and torch.equal(batch[:, 0] * 255, pixels[:, 0, 1:5, 1:5].float())
        batch, _ = next(data.evaluation("test", 64).epoch(0))
        assert batch.shape == (64, 5, 1, 4, 4)

    def test_resize_and_cut_of_a_set(self):
        data = load_data(DataConfig(image_size=12, crop=10, views=10, standardise="image"))
        images, _ = next(data.evaluation("test", 7).epoch(0))
        assert images.shape == (7, 10, 1, 10, 10)
        torch.testing.assert_close(images.mean((2, 3, 4)), torch.zeros(7, 10), rtol=0, atol=1e-5)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"crop": 9}, "data.crop is 9: it must be 1 .. 8 pixels"),
            ({"views": 5}, "data.views is 5: .* need data.crop"),
        ],
    )
    def test_impossible_settings(self, options, message):
        with pytest.raises(ValueError, match=message):
            load_data(DataConfig(**options))

    def test_processes_together_cut_as_one_does(self):
        images = Images((random_images() * 255).to(torch.uint8), torch.zeros(4, dtype=torch.int64), ("a",))
        options = {"augment": AugmentConfig(contrast=0.5), "cut": 3, "shuffle": True}
        whole = next(Batches(images, 4, **options).epoch(0))[0]
        halves = [next(Batches(images, 4, rank=rank, world=2, **options).epoch(0))[0] for rank in range(2)]
        assert torch.equal(torch.cat(halves), whole)
