"""A run, measured on its own data or on others."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torchcaps.config import DataConfig
from torchcaps.data import Data, load_data
from torchcaps.data.facts import data_facts, has_test_split
from torchcaps.forms import SPLITS, Digest, InputForm, SplitName
from torchcaps.inspect.measured import Measured, Watch
from torchcaps.inspect.measures import describe_measured, write_measures
from torchcaps.manifest import DIGESTS, Manifest
from torchcaps.terminal import finite
from torchcaps.train.evaluation import evaluate
from torchcaps.train.meter import Score
from torchcaps.train.opened import load_run, match_data
from torchcaps.train.processes import build_measuring, name_shortage
from torchcaps.train.run import RunFolder, naming


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a run."""

    split: str
    score: Score
    measured: Measured
    classes: tuple[str, ...]
    of_run: bool | None  # whether the images are those of the run's splits; None: the run did not write that down

    def describe(self) -> dict[str, Any]:
        """Return it as JSON can hold it; see `describe_measured`."""
        known = {"split": self.split, "accuracy": self.score.accuracy, **self.score._asdict(), "of_run": self.of_run}
        return finite(describe_measured(self.measured, self.classes, self.split, self.score.images) | known)

    def write(self, folder: Path) -> list[Path]:
        """Write it to `folder` as JSON and tables, which are returned; see `write_measures`."""
        return write_measures(folder, self.describe(), self.measured, self.classes)


def evaluate_run(
    path: str | Path,
    data: DataConfig | None = None,
    split: SplitName | Literal["all"] | None = None,
    device: str = "auto",
) -> Evaluation:
    """Measure the model that a run selected.

    Args:
        path: the folder of the run.
        data: other data, whose classes are matched by name; they are read as the run's pictures were where that is left
            open, and standardised by its mean and std. None: the run's own.
        split: whose images are measured; all: every image of the data. None: test, but of other data that have no test
            split of their own all, unless they are the run's own pictures in another place.
        device: auto, cpu, cuda or mps.

    Raises:
        FileNotFoundError: when `path` is not the folder of a run, or the data are not there.
        ValueError: for data that the model cannot take, with classes that it does not know, or without such a split.
        MemoryError: when a batch of the run does not fit into the device's memory.
    """
    model, config = load_run(path)
    manifest = RunFolder(Path(path)).read_manifest()
    with naming(Path(path) / "config.json") if device == "auto" else nullcontext():
        fabric = build_measuring(config, device)
    asked = config.data if data is None else data
    other = asked.name != config.data.name
    drawn = other and split in (None, "all") and not has_test_split(asked)
    given = split
    if split is None:
        split = "all" if drawn else "test"
    if drawn and not round(asked.validation * data_facts(asked).images):  # of a few pictures nothing can be held out
        asked = replace(asked, validation=0.0)
    with nullcontext() if asked != config.data else naming(Path(path) / "config.json"):
        loaded = load_data(read_alike(asked, manifest.input) if other else asked, fabric.device)
    loaded = match_data(path, loaded)
    if given is None and drawn and holds_images_of(manifest, loaded, SPLITS):  # the run's own pictures, moved
        split = "test"
    splits: list[SplitName] = [each for each in SPLITS if split in (each, "all") and len(getattr(loaded, each))]
    if not splits:
        raise ValueError(f"{path} held out no {split} images (data.validation {config.data.validation})")
    watch = Watch(config.loss, loaded.shown)
    with naming(Path(path) / "config.json"):
        batches = [loaded.evaluation(each, config.batch_size) for each in splits]
    with name_shortage(config, fabric.device, measured=True):
        score = evaluate(
            fabric,
            fabric.to_device(model),
            batches,
            config.loss,
            loaded.num_classes,
            watch,
        )
    of_run = holds_images_of(manifest, loaded, splits)
    return Evaluation(split, score, watch.measured(), loaded.train.classes, of_run)


def leave_shares(data: DataConfig, given: Collection[str]) -> DataConfig:
    """Return `data`, of other images than a run's, without what only says which images of its own the run took: a test
    split that lies elsewhere, a share and a limit, but for those of the fields `given`, such as "data.limit".
    """
    usual = DataConfig(data.name)
    own = [name for name in ("test", "fraction", "limit") if f"data.{name}" not in given]
    return replace(data, **{name: getattr(usual, name) for name in own})


def read_alike(data: DataConfig, form: InputForm | None) -> DataConfig:
    """Return `data` with what is left open of files set to what the pictures of a run became: their colours and
    their size.
    """
    if form is None:
        return data
    if data.colour == "auto" and form.mode is not None:
        data = replace(data, colour="grey" if form.mode == "L" else "rgb")
    if data.image_size is None and data.pad is None:
        height, width = form.size
        data = replace(data, image_size=height if height == width else form.size)
    return data


def holds_images_of(manifest: Manifest, data: Data, splits: Sequence[SplitName]) -> bool | None:
    """Return whether `splits` of `data` hold the images that a run wrote down; None where it did not."""
    recorded: list[Digest] = [getattr(manifest.data, split) for split in splits]
    if DIGESTS in manifest.missing:
        return None
    return all(data.digest(split) == each for split, each in zip(splits, recorded, strict=True))
