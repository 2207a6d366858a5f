"""Overlapped digits: what is in an image, that it is always the same, and that splits share no base image."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from torchcaps.config import ComposeConfig, Config, DataConfig
from torchcaps.data import Affine, Data, Images, Overlap, Shifted, load_data
from torchcaps.data.batches import Batches
from torchcaps.data.composed import frame, read_base, resolve
from torchcaps.data.counter import below, bits, unit
from torchcaps.data.facts import data_facts, epoch_images
from torchcaps.data.streams import enlarge
from torchcaps.tables.ahead import count_ahead
from torchcaps.tables.arguments import image_shape

# The test set of `multimnist`: SHA-256 of the bytes of its 10,000 images uint8 [n, 1, 36, 36] and of their label sets.
MULTIMNIST_TEST = ("2cd78925a0a3a7c8", "aa9356d8f8fea9f9")
# The same over the embedded digits (`--data.compose.base digits`), which every machine has.
DIGITS_TEST = ("0ce08c688d01c019", "77d35bf2feac05ac")

DIGITS = DataConfig(name="multimnist", compose=ComposeConfig(base="digits"))


def sha(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


def build(**options) -> Overlap:
    """30 random 5x4 images of 5 classes, seven composed images for each."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (30, 1, 5, 4), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 5, (30,), generator=generator)
    base = Images(pixels, labels, tuple("abcde"))
    return Overlap(**{"base": base, "key": 3, "rounds": 7, "side": 9, "shift": 2, **options})


def load_or_skip(config: DataConfig) -> Data:
    try:
        return load_data(config)
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("kind", [Overlap, Shifted, Affine])
@pytest.mark.parametrize(("held", "asked", "right"), [(3, 1, "3"), (2, 4, "2"), (3, 6, "3"), (1, 0, "at least 1")])
def test_channels_that_cannot_be_are_named_when_a_stream_is_built(kind, held, asked, right):
    base = Images(torch.ones(4, held, 5, 5, dtype=torch.uint8), torch.arange(4) % 2, ("a", "b"))
    with pytest.raises(ValueError, match=rf"compose\.channels is {asked}, of base images with {held}: .* {right}$"):
        kind(base, key=0, rounds=1, side=20, channels=asked)


class TestCounter:
    def test_is_splitmix64(self):
        """The first outputs for seed 1234567, as published at https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64."""
        published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
        assert [int(number) % 2**64 for number in bits(1234567, torch.arange(4))] == published

    def test_numbers_below_a_limit_are_even(self):
        drawn = below(bits(0, torch.arange(70_000)), 7).bincount(minlength=7)
        assert len(drawn) == 7 and (drawn - 10_000).abs().max() < 400

    def test_unit_interval(self):
        drawn = unit(bits(0, torch.arange(10_000)))
        assert 0 <= drawn.min() < 0.001 and 0.999 < drawn.max() < 1 and abs(drawn.mean() - 0.5) < 0.01


