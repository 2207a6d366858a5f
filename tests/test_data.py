"""Named sets, arrays of the user's own, splits and loading."""

from __future__ import annotations

import hashlib
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from torchcaps.config import ComposeConfig, DataConfig
from torchcaps.data import CATALOGUE, Data, Images, load_data
from torchcaps.data.images import resize
from torchcaps.data.splits import DRAWS, ORDER, equal_share, mix, permutation, set_aside, stratified
from torchcaps.papers import find_cell
from torchcaps.tables.arguments import image_shape

# Of each set's full training and test splits: SHA-256 of the bytes of the int64 labels, first 16 digits.
LABELS = {
    "digits": ("36d8ee723fda556e", "b3829cb1bc4174f4"),
    "mnist": ("e474323ac02fc156", "2fd8de6bdb8d1178"),
    "fashion-mnist": ("e3245b63f7c40d1c", "d51d859896c55775"),
    "cifar10": ("f5cfe00b0f00968c", "cbb7365de8ed11f0"),
    "cifar100": ("8bf4935e7c77a309", "80031c23f8300724"),
}


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


def save_npz(path: Path, **changes) -> Path:
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (20, 5, 4, 3), dtype=np.uint8),
        "y_train": np.arange(20) % 3,
        "x_test": rng.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8),
        "y_test": np.arange(6) % 3,
    }
    np.savez(path, **{key: value for key, value in (arrays | changes).items() if value is not None})
    return path


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data(DataConfig())


class TestSets:
    def test_digits_test_split_is_fixed(self, digits):
        assert digits.test.shape == (1, 8, 8) and len(digits.test) == 360
        assert digest(digits.test.fetch(torch.arange(360))) == "81da85776ce2db0e"
        assert digits.test.labels.bincount().tolist() == [36, 37, 35, 37, 36, 36, 36, 36, 35, 36]

    def test_digits_span_the_range_of_a_byte(self, digits):
        values = set(digits.train.fetch(torch.arange(len(digits.train))).unique().tolist())
        assert values == {int(value * 255 / 16 + 0.5) for value in range(17)}

    @pytest.mark.parametrize("name", LABELS)
    def test_real_set(self, name):
        try:
            data = load_data(DataConfig(name=name, validation=0.0))
        except FileNotFoundError as error:
            pytest.skip(str(error))
        entry = CATALOGUE[name]
        assert (len(data.train), len(data.validation), len(data.test)) == (entry.train, 0, entry.test)
        assert data.channels == entry.channels and data.image_size == entry.image_size
        assert data.num_classes == len(entry.classes)
        assert (digest(data.train.labels), digest(data.test.labels)) == LABELS[name]

    @pytest.mark.parametrize(
        "name", [name for name in CATALOGUE if not CATALOGUE[name].takes_path and name != "digits"]
    )
    def test_missing_set_says_what_to_do(self, name, tmp_path):
        with pytest.raises(
            FileNotFoundError, match=r"(--data\.download|get it from http).*--data\.root or TORCHCAPS_DATA"
        ) as caught:
            load_data(DataConfig(name=name, root=tmp_path))
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)

    @pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
    def test_digits_and_clothes_from_files_in_their_format(self, tmp_path, name, folder):
        """Rows before columns, and the training split from the files that are called so."""
        raw, written = tmp_path / folder / "raw", {}
        raw.mkdir(parents=True)
        for n, split in enumerate(("train", "t10k")):
            pixels = (torch.arange(20 * 28 * 28) * (7 + n)).remainder(251).to(torch.uint8).view(20, 28, 28)
            labels = (torch.arange(20) * 3 + n).remainder(10)
            written[split] = pixels, labels
            head = struct.pack(">HBB3I", 0, 8, 3, 20, 28, 28)
            (raw / f"{split}-images-idx3-ubyte").write_bytes(head + pixels.numpy().tobytes())
            (raw / f"{split}-labels-idx1-ubyte").write_bytes(
                struct.pack(">HBBI", 0, 8, 1, 20) + labels.to(torch.uint8).numpy().tobytes()
            )
        data = load_data(DataConfig(name=name, root=tmp_path, validation=0.0))
        for source, split in ((data.train, "train"), (data.test, "t10k")):
            assert torch.equal(source.fetch(torch.arange(20)).squeeze(1), written[split][0])
            assert torch.equal(source.labels, written[split][1])

    def test_svhn_from_files_in_its_format(self, tmp_path, monkeypatch):
        from scipy.io import savemat
        from torchvision.datasets import SVHN

        (tmp_path / "SVHN").mkdir()
        sums = {}
        pixels = torch.arange(4 * 3 * 32 * 32).remainder(251).to(torch.uint8).view(4, 3, 32, 32)
        for split in ("train", "test"):
            path = tmp_path / "SVHN" / f"{split}_32x32.mat"
            savemat(path, {"X": pixels.permute(2, 3, 1, 0).numpy(), "y": np.array([[10], [1], [9], [10]], np.uint8)})
            sums[split] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
        monkeypatch.setattr(SVHN, "split_list", sums)
        data = load_data(DataConfig(name="svhn", root=tmp_path, validation=0.0))
        assert torch.equal(data.test.fetch(torch.arange(4)), pixels)
        assert data.train.labels.tolist() == [0, 1, 9, 0]

    def test_cifar_falls_back_on_torchvision(self, tmp_path, monkeypatch):
        import torchvision.datasets

        pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)

        class Recorded:
            def __init__(self, root, train, download):
                assert (root, download) == (str(tmp_path), True)
                self.data = pixels if train else pixels[::-1]
                self.targets = [0, 5, 9]

        monkeypatch.setattr(torchvision.datasets, "CIFAR10", Recorded)
        data = load_data(DataConfig(name="cifar10", root=tmp_path, download=True, validation=0.0))
        assert np.array_equal(data.train.fetch(torch.arange(3)).numpy(), pixels.transpose(0, 3, 1, 2))
        assert torch.equal(data.test.fetch(torch.tensor([2])), data.train.fetch(torch.tensor([0])))
        assert data.test.labels.tolist() == [0, 5, 9]

    def test_failed_download_is_one_line(self, tmp_path, monkeypatch):
        import torchvision.datasets

        def refuse(*_, **__):
            raise OSError("no\nnetwork")

        monkeypatch.setattr(torchvision.datasets, "MNIST", refuse)
        with pytest.raises(FileNotFoundError, match=r"could not be fetched into .*: no network"):
            load_data(DataConfig(name="mnist", root=tmp_path, download=True))


