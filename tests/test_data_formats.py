"""Readers of published formats, on files that these tests write in exactly that format, whole and damaged."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from torchcaps.config import DataConfig
from torchcaps.data import ImageFiles, imagenet, load_data, smallnorb
from torchcaps.data.catalogue import CATALOGUE, absent
from torchcaps.data.images import resize


def everything(source) -> torch.Tensor:
    return source.fetch(torch.arange(len(source)))


AFFNIST_COUNTS = {"training": 5, "validation": 2, "test": 3}


class TestAffnist:
    def write(self, path: Path, count: int, seed: int, **changes) -> np.ndarray:
        """A file as 32x/transformed holds: a 1x1 struct whose fields are, but for the three read, of no interest."""
        rng = np.random.default_rng(seed)
        images = rng.integers(0, 256, (count, 40, 40), dtype=np.uint8)
        labels = (np.arange(count) + seed) % 10
        fields = {
            "affine_transforms": rng.normal(size=(6, count)),
            "image": images.reshape(count, 1600).T,
            "label_int": labels[None].astype(np.uint8),
            "label_one_of_n": np.eye(10, dtype=np.uint8)[:, labels],
            "original_id": np.arange(count)[None],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        savemat(path, {"affNISTdata": fields | changes}, do_compression=True)
        return images

    def fill(self, root: Path, copies: int = 2) -> dict[tuple[str, int], np.ndarray]:
        return {
            (split, number): self.write(root / f"affNIST/{split}_batches/{number}.mat", count, number)
            for split, count in AFFNIST_COUNTS.items()
            for number in range(1, copies + 1)
        }

    def test_images_and_labels(self, tmp_path):
        written = self.fill(tmp_path)
        data = load_data(DataConfig(name="affnist", root=tmp_path, copies=2))
        assert data.train.shape == (1, 40, 40)
        for split, source in (("training", data.train), ("validation", data.validation), ("test", data.test)):
            expected = np.concatenate([written[split, number] for number in (1, 2)])
            assert np.array_equal(everything(source)[:, 0].numpy(), expected)
        assert data.test.targets(torch.arange(6)).tolist() == [1, 2, 3, 2, 3, 4]
        assert len(load_data(DataConfig(name="affnist", root=tmp_path, copies=1)).train) == 5

    def test_test_split_needs_no_training_files(self, tmp_path):
        written = self.write(tmp_path / "affNIST/test_batches/1.mat", 3, 0)
        config = DataConfig(name="npz:" + str(tmp_path / "own.npz"), root=tmp_path, test="affnist", copies=1)
        images = np.zeros((20, 40, 40), np.uint8)
        images[:, 0, 0] = np.arange(20)
        arrays = {"x": images, "y": np.arange(20) % 10}
        np.savez(
            tmp_path / "own.npz", **{f"{key}_{split}": arrays[key] for key in arrays for split in ("train", "test")}
        )
        assert np.array_equal(everything(load_data(config).test)[:, 0].numpy(), written)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"image": np.zeros((784, 5), np.uint8)}, r"image is \[784, 5\], but must be \[1600, 5\] for 5 images"),
            ({"image": np.zeros((1600, 5))}, "image is of float64, but must be of uint8"),
            ({"label_int": np.zeros((1, 4), np.uint8)}, r"label_int is \[1, 4\], but must be \[1, 5\]"),
            ({"label_int": np.array([[1, 2, 3, 4, 6]])}, "of image 4 label_int says 6, label_one_of_n 5"),
        ],
    )
    def test_mislabelled_files(self, tmp_path, changes, message):
        self.fill(tmp_path)
        self.write(tmp_path / "affNIST/training_batches/2.mat", 5, 1, **changes)
        with pytest.raises(ValueError, match=rf"training_batches.2\.mat.*{message}"):
            load_data(DataConfig(name="affnist", root=tmp_path, copies=2))

    @pytest.mark.parametrize("content", [0.5, 0.02, b"", b"no matlab"])
    def test_damaged_files(self, tmp_path, content):
        self.fill(tmp_path)
        path = tmp_path / "affNIST/test_batches/1.mat"
        whole = path.read_bytes()
        path.write_bytes(content if isinstance(content, bytes) else whole[: int(content * len(whole))])
        with pytest.raises(ValueError, match=r"test_batches.1\.mat is damaged, or is no file of affNIST") as caught:
            load_data(DataConfig(name="affnist", root=tmp_path, copies=2))
        assert "\n" not in str(caught.value)

    def test_absent_files_and_copies(self, tmp_path):
        self.fill(tmp_path)
        with pytest.raises(FileNotFoundError, match=r"affnist.*3\.mat.*https://www.cs.toronto.edu"):
            load_data(DataConfig(name="affnist", root=tmp_path, copies=3))
        with pytest.raises(ValueError, match=r"data\.copies is 33: affNIST has 1 \.\. 32"):
            load_data(DataConfig(name="affnist", root=tmp_path, copies=33))


class TestSmallnorb:
    def write(self, path: Path, array: np.ndarray, magic: int, packed: bool = False) -> None:
        """Magic number, number of dimensions, their sizes (three at least), then the elements; all little-endian."""
        sizes = [*array.shape, 1, 1][: max(3, array.ndim)]
        content = struct.pack(f"<ii{len(sizes)}i", magic, array.ndim, *sizes) + array.tobytes()
        path.parent.mkdir(parents=True, exist_ok=True)
        if packed:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
        else:
            path.write_bytes(content)

    def fill(self, root: Path, packed: bool = False) -> dict[str, np.ndarray]:
        """One toy of two classes at every elevation and azimuth, in one lighting, 96x96 as published."""
        views = [(elevation, azimuth) for elevation in range(9) for azimuth in range(0, 36, 2)]
        written = {}
        for split, toy in (("train", 7), ("test", 3)):
            info = np.array([(toy, *view, 0) for view in views], "<i4")
            labels = (np.arange(len(views)) % 2 + 3).astype("<i4")
            pairs = np.random.default_rng(toy).integers(0, 256, (len(views), 2, 96, 96), dtype=np.uint8)
            files = {"dat": (pairs, 0x1E3D4C55), "cat": (labels, 0x1E3D4C54), "info": (info, 0x1E3D4C54)}
            for part, (array, magic) in files.items():
                self.write(root / "smallNORB" / f"{smallnorb.NAMES[split]}-{part}.mat", array, magic, packed)
            written[split] = pairs
        return written

    def load(self, root: Path, name: str = "smallnorb", **options):
        return load_data(DataConfig(name=name, root=root, **{"validation": 0.0, **options}))

    @pytest.mark.parametrize("packed", [False, True])
    def test_each_camera_is_an_image(self, tmp_path, packed):
        written = self.fill(tmp_path, packed)
        data = self.load(tmp_path)
        assert len(data.train) == 324 and data.train.shape == (1, 96, 96)
        assert np.array_equal(everything(data.test).numpy(), written["test"].reshape(-1, 1, 96, 96))
        assert data.test.targets(torch.arange(4)).tolist() == [3, 3, 4, 4]

    @pytest.mark.parametrize("share", [0.2, 0.4, 0.1])
    def test_validation_has_other_toys_or_pairs_at_least(self, tmp_path, caplog, share):
        """Five toys of each of two classes, in four views; the number of its pair is in each picture."""
        for split in smallnorb.NAMES:
            n = 2 * 5 * 4
            info = np.zeros((n, 4), "<i4")
            info[:, 0] = np.repeat(smallnorb.INSTANCES[split], 8)
            pairs = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 2, 4, 4))
            for part, array, magic in (
                ("dat", pairs, 0x1E3D4C55),
                ("cat", np.arange(n, dtype="<i4") % 2, 0x1E3D4C54),
                ("info", info, 0x1E3D4C54),
            ):
                self.write(tmp_path / "smallNORB" / f"{smallnorb.NAMES[split]}-{part}.mat", array, magic)
        data, again = (self.load(tmp_path, validation=share) for _ in range(2))
        other = self.load(tmp_path, validation=share, split_seed=1)
        assert (len(data.train), len(data.validation), len(data.test)) == (80 * (1 - share), 80 * share, 80)
        assert data.validation.labels.bincount().tolist() == [40 * share] * 2
        train, held, same, changed = (
            everything(each)[:, 0, 0, 0].long()
            for each in (data.train, data.validation, again.validation, other.validation)
        )
        assert torch.equal(held[::2], held[1::2]) and torch.equal(held, same) and not torch.equal(held, changed)
        assert not set(train.tolist()) & set(held.tolist())
        toys = [{(number // 8, number % 2) for number in each.tolist()} for each in (train, held)]
        assert bool(toys[0] & toys[1]) == (share == 0.1) == ("pairs of cameras are held out" in caplog.text)

    def test_a_share_of_no_pair(self, tmp_path):
        self.fill(tmp_path)
        with pytest.raises(ValueError, match=r"data\.validation 0\.001 is 0 of 162 pairs that are trained on"):
            self.load(tmp_path, validation=0.001)

    def test_resized_and_cut(self, tmp_path):
        self.fill(tmp_path)
        data = self.load(tmp_path, image_size=48, crop=32)
        assert data.image_size == (32, 32) and data.train.shape == (1, 48, 48)

    @pytest.mark.parametrize(
        ("name", "train", "test"),
        [
            ("smallnorb-azimuth", 9 * 6, 9 * 12),
            ("smallnorb-azimuth-seen", 9 * 6, 9 * 6),
            ("smallnorb-elevation", 3 * 18, 6 * 18),
            ("smallnorb-elevation-seen", 3 * 18, 3 * 18),
        ],
    )
    def test_held_out_viewpoints(self, tmp_path, name, train, test):
        written = self.fill(tmp_path)
        data = self.load(tmp_path, name)
        assert (len(data.train), len(data.test)) == (2 * train, 2 * test)
        views = [(elevation, azimuth) for elevation in range(9) for azimuth in range(0, 360, 20)]
        seen = [a in (300, 320, 340, 0, 20, 40) if "azimuth" in name else e <= 2 for e, a in views]
        held = [each if "seen" in name else not each for each in seen]
        assert np.array_equal(everything(data.train)[::2, 0].numpy(), written["train"][seen, 0])
        assert np.array_equal(everything(data.test)[1::2, 0].numpy(), written["test"][held, 1])

    @pytest.mark.parametrize(
        ("part", "change", "message"),
        [
            ("dat", lambda content: content[:-1], r"-dat\.mat has .* bytes, but its header .* promises"),
            ("dat", lambda content: content[:10], "has 10 bytes, but its header"),
            (
                "info",
                lambda content: content[:8] + struct.pack("<ii", -162, -4) + content[16:],
                r"-info\.mat is damaged: its header has the sizes \[-162, -4\], which cannot be negative",
            ),
            ("cat", lambda content: b"", r"-cat\.mat is not in smallNORB's binary matrix format: it begins with"),
            ("cat", lambda content: b"PK12" + content[4:], "is not in smallNORB's binary matrix format"),
            (
                "cat",
                lambda content: content[:20] + struct.pack("<i", 5) + content[24:],
                "label 5 of pair 0 is not in 0",
            ),
            (
                "info",
                lambda content: content[:20] + struct.pack("<i", 4) + content[24:],
                "pair 0 is of toy 4, but the te",
            ),
        ],
    )
    def test_damaged_files(self, tmp_path, part, change, message):
        self.fill(tmp_path)
        path = tmp_path / "smallNORB" / f"{smallnorb.NAMES['test']}-{part}.mat"
        path.write_bytes(change(path.read_bytes()))
        with pytest.raises(ValueError, match=message):
            self.load(tmp_path)

    def test_a_file_under_the_name_of_another(self, tmp_path):
        self.fill(tmp_path)
        folder = tmp_path / "smallNORB"
        content = (folder / f"{smallnorb.NAMES['train']}-info.mat").read_bytes()
        (folder / f"{smallnorb.NAMES['train']}-cat.mat").write_bytes(content)
        with pytest.raises(ValueError, match=r"-cat\.mat holds int32 \[162, 4\], not int32 \[162\]"):
            self.load(tmp_path)

    def test_cut_short_while_packed(self, tmp_path):
        self.fill(tmp_path, packed=True)
        path = tmp_path / "smallNORB" / f"{smallnorb.NAMES['train']}-dat.mat.gz"
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(ValueError, match=r"-dat\.mat\.gz is damaged or cut short"):
            self.load(tmp_path)


BOX = """<annotation>
	<folder>{wnid}</folder>
	<filename>{name}</filename>
	<source>
		<database>ILSVRC_2012</database>
	</source>
	<size>
		<width>{width}</width>
		<height>{height}</height>
		<depth>3</depth>
	</size>
	<segmented>0</segmented>
{objects}</annotation>
"""
OBJECT = """	<object>
		<name>{wnid}</name>
		<pose>Unspecified</pose>
		<truncated>0</truncated>
		<difficult>0</difficult>
		<bndbox>
			<xmin>{0}</xmin>
			<ymin>{1}</ymin>
			<xmax>{2}</xmax>
			<ymax>{3}</ymax>
		</bndbox>
	</object>
