"""What Tsai et al. 2020 say of their routing beside its tables and figures, and what rests on their released code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from torchcaps.config import Config, LossConfig, Option
from torchcaps.papers.inverted_attention import (
    AUTHORS,
    AVERAGES,
    DATA,
    MARGIN,
    NETWORKS,
    OURS,
    PAPER,
    SPREAD,
    SYSTEMS,
    diverse,
    train,
)
from torchcaps.tables.cells import Cell, Panel, Published, Quoted, Train, table
from torchcaps.tables.metrics import ACCURACY, EXACT_MATCH

SIMPLE, RESNET = (system for system in SYSTEMS if system.row.startswith(OURS))
START = "the footnote says neither the number of iterations nor how random parents are drawn: ours are two, and normal"
SIMILAR = (Published("similar converged performance"),)
UNSAID = "the paper says neither backbone nor iterations, of which ours has two"
LOGITS = "of the logits of the linear classifier, as they are"
JITTER = "the paper names no size: it says that jitters of the curve are reduced by a larger one"
ONE = (Panel("CIFAR-10", "epoch"),)
RELATED = {"DeepCaps (Rajasegaran et al., 2019)": "92.74", "Choi et al. (2019)": "88.61"}


@table(PAPER, "text-windows", "Released code", "test accuracy (%) with windows as that code gathers them")
def text_windows() -> Iterator[Cell]:
    """Yield whether the published accuracies rest on them. Of the simple backbone no accuracy at R = 2 is published."""
    for system in (SIMPLE, RESNET):
        average = AVERAGES["cifar10", 2] if system is RESNET else None
        backbone, column = system.row.removeprefix(f"{OURS}, "), "2 iteration(s)"
        ours, theirs = train(system, "cifar10", 2), train(system, "cifar10", 2, scrambled=True)
        published = (Published(average, "mean"),) if average else ()
        name = backbone.lower()
        yield Cell(f"{name}-paper", f"{backbone}, windows of the paper", column, ours, (), ACCURACY)
        note = AUTHORS if average else ""
        yield Cell(f"{name}-scrambled", f"{backbone}, scrambled windows", column, theirs, published, ACCURACY, note)
    for (data, iterations), average in AVERAGES.items():
        if (data, iterations) != ("cifar10", 2):
            column, end = f"{DATA[data]}, {iterations} iteration(s)", f"{data}-r{iterations}"
            ours = train(RESNET, data, iterations)
            yield Cell(f"resnet-paper-{end}", "ResNet, windows of the paper", column, ours, (), ACCURACY)
            theirs, published = train(RESNET, data, iterations, scrambled=True), (Published(average, "mean"),)
            row = "ResNet, scrambled windows"
            yield Cell(f"resnet-scrambled-{end}", row, column, theirs, published, ACCURACY, AUTHORS)


@table(PAPER, "text-start", "Footnote 1", "starts of the parents on CIFAR-10, simple backbone (%)", ONE)
def text_start() -> Iterator[Cell]:
    for start, row in (("zero", "zero"), ("random", "random initialization"), ("learnt", "learnt biases")):
        options: dict[str, Option] = {} if start == "zero" else {"start": start}
        how = train(SIMPLE, "cifar10", 2, **options)
        yield Cell(start, row, "CIFAR-10, 2 iteration(s)", how, SIMILAR if options else (), ACCURACY, START)


def by_loss(model: str, loss: LossConfig) -> Config:
    """Return a network for DiverseMultiMNIST with another loss."""
    return replace(diverse(model), loss=loss)


@table(PAPER, "text-losses", "Section 4.2", "margin and spread loss with inverted attention (%)")
def text_losses() -> Iterator[Cell]:
    """Yield no spread loss of several labels: it sets no score above which a digit counts as shown."""
    note, printed = f"{UNSAID}; {LOGITS}", (Published("no better performance"),)
    for system in (SIMPLE, RESNET):
        for data, column in DATA.items():
            own = train(system, data, 2)
            yield Cell(f"{system.model}-{data}", f"{system.row}, cross-entropy", column, own, (), ACCURACY, UNSAID)
            for loss in (MARGIN, SPREAD):
                how = replace(train(system._replace(loss=loss), data, 2), plotted=False)
                row = f"{system.row}, {loss.name} loss"
                yield Cell(f"{system.model}-{data}-{loss.name}", row, column, how, printed, ACCURACY, note)
    for each in NETWORKS:
        if each.name in ("matrix", "vector"):
            how = Train(partial(by_loss, each.model, MARGIN), each.narrow)
            row, said = f"{each.row}, margin loss", f"{LOGITS}, {MARGIN.threshold:g} of them standing for a digit"
            yield Cell(f"diverse-{each.name}-margin", row, "DiverseMultiMNIST", how, printed, EXACT_MATCH, said)


@table(PAPER, "text-pose", "Section 5", "pose dimensions at five iterations on CIFAR-10, simple backbone (%)", ONE)
def text_pose() -> Iterator[Cell]:
    for pose in (16, 36, 64):
        options: dict[str, Option] = {} if pose == 16 else {"pose": pose}
        how = train(SIMPLE, "cifar10", 5, **options)
        yield Cell(f"pose-{pose}", f"pose dimension {pose}", "CIFAR-10, 5 iteration(s)", how, (), ACCURACY, JITTER)


@table(PAPER, "text-related", "Section 7", "CIFAR-10 accuracy of cited systems (%)")
def text_related() -> Iterator[Cell]:
    for row, value in RELATED.items():
        yield Cell(row.split()[0].lower(), row, "CIFAR-10", Quoted(), (Published(value),), ACCURACY)
