"""Recipes of Sun, Pourramezan Fard and Mahoor, "XnODR and XnIDR" (2023): Tables 4 to 9 and figures 4 to 9.

What its text says in numbers is in `xnodr_text.py`. Costs come from `torchcaps.cost`, by the paper's own way of
counting. Accuracies are the paper's maximum of five runs. It does not give the batch size, by which a cycle of 12,000
steps means something: ours is 32. Its random augmentation of CIFAR-10 is unsaid too: ours is a pad-4 crop and a flip.
So is the interpolation of enlarged images: ours is bilinear. Section 4.5 calls the configuration of dynamic routing the
same: its loss is the margin loss here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

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
from torchcaps.papers.costs import costs, slug
from torchcaps.tables.cells import Cell, Narrow, Panel, Paper, Published, Quoted, Train, table
from torchcaps.tables.metrics import ACCURACY, EXACT_MATCH, TRAIN_LOSS, XNODR_TOP2, Metric

PAPER = Paper("xnodr", "Sun et al. 2023")

BATCH = 32
EPOCHS = {"mnist": 30, "cifar10": 80, "multimnist": 20}
SETS = {"mnist": "MNIST", "cifar10": "CIFAR-10", "multimnist": "MultiMNIST"}
PIXELS = {"mnist": (32, 224), "cifar10": (32, 224), "multimnist": (36, 108)}  # without and with upsampling
UPSAMPLED = {True: "with upsampling", False: "without upsampling"}
LEAK = "its MultiMNIST shares digits between training and test, and its Top2 credits one digit of two; ours has no leak"
MAXIMUM = "the paper's value is the best of five runs"
# But of MultiMNIST, which ends at its smallest rate.
CYCLES = "the budget full: with our batch of 32 the run ends in mid-cycle of triangular2"
EITHER = (
    "section 4.3.1 trains these by the squared hinge or the marginal loss and does not say which made the printed "
    "value; on MultiMNIST, where the plain networks have the marginal loss, the row without a loss has it too"
)
MIDPOINT = "appendix A's sign, above or below the middle between smallest and largest value; the code's is that of zero"
BOTH_SAID = 'not in the figure: section 3.3.3 says of it that it "predicts awfully"'


class Network(NamedTuple):
    """A row of Tables 4 and 8, with upsampling or without."""

    row: str
    backbone: str
    head: str
    upsampled: bool
    accuracy: tuple[str, str, str]  # MNIST, CIFAR-10, MultiMNIST

    @property
    def key(self) -> str:
        family = "resnet" if self.backbone == "resnet50" else "mobilenet"
        return f"{family}-{self.head}-{'up' if self.upsampled else 'plain'}"

    @property
    def label(self) -> str:
        return f"{self.row} ({UPSAMPLED[self.upsampled]})"


RESNET, MOBILENET = "resnet50", "mobilenetv2_100"
TABLE4 = (
    Network("ResNet-50", RESNET, "linear", True, ("99.53", "95.86", "97.15")),
    Network("ResNet_XnODR", RESNET, "xnodr", True, ("99.65", "96.56", "99.24")),
    Network("ResNet_XnIDR", RESNET, "xnidr", True, ("99.62", "96.87", "99.37")),
    Network("MobileNet V2", MOBILENET, "linear", True, ("99.50", "94.64", "91.77")),
    Network("MobileNet_XnODR", MOBILENET, "xnodr", True, ("99.68", "95.32", "97.47")),
    Network("MobileNet_XnIDR", MOBILENET, "xnidr", True, ("99.25", "95.32", "97.09")),
    Network("ResNet-50", RESNET, "linear", False, ("99.54", "86.84", "98.48")),
    Network("ResNet_XnODR", RESNET, "xnodr", False, ("99.57", "92.92", "99.01")),
    Network("ResNet_XnIDR", RESNET, "xnidr", False, ("99.62", "93.34", "99.10")),
    Network("MobileNet V2", MOBILENET, "linear", False, ("99.40", "76.88", "97.01")),
    Network("MobileNet_XnODR", MOBILENET, "xnodr", False, ("99.53", "80.28", "97.99")),
    Network("MobileNet_XnIDR", MOBILENET, "xnidr", False, ("99.57", "80.05", "98.02")),
)
TABLE8 = (
    Network("ResNet_DR", RESNET, "dynamic", True, ("99.69", "93.26", "99.01")),
    Network("MobileNet_DR", MOBILENET, "dynamic", True, ("99.64", "89.99", "98.24")),
    Network("ResNet_DR", RESNET, "dynamic", False, ("99.59", "93.31", "99.09")),
    Network("MobileNet_DR", MOBILENET, "dynamic", False, ("99.47", "79.83", "98.00")),
)
BOTH = tuple(
    Network(f"{family}, both projections binary", backbone, "xnodr-xnidr", upsampled, ("-", "-", "-"))
    for family, backbone in (("MobileNet", MOBILENET), ("ResNet", RESNET))
    for upsampled in (True, False)
)
XNORIZED = ("xnodr", "xnidr")
QUOTED = {  # Table 4: the accuracies of other systems; their FLOPs and parameters are with the other costs
    "Efficient-CapsNet [40]": ("99.84", "-", "94.90"),
    "HVCs [5]": ("99.87", "89.23", "-"),
    "PLM(BCE+CB) [11]": ("-", "70.33", "89.37"),
    "CaiT-M-36 224 [51]": ("-", "99.40", "-"),
    "L1/FC [56]": ("99.56", "85.96", "92.46"),
    "ACGAN [6]": ("96.25", "-", "-"),
    "EnsNet [22]": ("99.84", "76.25", "-"),
    "LaNet-L [52]": ("-", "99.01", "-"),
    "SCAE [28]": ("99.0", "33.48", "-"),
    "capsnet+PA [57]": ("99.67", "85.69", "94.88"),
    "CPPN [59]": ("97.00", "-", "65.6"),
    "CapsuleNet [47]": ("99.65", "89.40", "94.8"),
    "XnorNet [39]": ("-", "89.83", "-"),
}
TABLE6 = {
    "Aff-CapsNets [16]": "76.28",
    "CapsNetSIFT [35]": "91.27",
    "HGCNet-91 [55]": "94.47",
    "Ternary connect + Quantized backprop [34]": "87.99",
    "Greedy Algorithm for Quantizing [38]": "88.88",
    "SLB on ResNet20 [58]": "92.1",
    "SLB on VGG small [58]": "94.1",
    "DoReFa-Net on VGG-11 [18]": "86.30",
    "DoReFa-Net on ResNet14 [18]": "89.84",
}


def model_options(network: Network) -> dict[str, Option]:
    """Return the options of Table 10's networks with dense heads; without upsampling also the stem of section 4.3.2."""
    options: dict[str, Option] = {} if network.upsampled else {"small_stem": True}
    if network.head == "linear":
        options["hidden"] = (1024, 512) if network.backbone == RESNET else (512, 256, 128)
        if network.backbone == RESNET and not network.upsampled:
            options["features"] = "flattened"
    return options


