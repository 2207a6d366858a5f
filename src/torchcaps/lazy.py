"""Names of a package that are imported on first use, so that what does not need torch does not import it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from torchcaps.extras import missing_extra


def resolver(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Return the `__getattr__` of `package`, whose module `home` defines the names `homes[home]`.

    Where that module needs a package of an extra that is not installed, the error names the extra.
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def resolve(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            home = import_module(f"{package}.{home_of[name]}")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(missing_extra(error), name=error.name, path=error.path) from error
        return getattr(home, name)

    return resolve