class TestImages:
    def test_is_its_parts_pasted_and_clipped(self):
        stream = build()
        indices = torch.tensor([0, 5, 100, 209])
        place, composed = stream.place(indices), stream.fetch(indices)
        for row, index in enumerate(indices.tolist()):
            canvas = np.zeros((9, 9), int)
            for m in range(2):
                top, left = place.corner[row, m].tolist()
                canvas[top : top + 5, left : left + 4] += stream.base.pixels[place.base[row, m], 0].numpy()
            assert np.array_equal(composed[row, 0].numpy(), canvas.clip(max=255)), index

    @pytest.mark.parametrize("overlay", ["clip", "max", "mean", "sum"])
    def test_overlays(self, overlay):
        stream = build(overlay=overlay, objects=3, single=4)
        indices = torch.arange(stream.total)
        parts = stream.parts(indices)
        layers = parts.pixels.int()  # [b, m, 1, h, w]
        shown = (parts.labels >= 0).sum(1)
        expected = {
            "clip": layers.sum(1).clamp(max=255),
            "max": layers.amax(1),
            "mean": (layers.sum(1) / shown[:, None, None, None] + 0.5).floor().int(),
            "sum": layers.sum(1),
        }[overlay]
        composed = stream.fetch(indices)
        assert torch.equal(composed.int(), expected)
        assert composed.dtype == (torch.int16 if overlay == "sum" else torch.uint8)

    def test_shifts_reach_their_limits_and_the_corners_stay_inside(self):
        corner = build(rounds=100).place(torch.arange(3000)).corner
        assert corner[..., 0].unique().tolist() == [0, 1, 2, 3, 4] and corner[..., 1].unique().tolist() == [
            0,
            1,
            2,
            3,
            4,
        ]

    def test_objects_are_of_different_classes(self):
        stream = build(objects=5)
        labels = stream.parts(torch.arange(stream.total)).labels
        assert torch.equal(labels.sort(1).values, torch.arange(5).expand(stream.total, 5))

    def test_labels_are_the_classes_shown(self):
        stream = build(objects=3, single=3)
        indices = torch.arange(stream.total)
        targets, labels = stream.targets(indices), stream.parts(indices).labels
        for target, shown in zip(targets, labels, strict=True):
            assert set(target.nonzero().flatten().tolist()) == set(shown.tolist()) - {-1}

    def test_every_base_image_comes_first_equally_often(self):
        stream = build()
        first = stream.parts(torch.arange(stream.total)).base[:, 0]
        assert first.bincount(minlength=30).tolist() == [7] * 30
        assert not torch.equal(first[:30], first[30:60])

    def test_others_are_evenly_drawn(self):
        stream = build(rounds=2000)
        base = stream.parts(torch.arange(stream.total)).base
        first = base[:, 0] == 4
        label = stream.base.labels
        allowed = (label != label[4]).nonzero().flatten()
        drawn = base[first, 1].bincount(minlength=30)[allowed]
        expected = 2000 / len(allowed)
        assert ((drawn - expected) ** 2 / expected).sum() < 2 * len(allowed)

    def test_single_objects(self):
        stream = build(single=6, rounds=200)
        indices = torch.arange(stream.total)
        assert abs((stream.targets(indices).sum(1) == 1).float().mean() - 1 / 6) < 0.02
        assert stream.shown is None and build().shown == 2

    def test_grey_is_repeated(self):
        grey, colour = build().fetch(torch.arange(9)), build(channels=3).fetch(torch.arange(9))
        assert torch.equal(colour, grey.repeat(1, 3, 1, 1)) and build(channels=3).shape == (3, 9, 9)

    def test_small_images_are_framed_as_mnist_frames_its_digits(self):
        pixels = torch.randint(1, 256, (3, 1, 8, 8), dtype=torch.uint8)
        framed = frame(pixels)
        assert framed.shape == (3, 1, 28, 28) and torch.equal(framed[..., 4:24, 4:24], enlarge(pixels, 20))
        assert framed.long().sum() == framed[..., 4:24, 4:24].long().sum()
        assert torch.equal(frame(pixels.new_ones(1, 1, 24, 21))[0, 0].nonzero()[0], torch.tensor([2, 3]))

    def test_enlargement_is_bilinear(self):
        pixels = torch.randint(0, 256, (5, 2, 8, 7), dtype=torch.uint8)
        exact = torch.nn.functional.interpolate(pixels.double(), (28, 28), mode="bilinear")
        assert (enlarge(pixels, 28).double() - exact).abs().max() <= 0.5 + 1e-9