def images(data: str, upsampled: bool) -> DataConfig:
    """Return the data with three channels; MNIST comes through the composed set of shifted digits, which repeats
    channels.

    With upsampling each batch is enlarged, last, so that the pad-4 crop moves a picture by its own pixels. Without,
    MNIST alone changes its size, to 32 pixels.
    """
    side = PIXELS[data][upsampled]
    sides: dict[str, Any] = {"enlarge": side} if upsampled else {"image_size": side}
    if data == "mnist":
        still = ComposeConfig(base="mnist", shift=0, per_image=1, channels=3, epoch=0, held=0)
        return DataConfig("expanded-mnist", compose=still, **sides)
    if data == "multimnist":
        return DataConfig("multimnist-xnodr", **sides)
    return DataConfig("cifar10", augment=AugmentConfig(crop=4, flip=True), **sides)


def loss(network: Network, data: str) -> LossConfig:
    """Return the loss: margin without upsampling, on MultiMNIST, and of dynamic routing, which has nothing xnorized;
    else cross-entropy of dense heads, squared hinge of xnorized ones.
    """
    if not network.upsampled or data == "multimnist" or network.head == "dynamic":
        return LossConfig("margin")
    return LossConfig("cross-entropy" if network.head == "linear" else "squared-hinge")


def experiment(network: Network, data: str) -> Config:
    """Return, by Section 4.3, adam, triangular2 between 1e-9 and 1e-3 from the top, half a cycle of 6,000 steps."""
    return Config(
        model=ModelConfig(f"{network.backbone}.{network.head}", model_options(network)),
        data=images(data, network.upsampled),
        loss=loss(network, data),
        optimiser=OptimiserConfig("adam", lr=1e-3),
        schedule=ScheduleConfig("triangular2", step_size=6000, lr_min=1e-9),
        epochs=EPOCHS[data],
        batch_size=BATCH,
        precision="fp32",
    )


