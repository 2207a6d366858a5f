"""Recipes of Tsai, Srivastava, Goh and Salakhutdinov, "Capsules with inverted dot-product attention routing" (2020).

Table 1 and figures 4 and 5; what the text says beside them is in `inverted_attention_text.py`. Momentum 0.9, weight
decay 5e-4, the deviations of CIFAR's channels, the division of agreements by sqrt(d) and the softmax over the parents
at one position are the released code's; all else is the paper's, and Eq. 2, which divides by nothing, and Eq. 3, whose
softmax is over all parents, have cells of their own. Of figure 5 no code is released: there momentum, decay,
standardised images and two iterations are ours. The released convolutional layer mixes up positions and poses; ours is
the paper's, so a gap to its accuracies proves no error of either, and the mixed-up form has cells to find out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

from torchcaps.config import (
    AugmentConfig,
    ComposeConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimiserConfig,
    Option,
    ScheduleConfig,
)
from torchcaps.tables.cells import Cell, Combine, Count, How, Impossible, Narrow, Panel, Paper, Published, Train, table
from torchcaps.tables.measure import alone, count_parameters, inference_memory, latency
from torchcaps.tables.metrics import ACCURACY, EXACT_MATCH, LATENCY, MEMORY, PARAMETERS

PAPER = Paper("inverted-attention", "Tsai et al. 2020")
ITERATIONS = range(1, 6)

Data = Literal["cifar10", "cifar100"]
DATA: dict[Data, str] = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}


class System(NamedTuple):
    """A row of Table 1: how it is trained."""

    row: str
    model: str  # without its data set
    optimiser: OptimiserConfig
    loss: LossConfig
    accuracy: tuple[str, str]
    parameters: tuple[str, str]
    iterative: bool = True


SGD = OptimiserConfig("sgd", lr=0.1, momentum=0.9, weight_decay=5e-4)
DYNAMIC, EM = OptimiserConfig("adam", lr=1e-3), OptimiserConfig("adam", lr=1e-2)
ENTROPY, MARGIN, SPREAD = LossConfig("cross-entropy"), LossConfig("margin"), LossConfig("spread")
OURS = "Inverted Dot-Product Attention Routing (ours)"
SYSTEMS = (
    System("Dynamic Routing, simple", "dynamic-simple", DYNAMIC, MARGIN, ("84.08", "56.96"), ("7.99", "31.59")),
    System("EM Routing, simple", "em-simple", EM, SPREAD, ("82.19", "37.73"), ("0.45", "0.50")),
    System(f"{OURS}, simple", "attention-simple", SGD, ENTROPY, ("85.17", "57.32"), ("0.56", "1.46")),
    System("Dynamic Routing, ResNet", "dynamic-resnet", DYNAMIC, MARGIN, ("92.65", "71.70"), ("12.45", "36.04")),
    System("EM Routing, ResNet", "em-resnet", EM, SPREAD, ("92.15", "58.08"), ("1.71", "1.76")),
    System(f"{OURS}, ResNet", "attention-resnet", SGD, ENTROPY, ("95.14", "78.02"), ("1.83", "2.80")),
    System("Baseline CNN (simple)", "cnn-simple", SGD, ENTROPY, ("87.10", "62.30"), ("18.92", "19.01"), False),
    System("ResNet-18", "resnet18", SGD, ENTROPY, ("95.11", "77.92"), ("11.17", "11.22"), False),
)
AVERAGES: dict[tuple[Data, int], str] = {  # of the attention network on the ResNet backbone, by data set and iterations
    ("cifar10", 1): "94.73",
    ("cifar10", 2): "94.85",
    ("cifar100", 1): "76.02",
    ("cifar100", 2): "76.27",
}
SCRAMBLED = (
    "the released convolutional layer mixes up positions and poses, and the published accuracies may come from it; "
    "ours is the paper's"
)
BEST = "the paper takes of its runs, and its code of the epochs, the best on the test images; ours is the last epoch"
BEST_OF_FIVE = f"the best of 1 to 5 iterations; {BEST}"
UNDETERMINED = "the text does not determine this network: its parameters are not the published ones"
EQ_2 = "agreements as Eq. 2 has them, which the released code divides by the root of the pose size"
EQ_3 = "a softmax over all parents that see a child, as Eq. 3 reads; the released code's is over those at one position"
ONE_ITERATION = "with one iteration nothing agrees, so that the run is that of the other rows"
PROCESS = "of the whole process on a CPU, with what Python and torch hold at rest; on a GPU of tensors alone"
AUTHORS = "an average that the authors give with their code, not in the table"
DEVIATIONS = (0.2023, 0.1994, 0.2010)  # of the authors' code; those of all training pixels are a fifth larger


def measured_deviations(config: Config) -> Config:
    """Divide images by the deviations of the training split, as all evidence does."""
    return replace(config, data=replace(config.data, std=()))


def narrowed(name: str, **options: Option) -> Narrow:
    return Narrow(name, options, measured_deviations)


NARROW = {  # by routing
    "dynamic": narrowed("32-channels-4-types", channels=32, capsules=4),
    "em": narrowed("32-channels-4-types", channels=32, capsules=4),
    "attention": narrowed("32-channels-4-types", channels=32, capsules=4),
    "cnn": narrowed("64-channels", channels=64),
    "resnet18": narrowed("16-channels", channels=16),
}


DRAWN: tuple[dict[str, Option], ...] = (  # options of the networks whose curves figures show
    {},
    {"scaled": False},
    *({"start": start} for start in ("random", "learnt")),
    *({"pose": pose} for pose in (36, 64)),
)


def cifar(system: System, data: Data, iterations: int | None = None, **options: Option) -> Config:
    """Return, by Appendix A, 350 epochs, the rate falls tenfold at 150 and 250; pad-4 crop and flip."""
    given: dict[str, Option] = {} if iterations is None else {"iterations": iterations}
    return Config(
        model=ModelConfig(f"{system.model}-{data}", given | options),
        data=DataConfig(data, standardise="dataset", std=DEVIATIONS, augment=AugmentConfig(crop=4, flip=True)),
        loss=system.loss,
        optimiser=system.optimiser,
        schedule=ScheduleConfig("step", milestones=(150, 250), gamma=0.1),
        epochs=350,
        batch_size=128,
        precision="fp32",
    )


def costed(system: System, data: Data, iterations: int | None = None) -> Config:
    """Return what is counted and timed: images of noise, which no deviation divides."""
    return measured_deviations(cifar(system, data, iterations))


def train(system: System, data: Data, iterations: int | None = None, **options: Option) -> Train:
    narrow = NARROW.get(system.model.split("-")[0])
    if "resnet" in system.model.split("-"):  # the narrowed backbone would be another one
        narrow = None
    plotted = data == "cifar10" and system.model.endswith("-simple") and system.iterative and options in DRAWN
    return Train(partial(cifar, system, data, iterations, **options), narrow, plotted=plotted)


@table(PAPER, "table1", "Table 1", "test accuracy (%) and parameters on CIFAR-10 and CIFAR-100")
def table1() -> Iterator[Cell]:
    for system in SYSTEMS:
        special = SCRAMBLED if system.row.startswith(OURS) else UNDETERMINED if system.model == "dynamic-resnet" else ""
        note = "; ".join(filter(None, (special, BEST_OF_FIVE if system.iterative else BEST)))
        for number, (data, column) in enumerate(DATA.items()):
            name, accuracy = f"{system.model}-{data}", (Published(system.accuracy[number], "best"),)
            parts = tuple(f"{PAPER.name}/table1/{name}-r{iterations}" for iterations in ITERATIONS)
            how: How = Combine("best", parts) if system.iterative else train(system, data)
            yield Cell(name, system.row, column, how, accuracy, ACCURACY, note)
            count: How = Count(partial(costed, system, data), count_parameters)
            if system.model == "dynamic-resnet":
                count = Impossible(UNDETERMINED)
            parameters = (Published(system.parameters[number]),)
            yield Cell(f"{name}-parameters", system.row, f"{column}, # of parameters", count, parameters, PARAMETERS)
    for system in SYSTEMS:
        for data, column in DATA.items() if system.iterative else ():
            yield from by_iterations(system, data, column)
    for form in FORMS:
        for system in SYSTEMS:
            for data, column in DATA.items() if system.row.startswith(OURS) else ():
                yield from by_form(form, system, data, column)


def by_iterations(system: System, data: Data, column: str) -> Iterator[Cell]:
    """Yield the cells that a cell of Table 1 is the best of."""
    for iterations in ITERATIONS:
        average = AVERAGES.get((data, iterations)) if system.model == "attention-resnet" else None
        published = (Published(average, "mean"),) if average else ()
        name, row = f"{system.model}-{data}-r{iterations}", f"{system.row}, {iterations} iteration(s)"
        how = train(system, data, iterations)
        yield Cell(name, row, column, how, published, ACCURACY, AUTHORS if average else "")


class Form(NamedTuple):
    """A formula that the paper's text and its released code have otherwise."""

    key: str
    printed: str
    note: str
    options: dict[str, Option]
    alike: int  # so many of the first `ITERATIONS` are the runs of the other rows