class TestNpz:
    def test_colour(self, tmp_path):
        path = save_npz(tmp_path / "own.npz")
        data = load_data(DataConfig(name=f"npz:{path}", validation=0.0))
        assert data.train.shape == (3, 5, 4) and data.train.classes == ("0", "1", "2")
        first = np.load(path)["x_test"][2]
        assert np.array_equal(data.test.fetch(torch.tensor([2]))[0].permute(1, 2, 0).numpy(), first)

    def test_grey_and_labels_in_a_column(self, tmp_path):
        grey = {f"x_{split}": np.arange(144, dtype=np.uint8).reshape(4, 6, 6) for split in ("train", "test")}
        column = {f"y_{split}": np.arange(4)[:, None] for split in ("train", "test")}
        path = save_npz(tmp_path / "own.npz", **grey, **column)
        data = load_data(DataConfig(name=f"npz:{path}", validation=0.0))
        assert data.train.shape == (1, 6, 6) and data.train.labels.tolist() == [0, 1, 2, 3]

    def test_objects_are_refused(self, tmp_path):
        path = save_npz(tmp_path / "own.npz", y_train=np.array([{"a": 1}] * 20, dtype=object))
        with pytest.raises(ValueError, match="objects are refused"):
            load_data(DataConfig(name=f"npz:{path}"))

    def test_other_files_are_refused(self, tmp_path):
        for content in (b"", b"no zip", b"PK\x03\x04 broken"):
            (tmp_path / "own.npz").write_bytes(content)
            with pytest.raises(ValueError, match=r"not an \.npz file"):
                load_data(DataConfig(name=f"npz:{tmp_path / 'own.npz'}"))
        np.save(tmp_path / "single.npy", np.zeros(3))
        with pytest.raises(ValueError, match=r"not an \.npz file"):
            load_data(DataConfig(name=f"npz:{tmp_path / 'single.npy'}"))
        with pytest.raises(FileNotFoundError, match="there is no file"):
            load_data(DataConfig(name=f"npz:{tmp_path / 'absent.npz'}"))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"y_test": None}, "lacks y_test"),
            (
                {"x_train": np.zeros((20, 5, 4, 3))},
                "x_train is float64, x_test is uint8: all images must be of one type",
            ),
            ({"x_train": np.zeros((20, 5, 4, 3), complex)}, "x_train must be uint8.*complex128"),
            ({"x_test": np.zeros((6, 5), np.uint8)}, r"x_test must be NHW, NHWC or NCHW, got uint8 \[6, 5\]"),
            ({"x_test": np.zeros((6, 9, 9, 3), np.uint8)}, r"train images are \(3, 5, 4\), test images \(3, 9, 9\)"),
            ({"y_train": np.zeros(20)}, "y_train must be integers or strings"),
            ({"y_train": np.eye(20, dtype=int)}, "y_train must be integers or strings"),
            ({"y_train": np.arange(19)}, r"labels must be torch.int64 \[20\]"),
            ({"y_test": np.arange(6) - 1}, "test split: no training image has the label '-1'"),
            ({"x_val": np.zeros((6, 5, 4, 3), np.uint8)}, "lacks y_val: it has x_val"),
        ],
    )
    def test_faulty_arrays(self, tmp_path, changes, message):
        path = save_npz(tmp_path / "own.npz", **changes)
        with pytest.raises(ValueError, match=message):
            load_data(DataConfig(name=f"npz:{path}"))


