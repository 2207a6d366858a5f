"""What was measured of a split, as JSON and as tables: accuracy by class, confusion, top-k, calibration."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchcaps.files import own_folder
from torchcaps.inspect.measured import Measured, calibrate_measured, class_accuracy, confusion
from torchcaps.terminal import finite, plain_cell
from torchcaps.train.checkpoint import write_text

MOST = 5  # of top-k
CLASS = ("class", "images", "found", "accuracy")
BINS = ("from", "to", "images", "probability", "frequency")


def describe_measured(measured: Measured, classes: Sequence[str], split: str, images: int) -> dict[str, Any]:
    """Return what was measured, as JSON can hold it.

    - `accuracy`: share of the images that are right; of label sets, that are matched exactly.
    - `top`: of single labels, by k up to 5 and below the number of classes, the share whose label is among the k
      highest scores.
    - `by_class`: of each class the images that show it, those of them in which it is found, and their share.
    - `confused`: pairs of classes, the most frequent first; of label sets see `confusion`.
    - `calibration`: mean distance of probability and frequency, and both in ten bins.

    What is not a number, as of a diverged run, is None.

    Args:
        measured: what a model said of images of the split.
        classes: their names.
        split: its name.
        images: that the split holds, of which some may have been measured.
    """
    counts = confusion(measured.targets, measured.predicted).fill_diagonal_(0)
    wrong = sorted((-int(counts[a, b]), a, b) for a, b in counts.nonzero().tolist())
    best = range(1, max(1, min(MOST, len(classes) - 1)) + 1)
    calibration = calibrate_measured(measured)
    record = {
        "split": split,
        "images": images,
        "measured": len(measured.targets),
        "accuracy": measured.right.double().mean().item(),
        "top": None if measured.several else {str(k): (measured.better < k).double().mean().item() for k in best},
        "by_class": [dict(zip(CLASS, row, strict=True)) for row in _class_rows(measured, classes)],
        "confused": [{"shown": classes[a], "taken_for": classes[b], "images": -n} for n, a, b in wrong],
        "calibration": {
            "error": calibration.error,
            "bins": [dict(zip(BINS, row, strict=True)) for row in _bin_rows(measured)],
        },
    }
    return finite(record)


def write_measures(folder: Path, record: Mapping[str, Any], measured: Measured, classes: Sequence[str]) -> list[Path]:
    """Write `record` to evaluation.json, and as tables by-class.csv, confusion.csv (rows the truth), calibration.csv
    and, of single labels, top-k.csv.

    Raises:
        OSError: when one cannot be written; what was there is kept.
    """
    counts = confusion(measured.targets, measured.predicted).tolist()
    cells = [plain_cell(name) for name in classes]
    written = {
        "evaluation.json": json.dumps(finite(record), indent=2, allow_nan=False) + "\n",
        "by-class.csv": _to_csv([CLASS, *_class_rows(measured, cells)]),
        "confusion.csv": _to_csv([("shown", *cells), *((name, *row) for name, row in zip(cells, counts, strict=True))]),
        "calibration.csv": _to_csv([BINS, *_bin_rows(measured)]),
        **({} if record["top"] is None else {"top-k.csv": _to_csv([("k", "accuracy"), *record["top"].items()])}),
    }
    own_folder(folder, make=True)
    for name, text in written.items():
        write_text(folder / name, text)
    return [folder / name for name in written]


def _class_rows(measured: Measured, classes: Sequence[str]) -> list[tuple[str, int, int, float | None]]:
    """Return for each class its name, images that show it, those in which it is found, and their share, None of
    none.
    """
    shown = measured.targets.sum(0).tolist()
    found = (measured.targets & measured.predicted).sum(0).tolist()
    shares = class_accuracy(measured.targets, measured.predicted).tolist()
    return [(name, shown[n], found[n], shares[n] if shown[n] else None) for n, name in enumerate(classes)]


def _bin_rows(measured: Measured) -> list[tuple[float, float, int, float | None, float | None]]:
    """Return for each bin of probabilities its limits, how many fall into it, their mean, None where one is no number,
    and how many came true.
    """
    bins = calibrate_measured(measured)
    count = len(bins.counts)
    return [
        (n / count, (n + 1) / count, images, p if math.isfinite(p) else None, share if images else None)
        for n, (images, p, share) in enumerate(
            zip(bins.counts.tolist(), bins.confidence.tolist(), bins.accuracy.tolist(), strict=True)
        )
    ]


def _to_csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