FORMS = (Form("eq2", "Eq. 2", EQ_2, {"scaled": False}, 1), Form("eq3", "Eq. 3", EQ_3, {"scope": "image"}, 0))


def by_form(form: Form, system: System, data: Data, column: str) -> Iterator[Cell]:
    """Yield the cells of a network by the text's formula, and the best of them."""
    name, row = f"{system.model}-{data}", f"{system.row}, {form.printed}"
    parts = [f"{name}-r{each}" if each <= form.alike else f"{name}-{form.key}-r{each}" for each in ITERATIONS]
    how = Combine("best", tuple(f"{PAPER.name}/table1/{part}" for part in parts))
    yield Cell(f"{name}-{form.key}", row, column, how, (), ACCURACY, form.note)
    for part, iterations in list(zip(parts, ITERATIONS, strict=True))[form.alike :]:
        how = train(system, data, iterations, **form.options)
        yield Cell(part, f"{row}, {iterations} iteration(s)", column, how, (), ACCURACY, form.note)


ABLATIONS: dict[str, tuple[str, dict[str, Option]]] = {
    "a": ("Inverted Dot-Product Attention-A, without layer normalisation", {"layer_norm": False}),
    "b": ("Inverted Dot-Product Attention-B, sequential routing", {"schedule": "sequential"}),
    "c": ("Inverted Dot-Product Attention-C, with activations", {"activations": True}),
}


