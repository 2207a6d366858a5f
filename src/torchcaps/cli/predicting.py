"""`torchcaps predict`: what pictures show, by a trained model."""

from __future__ import annotations

import csv as tables
import sys
from collections.abc import Callable, Iterable, Iterator
from io import TextIOWrapper
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional

from torchcaps.terminal import finite, note, plain_cell, printable, say

if TYPE_CHECKING:
    from torchcaps.deploy import Classifier, Prediction

Named = tuple[Path, "Prediction"]


def predict(
    source: Annotated[Positional[str], tyro.conf.arg(metavar="RUN|FILE|NAME")],
    pictures: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="PICTURE")],
    top: int = 5,
    json: bool = False,
    csv: bool = False,
    batch: int = 32,
    device: str = "auto",
    trusted: bool = False,
) -> None:
    """Say what pictures show. Pictures that cannot be read are named and passed over.

    For example: `torchcaps predict runs/classify-0 new/*.jpg --top 3`.

    Args:
        source: the folder of a run, a .safetensors, .onnx or .pt2 file, or the name of weights of a checkout
        pictures: files, folders, or - for a list on standard input, a path a line
        top: classes that are named of each picture, the likeliest first
        json: print one JSON array
        csv: print a table of comma-separated values
        batch: pictures that are computed at one time
        device: auto, cpu, cuda, mps
        trusted: read a .pt2 file, which may hold code that is run
    """
    from torchcaps.deploy import load
    from torchcaps.deploy.many import find_pictures, predict_files

    if json and csv:
        raise ValueError("json and csv are two forms of the same: give one of them")
    for name, value in (("top", top), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    places = [line for place in pictures for line in (_listed() if place == "-" else [place])]
    if not places:
        raise ValueError("there is no picture to look at: give files, folders, or a list on standard input")
    paths = find_pictures(places)
    classifier = load(source, device, trusted)
    left_out: list[Path] = []
    cut: list[Path] = []

    def readable() -> Iterator[Named]:
        for path, found in _with_progress(predict_files(classifier, paths, batch), len(paths)):
            if isinstance(found, ValueError):
                left_out.append(path)
                note(f"torchcaps: passed over {path}: {' '.join(str(found).split())}")
            else:
                if classifier.score.to_probability == "none" and found.scores[found.label] > 1:
                    cut.append(path)
                yield path, found

    write: Callable[..., None] = _write_json if json else _write_csv if csv else _write_table
    write(readable(), classifier, min(top, len(classifier.classes)), max(len(printable(str(path))) for path in paths))
    if len(left_out) == len(paths):
        raise ValueError(f"none of the {len(paths)} pictures could be read")
    if left_out:
        note(f"torchcaps: {len(left_out)} of {len(paths)} pictures could not be read")
    if cut:
        note(
            f"torchcaps: {len(cut)} of {len(paths)} pictures have scores above 1, which are read as 1: these order the "
            "classes, and are no probabilities"
        )


def _listed() -> list[str]:
    return [line for line in sys.stdin.read().splitlines() if line.strip()]


def _with_progress(found: Iterable[Any], total: int) -> Iterator[Any]:
    """Yield `found`, with a bar on the terminal where the results go elsewhere."""
    if sys.stdout.isatty() or not sys.stderr.isatty():
        yield from found
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(found, "pictures", total, console=Console(stderr=True), transient=True)


def _write_table(found: Iterator[Named], classifier: Classifier, top: int, width: int) -> None:
    """Write a line a picture, as soon as it is known; what is no probability is called what it is."""
    from torchcaps.scores import score_word, show_score

    several, names, word = classifier.score.shown != 1, max(map(len, classifier.classes)), score_word(classifier.score)
    say(f"{'picture':{width}}  " + ("shows" if several else f"{'class':{names}}  {word}"))
    for path, each in found:
        if several:
            said = ", ".join(f"{name} {show_score(each.probabilities[name], word)}" for name in each.labels) or "none"
        else:
            said = f"{each.label:{names}}  {show_score(each.probability, word):>6}"
        left = (pair for pair in each.top(top) if pair[0] not in (each.labels or (each.label,)))
        others = [f"{name} {show_score(p, word)}" for name, p in left]
        say(f"{printable(str(path)):{width}}  {said}" + (f"  then {', '.join(others)}" if others else ""))


def _write_json(found: Iterator[Named], classifier: Classifier, top: int, width: int) -> None:
    """Write one array, an element a line; a probability that is no finite number is null."""
    first = True
    say("[", end="")
    for path, each in found:
        record = {
            "picture": str(path),
            "label": each.label,
            "probability": each.probability,
            "labels": each.labels,
            "top": [{"label": name, "probability": p} for name, p in each.top(top)],
        }
        say("" if first else ",")
        say(dumps(finite(record), allow_nan=False), end="")
        first = False
    say()
    say("]")


def _write_csv(found: Iterator[Named], classifier: Classifier, top: int, width: int) -> None:
    """Write the columns picture, label and probability, then those of the next likeliest; of several classes all
    that are shown in one column more, with | between them. Names that a spreadsheet would compute are `plain_cell`s.
    """
    several = classifier.score.shown != 1
    cell = printable if sys.stdout.isatty() else str  # elsewhere a name is data
    if isinstance(sys.stdout, TextIOWrapper) and not sys.stdout.isatty():  # whatever a terminal here could show
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="")
    table = tables.writer(sys.stdout, lineterminator="\n")
    further = [f"{what}_{n}" for n in range(2, top + 1) for what in ("label", "probability")]
    table.writerow(["picture", *(["labels"] if several else []), "label", "probability", *further])
    for path, each in found:
        pairs = [value for name, p in each.top(top) for value in (plain_cell(name), f"{p:.6f}")]
        row = [plain_cell(str(path)), *([plain_cell("|".join(each.labels))] if several else []), *pairs]
        table.writerow(map(cell, row))
