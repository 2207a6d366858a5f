"""What is compared: the same network, data, optimiser and loss, and heads that differ in their routing alone.

A plain network's linear head and uniform routing stand beside the others: what does not beat them has not paid.
Nothing here imports torch before a comparison is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from torchcaps.compare.heads import TWINNED, is_network, is_twin
from torchcaps.compare.usual import usual_data
from torchcaps.config import (
    OPTION,
    SHAPE,
    CoefficientConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimiserConfig,
    Option,
    ScheduleConfig,
)
from torchcaps.data.catalogue import plain_name
from torchcaps.fields import replace_field
from torchcaps.names import LINEAR, OF_TWIN, TWIN, unknown
from torchcaps.plugins import file_of, imported_for
from torchcaps.tables.cells import Cell, Narrow, Train
from torchcaps.tables.metrics import ACCURACY, Record

Loss = Literal["shared", "own"]
DEPTH = "depth"
HIDDEN = 16  # capsules of each layer between primary and class capsules, where layers are stacked
EPOCHS = 60  # of the budget `full`
ITERATIONS = 3
# Of routing towards discriminative quality. A step of 4e-3 lost classes with the shared loss, from 0.1 and from 0.15;
# the rule of docs/discriminative-routing.md, found with the margin loss, allows 1.8e-3 and 4e-3 there.
COEFFICIENT_STEP = 2e-4


@dataclass(frozen=True)
class Comparison:
    """Heads on `backbone`, trained on `data`.

    With the loss "shared" every head is trained by softmax cross-entropy of its scores times a learnt number; with
    "own" by the loss of its paper (`Spec.loss`), and the linear head by cross-entropy.
    """

    backbone: str = "small-resnet"
    data: str = "fashion-mnist"
    loss: Loss = "shared"
    given: DataConfig | None = None  # how the data are read and changed; None: as is usual for a named set
    sweep: tuple[str, ...] = ()  # a field of a config, such as optimiser.lr, and the values that make a row each
    fractions: tuple[float, ...] = ()  # shares of the training data that make a row each
    depths: tuple[int, ...] = ()  # layers of capsules that make a row each

    @property
    def id(self) -> str:
        """Return BACKBONE/DATA, and "own-loss" behind it where that is so; of the user's own data without their
        folders.
        """
        name = plain_name(self.data).replace(":", "-")
        return f"{self.backbone}/{name}" + ("/own-loss" if self.loss == "own" else "")

    def cells(self, heads: Sequence[str]) -> list[Cell]:
        """Return one cell for each of `heads`, names that `choose_heads` takes, and for each value of the sweep; a head
        that has not the option which is swept has one as it is.

        Raises:
            ValueError: for an option that no head has.
        """
        field, *values = self.varied
        rows: list[tuple[str, str, str | None]] = []
        for head in heads:
            mine = [(head, f"{head}@{field}={value}", value) for value in values if self.takes(head, value)]
            rows += mine if mine or self.depths else [(head, head, None)]
        if values and not any(value for _, _, value in rows):
            known = sorted({OPTION + name for head in heads for name in self.options(head)})
            raise unknown("option of these heads", field, known)
        return [
            Cell(name, name, "test accuracy", self.train(head, value), metric=ACCURACY, home=self.home)
            for head, name, value in rows
        ]

    @property
    def varied(self) -> tuple[str, ...]:
        """Return the field that makes rows, and its values as texts; ("",) where there is none.

        Raises:
            ValueError: for more than one of sweep, fractions and depths, and for shares or depths that cannot be.
        """
        given = [each for each in (self.sweep, self.fractions, self.depths) if each]
        if len(given) > 1:
            raise ValueError("a comparison varies one thing: give one of --sweep, --fractions and --depth")
        if not all(0 < share <= 1 for share in self.fractions):
            raise ValueError(f"fractions are {self.fractions}; each is a share above 0, at most 1")
        if not all(depth >= 1 for depth in self.depths):
            raise ValueError(f"depths are {self.depths}; there is at least 1 layer of capsules")
        if self.fractions:
            return ("data.fraction", *(f"{share:g}" for share in self.fractions))
        if self.depths:
            return (DEPTH, *(f"{depth}" for depth in self.depths))
        return self.sweep or ("",)

    def train(self, head: str, value: str | None) -> Train:
        """Return how a row is filled: of a share of the data in more passes over them, by the root of what they are
        fewer.
        """
        more = round(float(value) ** -0.5) if self.fractions and value is not None else 1
        build = partial(self.config, head, value)
        if more == 1:
            return Train(build)
        grow = partial(_repeat, more)
        return Train(lambda: grow(build()), Narrow(f"{more}x-epochs", change=grow), grow)

    def takes(self, head: str, value: str) -> bool:
        """Return whether a head has a row of this value: a head without capsules has no depth but one, and others have
        not all the options that one has.
        """
        if self.sweep and self.sweep[0].startswith(OPTION):
            return self.sweep[0].removeprefix(OPTION) in self.options(head)
        return not self.depths or value == "1" or not (head == LINEAR or is_network(head))

    def options(self, head: str) -> set[str]:
        """Return the names of the options of the model that a head makes of the backbone, of which more than one value
        makes a difference: iterations make none of what takes one.
        """
        from torchcaps.models.registry import describe_model
        from torchcaps.routing import routing_class

        found = set(describe_model({"name": self._config(head).model.name})) - {"name", *SHAPE}
        if "iterations" in found and (is_twin(head) or not routing_class(head).spec.iterative):
            found.remove("iterations")
        return found

    @property
    def home(self) -> str:
        """Return what the names of the cells begin with."""
        return f"compare/{self.id}"

    def config(self, head: str, value: str | None = None) -> Config:
        """Return the complete config of one head, of the budget `full`, with a `value` of the sweep.

        Raises:
            ValueError: for a field that no config has, and a value that it does not take.
        """
        config = self._config(head)
        if value is None:
            return config
        if self.depths:  # one layer is the head as it is
            hidden = {"hidden": (HIDDEN,) * (int(value) - 1)} if value != "1" else {}
            return replace(config, model=replace(config.model, options=config.model.options | hidden))
        return replace_field(config, self.varied[0], value)

    def _config(self, head: str) -> Config:
        twin = is_twin(head)
        if is_network(head):
            name, head = head, LINEAR
        else:
            head = TWINNED if head == TWIN else head
            name, head = f"{self.backbone}.{head}", head.removesuffix(OF_TWIN)
            name += OF_TWIN if twin and not name.endswith(OF_TWIN) else ""
        imports: tuple[str, ...] = ()
        options: dict[str, Option] = {} if head == LINEAR else {"iterations": ITERATIONS}
        loss, coefficients = LossConfig("cross-entropy"), CoefficientConfig()
        if head != LINEAR:
            from torchcaps.routing import routing_class

            spec, imports = routing_class(head).spec, imported_for(routing_class(head))
            if spec.objective and not twin:
                coefficients = CoefficientConfig(lr=COEFFICIENT_STEP)
            if self.loss == "own":
                loss = LossConfig(spec.loss)
            else:
                options["scaled"] = True
        return Config(
            model=ModelConfig(name, options),
            data=self.given or usual_data(self.data),
            loss=loss,
            optimiser=OptimiserConfig("adam", lr=2e-3),
            schedule=ScheduleConfig("one-cycle"),
            coefficients=coefficients,
            epochs=EPOCHS,
            imports=imports,
        )


def _repeat(more: int, config: Config) -> Config:
    return replace(config, epochs=config.epochs * more)


def changed_files(cells: Sequence[Cell], records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """Yield names of cells, and of the file that has another content now than in all their runs, which do not count
    any more.

    A cell of another comparison with the same name is the same.
    """
    for cell in cells:
        assert isinstance(cell.how, Train)
        now = set(cell.how.build().imports)
        runs = [each for each in records if each.get("cell") == cell.id and each.get("config")]
        then = {record for run in runs for record in run["config"].get("imports", ())}
        names = {file_of(record) for record in now - then} & {file_of(record) for record in then}
        yield from ((cell.name, name) for name in sorted(names))
