"""Transforms against slicing and hand computation; the order and the draws of batches."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from torchcaps.config import AugmentConfig, ComposeConfig, DataConfig
from torchcaps.data import Batches, Data, Images, load_data, prepare, transforms
from torchcaps.data.splits import DRAWS, mix

ALL = AugmentConfig(
    crop=2,
    flip=True,
    shift=1,
    rotate=15.0,
    scale=0.2,
    shear=5.0,
    brightness=0.2,
    contrast=0.5,
    saturation=0.3,
    hue=0.1,
)


def random_images(n=23, c=3, h=9, w=7) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.arange(n), tuple(map(str, range(n))))


def degrees(*values: float) -> torch.Tensor:
    return torch.tensor(values)


@pytest.fixture(params=[torch.uint8, torch.float32], ids=["uint8", "float"])
def batch(request) -> torch.Tensor:
    return random_images(6).pixels.to(request.param)


class TestIndexing:
    def test_crop_is_slicing(self, batch):
        corner = torch.tensor([[0, 0], [4, 4], [2, 2], [0, 3], [1, 4], [3, 0]])
        padded = F.pad(batch, (2, 2, 2, 2))
        cuts = [(slice(None), slice(top, top + 9), slice(left, left + 7)) for top, left in corner.tolist()]
        expected = [image[cut] for image, cut in zip(padded, cuts, strict=True)]
        assert torch.equal(transforms.random_crop(batch, corner, 2), torch.stack(expected))
        assert torch.equal(transforms.random_crop(batch, corner, 2)[2], batch[2]), "the middle is the image itself"

    def test_shift_is_slicing(self, batch):
        moved = transforms.shift(batch, torch.tensor([[0, 0], [3, 0], [0, -2], [1, 1], [-3, 3], [0, 0]]), 3)
        assert torch.equal(moved[0], batch[0])
        assert torch.equal(moved[1, :, 3:], batch[1, :, :-3]) and not moved[1, :, :3].any()
        assert torch.equal(moved[2, :, :, :-2], batch[2, :, :, 2:]) and not moved[2, :, :, -2:].any()
        assert torch.equal(moved[3, :, 1:, 1:], batch[3, :, :-1, :-1])
        assert torch.equal(moved[4, :, :-3, 3:], batch[4, :, 3:, :-3])

    def test_flip_mirrors_the_chosen(self, batch):
        flip = torch.tensor([True, False, True, False, False, True])
        expected = [image.flip(-1) if mirrored else image for image, mirrored in zip(batch, flip, strict=True)]
        assert torch.equal(transforms.horizontal_flip(batch, flip), torch.stack(expected))


class TestAffine:
    def test_nothing_changes_at_zero(self):
        images = transforms.to_float(random_images(2).pixels)
        moved = transforms.affine(images, degrees(0, 0), degrees(1, 1), degrees(0, 0))
        torch.testing.assert_close(moved, images, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("turns", [1, 2, 3, -1])
    def test_quarter_turns_are_counter_clockwise(self, turns):
        images = transforms.to_float(random_images(1, h=8, w=8).pixels)
        moved = transforms.affine(images, degrees(90 * turns), degrees(1), degrees(0))
        torch.testing.assert_close(moved, torch.rot90(images, turns, (2, 3)), rtol=0, atol=1e-5)

    def test_quarter_turn_keeps_the_pixels_of_an_oblong_square(self):
        """In pixels, not in units of height and width: the middle square of an oblong turns within itself."""
        images = transforms.to_float(random_images(1, h=5, w=9).pixels)
        moved = transforms.affine(images, degrees(90), degrees(1), degrees(0))
        torch.testing.assert_close(moved[..., 2:7], torch.rot90(images[..., 2:7], 1, (2, 3)), rtol=0, atol=1e-5)
        torch.testing.assert_close(moved[..., :2], torch.zeros(1, 3, 5, 2), rtol=0, atol=1e-5)

    def test_scale_enlarges(self):
        """A single point at (2, 1) from the centre goes to (4, 2)."""
        images = torch.zeros(1, 1, 9, 11)
        images[0, 0, 4 + 1, 5 + 2] = 1.0
        moved = transforms.affine(images, degrees(0), degrees(2), degrees(0))
        assert moved[0, 0].argmax() == (4 + 2) * 11 + 5 + 4

    def test_shear_moves_right_what_lies_below(self):
        images = torch.zeros(1, 1, 9, 11)
        images[0, 0, 4 + 3, 5] = 1.0
        moved = transforms.affine(images, degrees(0), degrees(1), degrees(45))
        assert moved[0, 0].argmax() == (4 + 3) * 11 + 5 + 3

    def test_matrix_inverts_rotation_scale_and_shear_in_this_order(self):
        angle, scale, shear = 0.3, 1.2, 0.1
        turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        forth = turn @ (scale * torch.eye(2)) @ torch.tensor([[1.0, math.tan(shear)], [0.0, 1.0]])
        back = transforms.source_matrix(degrees(math.degrees(angle)), degrees(scale), degrees(math.degrees(shear)))
        torch.testing.assert_close(back[0] @ forth, torch.eye(2))


class TestStandardise:
    def test_per_image(self):
        images = transforms.to_float(random_images(4).pixels)
        done = prepare.standardise_image(images)
        torch.testing.assert_close(done.mean((1, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)
        torch.testing.assert_close(done.std((1, 2, 3), correction=0), torch.ones(4))
        torch.testing.assert_close(done[1], (images[1] - images[1].mean()) / images[1].std(correction=0))

    def test_per_channel_of_an_image(self):
        images = transforms.to_float(random_images(4).pixels)
        (batch, _), *_ = Batches(random_images(4), 4, standardise="channel").epoch(0)
        for image, done in zip(images, batch, strict=True):
            for channel, found in zip(image, done, strict=True):
                torch.testing.assert_close(found, (channel - channel.mean()) / channel.std(correction=0))

    @pytest.mark.parametrize("standardise", [prepare.standardise_image, prepare.standardise_channel])
    def test_blank_image_becomes_zero(self, standardise):
        assert not standardise(torch.full((1, 1, 4, 4), 0.7)).abs().max() > 1e-6

    def test_by_data_set(self):
        images = random_images(16)
        data = Data(images, images, images, "dataset")
        done = torch.cat([batch for batch, _ in data.evaluation("train", 5).epoch(0)])
        torch.testing.assert_close(done.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
        torch.testing.assert_close(done.std((0, 2, 3), correction=0), torch.ones(3))

    def test_by_given_deviations(self):
        images = random_images(16)
        data = Data(images, images, images, "dataset", deviations=(0.5, 0.25, 2.0))
        done = torch.cat([batch for batch, _ in data.evaluation("train", 5).epoch(0)])
        plain = images.pixels.float() / 255
        wanted = (plain - plain.mean((0, 2, 3), keepdim=True)) / torch.tensor([0.5, 0.25, 2.0])[:, None, None]
        torch.testing.assert_close(done, wanted)

    @pytest.mark.parametrize("wrong", [(0.5,), (0.5, 0.25, 0.0)])
    def test_deviations_that_cannot_be(self, wrong):
        images = random_images(16)
        with pytest.raises(ValueError, match=r"data.std is .* above 0, one a channel \(3\)"):
            Data(images, images, images, "dataset", deviations=wrong)
        with pytest.raises(ValueError, match=r"data.standardise is 'none'; it must be 'dataset'"):
            Data(images, images, images, deviations=(0.5, 0.25, 2.0))


MOVES = AugmentConfig(crop=2, flip=True, shift=1)


class TestStandardiseFirst:
    """Whole images are standardised before they are cut or moved; what enters is then the mean."""

    def whole(self, images: torch.Tensor, how: str, data: Data) -> torch.Tensor:
        if how == "image":
            return prepare.standardise_image(images)
        return (images - data.mean[:, None, None]) / data.std[:, None, None]

    @pytest.mark.parametrize("how", ["image", "dataset"])
    @pytest.mark.parametrize("cut", [None, 5])
    def test_moves_are_slices_of_standardised_images(self, how, cut):
        images = random_images()
        data = Data(images, images, images, how, crop=cut, standardise_first=True)
        config = DataConfig(standardise=how, standardise_first=True, augment=MOVES)
        batches = data.training(config, 6, seed=3)
        for step, (batch, labels) in enumerate(batches.epoch(1)):
            draws = transforms.draw(MOVES, 6, mix(DRAWS, 3, 1, step))
            whole = self.whole(images.pixels[labels].float() / 255, how, data)
            for n, image in enumerate(whole):
                if cut is not None:
                    top, left = (int(place * (side - 4)) for place, side in zip(draws.cut[n], (9, 7), strict=True))
                    image = image[:, top : top + 5, left : left + 5]
                height, width = image.shape[1:]
                top, left = draws.crop[n].tolist()
                image = F.pad(image, (2,) * 4)[:, top : top + height, left : left + width]
                image = image.flip(-1) if draws.flip[n] else image
                down, right = draws.shift[n].tolist()
                image = F.pad(image, (1,) * 4)[:, 1 - down : 1 - down + height, 1 - right : 1 - right + width]
                assert torch.equal(batch[n], image)

    def test_the_border_leaves_the_statistics_of_the_picture_alone(self):
        """Standardised afterwards, a bright picture with a black border is not what it is in a test."""
        pixels = torch.full((1, 1, 8, 8), 150, dtype=torch.uint8)
        pixels[..., ::2] = 250
        images = Images(pixels.expand(64, 1, 8, 8), torch.zeros(64, dtype=torch.int64), ("a",))
        seen = {}
        for first in (False, True):
            data = Data(images, images, images, "image", standardise_first=first)
            config = DataConfig(standardise="image", standardise_first=first, augment=AugmentConfig(crop=4))
            (batch, _), (tested, _) = (
                next(data.training(config, 64, 0).epoch(0)),
                next(data.evaluation("test", 64).epoch(0)),
            )
            seen[first] = {round(value, 3) for value in batch.flatten().tolist()}
            assert {round(value, 3) for value in tested.flatten().tolist()} == {-1.0, 1.0}
        assert seen[True] == {-1.0, 0.0, 1.0}
        assert len(seen[False]) > 3

    @pytest.mark.parametrize("views", [1, 5, 10])
    def test_tests_cut_standardised_images(self, views):
        images = random_images()
        data = Data(images, images, images, "image", crop=5, views=views, standardise_first=True)
        tested = torch.cat([batch for batch, _ in data.evaluation("test", 6).epoch(0)])
        whole = prepare.standardise_image(images.pixels.float() / 255)
        expected = torch.stack(prepare.crops(whole, 5, views), 1)
        assert torch.equal(tested, expected[:, 0] if views == 1 else expected)

    def test_colours_change_before(self):
        images = random_images()
        config = AugmentConfig(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2, rotate=10.0)
        (batch, labels), *_ = Batches(images, 6, augment=config, standardise="image", standardise_first=True).epoch(0)
        draws = transforms.draw(config, 6, mix(DRAWS, 0, 0, 0))
        coloured = transforms.recolour(images.pixels[labels].float() / 255, config, draws)
        turned = transforms.affine(prepare.standardise_image(coloured), draws.angle, draws.scale, draws.shear)
        assert torch.equal(batch, turned)

    def test_streams_and_their_parts(self):
        compose = ComposeConfig(base="digits", epoch=24, held=12)
        config = DataConfig("multimnist", compose=compose, standardise="image", standardise_first=True, augment=MOVES)
        batches = load_data(config).training(config, 12, seed=0)
        after = replace(batches, standardise_first=False)
        unmoved = replace(batches, augment=AugmentConfig())
        for step, ((first, _), (last, _), (plain, _)) in enumerate(
            zip(batches.epoch(0), after.epoch(0), unmoved.epoch(0), strict=True)
        ):
            draws = transforms.draw(MOVES, 12, mix(DRAWS, 0, 0, step))
            assert torch.equal(first, transforms.move(plain, MOVES, draws)) and not torch.allclose(first, last)
            parts, still = batches.parts(0, step), unmoved.parts(0, step)
            assert parts is not None and still is not None
            for one, two in zip(parts.pixels.unbind(1), still.pixels.unbind(1), strict=True):
                assert torch.equal(one, transforms.move(two, MOVES, draws))

    def test_impossible_settings(self):
        images = random_images()
        with pytest.raises(ValueError, match=r"data.standardise_first is given, but data.standardise is 'none'"):
            Data(images, images, images, standardise_first=True)
        data = Data(images, images, images, "image")
        with pytest.raises(ValueError, match=r"data.standardise_first is True, but the data were loaded with False"):
            data.training(DataConfig(standardise="image", standardise_first=True), 6, 0)


class TestEnlarge:
    """Images are held, cropped and moved at their own size; a batch is enlarged last."""

    crop = AugmentConfig(crop=2, flip=True)

    @pytest.mark.parametrize(("h", "w", "side"), [(9, 7, 9), (9, 7, 20), (5, 5, 35), (1, 3, 8)])
    def test_arrays_and_tensors_are_enlarged_alike(self, h, w, side):
        images = transforms.to_float(random_images(3, h=h, w=w).pixels)
        found = transforms.enlarge(images, side)
        assert found.shape == (3, 3, side, side)
        torch.testing.assert_close(found, torch.from_numpy(prepare.enlarge(images.numpy(), side)), rtol=0, atol=1e-6)
        torch.testing.assert_close(found, F.interpolate(images, (side, side), mode="bilinear", antialias=True))

    @pytest.mark.parametrize("how", ["none", "image", "dataset"])
    def test_a_crop_moves_a_picture_by_its_own_pixels(self, how):
        config = DataConfig("digits", validation=0.0, standardise=how, augment=self.crop)
        small, large = load_data(config), load_data(replace(config, enlarge=31))
        assert (small.image_size, large.image_size, large.cut_size) == ((8, 8), (31, 31), (8, 8))
        before = small.training(config, 32, seed=1).epoch(2)
        after = large.training(replace(config, enlarge=31), 32, seed=1).epoch(2)
        for (images, labels), (enlarged, same) in zip(before, after, strict=True):
            assert torch.equal(labels, same) and torch.equal(enlarged, transforms.enlarge(images, 31))

    def test_images_are_held_small(self):
        data, loaded = (
            load_data(DataConfig("digits", validation=0.0, enlarge=enlarge, image_size=size))
            for enlarge, size in ((64, None), (None, 64))
        )
        assert data.image_size == loaded.image_size == (64, 64)
        assert data.train.pixels.nbytes == len(data.train) * 8 * 8 == loaded.train.pixels.nbytes // 64

    @pytest.mark.parametrize("world", [1, 2, 3])
    def test_processes_together_see_what_one_sees_and_a_resumed_epoch_is_its_tail(self, world):
        images = random_images(20, h=8, w=8)
        one = Batches(images, 9, seed=3, augment=ALL, shuffle=True, enlarge=24)
        parts = [replace(one, rank=rank, world=world) for rank in range(world)]
        seen = [torch.cat(step) for step in zip(*([x for x, _ in each.epoch(1)] for each in parts), strict=True)]
        whole = [x for x, _ in one.epoch(1)]
        assert all(map(torch.equal, seen, whole)) and whole[0].shape == (9, 3, 24, 24)
        assert all(map(torch.equal, (x for x, _ in one.epoch(1, start=1)), whole[1:]))

    def test_a_process_without_images_gets_none(self):
        (images, _), *_ = Batches(random_images(4, h=8, w=8), 2, rank=1, world=2, enlarge=24).epoch(0)
        assert images.shape == (1, 3, 24, 24)
        *_, (images, _) = Batches(random_images(3, h=8, w=8), 2, rank=0, world=2, enlarge=24).epoch(0)
        assert images.shape == (0, 3, 24, 24)

    def test_tests_are_enlarged_view_by_view(self):
        plain = Batches(random_images(4), 4, cut=5, views=10)
        images, enlarged = (next(each.epoch(0))[0] for each in (plain, replace(plain, enlarge=12)))
        assert images.shape == (4, 10, 3, 5, 5) and enlarged.shape == (4, 10, 3, 12, 12)
        assert torch.equal(enlarged[:, 7], transforms.enlarge(images[:, 7], 12))

    def test_parts_of_a_stream_are_enlarged_with_it(self):
        compose = ComposeConfig(base="digits", epoch=12, held=6, overlay="max")
        data = load_data(DataConfig("multimnist", enlarge=50, compose=compose))
        batches = data.evaluation("test", 6)
        (images, _), parts = next(batches.epoch(0)), batches.parts(0, 0)
        assert data.train.shape == (1, 36, 36) and parts is not None and parts.pixels.shape == (6, 2, 1, 50, 50)
        assert images.shape == (6, 1, 50, 50) and (images - parts.pixels.amax(1)).min() > -1e-6

    @pytest.mark.parametrize("data", [{}, {"image_size": 9}, {"pad": 9}, {"image_size": 12, "crop": 9}])
    def test_it_makes_nothing_smaller(self, data):
        side = 7 if not data else 8
        with pytest.raises(ValueError, match=rf"data.enlarge is {side}: images of {side + 1}x{side + 1} pixels can be"):
            load_data(DataConfig("digits", enlarge=side, **data))


class TestDraws:
    def test_ranges_are_reached_and_kept(self):
        draws = transforms.draw(ALL, 4000, mix(DRAWS, 0, 0, 0))
        assert draws.crop.unique().tolist() == [0, 1, 2, 3, 4] and draws.shift.unique().tolist() == [-1, 0, 1]
        assert 0.45 < draws.flip.float().mean() < 0.55
        uniform = [(draws.angle, 0, 15), (draws.scale, 1, 0.2), (draws.shear, 0, 5), (draws.brightness, 1, 0.2)]
        uniform += [(draws.contrast, 1, 0.5), (draws.saturation, 1, 0.3), (draws.hue, 0, 0.1), (draws.cut, 0.5, 0.5)]
        for drawn, centre, reach in uniform:
            assert (drawn - centre).abs().max() <= reach * (1 + 1e-6)
            assert drawn.max() > centre + 0.9 * reach and drawn.min() < centre - 0.9 * reach

    def test_parameters_are_independent(self):
        draws = transforms.draw(ALL, 4000, mix(DRAWS, 0, 0, 0))
        columns = torch.cat([parameter.float().view(4000, -1) for parameter in draws], 1)
        assert (columns.T.corrcoef() - torch.eye(26)).abs().max() < 0.1

    def test_one_parameter_leaves_the_others_alone(self):
        seed = mix(DRAWS, 0, 0, 0)
        assert torch.equal(transforms.draw(AugmentConfig(crop=2), 9, seed).crop, transforms.draw(ALL, 9, seed).crop)

    @pytest.mark.parametrize(
        "config",
        [
            AugmentConfig(crop=-1),
            AugmentConfig(scale=1.0),
            AugmentConfig(shear=90.0),
            AugmentConfig(contrast=1.5),
            AugmentConfig(hue=0.6),
        ],
    )
    def test_impossible_changes(self, config):
        with pytest.raises(ValueError, match=r"augment\.(crop|scale|shear|contrast|hue) is"):
            Batches(random_images(), 4, augment=config)


def collect(batches, epoch=0, start=0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(batches.epoch(epoch, start))


def equal(ours, theirs) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(a, b) for one, two in zip(ours, theirs, strict=True) for a, b in zip(one, two, strict=True)
    )


class TestBatches:
    def make(self, **options) -> Batches:
        settings = {"seed": 1, "augment": ALL, "standardise": "image", "shuffle": True, "drop_last": False}
        return Batches(random_images(), 6, **(settings | options))

    def test_an_epoch_sees_each_image_once(self):
        batches = self.make()
        labels = [labels for _, labels in collect(batches)]
        assert [len(part) for part in labels] == [6, 6, 6, 5] and len(batches) == 4
        assert torch.cat(labels).sort().values.tolist() == list(range(23))
        assert len(collect(self.make(drop_last=True))) == len(self.make(drop_last=True)) == 3

    def test_labels_belong_to_their_images(self):
        images = random_images()
        for batch, labels in collect(self.make(augment=None, standardise="none")):
            assert torch.equal(batch, images.pixels[labels].float() / 255)

    @pytest.mark.parametrize("first", [False, True])
    @pytest.mark.parametrize("world", [2, 3, 6])
    def test_processes_together_see_what_one_sees(self, world, first):
        how = {"standardise_first": first}
        parts = [collect(self.make(rank=rank, world=world, **how)) for rank in range(world)]
        joint = [tuple(torch.cat(halves) for halves in zip(*step, strict=True)) for step in zip(*parts, strict=True)]
        assert equal(joint, collect(self.make(**how)))
        sizes = [len(part[0][1]) for part in parts]
        assert max(sizes) - min(sizes) <= 1

    def test_resumed_epoch_is_its_tail(self):
        whole = collect(self.make(), epoch=3)
        for start in range(5):
            assert equal(collect(self.make(), epoch=3, start=start), whole[start:])

    @pytest.mark.parametrize("augment", [None, ALL])
    def test_seeds_and_epochs_differ(self, augment):
        first = collect(self.make(augment=augment))
        assert equal(first, collect(self.make(augment=augment)))
        assert not equal(first, collect(self.make(augment=augment), epoch=1))
        assert not equal(first, collect(self.make(augment=augment, seed=2)))

    def test_changes_are_drawn_anew_for_each_image_step_and_epoch(self):
        same = Images(random_images(1).pixels.repeat(12, 1, 1, 1), torch.zeros(12, dtype=torch.int64), ("a",))
        batches = Batches(same, 6, seed=0, augment=ALL)
        seen = torch.cat([images for epoch in (0, 1) for images, _ in collect(batches, epoch)])
        assert len(seen.unique(dim=0)) == 24

    def test_global_generator_is_left_alone(self):
        state = torch.get_rng_state()
        collect(self.make())
        assert torch.equal(torch.get_rng_state(), state)

    def test_evaluation_is_plain_and_in_order(self):
        images = random_images()
        data = Data(images, images, images)
        batches = collect(data.evaluation("test", 10))
        assert torch.equal(torch.cat([labels for _, labels in batches]), images.labels)
        assert torch.equal(torch.cat([batch for batch, _ in batches]), images.pixels.float() / 255)

    def test_a_process_may_be_left_without_images(self):
        last = [collect(Batches(random_images(7), 6, rank=rank, world=3))[-1] for rank in range(3)]
        assert [len(labels) for _, labels in last] == [0, 0, 1]
        assert last[0][0].shape == (0, 3, 9, 7)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rank": 2, "world": 2}, "rank 2 is outside 0 .. 1"),
            ({"world": 7}, "batch_size 6 is below 7"),
            ({"standardise": "dataset"}, "needs mean and std"),
        ],
    )
    def test_impossible_settings(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.make(**options)

    def test_impossible_steps(self):
        with pytest.raises(ValueError, match="step 5 is outside the 4 steps"):
            self.make().epoch(0, start=5)
        with pytest.raises(ValueError, match="must not be negative, got -1"):
            self.make().epoch(-1)
        with pytest.raises(ValueError, match="batch_size 24 exceeds the 23 images"):
            Batches(random_images(), 24, drop_last=True)


def test_training_batches_of_a_data_set():
    config = DataConfig(augment=AugmentConfig(shift=1), standardise="dataset")
    data = load_data(config)
    images, labels = next(data.training(config, 64, seed=0).epoch(0))
    assert images.shape == (64, 1, 8, 8) and labels.dtype == torch.int64 and images.dtype == torch.float32
    with pytest.raises(ValueError, match=r"data\.standardise is 'none', but the data were loaded with 'dataset'"):
        data.training(DataConfig(), 64, seed=0)
