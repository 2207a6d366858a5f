"""The changes of digits that Efficient-CapsNet is trained on."""

from __future__ import annotations

import hashlib

import torch

from torchcaps.config import AugmentConfig
from torchcaps.data import byerly
from torchcaps.data.splits import mix
from torchcaps.data.transforms import augment, draw


def uniform(count: int) -> torch.Tensor:
    return torch.rand(count, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_digits_are_changed_and_stay_white_on_black() -> None:
    pixels = torch.zeros(64, 1, 28, 28, dtype=torch.uint8)
    pixels[:, :, 8:20, 10:18] = 255
    changed = byerly.change_digits(pixels, uniform(64))
    assert changed.dtype == torch.uint8 and changed.shape == pixels.shape
    assert (changed != pixels).flatten(1).any(1).all()
    ink = (changed > 127).flatten(1).sum(1)
    assert (ink > 30).all() and (ink < 130).all()  # of 96: nothing is inverted, and no overshoot comes round
    border = torch.cat([changed[..., :1, :], changed[..., -1:, :], changed[..., :1].mT, changed[..., -1:].mT], 2)
    assert (border.float().mean((1, 2, 3)) < 64).all()
    assert torch.equal(changed, byerly.change_digits(pixels, uniform(64)))


def test_shifts_lose_no_ink() -> None:
    images = torch.zeros(4, 1, 9, 7)
    images[:, :, 2:5, 1:3] = 1
    one, zero = torch.ones(4).double(), torch.zeros(4).double()
    back = torch.tensor([True, False, True, False])
    for down, right in ((one, zero), (zero, one), (2 * one, 2 * one)):
        moved = byerly._shift_within(images, down, right, back, back)
        assert torch.equal(moved.sum((1, 2, 3)), images.sum((1, 2, 3)))
    least = torch.full((4,), 0.26).double()  # of margins 2 and 4, 1 and 4: up and left rounded up, else of one more
    moved = byerly._shift_within(images, least, least, back, back)
    assert moved[0, 0, 1:4, 0:2].all() and moved[1, 0, 3:6, 2:4].all()
    moved = byerly._shift_within(images, one, one, back, back)
    assert moved[0, 0, :3, :2].all() and moved[1, 0, 6:, 5:].all()  # to the border, and no further
    assert torch.equal(byerly._shift_within(0 * images, one, one, back, back), 0 * images)


def test_few_of_the_squeezed_stand_one_column_further() -> None:
    """Two numbers are drawn there: the second moves the image where it is above a half, 12.97 % of the time."""
    drawn = byerly._normal(*torch.rand(2, 400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    assert abs((drawn.abs() >= 0.5).double().mean().item() - byerly.FURTHER) < 0.002
    pixels = torch.full((4_000, 1, 8, 28), 255, dtype=torch.uint8)
    draws = uniform(4_000)
    draws[:, 0], draws[:, 7:9] = 0.9, 0.0  # no turn; no number, so that one pixel is squeezed
    changed = byerly.change_digits(pixels, draws)
    further = (changed[:, 0, 0, 0] == 0).double().mean().item()
    assert abs(further - byerly.FURTHER) < 0.03


def test_squeezed_images_are_narrower_by_whole_pixels() -> None:
    images = torch.ones(2, 1, 5, 28)
    narrow = byerly._squeeze(images, torch.tensor([7, 1]), torch.tensor([1, 0]))
    there = (narrow[:, 0, 0] > 0.5).long()
    assert there.sum(1).tolist() == [21, 27] and there.argmax(1).tolist() == [4, 0]
    torch.testing.assert_close(narrow[0, 0, 0, 4:25], torch.ones(21))


def test_a_patch_of_four_pixels_is_black() -> None:
    corners = torch.tensor([[0.0, 0.0], [0.999, 0.999], [0.5, 0.2]]).double()
    cut = byerly._cut(torch.ones(3, 1, 28, 28), corners)
    assert (cut == 0).sum((1, 2, 3)).tolist() == [16] * 3
    first = [(each[0] == 0).nonzero()[0].tolist() for each in cut]
    assert first[0] == [4, 4] and first[1] == [22, 22]


def test_turns_are_known_and_numbers_normal() -> None:
    images = torch.rand(1, 1, 6, 6)
    turned = byerly._turn(images, torch.tensor([90.0]))  # about the pixel at (3, 3), which row and column 0 are far of
    torch.testing.assert_close(turned[..., 1:, 1:], images[..., 1:, 1:].rot90(1, (2, 3)), atol=1e-5, rtol=0)
    first, second = torch.rand(2, 100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    normal = byerly._normal(first, second)
    assert abs(normal.std().item() - byerly.DEVIATION) < 0.01 and abs(normal.mean().item()) < 0.01


def test_other_draws_stay_as_they_are() -> None:
    pixels = torch.randint(0, 256, (6, 1, 28, 28), dtype=torch.uint8)
    plain, more = AugmentConfig(shift=2, rotate=5.0), AugmentConfig(shift=2, rotate=5.0, byerly=True)
    draws = [draw(each, 6, mix(0, 1)) for each in (plain, more)]
    assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))
    assert not torch.equal(augment(pixels, plain, draws[0]), augment(pixels, more, draws[1]))


def test_what_is_made_of_pixels_stays_what_it_was() -> None:
    """Whichever way it is computed: images of two shapes, with and without ink."""
    generator, found = torch.Generator().manual_seed(3), hashlib.sha256()
    for shape in ((96, 1, 28, 28), (64, 3, 20, 24)):
        pixels = torch.zeros(shape, dtype=torch.uint8)
        pixels[:, :, 6:15, 5:14] = torch.randint(0, 256, (*shape[:2], 9, 9), generator=generator, dtype=torch.uint8)
        pixels[:2] = 0
        uniform = torch.rand(shape[0], 12, dtype=torch.float64, generator=generator)
        found.update(byerly.change_digits(pixels, uniform).numpy().tobytes())
    assert found.hexdigest()[:16] == "8a61145523c1470d"
