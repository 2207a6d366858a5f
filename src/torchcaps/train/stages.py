"""A run's first stage, in which the backbone of its model stays as it is and the head above it learns."""

from __future__ import annotations

from torch import nn

from torchcaps.config import Config

BACKBONE = "backbone"


def check_stages(model: nn.Module, config: Config) -> None:
    """Raise ValueError where `Config.head_epochs` asks for what the model or several processes do not allow."""
    if not config.head_epochs:
        return
    if not isinstance(getattr(model, BACKBONE, None), nn.Module):
        raise ValueError(
            f"head_epochs is {config.head_epochs}, but {config.model.name} is no backbone under a head: set it to "
            "0, or take a timm model with a head, such as resnet18.dynamic"
        )
    if config.processes > 1:
        raise ValueError(
            f"head_epochs is {config.head_epochs}: that needs one process, but processes is {config.processes}"
        )


def enter_stage(model: nn.Module, config: Config, epoch: int) -> None:
    """Put `model` into training mode for `epoch`, counted from 0: with its backbone held as it is, statistics of batch
    norm included, or with all of it."""
    model.train()
    if not config.head_epochs:
        return
    held, backbone = bool(held_part(config, epoch)), model.get_submodule(BACKBONE)
    for weight in backbone.parameters():
        weight.requires_grad_(not held)
    backbone.train(not held)


def held_part(config: Config, epoch: int) -> str:
    """Return the name of the part of the model that stays as it is in `epoch`, from 0; empty where all of it learns."""
    return BACKBONE if epoch < config.head_epochs else ""
