"""The one command that does a run again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

from torchcaps.config import EXTERNAL, Config
from torchcaps.names import check_choice
from torchcaps.papers import create_recipe
from torchcaps.papers.registry import finished_fields
from torchcaps.plugins import file_of
from torchcaps.shell import show_option, typed
from torchcaps.tables.budget_names import BUDGETS, Budget

WRITTEN = ("changed", "imports", "start", "continued")  # fields that are no flags, or those of others


def reproduce_command(config: Config, folder: Path) -> str:
    """Return a shell command that trains with `config`: its recipe and the flags in which it differs.

    Where flags cannot say it (there is no such recipe, the run lacks options that the recipe has, or a module or data
    were handed to it in Python, whose place is left open), it reads the configuration from the `folder` of the run.
    """
    words, recipe = _find(config.recipe)
    given = [name for name, part in (("model", config.model), ("data", config.data)) if part.name == EXTERNAL]
    if given or recipe is None or recipe.model.options.keys() - config.model.options.keys():
        read = "RunFolder(pathlib.Path(sys.argv[1])).read_config()"
        files = [file_of(record) for record in config.imports]
        own = "".join(f"import_file({file!r}); " for file in files)
        own = f"from torchcaps.plugins import import_file; {own}" if own else ""
        code = f"import pathlib, sys; from torchcaps.train import RunFolder, fit; {own}fit({read})"
        if config.agreement:
            asked = "from torchcaps.inspect import find_probes; "
            code = code.replace(f"fit({read})", f"{asked}config = {read}; fit(config, callbacks=find_probes(config))")
        for name in given:  # which only its author has
            code = f"{code[:-1]}, {name}=...)"
        return typed(["python", "-c", code, str(folder)])
    own = [word for record in config.imports for word in ("--import", file_of(record))]
    own += ["--from", config.start.rpartition(" ")[0]] if config.start else []
    command = ["torchcaps", "train", *words, *own, *_flags(recipe, config, always=finished_fields(words[0]))]
    if not config.continued:
        return typed(command)
    _, epochs, _ = config.continued.rsplit(" ", 2)  # of a run that ended then, and goes on
    shorter = _flags(recipe, replace(config, epochs=int(epochs)), always=finished_fields(words[0]))
    return f"{typed(['torchcaps', 'train', *words, *own, *shorter])} && {typed([*command, '--resume'])}"


def _find(name: str) -> tuple[list[str], Config | None]:
    """Return how the recipe of a run is named on the command line, and its config; None where there is none.

    A run of a paper's cell is called PAPER.TABLE.CELL.BUDGET, and by its widths behind.
    """
    with suppress(ValueError):
        return [name], create_recipe(name)
    *home, budget = name.split(".")[:4]
    with suppress(ValueError):
        check_choice("budget", budget, BUDGETS)
        recipe = create_recipe("/".join(home), cast(Budget, budget))
        return ["/".join(home), "--budget", budget], recipe
    return [], None


def _flags(recipe: Any, config: Any, prefix: str = "", always: Sequence[str] = ()) -> list[str]:
    """Return the flags that turn one config, or part of it, into another; those of `always`, with dots, also where
    equal.
    """
    found = []
    for each in (field for field in fields(config) if field.name not in WRITTEN):
        name, old, new = prefix + each.name.replace("_", "-"), getattr(recipe, each.name), getattr(config, each.name)
        if is_dataclass(new):
            found += _flags(old, new, name + ".", always)
        elif old == new and type(old) is type(new) and name.replace("-", "_") not in always:
            continue
        elif isinstance(new, dict):
            changed = {key: value for key, value in new.items() if old.get(key) != value}
            words = (word for key, value in changed.items() for word in (key, show_option(value)))
            found += [f"--{name}", *words] if changed else []
        elif isinstance(new, bool):
            found.append(f"--{name}" if new else f"--{prefix}no-{each.name.replace('_', '-')}")
        else:
            found += [f"--{name}", *map(str, new if isinstance(new, tuple) else (new,))]
    return found