def by_other_loss(network: Network, data: str) -> Config:
    """Return the same with the other of the two losses that section 4.3.1 names for XnODR and XnIDR."""
    config = experiment(network, data)
    return replace(config, loss=LossConfig("margin" if config.loss.name == "squared-hinge" else "squared-hinge"))


def by_midpoint(network: Network, data: str) -> Config:
    """Return the same with the signs of appendix A."""
    config = experiment(network, data)
    options = config.model.options | {"routing_threshold": "midpoint"}
    return replace(config, model=replace(config.model, options=options))


def thinner(config: Config) -> Config:
    """Return the configuration with a MobileNet V2 of about a third of the width, compiled and in float32.

    Depthwise gradients are slower in bf16, and compiled steps faster: most of an eager step of so narrow a
    network is batch norm.
    """
    model = replace(config.model, name=config.model.name.replace(MOBILENET, "mobilenetv2_035"))
    return replace(config, model=model, precision="fp32", compile=True)


def slimmer(config: Config) -> Config:
    """Return the configuration with a ResNet-50 of an eighth of the width, compiled."""
    model = replace(config.model, options={**config.model.options, "channels": (8, 16, 32, 64)})
    return replace(config, model=model, compile=True)


NARROW = {
    MOBILENET: Narrow("mobilenetv2-035", change=thinner),
    RESNET: Narrow("resnet50-8-16-32-64", change=slimmer),
}


def train(network: Network, data: str, build: Callable[[Network, str], Config] = experiment) -> Train:
    plotted = data == "cifar10" and not network.upsampled  # appendix D
    return Train(partial(build, network, data), NARROW[network.backbone], seeds=5, plotted=plotted)


def accuracies(networks: tuple[Network, ...]) -> Iterator[Cell]:
    for network in networks:
        for (data, name), printed in zip(SETS.items(), network.accuracy, strict=True):
            how, published = train(network, data), (Published(printed, "best", runs=5),)
            yield from on_set(f"{network.key}-{data}", network.label, data, name, how, published)


def on_set(
    key: str, row: str, data: str, name: str, how: Train, published: tuple[Published, ...], note: str = ""
) -> Iterator[Cell]:
    """Yield the accuracy on a set of `SETS`; on MultiMNIST the paper's and the share of pairs that are right."""
    if data == "multimnist":
        said = "; ".join(filter(None, (note, LEAK)))
        yield Cell(key, row, f"{name} Top2", how, published, XNODR_TOP2, said)
        yield Cell(f"{key}-exact", row, f"{name}, both digits", how, (), EXACT_MATCH, said)
    else:
        best = MAXIMUM if any(each.kind == "best" for each in published) else ""
        yield Cell(key, row, f"{name} Top1", how, published, ACCURACY, "; ".join(filter(None, (note, best, CYCLES))))


def other_losses() -> Iterator[Cell]:
    """Yield the upsampled networks of section 4.3.1 with the loss that their rows of Table 4 do not have."""
    for network in TABLE4:
        for (data, name), printed in zip(SETS.items(), network.accuracy, strict=True):
            if network.upsampled and network.head in XNORIZED:
                how, published = train(network, data, by_other_loss), (Published(printed, "best", runs=5),)
                loss = by_other_loss(network, data).loss.name
                key, row = f"{network.key}-{data}-{loss}", f"{network.label}, {loss.replace('-', ' ')} loss"
                yield from on_set(key, row, data, name, how, published, EITHER)