class TestImages:
    def test_faulty_tensors(self):
        pixels, labels = torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.tensor([0, 1])
        with pytest.raises(ValueError, match="label 1 is outside the 1 classes"):
            Images(pixels, labels, ("a",))
        with pytest.raises(ValueError, match=r"torch.float32 \[2, 1, 3, 3\]"):
            Images(pixels.float(), labels, ("a", "b"))
        with pytest.raises(ValueError, match=r"got torch.int64 \[1\]"):
            Images(pixels, labels[:1], ("a", "b"))
        with pytest.raises(ValueError, match=r"got torch\.int32"):
            Images(pixels, labels.int(), ("a", "b"))

    def test_subset_keeps_its_order(self, digits):
        indices = torch.tensor([7, 2, 2])
        part = digits.train.subset(indices)
        assert torch.equal(part.labels, digits.train.labels[indices])
        assert torch.equal(part.fetch(torch.arange(3)), digits.train.fetch(indices))

    def test_halving_is_a_rounded_weighted_mean(self):
        """Antialiased bilinear halving weighs four neighbours 1, 3, 3, 1 along each axis; away from the border."""
        pixels = torch.randint(0, 256, (1, 1, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        half = resize(pixels, (6, 6))
        weights = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        for y, x in ((1, 1), (2, 4), (4, 3)):
            around = pixels[0, 0, 2 * y - 1 : 2 * y + 3, 2 * x - 1 : 2 * x + 3].float()
            assert half[0, 0, y, x] == (weights @ around @ weights).round()

    def test_resize_on_loading(self, digits):
        data = load_data(DataConfig(image_size=(12, 20), validation=0.0))
        assert data.image_size == (12, 20) and data.train.shape == (1, 12, 20)
        data = load_data(DataConfig(image_size=12, validation=0.0))
        assert data.image_size == (12, 12) and len(data.validation) == 0 and data.validation.shape == (1, 12, 12)
        whole = digits.test.fetch(torch.arange(5))
        assert torch.equal(data.test.fetch(torch.arange(5)), resize(whole, (12, 12)))


class TestSplits:
    def test_validation_is_disjoint_complete_and_proportional(self):
        labels = torch.cat([torch.full((n,), i) for i, n in enumerate((50, 31, 0, 10))])[permutation(91, mix(ORDER, 1))]
        kept, held = stratified(labels, 9, seed=0)
        assert sorted([*kept.tolist(), *held.tolist()]) == list(range(91))
        assert labels[held].bincount(minlength=4).tolist() == [5, 3, 0, 1]

    def test_validation_is_stable_and_follows_its_seed(self, digits):
        assert digest(digits.validation.labels) == "ac6f74a99e53e1b6"
        assert len(digits.validation) == 144 and len(digits.train) == 1293
        again, other = load_data(DataConfig()), load_data(DataConfig(split_seed=1))
        assert torch.equal(again.validation.labels, digits.validation.labels)
        assert not torch.equal(other.validation.labels, digits.validation.labels)
        assert torch.equal(other.test.labels, digits.test.labels)

    def test_seeds_do_not_run_into_each_other(self):
        orders = [mix(ORDER, seed, epoch) for seed in range(3) for epoch in range(3)]
        draws = [mix(DRAWS, seed, epoch, step) for seed in range(3) for epoch in range(3) for step in range(3)]
        assert len({tuple(seed.generate_state(2)) for seed in orders + draws}) == 9 + 27

    @pytest.mark.parametrize("share", [-0.1, 1.0, 1e-6, 0.9999])
    def test_impossible_shares(self, share):
        with pytest.raises(ValueError, match=r"data\.validation"):
            load_data(DataConfig(validation=share))

    def test_limit_is_a_fixed_sample_of_each_split(self):
        few = load_data(DataConfig(limit=40, validation=0.25))
        assert [len(split) for split in (few.train, few.validation, few.test)] == [30, 10, 40]
        counts = torch.bincount(few.test.targets(torch.arange(40)))
        assert counts.tolist() == [4] * 10  # in proportion to the 360
        again = load_data(DataConfig(limit=40, validation=0.25))
        assert torch.equal(again.train.fetch(torch.arange(30)), few.train.fetch(torch.arange(30)))
        stream = load_data(DataConfig("multimnist", limit=50, compose=ComposeConfig(base="digits")))
        assert [len(split) for split in (stream.train, stream.validation, stream.test)] == [50] * 3
        for epoch, held, limit, expected in ((80, 30, 50, (50, 30)), (80, 30, 1000, (80, 30)), (0, 0, 50, (50, 50))):
            compose = ComposeConfig(base="digits", epoch=epoch, held=held)
            few = load_data(DataConfig("multimnist", limit=limit, compose=compose))
            assert (len(few.train), len(few.validation), len(few.test)) == (*expected, expected[1])
        assert len(load_data(DataConfig(limit=10_000, validation=0.0)).train) == 1437
        with pytest.raises(ValueError, match=r"data\.limit is 0: it must be at least one image"):
            load_data(DataConfig(limit=0))

    def test_other_impossible_settings(self):
        with pytest.raises(ValueError, match=r"data\.image_size is 0"):
            load_data(DataConfig(image_size=0))
        with pytest.raises(ValueError, match=r"data\.image_size is \(8, 0\)"):
            load_data(DataConfig(image_size=(8, 0)))
        with pytest.raises(ValueError, match="must not be negative, got -1"):
            load_data(DataConfig(split_seed=-1))


class TestData:
    def test_moments_are_those_of_the_training_split(self, tmp_path):
        data = load_data(DataConfig(name=f"npz:{save_npz(tmp_path / 'own.npz')}", validation=0.2))
        pixels = data.train.fetch(torch.arange(16)).double() / 255
        torch.testing.assert_close(data.mean, pixels.mean((0, 2, 3)).float())
        torch.testing.assert_close(data.std, pixels.std((0, 2, 3), correction=0).float())

    def test_constant_channel_has_deviation_one(self):
        images = Images(torch.full((3, 1, 2, 2), 51, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), ("a",))
        data = Data(images, images, images)
        torch.testing.assert_close(data.mean, torch.tensor([0.2]))
        assert data.std.tolist() == [1.0]

    def test_splits_must_agree(self, digits):
        with pytest.raises(ValueError, match=r"test images \(1, 9, 9\)"):
            Data(digits.train, digits.validation, digits.test.fit((9, 9)))
        with pytest.raises(ValueError, match="training split is empty"):
            Data(digits.train.subset(torch.arange(0)), digits.validation, digits.test)

    def test_environment_variable_is_used(self, tmp_path, monkeypatch):
        monkeypatch.setitem(os.environ, "TORCHCAPS_DATA", str(tmp_path))
        with pytest.raises(FileNotFoundError, match=str(tmp_path)):
            load_data(DataConfig(name="mnist"))


class TestPad:
    def test_images_stand_in_the_middle_of_black(self):
        data, plain = load_data(DataConfig(pad=13)), load_data(DataConfig())
        assert data.image_size == (13, 13)
        for split in ("train", "validation", "test"):
            padded, source = getattr(data, split).pixels, getattr(plain, split).pixels
            assert torch.equal(padded[:, :, 2:10, 2:10], source)
            assert padded.sum(dtype=torch.int64) == source.sum(dtype=torch.int64)
        assert load_data(DataConfig(pad=12, crop=10)).image_size == (10, 10)

    def test_recipes_pad_mnist_to_32_pixels(self):
        build = find_cell("encapnet/table1/master-mnist").build
        assert build is not None
        assert (build().data.pad, build().data.image_size, image_shape(build())) == (32, None, (1, 32, 32))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"pad": 7}, r"data\.pad is 7: images of 8x8 pixels need 8 or more"),
            ({"pad": 12, "image_size": 12}, r"data\.pad is 12 and data\.image_size 12: images take one of them"),
            (
                {"pad": 64, "name": "multimnist", "compose": ComposeConfig(base="digits")},
                r"data\.pad is 64: it is of images held in memory, not of multimnist",
            ),
        ],
    )
    def test_sides_that_cannot_be(self, changes, message):
        with pytest.raises(ValueError, match=message):
            load_data(DataConfig(**changes))


