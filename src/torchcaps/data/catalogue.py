"""Which data sets there are, and where they lie. Nothing here imports torch, so that listings answer at once.

`CATALOGUE` is the only list: the command line, the readers and the tests take their names from it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from torchcaps.names import unknown

PATH = ":PATH"  # how the name of an entry ends that reads the user's own files

DIGITS = tuple("0123456789")
FASHION_MNIST = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
"""
CIFAR100 = tuple(CIFAR100_NAMES.split())


@dataclass(frozen=True)
class Entry:
    """One data set, and the function that reads it.

    `classes`, `channels`, `image_size`, `train` and `test` are empty, None or zero where the user's files decide.
    """

    name: str
    about: str  # what it is, in one line
    reader: str  # "module:function", imported when it is needed; see `torchcaps.data.readers.Reader`
    classes: tuple[str, ...] = ()
    channels: int = 0
    image_size: tuple[int, int] | None = None  # height, width
    train: int = 0  # images, the validation split among them
    test: int = 0
    licence: str = "your own"
    megabytes: int = 0  # of the download

    @property
    def takes_path(self) -> bool:
        """Whether the name is completed by a path: `npz:PATH`, `folder:PATH`."""
        return self.name.endswith(PATH)

    def facts(self) -> str:
        """One line: classes, image size, number of images, size of the download, licence."""
        if self.image_size is None:
            return f"classes, sizes and licence are {self.licence}"
        height, width = self.image_size
        source = f"{self.megabytes} MB" if self.megabytes else "embedded"
        images = f"{self.channels}x{height}x{width}, {self.train:,} train, {self.test:,} test"
        return f"{len(self.classes)} classes, {images}, {source}, licence: {self.licence}"


CATALOGUE: dict[str, Entry] = {}


def register(entry: Entry) -> Entry:
    """Add `entry`, which lists it, makes it loadable by name and tested.

    Raises:
        ValueError: when the name is taken.
    """
    if entry.name in CATALOGUE:
        raise ValueError(f"data set {entry.name!r} is already registered")
    CATALOGUE[entry.name] = entry
    return entry


def find(name: str) -> tuple[Entry, Path | None]:
    """The entry of `name`, and the path of `npz:PATH` or `folder:PATH` (None for a named set).

    Raises:
        ValueError: for an unknown name, with the nearest known one; for a missing path.
    """
    prefix, colon, path = name.partition(":")
    entry = CATALOGUE.get(prefix + PATH if colon else name)
    if entry is None or (entry.takes_path and not colon):
        raise unknown("data set", name, CATALOGUE, "`torchcaps list data` shows all")
    if colon and not path:
        raise ValueError(f"data set {name!r} lacks its path: write {entry.name}")
    return entry, Path(path).expanduser() if colon else None


def data_root(root: Path | None = None) -> Path:
    """The folder of the data sets: `root`, else $TORCHCAPS_DATA, else torchcaps/data in the user's cache folder."""
    if root is not None:
        return Path(root).expanduser()
    if chosen := os.environ.get("TORCHCAPS_DATA"):
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "torchcaps" / "data"


register(
    Entry(
        name="digits",
        about="handwritten digits of 13 writers (Alpaydin and Kaynak 1998), embedded in scikit-learn",
        reader="torchcaps.data.readers:read_digits",
        classes=DIGITS,
        channels=1,
        image_size=(8, 8),
        train=1437,
        test=360,
        licence="CC BY 4.0",
    )
)
register(
    Entry(
        name="mnist",
        about="handwritten digits (LeCun, Cortes and Burges 1998)",
        reader="torchcaps.data.readers:read_mnist",
        classes=DIGITS,
        channels=1,
        image_size=(28, 28),
        train=60_000,
        test=10_000,
        licence="CC BY-SA 3.0",
        megabytes=12,
    )
)
register(
    Entry(
        name="fashion-mnist",
        about="articles of clothing (Xiao, Rasul and Vollgraf 2017)",
        reader="torchcaps.data.readers:read_mnist",
        classes=FASHION_MNIST,
        channels=1,
        image_size=(28, 28),
        train=60_000,
        test=10_000,
        licence="MIT",
        megabytes=31,
    )
)
register(
    Entry(
        name="cifar10",
        about="small photographs of animals and vehicles (Krizhevsky 2009)",
        reader="torchcaps.data.readers:read_cifar",
        classes=CIFAR10,
        channels=3,
        image_size=(32, 32),
        train=50_000,
        test=10_000,
        licence="none stated",
        megabytes=170,
    )
)
register(
    Entry(
        name="cifar100",
        about="small photographs, the 100 fine classes (Krizhevsky 2009)",
        reader="torchcaps.data.readers:read_cifar",
        classes=CIFAR100,
        channels=3,
        image_size=(32, 32),
        train=50_000,
        test=10_000,
        licence="none stated",
        megabytes=169,
    )
)
register(
    Entry(
        name="svhn",
        about="house numbers in street views, cropped digits, without the extra images (Netzer et al. 2011)",
        reader="torchcaps.data.readers:read_svhn",
        classes=DIGITS,
        channels=3,
        image_size=(32, 32),
        train=73_257,
        test=26_032,
        licence="non-commercial use only",
        megabytes=246,
    )
)
register(
    Entry(
        name="npz:PATH",
        about="your own arrays: x_train, y_train, x_test, y_test in one .npz, images NHW or NHWC of uint8",
        reader="torchcaps.data.readers:read_npz",
    )
)
register(
    Entry(
        name="folder:PATH",
        about="your own image files: PATH/train/CLASS/*, PATH/test/CLASS/*, or PATH/CLASS/* with a fixed test split",
        reader="torchcaps.data.folder:read_folder",
    )
)
