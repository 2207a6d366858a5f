"""What follows the steps of an optimiser of coefficients: hooks of their routings, and a warning of a collapse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import distributed, nn
from torch.optim import Optimizer

from torchcaps.routing.interface import Routing
from torchcaps.terminal import warn


def follow_steps(optimizer: Optimizer, modules: Iterable[nn.Module], batch: int) -> None:
    """Let each step of `optimizer` end with `Routing.after_step` of the routings whose coefficients it updates.

    Args:
        optimizer: plain SGD without momentum, of the phase that ascends the objective; its rate is the step's.
        modules: of which those that are routings with coefficients are told.
        batch: observations of a step, over all processes.
    """
    routings = {id(each): module for module in modules if isinstance(module, Routing) for each in module.coefficients()}

    def follow(optimizer: Optimizer, *_: object) -> None:
        rates = {id(each): group["lr"] for group in optimizer.param_groups for each in group["params"]}
        told = {routings[each]: rate for each, rate in rates.items() if each in routings}
        for routing, rate in told.items():
            routing.after_step(rate, batch)

    optimizer.register_step_post_hook(follow)


def warn_of_collapse(optimizer: Optimizer, modules: Mapping[str, nn.Module], every: int = 100) -> None:
    """Let every so many steps of `optimizer` look for collapsed parents, and log a warning of those that are new.

    Args:
        optimizer: of the phase that ascends the objective.
        modules: by name, of which those that are routings with an objective are looked at.
        every: steps between two looks, each of which waits for the device.
    """
    routings = {name: each for name, each in modules.items() if isinstance(each, Routing) and each.spec.objective}
    steps, known = 0, {name: set() for name in routings}

    def look(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps % every or (distributed.is_initialized() and distributed.get_rank()):
            return
        for name, routing in routings.items():
            if fresh := sorted(set(routing.collapsed()) - known[name]):
                known[name].update(fresh)
                warn(
                    f"collapse of {name}: the coefficients of parents {', '.join(map(str, fresh))} have all but "
                    "vanished; take a smaller coefficients.lr, a larger start, a smaller absent_weight or a smaller "
                    "penalty_weight"
                )

    optimizer.register_step_post_hook(look)
