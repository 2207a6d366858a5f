"""What cells that are pictures show: drawn by the model of a finished run, of the images of its data."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from torchcaps.data import Data
from torchcaps.files import replacing
from torchcaps.inspect import draw_inputs_and_outputs, draw_segmentations
from torchcaps.inspect.examples import pick_images
from torchcaps.inspect.figures import style
from torchcaps.inspect.measured import measure
from torchcaps.tables.cells import Drawn
from torchcaps.train.opened import Opened, open_run

LOOKED_AT = 2000  # images of a split among which those of a picture are found
RIGHT, WRONG = 4, 2  # overlapped images that came out right, and wrong


def save_picture(kind: Drawn, folder: Path, path: Path, root: Path | None = None) -> None:
    """Write the picture of `kind` of the run in `folder` to `path`, as PNG; raises as `draw_picture`."""
    figure = draw_picture(kind, folder, root)
    with style(), replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})


def draw_picture(kind: Drawn, folder: Path, root: Path | None = None) -> Figure:
    """Return the picture of a finished run with a decoder.

    Of "reconstructions" the images are of the set that was trained on, held out, and of the one that was tested on.

    Raises:
        FileNotFoundError, ValueError: when the folder is not one of a run, or its data are not there.
    """
    opened = open_run(folder, "cpu", root)
    model, config, _, data = opened
    with style():
        if kind == "segmentations":
            return draw_segmentations(model, *_right_and_wrong(opened))
        other = config.data.test
        groups = {config.data.name: _one_of_each(data, "test" if other is None else "validation")}
        return draw_inputs_and_outputs(model, groups | ({} if other is None else {other: _one_of_each(data, "test")}))


def _one_of_each(data: Data, split: str) -> Tensor:
    """Return the first image of each class of a split, [classes, c, h, w]; of the training split where it is empty."""
    batches = data.evaluation("test" if split == "test" else "validation" if len(data.validation) else "train", 100)
    count = min(len(batches.images), LOOKED_AT)
    labels = batches.images.targets(torch.arange(count)).cpu()
    first = [found[0] for label in range(data.num_classes) if len(found := (labels == label).nonzero().flatten())]
    return pick_images(batches, torch.stack(first))[1]


def _right_and_wrong(opened: Opened) -> tuple[Tensor, Tensor, Tensor]:
    """Return overlapped images of the test split, those that are matched before those that are not, with what they
    show and what was found: [b, c, h, w], and bool [b, classes] twice.
    """
    model, config, fabric, data = opened
    batches = data.evaluation("test", 100)
    measured = measure(fabric, model, batches, config.loss, LOOKED_AT)
    right = measured.right
    rows = torch.cat([right.nonzero().flatten()[:RIGHT], (~right).nonzero().flatten()[:WRONG]])
    return pick_images(batches, measured.indices[rows])[1], measured.targets[rows], measured.predicted[rows]