ROUTINGS = {"dynamic": "dynamic routing", "em": "EM routing", "attention": "inverted attention"}
PANELS = (
    *(Panel(title, "epoch", (f"convergence-{name}-*",)) for name, title in ROUTINGS.items()),
    Panel("routing iterations and ablations", "iterations", ("iterations-*", "ablation-*")),
    Panel("memory", "iterations", ("memory-*",)),
    Panel("inference time", "iterations", ("time-*",)),
)


@table(
    PAPER, "figure4", "Figure 4", "routing iterations, ablations, memory and time on CIFAR-10, simple backbone", PANELS
)
def figure4() -> Iterator[Cell]:
    dynamic, em, attention = SYSTEMS[:3]
    for iterations in ITERATIONS:
        column = f"{iterations} iteration(s)"
        for system in (dynamic, em, attention):
            how, short = train(system, "cifar10", iterations), system.model.split("-")[0]
            row = system.row.removesuffix(", simple")
            curve = "the curve of these runs is in their lines, and their spread in the standard deviation"
            yield Cell(f"convergence-{short}-{iterations}", f"top: {row}", column, how, (), ACCURACY, curve)
            yield Cell(f"iterations-{short}-{iterations}", f"bottom left: {row}", column, how, (), ACCURACY)
        options: dict[str, Option] = {} if iterations == 1 else {"scaled": False}
        how, row = train(attention, "cifar10", iterations, **options), "Inverted Dot-Product Attention Routing, Eq. 2"
        note = EQ_2 if options else ONE_ITERATION
        yield Cell(f"convergence-attention-eq2-{iterations}", f"top: {row}", column, how, (), ACCURACY, note)
        yield Cell(f"iterations-attention-eq2-{iterations}", f"bottom left: {row}", column, how, (), ACCURACY, note)
        for letter, (row, options) in ABLATIONS.items():
            printed = (Published("uniform prediction"),) if (letter, iterations) == ("a", 5) else ()
            how = train(attention, "cifar10", iterations, **options)
            yield Cell(f"ablation-{letter}-{iterations}", f"bottom left: {row}", column, how, printed, ACCURACY)
        build = partial(costed, attention, "cifar10", iterations)
        row = "bottom right: Inverted Dot-Product Attention"
        memory = Count(build, partial(alone, inference_memory))
        yield Cell(f"memory-{iterations}", f"{row}, memory", column, memory, (), MEMORY, PROCESS)
        yield Cell(f"time-{iterations}", f"{row}, inference time", column, Count(build, latency), (), LATENCY)


