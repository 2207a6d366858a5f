"""What is compared: the same network, data, optimiser and loss, and heads that differ in their routing alone.

A plain network's linear head and uniform routing stand beside the others: what does not beat them has not paid.
Nothing here imports torch before a comparison is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal, get_args

from torchcaps.config import (
    OPTION,
    SHAPE,
    AugmentConfig,
    CoefficientConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimiserConfig,
    Option,
    ScheduleConfig,
    read_field,
    replace_field,
)
from torchcaps.data.catalogue import find, plain_name
from torchcaps.data.facts import data_facts
from torchcaps.names import YOURS, unknown
from torchcaps.plugins import file_of, imported_for
from torchcaps.tables.cells import Cell, Narrow, Train
from torchcaps.tables.metrics import ACCURACY, Record

Loss = Literal["shared", "own"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
LINEAR, TWIN = "linear", "twin"
OF_TWIN = "dynamic"  # whose head's twin `twin` is: as large as the heads of all routings that take vectors
CONTROLS = (LINEAR, "uniform", TWIN)  # in front, in every table
DEPTH = "depth"
HIDDEN = 16  # capsules of each layer between primary and class capsules, where layers are stacked
SIDES = (32, 48, 64)  # pixels that pictures of any size are brought to
EPOCHS = 60  # of the budget `full`
ITERATIONS = 3
# Of routing towards discriminative quality. A step of 4e-3 lost classes with the shared loss, from 0.1 and from 0.15;
# the rule of docs/discriminative-routing.md, found with the margin loss, allows 1.8e-3 and 4e-3 there.
COEFFICIENT_STEP = 2e-4
NAMED = ("data.name", "data.root", "data.download")  # fields that say which set, and nothing of how it is taken
MIRRORED = ("fashion-mnist", "cifar10", "cifar100")  # sets whose classes a mirror leaves as they are


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
        twin = head == TWIN or head.endswith(f"-{TWIN}")
        if "iterations" in found and (twin or not routing_class(head).spec.iterative):
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
        twin = head == TWIN or head.endswith(f"-{TWIN}")
        if is_network(head):
            name, head = head, LINEAR
        else:
            head = OF_TWIN if head == TWIN else head
            name, head = f"{self.backbone}.{head}", head.removesuffix(f"-{TWIN}")
            name += f"-{TWIN}" if twin and not name.endswith(f"-{TWIN}") else ""
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


def usual_data(name: str) -> DataConfig:
    """Return the usual data: shifts of at most 4 pixels, an eighth of CIFAR's side; mirrors where they keep the class;
    pixels standardised.
    """
    return DataConfig(name, standardise="dataset", augment=AugmentConfig(shift=4, flip=name in MIRRORED))


def settle_data(data: DataConfig, given: Set[str]) -> DataConfig | None:
    """Return what is usual for the set that `data` names, with the fields of it that flags gave.

    Pictures of any size are brought to the largest of 32, 48 and 64 pixels a side that they have.

    Args:
        data: with what the flags say.
        given: names of the fields that they gave, such as "data.augment.flip".

    Returns:
        None where nothing but the name and the place of a named set was given.

    Raises:
        FileNotFoundError, ValueError: for data that are not there.
    """
    own = find(data.name)[1] is not None
    others = {name for name in given if name.startswith("data.")} - set(NAMED)
    if not own and not others:
        return None
    settled = usual_data(data.name)
    if own and not others & {"data.image_size", "data.pad", "data.crop"} and (facts := data_facts(data)).free:
        settled = replace(
            settled, image_size=max((side for side in SIDES if side <= min(facts.size)), default=SIDES[0])
        )
    for name in sorted(others):
        within = name.removeprefix("data.")
        settled = _with(settled, within.split("."), read_field(data, within))
    return settled


def _with(config: Any, path: Sequence[str], value: object) -> Any:
    first, *rest = path
    return replace(config, **{first: _with(getattr(config, first), rest, value) if rest else value})


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


def is_network(head: str) -> bool:
    """Return whether a row is a plain network of timm's, such as "resnet18.linear"."""
    return head.endswith(f".{LINEAR}")


def all_heads() -> list[str]:
    """Return the controls, then every other routing by name, and its twin where `twin` is of another size."""
    from torchcaps.models.heads import takes_vectors
    from torchcaps.routing import list_routings

    names = [spec.name for spec in list_routings() if spec.name not in CONTROLS]
    twins = {name: [] if takes_vectors(name) or name == "fm" else [f"{name}-{TWIN}"] for name in names}
    return [*CONTROLS, *(each for name in names for each in (name, *twins[name]))]


def choose_heads(wanted: Sequence[str]) -> list[str]:
    """Return `wanted`, or all heads where none is; the controls are always among them, in front, and twins behind
    theirs.

    Args:
        wanted: names of routings or shell patterns of them, and plain networks of timm's, such as "resnet18.linear",
            which stand behind.

    Raises:
        ValueError: for a name that is none; the nearest is named.
    """
    every = all_heads()
    networks = [name for name in wanted if is_network(name)]
    if networks:
        from torchcaps.models.registry import find_factory

        for name in networks:
            find_factory(name)
    others = [name for name in wanted if name not in networks]
    for name in others:
        if not any(fnmatchcase(each, name) for each in every):
            raise unknown(
                "routing", name, every, f"`torchcaps list routings` shows all; 'linear' is the plain head; {YOURS}"
            )
    chosen = [
        name
        for name in every
        if name in CONTROLS
        or any(fnmatchcase(name, each) or fnmatchcase(name.removesuffix(f"-{TWIN}"), each) for each in others)
    ]
    return [*(chosen if wanted else every), *dict.fromkeys(networks)]
