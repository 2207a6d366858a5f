"""EncapNet's capConv layers beside the form that they were first written in, whole networks in turns.

That form brought master and aide side by side channels first, whatever the layout of the maps, so that all that follows
stayed so; and it multiplied each aide's weights by a mask in every pass. It computes the same.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from report import interleaved, median_ratio, record
from torch import Tensor
from torch.nn.utils import convert_conv2d_weight_memory_format

from torchcaps.config import OptimiserConfig
from torchcaps.encapnet import MasterAideConv2d
from torchcaps.encapnet.capconv import AideConv2d
from torchcaps.losses import margin_loss, multi_hot
from torchcaps.models import Model, create_model
from torchcaps.train.optim import build_optimiser

NETWORKS = {"encapnet-6-master-aide": 128, "encapnet-v1": 32}  # and the images of a step


class MultipliedAide(AideConv2d):
    """The aide whose weights are multiplied by its mask in every pass."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight * self.mask, self.bias, self.stride, self.padding)


class ChannelsFirst(MasterAideConv2d):
    """The layer whose coefficients are read from maps that are channels first."""

    def _beside(self, sources: list[Tensor]) -> Tensor:
        return torch.cat([maps.unflatten(1, (self.capsules, -1)) for maps in sources], 2).flatten(1, 2)


def first_form(model: Model) -> Model:
    """A copy of `model` whose capConv layers are in the first form, with the same weights."""
    made = copy.deepcopy(model)
    for module in made.modules():
        if type(module) is MasterAideConv2d:
            module.__class__ = ChannelsFirst
        elif type(module) is AideConv2d:
            module.__class__ = MultipliedAide
    return made


def training(model: Model, images: Tensor, targets: Tensor) -> Callable[[], None]:
    """A step in bf16, as the library trains where the machine multiplies in it."""
    optimizer = build_optimiser(model.train().parameters(), OptimiserConfig("adam", lr=1e-4, weight_decay=5e-4))

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(images)
        optimizer.zero_grad()
        margin_loss(output.scores, targets).backward()
        optimizer.step()

    return step


def inference(model: Model, image: Tensor) -> Callable[[], None]:
    """A pass over one image in float32."""
    model.eval()

    @torch.inference_mode()
    def forward() -> None:
        model(image)

    return forward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, help="each network has its own where it is not given")
    flags = parser.parse_args()
    for name, usual in NETWORKS.items():
        torch.manual_seed(0)
        made = create_model(name, num_classes=10, in_channels=3, image_size=32)
        forms = [convert_conv2d_weight_memory_format(each, torch.channels_last) for each in (first_form(made), made)]
        batch = flags.batch or usual
        images = torch.rand(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        targets = multi_hot(torch.randint(10, (batch,)), 10)
        before, after = interleaved([training(each, images, targets) for each in forms], flags.repeats)
        first, alone = interleaved([inference(each, images[:1]) for each in forms], 3 * flags.repeats)
        values = {
            "threads": torch.get_num_threads(),
            "batch": batch,
            "repeats": flags.repeats,
            "first_form_step_ms": round(1000 * median(before), 1),
            "step_ms": round(1000 * median(after), 1),
            "speed_up": round(median_ratio(before, after), 3),
            "first_form_image_ms": round(1000 * median(first), 2),
            "image_ms": round(1000 * median(alone), 2),
            "image_speed_up": round(median_ratio(first, alone), 3),
        }
        record(f"encapnet/{name}, beside its first form", values)


if __name__ == "__main__":
    main()
