"""The flags of `torchcaps train`: the fields of a config, its budget, and how the command goes about it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import tyro

from torchcaps.cli.helping import HELP_ALL, short_help, wants_help
from torchcaps.config import PLACES, Config, to_plain
from torchcaps.fields import list_fields
from torchcaps.plugins import imported
from torchcaps.shell import listed, show_option
from torchcaps.tables.budget_names import ONE_OF, Budget
from torchcaps.terminal import note, say_lines
from torchcaps.usage import usage_errors


@dataclasses.dataclass(frozen=True)
class TrainFlags:
    """What is trained, and how the command goes about it."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    resume: bool = False  #: go on with the newest unfinished run of this recipe, seed and flags, or a shorter one
    dry_run: bool = False  #: say what is ahead, and stop there
    max_minutes: float | None = None  #: after which the run is saved and ends, as Ctrl-C would end it
    #: folder of a run, with whose weights this one begins where names and shapes agree
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    log: tuple[Literal["csv", "tensorboard", "wandb"], ...] = ()  #: loggers that see each step and epoch


def take_budget(flags: Sequence[str]) -> tuple[Budget | None, list[str]]:
    """Return the value of --budget among `flags`, None where it is not there, and the other flags.

    Raises:
        ValueError: where no value follows it.
    """
    for number, flag in enumerate(flags):
        name, joined, value = flag.partition("=")
        if name != "--budget":
            continue
        if not joined and number + 1 == len(flags):
            raise ValueError(f"--budget needs a value: {ONE_OF}")
        rest = number + (1 if joined else 2)
        return cast("Budget", value if joined else flags[number + 1]), [*flags[:number], *flags[rest:]]
    return None, list(flags)


def parse_flags(recipe: Config, flags: Sequence[str]) -> tuple[Config, bool]:
    """Return `recipe` with what `flags` say in its place, and whether to resume; see `read_flags`."""
    asked = read_flags(recipe, flags)
    return asked.config, asked.resume


def read_flags(recipe: Config, flags: Sequence[str], name: str = "") -> TrainFlags:
    """Return `recipe` with what `flags` say in its place, and what they say of the run.

    Options of the model add to the recipe's: tyro would make one fixed flag of each that the recipe has, and no other.
    Those of the recipe's model are dropped where the flags name another one, which may call other things by the same
    names; that is said.

    Args:
        recipe: whose values are the defaults.
        flags: as they were typed.
        name: what help and errors call the recipe; "" its own name.

    Raises:
        ValueError: for flags that are not there, and values that they do not take.
        SystemExit: when help was asked for, and has been printed.
    """
    if wants_help(flags):
        config, _ = parse_flags(recipe, [flag for flag in flags if flag not in ("-h", "--help")])
        say_lines(short_help(config, name or recipe.recipe))
        raise SystemExit(0)
    bare = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, options={}))
    with usage_errors():
        parsed = tyro.cli(
            TrainFlags,
            prog=f"torchcaps train {name or recipe.recipe}",
            description="Train this recipe with these values, which are defaults here, in place of its own.",
            default=TrainFlags(bare),
            args=["--help" if flag == HELP_ALL else flag for flag in flags],
        )
    for field in ("changed", "imports", "start", "continued"):
        if getattr(parsed.config, field) != getattr(bare, field):
            raise ValueError(f"--{field} is written by the command line itself: leave it out")
    kept, given = recipe.model.options, parsed.config.model
    if given.name != recipe.model.name and kept:
        from torchcaps.models.registry import find_factory

        find_factory(given.name)  # an unknown name is said first
        said = ", ".join(f"{name} {show_option(value)}" for name, value in kept.items())
        note(f"torchcaps: options of {recipe.model.name} that {given.name} is not given: {said}")
        kept = {}
    model = dataclasses.replace(given, options=kept | listed(given.options))
    config = dataclasses.replace(parsed.config, model=model)
    config = dataclasses.replace(config, imports=imported(), changed=tuple(describe_changes(recipe, config)))
    return dataclasses.replace(parsed, config=config)


def describe_changes(recipe: Config, config: Config) -> list[str]:
    """Return what of `config` another run would not get from `recipe`: NAME=VALUE, without seeds and places."""
    places = {*PLACES, "imports", "device", "seed", "data.root", "data.download", "continued"}
    before, after = dict(list_fields(to_plain(recipe))), dict(list_fields(to_plain(config)))
    return [
        f"{name}={_show(name, after.get(name))}"
        for name in sorted({*before, *after} - places)
        if before.get(name) != after.get(name)
    ]


def _show(name: str, value: Any) -> str:
    """Return a value as it is typed; the flags of lists but those of models take words."""
    if isinstance(value, list) and not name.startswith("model.options."):
        return ",".join(map(str, value))
    return show_option(value)


def given_fields(flags: Sequence[str]) -> frozenset[str]:
    """Return the names of the fields of a config that `flags` give, with dots and "_", such as "data.augment.flip"."""
    names = (flag[2:].partition("=")[0].replace("-", "_") for flag in flags if flag.startswith("--"))
    return frozenset(re.sub(r"(^|\.)no_", r"\1", name) for name in names)
