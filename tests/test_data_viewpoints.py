"""Moved and transformed digits."""

from __future__ import annotations

import math

import pytest
import torch

from torchcaps.config import ComposeConfig, DataConfig
from torchcaps.data import Affine, Images, Shifted, load_data
from torchcaps.data.viewpoints import Pose, source_matrix


def base(n=6, h=5, w=4, c=1) -> Images:
    pixels = torch.randint(1, 256, (n, c, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images(pixels, torch.arange(n) % 3, tuple("abc"))


def blob(side=20, inside=10) -> Images:
    """A smooth disc off the middle, and a blank image."""
    place = torch.arange(side) - side / 2
    distance = (place[:, None] - 2).square() + (place + 1).square()
    disc = (255 * torch.sigmoid((inside / 2) ** 2 - distance)).to(torch.uint8)
    return Images(torch.stack([disc, torch.zeros_like(disc)])[:, None], torch.tensor([0, 1]), ("disc", "none"))


def degrees(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


class TestShifted:
    def test_every_image_is_seen_at_every_shift_once(self):
        stream = Shifted(base(), key=1, rounds=25, side=9, shift=2)
        indices = torch.arange(stream.total)
        chosen = stream.first(indices)
        moves = stream.moves(indices, chosen)
        seen = set(zip(chosen.tolist(), *moves.T.tolist(), strict=True))
        assert stream.total == 150 and len(seen) == 150
        for image, number, (down, right) in zip(stream.fetch(indices), chosen, moves.tolist(), strict=True):
            expected = torch.zeros(9, 9, dtype=torch.uint8)
            top, left = 2 + down, 2 + right  # of the four free rows and five free columns the half, rounded down
            expected[top : top + 5, left : left + 4] = stream.base.pixels[number, 0]
            assert torch.equal(image[0], expected)
        assert torch.equal(stream.targets(indices), stream.base.labels[chosen])

    def test_neighbours_in_the_stream_move_differently(self):
        stream = Shifted(base(200), key=1, rounds=25, side=9, shift=2)
        moves = stream.moves(torch.arange(200), stream.first(torch.arange(200)))
        assert len(moves.unique(dim=0)) == 25

    def test_impossible_settings(self):
        with pytest.raises(ValueError, match=r"compose\.per_image is 26: there are 25 shifts of one image"):
            Shifted(base(), key=1, rounds=26, side=9, shift=2)
        with pytest.raises(ValueError, match=r"compose\.size is 8: shifts of 2 pixels need 9"):
            Shifted(base(), key=1, rounds=25, side=8, shift=2)


class TestAffine:
    def test_identity(self):
        stream = Affine(base(h=4, w=4), key=0, rounds=1, side=8)
        same = stream.transform(torch.arange(6), Pose(*(degrees(*[value] * 6) for value in (0, 0, 1, 1))))
        expected = torch.zeros(6, 1, 8, 8, dtype=torch.uint8)
        expected[..., 2:6, 2:6] = stream.base.pixels
        assert torch.equal(same, expected)

    def test_equals_grid_sample(self):
        """Up to the 1/256 pixel of the fixed-point places and the rounding."""
        stream = Affine(blob(), key=0, rounds=1, side=20)
        pose = Pose(degrees(17), degrees(-0.15), degrees(1.1), degrees(0.85))
        image = stream.transform(torch.tensor([0]), pose)[0, 0]
        theta = torch.cat([source_matrix(pose) * 2, torch.zeros(1, 2, 1)], 2)  # the canvas is twice as large
        grid = torch.nn.functional.affine_grid(theta, [1, 1, 40, 40], align_corners=False)
        expected = torch.nn.functional.grid_sample(stream.base.pixels[:1].double(), grid, align_corners=False)
        assert (image - expected[0, 0]).abs().max() < 2.5

    def test_matrix_inverts_rotation_then_shear_then_stretch(self):
        angle, shear, height, width = 0.3, 0.2, 1.2, 0.9
        turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        forth = torch.diag(torch.tensor([width, height])) @ torch.tensor([[1.0, shear], [0.0, 1.0]]) @ turn
        back = source_matrix(Pose(degrees(math.degrees(angle)), degrees(shear), degrees(height), degrees(width)))
        torch.testing.assert_close(back[0].float() @ forth, torch.eye(2))

    def test_ranges_are_affnists(self):
        pose = Affine(blob(), key=0, rounds=5000, side=29).pose(torch.arange(10_000))
        for drawn, centre, reach in zip(pose, (0, 0, 1, 1), (20, 0.2, 0.2, 0.2), strict=True):
            assert (drawn - centre).abs().max() <= reach
            assert drawn.max() > centre + 0.99 * reach and drawn.min() < centre - 0.99 * reach

    def test_all_ink_stays_inside_and_reaches_every_side(self):
        stream = Affine(blob(), key=0, rounds=400, side=24)
        indices = torch.arange(800)
        disc = stream.targets(indices) == 0
        images = stream.fetch(indices)
        turned = stream.transform(
            torch.zeros(int(disc.sum()), dtype=torch.int64), Pose(*(p[disc] for p in stream.pose(indices)))
        )
        assert torch.equal(images[disc].long().sum((1, 2, 3)), turned.long().sum((1, 2, 3)))
        assert not images[~disc].any()
        touched = images[disc, 0].bool()
        for side in (touched[:, 0], touched[:, -1], touched[..., 0], touched[..., -1]):
            assert side.any()

    @pytest.mark.parametrize("side", [12, 20, 33])  # below the canvas of twice the base images, and above it
    def test_each_place_where_all_ink_is_inside_is_equally_likely(self, side):
        """A dot, which stood in the middle alone where the image was cut out of the canvas."""
        pixels = torch.zeros(1, 1, 10, 8, dtype=torch.uint8)
        pixels[..., 4, 2] = 255
        dot = Images(pixels, torch.tensor([0]), ("dot",))
        count = 4000
        stream = Affine(dot, key=5, rounds=count, side=side, rotation=0, shear=0, expansion=0)
        place = stream.fetch(torch.arange(count)).flatten(1).nonzero()
        assert torch.equal(place[:, 0], torch.arange(count)), "one dot in each image"
        for drawn in (place[:, 1] // side, place[:, 1] % side):
            counts = drawn.bincount(minlength=side)
            even = count / side
            assert len(counts) == side and (counts - even).abs().max() < 5 * even**0.5

    def test_sides_that_cannot_be(self):
        with pytest.raises(ValueError, match=r"compose\.size is 0: it must be at least one pixel"):
            Affine(base(), key=0, rounds=1, side=0)

    def test_what_is_too_large_lies_in_the_middle(self):
        stream = Affine(blob(inside=16), key=0, rounds=3, side=8)
        image = stream.fetch(torch.arange(6))[stream.targets(torch.arange(6)) == 0]
        assert (image[:, 0, 3:5, 3:5] == 255).all()

    def test_an_image_depends_on_its_number_alone(self):
        stream = Affine(base(c=3), key=2, rounds=9, side=8, channels=3)
        numbers = torch.tensor([53, 0, 20, 20])
        assert torch.equal(stream.fetch(numbers), torch.cat([stream.fetch(number[None]) for number in numbers]))


@pytest.mark.parametrize(("name", "per_image"), [("expanded-mnist", 169), ("affine-digits", 32)])
def test_sets_over_the_digits_at_hand(name, per_image):
    data = load_data(DataConfig(name=name, compose=ComposeConfig(base="digits", epoch=0, held=0)))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [
        per_image * images for images in (1293, 144, 360)
    ]
    images, labels = next(data.evaluation("test", 50).epoch(0))
    assert images.shape == (50, 1, 40, 40) and labels.dtype == torch.int64 and images.amax((1, 2, 3)).min() > 0.5


def test_test_split_of_another_set():
    compose = ComposeConfig(base="digits")
    data = load_data(DataConfig(name="expanded-mnist", test="affine-digits", compose=compose))
    assert isinstance(data.train, Shifted) and isinstance(data.test, Affine)
    alone = load_data(DataConfig(name="affine-digits", compose=compose))
    assert torch.equal(data.test.fetch(torch.arange(9)), alone.test.fetch(torch.arange(9)))
    with pytest.raises(ValueError, match=r"test images \(1, 8, 8\) of 10 classes, training \(1, 40, 40\)"):
        load_data(DataConfig(name="expanded-mnist", test="digits", compose=compose))