"""


class TestImagenet:
    WNIDS = ("n01440764", "n02123045", "n03000134")

    def fill(self, root: Path) -> Path:
        """Three classes of two images each, 30 x 20 pixels, of which the list names two."""
        folder = root / "ImageNet"
        for split in ("train", "val"):
            for label, wnid in enumerate(self.WNIDS):
                for number in range(2):
                    path = folder / split / wnid / f"{wnid}_{split}{number}.JPEG"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    ramp = np.zeros((20, 30, 3), np.uint8)
                    ramp[..., 0] = 8 * np.arange(30)
                    ramp[..., 1] = 100 * label
                    Image.fromarray(ramp).save(path, format="PNG")
        (folder / "classes.txt").write_text(f"# hard ones\n{self.WNIDS[2]} 0.12\n\n{self.WNIDS[0]}\n")
        return folder

    def annotate(self, folder: Path, name: str, *corners: tuple, wnid: str = "n03000134", size=(30, 20)) -> Path:
        objects = "".join(OBJECT.format(*each, wnid=wnid) for each in corners)
        path = folder / "boxes" / "n03000134" / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(BOX.format(wnid=wnid, name=name, width=size[0], height=size[1], objects=objects))
        return path

    def load(self, root: Path, **options):
        return load_data(DataConfig(name="h-imagenet", root=root, **{"image_size": 20, "validation": 0.0, **options}))

    def test_only_listed_classes_in_their_order(self, tmp_path):
        self.fill(tmp_path)
        data = self.load(tmp_path)
        assert isinstance(data.train, ImageFiles) and data.train.classes == ("n03000134", "n01440764")
        assert len(data.train) == len(data.test) == 4 and data.train.labels.tolist() == [0, 0, 1, 1]
        assert everything(data.test)[:, 1, 0, 0].tolist() == [200, 200, 0, 0]

    def test_cropped_to_all_objects_of_its_class_with_padding(self, tmp_path):
        """Objects at columns 4 .. 10 and 8 .. 14 of 30, half size in the annotation: padded by a tenth of 20 x 10."""
        folder = self.fill(tmp_path)
        self.annotate(folder, "n03000134_train1", (2, 3, 5, 6), (4, 4, 7, 8), size=(15, 10))
        data = self.load(tmp_path)
        whole = torch.from_numpy(np.array(Image.open(data.train.paths[1]))).permute(2, 0, 1)[None]
        expected = resize(whole[..., 5:17, 3:15], (20, 20))
        assert torch.equal(data.train.fetch(torch.tensor([1])), expected)
        assert torch.equal(data.train.fetch(torch.tensor([0])), resize(whole, (20, 20)))
        held = data.train.subset(torch.tensor([1, 3]))
        assert torch.equal(held.fetch(torch.tensor([0])), expected)

    @pytest.mark.parametrize(
        ("corners", "options", "message"),
        [
            ([(2, 3, 2, 6)], {}, "the box 2, 3, 2, 6 is not inside 30x20 pixels"),
            ([(2, 3, 31, 6)], {}, "the box 2, 3, 31, 6 is not inside 30x20"),
            ([(2, 3, "x", 6)], {}, "is damaged, or is no annotation"),
            ([(2, 3, 5, 6)], {"wnid": "n01440764"}, "shows n01440764, but its image is of class n03000134"),
            ([], {}, "shows nothing, but its image is of class n03000134"),
            ([(2, 3, 5, 6)], {"size": ("", "")}, "the box 2, 3, 5, 6 is not inside nanxnan pixels"),
        ],
    )
    def test_faulty_boxes(self, tmp_path, corners, options, message):
        self.annotate(self.fill(tmp_path), "n03000134_train0", *corners, **options)
        with pytest.raises(ValueError, match=rf"n03000134_train0\.xml.*{message}"):
            self.load(tmp_path)

    def test_box_file_cut_short(self, tmp_path):
        path = self.annotate(self.fill(tmp_path), "n03000134_val0", (2, 3, 5, 6))
        path.write_text(path.read_text()[:200])
        with pytest.raises(ValueError, match=r"n03000134_val0\.xml is damaged, or is no annotation of ImageNet"):
            self.load(tmp_path)

    def test_faulty_folders(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"'h-imagenet' is not in .*ImageNet.train"):
            self.load(tmp_path)
        folder = self.fill(tmp_path)
        with pytest.raises(ValueError, match=r"give --data\.image-size"):
            self.load(tmp_path, image_size=None)
        for content, message in (
            ("# nothing\n", "lists no class"),
            ("n01440764\nn01440764\n", "lists n01440764 more than once"),
            ("n09999999\n", r"class n09999999 of classes\.txt has no images in .*train"),
        ):
            (folder / "classes.txt").write_text(content)
            with pytest.raises(ValueError, match=message):
                self.load(tmp_path)

    def test_hardest_classes(self, tmp_path):
        scores = torch.eye(4)[[0, 1, 1, 2, 2, 2]]
        labels = torch.tensor([0, 0, 1, 2, 3, 3])
        accuracy = imagenet.class_accuracy(scores, labels, ("d", "c", "b", "a"))
        assert accuracy == {"d": 0.5, "c": 1.0, "b": 1.0, "a": 0.0}
        assert imagenet.hardest_classes(accuracy, 3) == ("a", "b", "d")
        imagenet.write_classes(tmp_path / "classes.txt", accuracy, 2)
        assert imagenet.read_classes(tmp_path / "classes.txt") == ("a", "d")
        with pytest.raises(ValueError, match="count is 5: there are 4 classes"):
            imagenet.hardest_classes(accuracy, 5)


def test_packed_digits_are_missing_until_a_download_unpacks_them(tmp_path):
    for (name,) in CATALOGUE["mnist"].files:
        path = tmp_path / f"{name}.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(b"x"))
    assert absent(CATALOGUE["mnist"], tmp_path) == [name for (name,) in CATALOGUE["mnist"].files]
    with pytest.raises(FileNotFoundError, match=r"'mnist' is not in .*: fetch it with --data.download"):
        load_data(DataConfig("mnist", root=tmp_path))
