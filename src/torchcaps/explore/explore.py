"""The page of a run in which its network answers, written as one file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from torchcaps.data.prepare import to_input
from torchcaps.deploy.classifier import Classifier
from torchcaps.deploy.module import ModuleRunner
from torchcaps.deploy.sources import EXPORTED, build, read_source
from torchcaps.explore.examples import Examples, learn_hand, read_examples
from torchcaps.explore.graphs import make_graphs
from torchcaps.explore.page import Explored, render
from torchcaps.explore.runtime import find_runtime
from torchcaps.files import check_plain, replace_text
from torchcaps.manifest import Manifest
from torchcaps.models import Model
from torchcaps.terminal import warn
from torchcaps.train import RunFolder

PAGE = "explore.html"
# What a page, which is made to be passed on, says of data that gave no examples.
ABSENT = "the data were not there when this page was written"
UNREAD = "the data could not be taken as the network takes them when this page was written"


class Written(NamedTuple):
    """What was written."""

    path: Path
    bytes: int
    difference: float | None  # largest, of ONNX Runtime from torch on this machine; None where it is not installed
    absent: dict[str, str]  # parts that the page lacks, and why


def write_explorer(source: str | Path, out: str | Path | None = None, runtime: str | Path | None = None) -> Written:
    """Write a page, one file, in which a trained network answers: for drawings, for pictures and for its examples.

    It shows class capsules, what is decoded of them, and the routing. What a network does not have the page says.

    Args:
        source: the folder of a run, of which the selected weights are taken; a file of weights, or a name of weights,
            see `torchcaps.models.pretrained.find_weights`.
        out: the file; None: explore.html, in the folder of the run where it is one.
        runtime: folder of ONNX Runtime Web; None: that in the user's cache, see `torchcaps.explore.runtime`.

    Raises:
        FileNotFoundError: when there is nothing of that name, or no runtime.
        OSError, ValueError: when it cannot be read or written, when it does not say how a picture becomes input, and
            where onnx and onnxscript are not installed.
    """
    found = find_runtime(runtime)
    home = Path(source) if Path(source, "config.json").exists() else Path()
    path = home / PAGE if out is None else Path(out)
    check_plain(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")
    explored = explore(source)
    content = render(explored, found)
    replace_text(path, content)
    absent = explored.absent | explored.graphs.absent
    return Written(path, path.stat().st_size, explored.graphs.difference, absent)


def explore(source: str | Path) -> Explored:
    """Return what a page shows of a run, a file of weights or a name of weights; raises as `write_explorer`."""
    if Path(source).suffix in EXPORTED:
        raise ValueError(f"{source} is an export, without its couplings: give the folder of its run, or its weights")
    manifest, model = read_source(source)
    classifier = build(source, manifest, ModuleRunner(model, "cpu"))
    try:
        examples = read_examples(source, manifest)
    except (OSError, ValueError) as error:
        warn(f"the page has no examples: {' '.join(str(error).split())}")  # which may name folders of this machine
        examples = ABSENT if isinstance(error, FileNotFoundError) else UNREAD
    return look(classifier, examples, _undecoded(source, manifest))


def look(classifier: Classifier, examples: Examples | str, undecoded: str = "") -> Explored:
    """Return what a page shows of a trained network.

    Args:
        classifier: of a model on the CPU.
        examples: of its data, or why there are none.
        undecoded: why nothing is to be decoded; "" where nothing speaks against it.
    """
    form, model = classifier.input, classifier.model
    assert isinstance(model, Model)
    if isinstance(examples, str):
        image = torch.rand(form.channels, *form.image_size, generator=torch.Generator().manual_seed(0))
        hand = None
    else:
        image = torch.from_numpy(to_input(examples.pixels[:1].numpy(), form)[0, 0])
        hand = learn_hand(examples.pixels)
    none = isinstance(examples, str)
    return Explored(
        manifest=classifier.manifest,
        classes=classifier.classes,
        form=form,
        score=classifier.score,
        graphs=make_graphs(model, image, undecoded),
        image=(form.channels, *form.image_size),
        examples=None if none else examples,
        hand=hand,
        dark=hand is not None or (none and form.channels == 1),
        absent={"examples": examples} if none else {},
    )


def _undecoded(source: str | Path, manifest: Manifest) -> str:
    """Return why nothing is decoded, whatever the network has; "" where nothing speaks against it."""
    assert manifest.input is not None
    if manifest.input.standardise != "none":
        return "The images of this network are standardised, and what its decoder paints is no picture."
    if (Path(source) / "config.json").exists() and RunFolder(Path(source)).read_config().loss.reconstruction == 0:
        return "The decoder of this network, if it has one, was not trained: the loss had no reconstruction in it."
    return ""
