"""`torchcaps warm`: kernels compiled ahead."""

from __future__ import annotations

from tyro.conf import Positional

from torchcaps.cli.listing import print_lines


def warm(pattern: Positional[str] = "*") -> None:
    """Compile the kernels of routings for this machine's processor now, instead of in the first step of a layer.

    They are kept on disk for this user. Nothing needs it: what is missing is compiled when a layer wants it.

    For example: `torchcaps warm "xn*"`.

    Args:
        pattern: of names of routings, as a shell has it, in quotes: "*dynamic"
    """
    from torchcaps.layers.warm import warm as compile_kernels
    from torchcaps.routing import list_routings

    seconds = compile_kernels(pattern)
    if not seconds:
        names = ", ".join(spec.name for spec in list_routings())
        raise ValueError(f"no routing that is called {pattern} has kernels here; routings are {names}")
    print_lines((name, f"{taken:.1f} s") for name, taken in seconds.items())