def test_a_fraction_has_as_many_images_of_each_class_and_is_a_part_of_a_larger_one() -> None:
    whole, half, few = (load_data(DataConfig("digits", fraction=share)).train for share in (1.0, 0.5, 0.05))
    counts = torch.bincount(few.labels)
    assert len(few) == round(0.05 * len(whole)) and counts.max() - counts.min() <= 1
    assert {each.numpy().tobytes() for each in few.pixels} <= {each.numpy().tobytes() for each in half.pixels}
    again, other = (load_data(DataConfig("digits", fraction=0.05, split_seed=seed)).train for seed in (0, 1))
    assert torch.equal(again.pixels, few.pixels) and not torch.equal(other.pixels, few.pixels)
    validation = [load_data(DataConfig("digits", fraction=share)).validation.labels for share in (1.0, 0.05)]
    assert torch.equal(*validation)


def test_a_fraction_is_filled_where_a_class_has_too_few_images(caplog) -> None:
    """Of 1,100 images 0.9 had been 595, without a word."""
    labels = torch.tensor([0] * 1000 + [1] * 100)
    assert labels[equal_share(labels, 0.9, 0)].bincount().tolist() == [890, 100]
    assert "0.9 is 990 images: 1 of 2 classes have fewer than 890 and give all" in caplog.text
    caplog.clear()
    assert labels[equal_share(labels, 0.1, 0)].bincount().tolist() == [55, 55] and not caplog.text
    uneven, before = torch.tensor([0] * 3 + [2] * 40 + [3] * 9 + [5] * 17), set()
    for total in range(4, 70):
        chosen = equal_share(uneven, total / 69, 0)
        counts = uneven[chosen].bincount()[[0, 2, 3, 5]]
        given = [count for count, there in zip(counts.tolist(), (3, 40, 9, 17), strict=True) if count < there]
        assert len(chosen) == total and before <= set(chosen.tolist())
        assert not given or max(given) - min(given) <= 1
        before = set(chosen.tolist())