@table(PAPER, "table4", "Table 4", "accuracy (%), FLOPs and parameters")
def table4() -> Iterator[Cell]:
    for row, values in QUOTED.items():
        for (data, name), value in zip(SETS.items(), values, strict=True):
            if value != "-":
                yield Cell(f"{slug(row)}-{data}", row, name, Quoted(), (Published(value),), ACCURACY)
    yield from accuracies(TABLE4)
    yield from other_losses()
    yield from costs(PAPER.name, "table4")


@table(PAPER, "table5", "Table 5", "operations of the heads")
def table5() -> Iterator[Cell]:
    return costs(PAPER.name, "table5")


@table(PAPER, "table6", "Table 6", "CIFAR-10 accuracy of cited systems (%)")
def table6() -> Iterator[Cell]:
    for row, value in TABLE6.items():
        yield Cell(slug(row), row, "CIFAR-10 Accuracy", Quoted(), (Published(value),), ACCURACY)


@table(PAPER, "table7", "Table 7", "speed-up, a count of operations and not of time")
def table7() -> Iterator[Cell]:
    return costs(PAPER.name, "table7")


@table(PAPER, "table8", "Table 8", "accuracy (%), FLOPs and parameters with dynamic routing")
def table8() -> Iterator[Cell]:
    yield from accuracies(TABLE8)
    yield from costs(PAPER.name, "table8")


@table(PAPER, "table9", "Table 9", "operations of the heads with dynamic routing")
def table9() -> Iterator[Cell]:
    return costs(PAPER.name, "table9")


def curves(backbones: tuple[str, ...], heads: tuple[str, ...], metric: Metric) -> Iterator[Cell]:
    """Yield, by Appendix D, on CIFAR-10 without upsampling; the curves are in the lines of the runs of Tables 4 and
    8.
    """
    for network in (*TABLE4, *TABLE8, *BOTH):
        if network.backbone in backbones and network.head in heads and not network.upsampled:
            note = f"{BOTH_SAID}; {CYCLES}" if network in BOTH else CYCLES
            yield Cell(network.key, network.row, "CIFAR-10", train(network, "cifar10"), (), metric, note)


def midpoints(backbone: str) -> Iterator[Cell]:
    """Yield the accuracy of XnODR and of XnIDR by the signs of appendix A, beside the curves of the others."""
    for network in TABLE4:
        if network.backbone == backbone and network.head in XNORIZED and not network.upsampled:
            how, row = train(network, "cifar10", by_midpoint), f"{network.row}, midpoint"
            yield Cell(f"{network.key}-midpoint", row, "CIFAR-10", how, (), ACCURACY, f"{MIDPOINT}; {CYCLES}")


EVERY = ("linear", "dynamic", *XNORIZED, BOTH[0].head)
ONE = (Panel("CIFAR-10", "epoch"),)


@table(PAPER, "figure4", "Figure 4", "accuracy of the MobileNet networks without upsampling (%)", ONE)
def figure4() -> Iterator[Cell]:
    yield from curves((MOBILENET,), EVERY, ACCURACY)
    yield from midpoints(MOBILENET)


@table(PAPER, "figure5", "Figure 5", "loss of the MobileNet networks without upsampling", ONE)
def figure5() -> Iterator[Cell]:
    return curves((MOBILENET,), EVERY, TRAIN_LOSS)


@table(PAPER, "figure6", "Figure 6", "accuracy of the ResNet networks without upsampling (%)", ONE)
def figure6() -> Iterator[Cell]:
    yield from curves((RESNET,), EVERY, ACCURACY)
    yield from midpoints(RESNET)


@table(PAPER, "figure7", "Figure 7", "loss of the ResNet networks without upsampling", ONE)
def figure7() -> Iterator[Cell]:
    return curves((RESNET,), EVERY, TRAIN_LOSS)


@table(PAPER, "figure8", "Figure 8", "accuracy of the networks with XnODR and XnIDR (%)", ONE)
def figure8() -> Iterator[Cell]:
    return curves((RESNET, MOBILENET), XNORIZED, ACCURACY)


@table(PAPER, "figure9", "Figure 9", "loss of the networks with XnODR and XnIDR", ONE)
def figure9() -> Iterator[Cell]:
    return curves((RESNET, MOBILENET), XNORIZED, TRAIN_LOSS)
