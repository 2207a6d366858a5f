"""The network of a recipe, and a pass and a training step of it as the library takes them; with torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils import convert_conv2d_weight_memory_format

from torchcaps.config import Config
from torchcaps.losses import multi_hot
from torchcaps.models import Model, create_model
from torchcaps.models.registry import create_meta
from torchcaps.tables.arguments import image_shape, model_arguments
from torchcaps.train.devices import choose_device
from torchcaps.train.phases import Batch, LossModule, build_phases, step_phases
from torchcaps.train.processes import build_fabric


def build_network(config: Config) -> Model:
    """Return the network of a recipe, with fresh weights."""
    return create_model(**model_arguments(config))


def build_meta(config: Config) -> Model:
    """Return the network of a recipe on the meta device, see `create_meta`."""
    return create_meta(**model_arguments(config))


def training_step(config: Config, batch_size: int, device: str) -> tuple[Callable[[], None], str]:
    """Return a step as the library trains, on a batch of noise with labels at random, and the device that it runs
    on.
    """
    model, images, place = _prepare(config, batch_size, device)
    config = replace(config, device=place, processes=1, batch_size=batch_size)
    fabric, phases = build_fabric(config), build_phases(model, config)
    wrapped, optimizer = fabric.setup(LossModule(model, *phases), phases[0].optimizer)
    classes = model_arguments(config)["num_classes"]
    labels = torch.randint(classes, (batch_size,), device=place)
    batch = Batch(images, labels, multi_hot(labels, classes))

    def step() -> None:
        step_phases(fabric, model, wrapped, optimizer, phases, batch, config.clip)

    return step, place


def inference_pass(config: Config, batch_size: int, device: str) -> tuple[Callable[[], Tensor], str]:
    """Return a pass in float32 over a batch of noise, and the device that it runs on."""
    model, images, place = _prepare(config, batch_size, device)
    model.eval()

    @torch.inference_mode()
    def forward() -> Tensor:
        return model(images).scores

    return forward, place


def _prepare(config: Config, batch_size: int, device: str) -> tuple[Model, Tensor, str]:
    """Return the network and a batch of noise, both of the config's seed, as the library has them there: channels
    last.
    """
    place = choose_device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model, images = build_network(config), torch.rand(batch_size, *image_shape(config))
    model, images = convert_conv2d_weight_memory_format(model, torch.channels_last).to(place), images.to(place)
    return model, images.contiguous(memory_format=torch.channels_last), place
