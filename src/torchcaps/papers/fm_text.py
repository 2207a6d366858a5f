"""What Zhao et al. 2020 say of the network of their Table 2 outside of it: its size, and what its agreement needs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torchcaps.config import Option
from torchcaps.papers.fm import BLOCKS, NAMES, NARROW_RESIDUAL, PAPER, PLACES, residual
from torchcaps.tables.cells import Cell, Count, Published, Quoted, Train, table
from torchcaps.tables.measure import count_parameters
from torchcaps.tables.metrics import ACCURACY, PARAMETERS


@table(PAPER, "text-residual", "Section 4.2", "parameters beside DeepCaps")
def text_residual() -> Iterator[Cell]:
    for name, (row, options, note) in PLACES.items():
        count, said = Count(partial(residual, "cifar10", **options), count_parameters), note if options else ""
        yield Cell(name, row, "parameters", count, (Published("less than 1"),), PARAMETERS, said)
    yield Cell("deepcaps", "DeepCaps [23]", "parameters", Quoted(), (Published("7.22"),), PARAMETERS)


ABLATIONS: dict[str, tuple[str, dict[str, Option], str]] = {
    "ours": ("Algorithms 1 and 2", {}, BLOCKS),
    "vectors": (
        "without the matrices of Algorithm 2",
        {"matrix": False},
        'section 3.3: k x k in place of the root of k squared; "there is no performance degeneration" by the latter',
    ),
    "lengths": ("without L2 normalization", {"l2": False}, "section 3.2: it makes the training more stable"),
    "sums": ("without 1/n", {"mean": False}, "section 3.2: Eq. 8 remedies the gradient explosion of Eq. 5 and 6"),
    "raw": ("without batch normalization", {"batch_norm": "none"}, "section 3.3: it stabilizes the training process"),
}


@table(PAPER, "text-ablations", "Sections 3.2 and 3.3", "what the agreement needs, in the network of Table 2 (%)")
def text_ablations() -> Iterator[Cell]:
    """Yield what the paper says "according to our experiments", of which it prints no number."""
    for name, (row, options, note) in ABLATIONS.items():
        for data, column in NAMES.items():
            how = Train(partial(residual, data, **options), NARROW_RESIDUAL)
            yield Cell(f"{name}-{data}", row, column, how, (), ACCURACY, note)
        count = Count(partial(residual, "cifar10", **options), count_parameters)
        yield Cell(f"{name}-parameters", row, "parameters", count, (), PARAMETERS, note)