class Network(NamedTuple):
    """A row of figure 5."""

    name: str
    row: str
    model: str
    accuracy: str
    parameters: str  # where the text gives them
    narrow: Narrow
    note: str = ""


NARROW_CAPSULES = Narrow("64-channels-4-types", {"channels": 64, "capsules": 4, "pose": 16})
NARROW_CNN = Narrow("64-channels", {"channels": 64, "hidden": 160})
UNSAID = "its sizes are not given: 64 types of 8x8 poses have the parameters that the text names"
ONE_CHANNEL = "42.49 M is the count for one channel; with the three channels of Table 12 it is 42.51 M"
STAR = (
    "CapsNet* is described by a sentence alone: the vector network with dynamic routing; its head reads poses at the "
    "length that layer norm has them there"
)
NETWORKS = (
    Network("dynamic", "CapsNet*, vector poses", "dynamic-diverse-multimnist", "83.39", "", NARROW_CAPSULES, STAR),
    Network("matrix", "CapsNet, matrix poses", "attention-diverse-multimnist-matrix", "80.59", "", NARROW_CAPSULES),
    Network("vector", "CapsNet, vector poses", "attention-diverse-multimnist-vector", "85.74", "", NARROW_CAPSULES),
    Network(
        "matrix-wide",
        "CapsNet, matrix poses, 42 M",
        "attention-diverse-multimnist-wide",
        "91.17",
        "42",
        Narrow("64-channels-16-types", {"channels": 64, "capsules": 16, "pose": 16}),
        UNSAID,
    ),
    Network("cnn-pooling", "Baseline CNN", "cnn-diverse-multimnist-pooling", "79.81", "", NARROW_CNN),
    Network(
        "cnn-dense",
        "Baseline CNN, FC",
        "cnn-diverse-multimnist-dense",
        "84.84",
        "42.49",
        NARROW_CNN,
        ONE_CHANNEL,
    ),
)


def diverse(model: str, **options: Option) -> Config:
    """Return, by Appendix B, 350 steps of 60,000 fresh images, a tenth of the rate from 150 and from 250; no
    augmentation.
    """
    return Config(
        model=ModelConfig(model, options),
        data=DataConfig("diverse-multimnist", standardise="dataset", compose=ComposeConfig(epoch=60_000, held=10_000)),
        loss=LossConfig("binary-cross-entropy", threshold=0.5),
        optimiser=SGD,
        schedule=ScheduleConfig("step", milestones=(150, 250), gamma=0.1),
        epochs=350,
        batch_size=128,
        precision="fp32",
    )


def grey(model: str) -> Config:
    """Return the same with images of one channel."""
    config = diverse(model)
    return replace(config, data=replace(config.data, compose=replace(config.data.compose, channels=1)))


DIVERSE = (Panel("DiverseMultiMNIST", "epoch", tuple(each.name for each in NETWORKS)),)


@table(
    PAPER,
    "figure5",
    "Figure 5",
    "exact match of all digits (%), parameters, memory and time on DiverseMultiMNIST",
    DIVERSE,
)
def figure5() -> Iterator[Cell]:
    for each in NETWORKS:
        build = partial(diverse, each.model)
        how, row, printed = Train(build, each.narrow, plotted=True), each.row, (Published(each.accuracy),)
        yield Cell(each.name, row, "test accuracy", how, printed, EXACT_MATCH, each.note)
        parameters = (Published(each.parameters),) if each.parameters else ()
        count = Count(build, count_parameters)
        yield Cell(f"{each.name}-parameters", row, "# params", count, parameters, PARAMETERS, each.note)
        memory = Count(build, partial(alone, inference_memory))
        yield Cell(f"{each.name}-memory", row, "memory usage", memory, (), MEMORY, PROCESS)
        yield Cell(f"{each.name}-time", row, "inference time", Count(build, latency), (), LATENCY)
        if each.model.startswith("attention-"):
            how = Train(partial(diverse, each.model, scaled=False), each.narrow)
            note = "; ".join(filter(None, (EQ_2, each.note)))
            yield Cell(f"{each.name}-eq2", f"{row}, Eq. 2", "test accuracy", how, (), EXACT_MATCH, note)
    name, count = NETWORKS[-1].name, Count(partial(grey, NETWORKS[-1].model), count_parameters)
    row, printed = f"{NETWORKS[-1].row}, one channel", (Published(NETWORKS[-1].parameters),)
    yield Cell(f"{name}-grey-parameters", row, "# params", count, printed, PARAMETERS, ONE_CHANNEL)
