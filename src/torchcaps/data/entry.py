"""What the catalogue says of a data set."""

from __future__ import annotations

from dataclasses import dataclass

from torchcaps.config import ComposeConfig

SMALLEST = 28  # pixels a side; smaller images become this large before anything is composed of them
PATHS = (":PATH", ":FILE")  # how the name of an entry ends that reads the user's own files


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
    files: tuple[tuple[str, ...], ...] = ()  # in the data root; of each group the first that exists is read
    compose: ComposeConfig | None = None  # of composed sets: what is not given otherwise
    page: str = ""  # where the user gets the files, where `--data.download` cannot
    test_reader: str = ""  # reads the test split alone, where reading all would waste gigabytes

    @property
    def takes_path(self) -> bool:
        """Return whether the name is completed by a path: `npz:PATH`, `folder:PATH`, `list:FILE`."""
        return self.name.endswith(PATHS)

    def facts(self) -> str:
        """Return one line: classes, image size, number of images, size of the download, licence."""
        if self.image_size is None:
            return "classes and sizes are those of the files" + (
                "" if self.takes_path else f", licence: {self.licence}"
            )
        height, width = self.image_size
        source = f"{self.megabytes:,} MB" if self.megabytes else self._place
        images = f"{self.channels}x{height}x{width}, {self.train:,} train, {self.test:,} test"
        return f"{len(self.classes)} classes, {images}, {source}, licence: {self.licence}"

    @property
    def _place(self) -> str:
        if self.compose is not None:
            return f"composed of {self.compose.base}"
        return "to be fetched from its page" if self.files else "embedded"