class TestStream:
    def test_an_image_depends_on_its_number_alone(self):
        stream, again = build(), build()
        numbers = torch.tensor([209, 3, 3, 77])
        alone = torch.cat([again.fetch(number[None]) for number in numbers])
        assert torch.equal(stream.fetch(numbers), alone)
        assert not torch.equal(stream.fetch(torch.arange(30)), build(key=4).fetch(torch.arange(30)))

    def test_the_last_of_sixty_million_images_is_at_hand(self):
        stream = build(rounds=2_000_000)
        assert stream.total == 60_000_000
        assert stream.fetch(torch.tensor([stream.total - 1])).shape == (1, 1, 9, 9)

    def test_epochs_follow_each_other_and_a_resumed_one_goes_on(self):
        stream = build(epoch=40)
        batches = Batches(stream, 8, seed=5, shuffle=True)
        numbers = torch.cat([stream.order(5, epoch) for epoch in range(6)])
        assert torch.equal(numbers.diff() % 210, torch.ones(239, dtype=torch.int64))
        whole, resumed = list(batches.epoch(1)), list(batches.epoch(1, start=3))
        assert len(whole) == 5 and all(torch.equal(a, b) for a, b in zip(whole[3][:2], resumed[0][:2], strict=True))
        assert torch.equal(whole[2][0], stream.fetch(numbers[40 + 16 : 40 + 24]).float() / 255)
        assert not torch.equal(stream.order(5, 0), stream.order(6, 0))

    @pytest.mark.parametrize("epoch", [0, 70])
    def test_each_pass_through_the_whole_stream_begins_elsewhere(self, epoch):
        """Batches had been the same in each, and so were the images that the last one leaves over."""
        stream, each = build(epoch=epoch), epoch or 210
        start = int(stream.order(5, 0)[0])
        passes = [torch.cat([stream.order(5, n * 210 // each + e) for e in range(210 // each)]) for n in range(5)]
        assert all(torch.equal(one.sort().values, torch.arange(210)) for one in passes)
        assert torch.equal(passes[0], (start + torch.arange(210)) % 210), "the first pass is as it was"
        assert len({int(one[0]) for one in passes}) == 5
        left = [set(stream.order(5, n)[each // 16 * 16 :].tolist()) for n in range(0, 5 * 210 // each, 210 // each)]
        assert len(set.union(*left)) > len(left[0])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"objects": 6}, "compose.objects is 6: of 5 classes"),
            ({"objects": 0}, "compose.objects is 0"),
            ({"overlay": "xor"}, "compose.overlay is 'xor': it must be one of clip, max, mean, sum"),
            ({"side": 8}, "compose.size is 8: shifts of 2 pixels need 9"),
            ({"shift": -1}, "must not be negative"),
            ({"epoch": 211}, "211 images are asked of a stream of 210"),
        ],
    )
    def test_impossible_settings(self, options, message):
        with pytest.raises(ValueError, match=message):
            build(**options)


class TestSets:
    def test_splits_share_no_base_image(self):
        bases = read_base(None, DIGITS, resolve(DIGITS))  # pyright: ignore[reportArgumentType]
        images = [{row.tobytes() for row in split.pixels.numpy()} for split in bases]
        assert [len(split) for split in bases] == [1293, 144, 360]
        assert len(set.union(*images)) == sum(map(len, images)) == 1797

    def test_digits_are_enlarged_and_the_test_set_is_fixed(self):
        data = load_data(DIGITS)
        assert (data.train.shape, len(data.train), len(data.test)) == ((1, 36, 36), 60_000, 10_000)
        indices = torch.arange(10_000)
        assert (sha(data.test.fetch(indices)), sha(data.test.targets(indices))) == DIGITS_TEST
        other = load_data(replace(DIGITS, validation=0.3, split_seed=4))
        assert torch.equal(other.test.fetch(indices[:99]), data.test.fetch(indices[:99]))

    def test_multimnist_test_set_is_fixed(self):
        data = load_or_skip(DataConfig(name="multimnist"))
        indices = torch.arange(10_000)
        assert (sha(data.test.fetch(indices)), sha(data.test.targets(indices))) == MULTIMNIST_TEST

    @pytest.mark.parametrize(
        ("name", "per_image", "train", "test"),
        [
            ("multimnist", 1000, 60_000_000, 10_000_000),
            ("multimnist-fm", 100, 6_000_000, 1_000_000),
            ("multimnist-xnodr", 4, 240_000, 40_000),
            ("diverse-multimnist", 1000, 60_000_000, 10_000_000),
        ],
    )
    def test_published_sizes(self, name, per_image, train, test):
        data = load_or_skip(DataConfig(name=name, validation=0.0, compose=ComposeConfig(epoch=0, held=0)))
        assert (len(data.train), len(data.validation), len(data.test)) == (train, 0, test)
        assert data.train.rounds == per_image and data.channels == (1 if name in ("multimnist", "multimnist-fm") else 3)

    def test_settings_override_the_preset(self):
        compose = ComposeConfig(
            base="digits", objects=3, size=40, shift=2, overlay="sum", channels=3, epoch=100, held=50
        )
        data = load_data(DataConfig(name="diverse-multimnist", compose=compose, image_size=20))
        assert data.train.shape == (3, 20, 20) and (len(data.train), len(data.test)) == (100, 50)
        images, labels = next(data.evaluation("test", 50).epoch(0))
        assert images.max() > 1 and labels.shape == (50, 10) and set(labels.sum(1).tolist()) == {1, 3}
        whole = load_data(DataConfig(name="diverse-multimnist", compose=compose))
        assert abs(whole.mean[0] - whole.train.fetch(torch.arange(100)).float().mean() / 255) < 1e-5

    @pytest.mark.parametrize(
        ("compose", "message"),
        [
            (ComposeConfig(base="multimnist"), "compose.base is 'multimnist', which is composed itself"),
            (ComposeConfig(base="nist"), "no data set is named 'nist'; the nearest is 'mnist'"),
            (ComposeConfig(base="digits", shift=-1), "compose.shift is -1: it must not be negative"),
            (ComposeConfig(base="digits", per_image=0), "compose.per_image is 0: it must be at least 1"),
        ],
    )
    def test_faulty_settings(self, compose, message):
        with pytest.raises(ValueError, match=message):
            load_data(DataConfig(name="multimnist", compose=compose))

    @pytest.mark.parametrize("fit", ["crop", "pad"])
    def test_a_fit_that_composed_images_do_not_take_is_refused(self, fit):
        few = replace(DIGITS, compose=replace(DIGITS.compose, epoch=5, held=5), fit=fit)
        with pytest.raises(ValueError, match=f"data.fit is '{fit}': composed images are squares, .* to be 40x24"):
            load_data(replace(few, image_size=(24, 40)))
        assert load_data(replace(few, image_size=24)).image_size == (24, 24)
        assert load_data(replace(few, image_size=(24, 40), fit="stretch")).image_size == (24, 40)

    @pytest.mark.parametrize("base", ["digits", "cifar10"])
    @pytest.mark.parametrize(
        ("name", "compose", "options"),
        [
            ("multimnist", ComposeConfig(per_image=1, epoch=0, held=0), {}),
            ("multimnist", ComposeConfig(per_image=2, held=700, shift=3, objects=1), {"validation": 0.25}),
            ("multimnist", ComposeConfig(epoch=2000, channels=3), {"limit": 1000}),
            ("expanded-mnist", ComposeConfig(epoch=900, held=0, size=50), {"validation": 0.0}),
            ("affine-digits", ComposeConfig(held=300), {"limit": 400}),
            ("diverse-multimnist", ComposeConfig(epoch=300), {"image_size": 20}),
        ],
    )
    def test_what_is_said_of_streams_beforehand_is_what_is_read(self, base, name, compose, options):
        config = DataConfig(name, compose=replace(compose, base=base), **options)
        data = load_or_skip(config)
        facts, ahead = data_facts(config), count_ahead(Config(data=config, batch_size=7))
        assert (facts.images, facts.classes, facts.colour) == (len(data.train), data.num_classes, data.channels == 3)
        assert facts.size == ((data.train.side,) * 2) and facts.single == (data.shown == 1)
        assert (ahead.steps, ahead.held) == (len(data.training(config, 7, 0)), len(data.validation))
        assert image_shape(Config(data=config)) == data.train.shape
        assert epoch_images(replace(config, limit=None)) >= facts.images

    def test_all_of_a_stream_is_counted_as_all(self):
        whole = DataConfig("multimnist", compose=ComposeConfig(epoch=0))
        assert epoch_images(whole) == 60_000_000 and data_facts(whole).images == 54_000_000
        assert epoch_images(DataConfig("multimnist")) == 60_000 and epoch_images(DataConfig("mnist")) == 60_000

    def test_images_that_something_of_the_users_own_is_composed_of_are_read_to_be_counted(self, tmp_path):
        pixels = np.random.default_rng(0).integers(0, 255, (60, 30, 30, 3), dtype=np.uint8)
        np.savez(
            tmp_path / "own.npz", x_train=pixels, y_train=np.arange(60) % 3, x_test=pixels[:9], y_test=[0, 1, 2] * 3
        )
        config = DataConfig("multimnist", compose=ComposeConfig(base=f"npz:{tmp_path / 'own.npz'}", epoch=40, held=5))
        facts, ahead = data_facts(config), count_ahead(Config(data=config, batch_size=7))
        assert facts[:4] == (40, (38, 38), 3, True) and (ahead.steps, ahead.held) == (5, 5)

    @pytest.mark.parametrize(
        ("compose", "message"),
        [
            (ComposeConfig(size=100_000), r"images of 100000 pixels a side from 1,\d\d\d base images, which take"),
            (ComposeConfig(shift=20_000), "take a smaller compose.size, compose.shift"),
            (ComposeConfig(held=0, epoch=0, per_image=2**40), "compose.epoch and compose.held"),
        ],
    )
    def test_what_no_memory_holds_is_refused_before_it_is_taken(self, compose, message, monkeypatch):
        monkeypatch.setattr(torch.nn.functional, "pad", lambda *args: pytest.fail("it was taken"))
        monkeypatch.setattr("torchcaps.data.composed.frame", lambda pixels: pixels)
        with pytest.raises(ValueError, match=message):
            load_data(replace(DIGITS, compose=replace(compose, base="digits")))
