"""Cells that are pictures in their paper: drawn from the folder of the run that fills them, and kept beside the table.

A picture is named after what its run computes, as a line is: that of another network never stands in its place. Where
the folder of a run is gone, its picture stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from torchcaps.data.facts import missing_data
from torchcaps.tables.budget_names import SHOWN, Budget
from torchcaps.tables.budgets import apply_budget, width
from torchcaps.tables.cells import Drawn, Table, Train
from torchcaps.tables.metrics import Record
from torchcaps.tables.records import config_hash, find_finished, find_runs

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
        for budget in SHOWN:
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
    from torchcaps.tables.drawings import save_picture
    from torchcaps.train import RunFolder

    for picture in list_pictures(table, records, results):
        if picture.path.exists():
            continue
        folder = find_finished(out, picture.config_hash, picture.seed)
        if folder is not None and not missing_data(RunFolder(folder).read_config(), root):
            picture.path.parent.mkdir(parents=True, exist_ok=True)
            save_picture(picture.kind, folder, picture.path, root)
            yield picture.path
