"""h-ImageNet (Li et al. 2018, EncapNet, appendix C): the classes of ImageNet that a ResNet-18 finds hardest, each image
cropped to its object.

root/ImageNet holds what the user has: train/WNID/*.JPEG and val/WNID/*.JPEG, as torchvision lays ImageNet out;
classes.txt, a WNID a line (what follows it is passed over, as are lines that begin with #); and, if wanted, boxes: any
folders of NAME.xml in ImageNet's published format, NAME being that of the image. Images without a box are not cropped.
val becomes the test split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import torch

from torchcaps.config import DataConfig
from torchcaps.data.files import Box, Form, ImageFiles
from torchcaps.data.folder import workers
from torchcaps.data.images import Splits
from torchcaps.data.notes import say, some
from torchcaps.data.readers import missing
from torchcaps.data.tree import list_pictures
from torchcaps.files import replace_text

PADDING = 0.1  # of the box's own height and width, on each side; the paper says "some"


def read_h_imagenet(root: Path, config: DataConfig) -> Splits:
    """Return the images of the listed classes, decoded whenever they are needed; `config.image_size` must be given.

    Raises:
        FileNotFoundError: when a folder or the list is not there.
        ValueError: for a class without images, a damaged box file or one of another class, a missing image size.
    """
    folder = root / "ImageNet"
    for needed in ("train", "val", "classes.txt"):
        if not (folder / needed).exists():
            raise missing(config.name, folder / needed)
    if config.sides is None:
        raise ValueError("h-imagenet's images differ in size: give --data.image-size; the paper's is 156, cut to 128")
    classes = read_classes(folder / "classes.txt")
    annotations = {path.stem: path for path in sorted((folder / "boxes").rglob("*.xml"))}
    splits = []
    for split in ("train", "val"):
        files = _list_images(folder / split, classes)
        boxes = tuple(
            read_box(annotations[stem], classes[label]) if (stem := Path(path).stem) in annotations else None
            for path, label in zip(files.paths, files.labels.tolist(), strict=True)
        )
        form = Form((3, *config.sides), config.fit, config.ground)
        splits.append(replace(files, form=form, boxes=boxes, workers=workers(len(files))))
    return Splits(*splits)


def read_classes(path: Path) -> tuple[str, ...]:
    """Return the first word of each line that is not empty and does not begin with #.

    Raises:
        ValueError: when there is none, and when one is listed twice.
    """
    lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    classes = tuple(words[0] for words in lines if words and not words[0].startswith("#"))
    if not classes:
        raise ValueError(f"{path} lists no class: it must hold a WordNet id, such as n01440764, a line")
    if twice := sorted({name for name in classes if classes.count(name) > 1}):
        raise ValueError(f"{path} lists {twice[0]} more than once")
    return classes


def write_classes(path: Path, accuracy: Mapping[str, float], count: int = 200) -> None:
    """Write the class list of `hardest_classes`, each class with its accuracy behind it."""
    lines = [f"{name} {accuracy[name]:.4f}\n" for name in hardest_classes(accuracy, count)]
    replace_text(path, f"# the {count} classes of the lowest accuracy of {len(accuracy)}\n" + "".join(lines))


def hardest_classes(accuracy: Mapping[str, float], count: int = 200) -> tuple[str, ...]:
    """Return the `count` classes of the lowest accuracy, in the order of their names; of equals the first by name.

    Raises:
        ValueError: when there are fewer classes.
    """
    if not 0 < count <= len(accuracy):
        raise ValueError(f"count is {count}: there are {len(accuracy)} classes to choose from")
    return tuple(sorted(sorted(accuracy, key=lambda name: (accuracy[name], name))[:count]))


def class_accuracy(scores: torch.Tensor, labels: torch.Tensor, classes: tuple[str, ...]) -> dict[str, float]:
    """Return the share of each class's images whose highest score is their own; scores [b, classes], labels int64 [b].

    Classes without images are left out.
    """
    shown = torch.bincount(labels, minlength=len(classes))
    right = torch.bincount(labels[scores.argmax(1) == labels], minlength=len(classes))
    return {
        name: found / count for name, found, count in zip(classes, right.tolist(), shown.tolist(), strict=True) if count
    }


def read_box(path: Path, wnid: str) -> Box:
    """Return the smallest box around all objects of class `wnid` in an annotation, widened by `PADDING`.

    In shares of the image: some annotations were made on smaller copies, whose size they state.

    Raises:
        ValueError: for a file that is no annotation, of no object of this class, or with an impossible box.
    """
    try:
        annotation = ElementTree.parse(path).getroot()
        sizes = [float(annotation.findtext(f"size/{name}") or "nan") for name in ("width", "height")]
        objects = [each for each in annotation.iter("object") if each.findtext("name") == wnid]
        corners = [
            [float(each.findtext(f"bndbox/{name}") or "nan") for name in ("xmin", "ymin", "xmax", "ymax")]
            for each in objects
        ]
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or is no annotation of ImageNet: {error}") from error
    if not corners:
        found = sorted({each.findtext("name") or "nothing" for each in annotation.iter("object")})
        raise ValueError(f"{path} shows {', '.join(found) or 'nothing'}, but its image is of class {wnid}")
    width, height = sizes
    left, top, right, bottom = (
        function(values) for function, values in zip((min, min, max, max), zip(*corners, strict=True), strict=True)
    )
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(
            f"{path}: the box {left:g}, {top:g}, {right:g}, {bottom:g} is not inside {width:g}x{height:g} pixels"
        )
    across, down = PADDING * (right - left), PADDING * (bottom - top)
    return (
        max(0.0, (left - across) / width),
        max(0.0, (top - down) / height),
        min(1.0, (right + across) / width),
        min(1.0, (bottom + down) / height),
    )


def _list_images(folder: Path, classes: tuple[str, ...]) -> ImageFiles:
    """Return the images of `classes` in folder/WNID; their shape is not known yet."""
    paths, labels, left = [], [], []
    for label, name in enumerate(classes):
        found, others, _ = list_pictures(folder / name) if (folder / name).is_dir() else ([], [], [])
        left += others
        if not found:
            raise ValueError(f"class {name} of classes.txt has no images in {folder / name}")
        paths += found
        labels += [label] * len(found)
    if left:
        say(f"left out {len(left):,} file(s) of {folder} that are no pictures: {some(left)}")
    return ImageFiles(tuple(paths), torch.tensor(labels), classes, Form((0, 0, 0)))
