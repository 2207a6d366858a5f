"""Cells that are pictures in their paper: drawn from the folder of the run that fills them, and kept beside the table.

A picture is named after what its run computes, as a line is: that of another network never stands in its place. Where
the folder of a run is gone, its picture stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torchcaps.tables.budgets import Budget, apply_budget, width
from torchcaps.tables.cells import Drawn, Table, Train
from torchcaps.tables.fill import missing_data
from torchcaps.tables.metrics import Record
from torchcaps.tables.records import config_hash, find_runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from torchcaps.data import Data

BUDGETS: tuple[Budget, ...] = ("full", "fast", "cpu")  # a smoke run has learnt nothing to be shown
LOOKED_AT = 2000  # images of a split among which those of a picture are found
RIGHT, WRONG = 4, 2  # overlapped images that came out right, and wrong
SAID: dict[Drawn, str] = {
    "reconstructions": "the first image of each class, and below it what the decoder makes of its winning capsule",
    "segmentations": (
        "overlapped images, and below them what is decoded of each of two classes, in green and blue; R: the classes "
        "that are decoded, L: those that are shown, P: a wrong prediction, *: a class that is neither"
    ),
}


class Picture(NamedTuple):
    """A picture that a cell shows."""

    cell: str  # its name in the table
    kind: Drawn
    budget: Budget
    path: Path  # cells that share a run share it
    caption: str
    config_hash: str
    seed: int


def list_pictures(table: Table, records: Sequence[Record], results: Path) -> Iterator[Picture]:
    """Yield the picture of each cell and budget that a line is of, drawn or not: of the first seed. `results` is the
    folder of the tables.
    """
    for cell in table.cells:
        if cell.picture is None:
            continue
        assert isinstance(cell.how, Train), cell.id
        for budget in BUDGETS:
            config = apply_budget(cell.how.build(), budget, cell)
            runs = [each for each in find_runs(records, config, budget) if "failure" not in each]
            if not runs:
                continue
            name, seed = config_hash(config), runs[0]["seed"]
            made_by = " ".join([budget, width(cell, budget)]).strip()
            caption = f"{SAID[cell.picture]} ({made_by}, seed {seed})"
            path = results / "tables" / table.paper.name / f"{table.name}-{name}-{seed}.png"
            yield Picture(cell.name, cell.picture, budget, path, caption, name, seed)


def draw_missing(
    table: Table, records: Sequence[Record], results: Path, out: Path, root: Path | None = None
) -> Iterator[Path]:
    """Draw the pictures of `table` that are not there, of runs whose folders and data are; yields where each is.

    Args:
        table, records, results: as for `list_pictures`.
        out: the folder of the runs' folders.
        root: of the data sets.
    """
    for picture in list_pictures(table, records, results):
        folder = None if picture.path.exists() else _find_folder(picture, out, root)
        if folder is not None:
            picture.path.parent.mkdir(parents=True, exist_ok=True)
            _save(draw_picture(picture.kind, folder, root), picture.path)
            yield picture.path


def _find_folder(picture: Picture, out: Path, root: Path | None) -> Path | None:
    """Return the finished run of a picture among the folders in `out`, if its data are at hand; damaged ones are
    passed by.
    """
    from torchcaps.train import RunFolder

    wanted = picture.config_hash, picture.seed
    for path in sorted(out.glob("*/result.json")):
        run = RunFolder(path.parent)
        try:
            config, revisions = run.read_config(), run.read_revisions()
        except (FileNotFoundError, ValueError):
            continue
        if not config.changed and (config_hash(config, revisions), config.seed) == wanted:
            return None if missing_data(config, root) else run.path
    return None


def _save(figure: Figure, path: Path) -> None:
    from torchcaps.inspect.figures import style

    with style():
        figure.savefig(path, dpi=120, metadata={"Software": None})


def draw_picture(kind: Drawn, folder: Path, root: Path | None = None) -> Figure:
    """Return the picture of a finished run with a decoder.

    Of "reconstructions" the images are of the set that was trained on, held out, and of the one that was tested on.

    Raises:
        FileNotFoundError, ValueError: when the folder is not one of a run, or its data are not there.
    """
    from torchcaps.data import load_data
    from torchcaps.inspect import draw_inputs_and_outputs, draw_segmentations
    from torchcaps.inspect.figures import style
    from torchcaps.train import load_run

    model, config = load_run(folder)
    data = load_data(replace(config.data, root=root or config.data.root))
    with style():
        if kind == "segmentations":
            return draw_segmentations(model, *_right_and_wrong(folder, data))
        other = config.data.test
        groups = {config.data.name: _one_of_each(data, "test" if other is None else "validation")}
        return draw_inputs_and_outputs(model, groups | ({} if other is None else {other: _one_of_each(data, "test")}))


def _one_of_each(data: Data, split: str) -> Tensor:
    """Return the first image of each class of a split, [classes, c, h, w]; of the training split where it is empty."""
    import torch

    from torchcaps.inspect.examples import pick_images

    batches = data.evaluation("test" if split == "test" else "validation" if len(data.validation) else "train", 100)
    count = min(len(batches.images), LOOKED_AT)
    labels = batches.images.targets(torch.arange(count)).cpu()
    first = [found[0] for label in range(data.num_classes) if len(found := (labels == label).nonzero().flatten())]
    return pick_images(batches, torch.stack(first))[1]


def _right_and_wrong(folder: Path, data: Data) -> tuple[Tensor, Tensor, Tensor]:
    """Return overlapped images of the test split, those that are matched before those that are not, with what they
    show and what was found: [b, c, h, w], and bool [b, classes] twice.
    """
    import torch

    from torchcaps.inspect.examples import pick_images
    from torchcaps.inspect.measured import measure
    from torchcaps.train import load_run
    from torchcaps.train.processes import build_fabric

    model, config = load_run(folder)
    batches = data.evaluation("test", 100)
    fabric = build_fabric(replace(config, device="cpu", processes=1))
    measured = measure(fabric, model, batches, config.loss, LOOKED_AT)
    right = measured.right
    rows = torch.cat([right.nonzero().flatten()[:RIGHT], (~right).nonzero().flatten()[:WRONG]])
    return pick_images(batches, measured.indices[rows])[1], measured.targets[rows], measured.predicted[rows]
