"""What Sun et al. 2023 (XnODR and XnIDR) say in numbers outside of their tables and figures."""

from __future__ import annotations

from collections.abc import Iterator

from torchcaps.papers.costs import costs, slug
from torchcaps.papers.xnodr import BOTH, PAPER, SETS, TABLE4, TABLE8, on_set, train
from torchcaps.tables.cells import Cell, Formula, Published, Quoted, table
from torchcaps.tables.metrics import ACCURACY, formula_metric

AWFULLY = Published("predicts awfully")  # of section 3.3.3, which names neither backbone nor set
RESTATED = "by the printed accuracies of Tables 4 and 8, not by ours"
QUOTED = {  # row: column, accuracy in percent
    "AlexNet [39], section 3.3": ("ImageNet Top1", "56.6"),
    "AlexNet with Xnorization [39], section 3.3": ("ImageNet Top1", "44.2"),
    "BootstrapNAS' ResNet-50 supernetwork [43], section 4.6.2": ("CIFAR-10 Top1", "93.70"),
    "BootstrapNAS' MobilenetV2 supernetwork [43], section 4.6.2": ("CIFAR-10 Top1", "93.91"),
    "ViT [41], section 5": ("ImageNet", "90.45"),
    "ViT with Xnorization [41], section 5": ("ImageNet", "71.2"),
    "CapsNet after 35 epochs [44], section 5": ("accuracy", "18"),
}


@table(PAPER, "text-both", "Section 3.3.3", "accuracy with both projections xnorized at once (%)")
def text_both() -> Iterator[Cell]:
    for network in BOTH:
        for data, name in SETS.items():
            yield from on_set(f"{network.key}-{data}", network.label, data, name, train(network, data), (AWFULLY,))


def gains() -> dict[str, list[float]]:
    """Return, by set, how much more accurate each network with dynamic routing (Table 8) is than those of the same
    backbone and upsampling in Table 4, in percentage points.
    """
    found: dict[str, list[float]] = {data: [] for data in SETS}
    for routed in TABLE8:
        for other in TABLE4:
            if (other.backbone, other.upsampled) == (routed.backbone, routed.upsampled):
                for data, theirs, its in zip(SETS, routed.accuracy, other.accuracy, strict=True):
                    found[data].append(float(theirs) - float(its))
    return found


@table(PAPER, "text-wins", "Section 4.5", "experiments in which dynamic routing is the more accurate")
def text_wins() -> Iterator[Cell]:
    by_set = gains()
    wins = {data: sum(gain > 0 for gain in each) for data, each in by_set.items()}
    easy = len(by_set["mnist"]) + len(by_set["multimnist"])
    won = wins["mnist"] + wins["multimnist"]
    experiments = formula_metric("experiments", "", 0)
    for name, row, value, printed in (
        ("all", "experiments in all", sum(map(len, by_set.values())), "36"),
        ("wins", "those that dynamic routing wins", sum(wins.values()), "19"),
        ("wins-cifar10", "on CIFAR-10", wins["cifar10"], "3"),
        ("easy", "experiments on MNIST and MultiMNIST", easy, "24"),
        ("wins-easy", "of these, those that dynamic routing wins", won, "16"),
    ):
        yield Cell(name, row, "experiments", Formula(value), (Published(printed),), experiments, RESTATED)
    share, points = formula_metric("share", "%", 1), formula_metric("difference of accuracies", "%", 2)
    row = "dynamic routing on MNIST and MultiMNIST"
    yield Cell("share-easy", row, "share", Formula(100 * won / easy), (Published("66.7"),), share, RESTATED)
    routed, other = (each.accuracy[0] for each in (TABLE8[1], TABLE4[5]))
    row, gap = "MobileNet_DR above MobileNet_XnIDR (with upsampling), MNIST", Formula(float(routed) - float(other))
    yield Cell("gap-mnist", row, "difference", gap, (Published("0.39"),), points, RESTATED)


@table(PAPER, "text-costs", "Sections 4.5 and 4.6.2", "operations that the text gives")
def text_costs() -> Iterator[Cell]:
    return costs(PAPER.name, "text")


@table(PAPER, "text-quoted", "Sections 3.3, 4.6.2 and 5", "accuracy of cited systems (%)")
def text_quoted() -> Iterator[Cell]:
    for row, (column, value) in QUOTED.items():
        yield Cell(slug(row), row, column, Quoted(), (Published(value),), ACCURACY)