def test_label_sets_keep_each_class_in_training(caplog) -> None:
    """Rare sets are split together, and all pictures of a class had gone to the other part."""
    drawn = torch.Generator().manual_seed(0)
    sets = torch.zeros(40, 9, dtype=torch.uint8)
    for seed in range(50):
        sets.zero_()
        sets[torch.arange(40), torch.arange(40) % 2] = 1
        sets[torch.randperm(40, generator=drawn)[:7], torch.arange(2, 9)] = 1  # seven classes of one picture each
        kept, taken = set_aside(sets, 12, seed)
        assert sets[kept].any(0).all() and len(taken) == 12
        assert torch.cat([kept, taken]).sort().values.tolist() == list(range(40))
    assert not caplog.text
    set_aside(sets, 38, 0)
    assert re.search(r"of 40 images 38 are set aside, so that \d class\(es\) have none left to train on", caplog.text)


def test_fractions_that_cannot_be_are_named() -> None:
    assert equal_share(torch.tensor([0, 0, 0, 2, 2, 2]), 0.5, 0).shape == (3,)
    wrong = {0.0: "a share above 0, at most 1", 1.5: "a share above 0", 0.001: "fewer than the 10 classes"}
    for share, said in wrong.items():
        with pytest.raises(ValueError, match=rf"data.fraction (is )?{share}.*{said}"):
            load_data(DataConfig("digits", fraction=share))
    with pytest.raises(ValueError, match="it is of stored images that show one class each"):
        load_data(DataConfig("multimnist", compose=ComposeConfig(base="digits", epoch=20, held=10), fraction=0.5))
