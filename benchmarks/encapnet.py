"""EncapNet's capConv layers beside two other forms that compute the same, whole networks in turns.

The first form brought master and aide side by side channels first, whatever the layout of the maps, so that all that
follows stayed so; and it multiplied each aide's weights by a mask in every pass. Without products each dense
convolution is torch's, whatever map comes out (`torchcaps.encapnet.aide`); `rows` times these layers alone, from one
place in a row to eight, which is where the limits of that module are from.
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
from torchcaps.encapnet.aide import AideConv2d, DenseConv2d
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


def without_products(model: Model) -> Model:
    """A copy of `model`, with the same weights, whose convolutions are torch's."""
    made = copy.deepcopy(model)
    for module in made.modules():
        if isinstance(module, DenseConv2d):
            module.product = False
    return made


OTHERS = {"its first form": first_form, "convolutions": without_products}
ROWS = (1, 2, 4, 6, 8)  # places of a row
CHANNELS = ((64, 128), (128, 256), (256, 512))
KERNELS = (3, 5, 7)


def training(model: Model, images: Tensor, targets: Tensor, bf16: bool) -> Callable[[], None]:
    """A step, in bf16 as the library trains where the machine multiplies in it, or in float32."""
    optimizer = build_optimiser(model.train().parameters(), OptimiserConfig("adam", lr=1e-4, weight_decay=5e-4))

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
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


def layer(convolution: DenseConv2d, maps: Tensor) -> Callable[[], None]:
    """A pass forward and backward in bf16."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gradient = torch.randn_like(convolution(maps))

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = convolution(maps)
        torch.autograd.grad(out, [maps, convolution.weight], gradient)

    return step


def time_networks(repeats: int, given: int | None) -> None:
    for name, usual in NETWORKS.items():
        torch.manual_seed(0)
        made = create_model(name, num_classes=10, in_channels=3, image_size=32)
        batch = given or usual
        images = torch.rand(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        targets = multi_hot(torch.randint(10, (batch,)), 10)
        for what, other in OTHERS.items():
            forms = [convert_conv2d_weight_memory_format(each, torch.channels_last) for each in (other(made), made)]
            before, after = interleaved([training(each, images, targets, True) for each in forms], repeats)
            float32 = interleaved([training(each, images, targets, False) for each in forms], repeats)
            first, alone = interleaved([inference(each, images[:1]) for each in forms], 3 * repeats)
            values = {
                "threads": torch.get_num_threads(),
                "batch": batch,
                "repeats": repeats,
                "other_step_ms": round(1000 * median(before), 1),
                "step_ms": round(1000 * median(after), 1),
                "speed_up": round(median_ratio(before, after), 3),
                "float32_speed_up": round(median_ratio(*float32), 3),
                "other_image_ms": round(1000 * median(first), 2),
                "image_ms": round(1000 * median(alone), 2),
                "image_speed_up": round(median_ratio(first, alone), 3),
            }
            record(f"encapnet/{name}, beside {what}", values)


def time_rows(repeats: int, batch: int) -> None:
    """Time a product beside the convolution, whatever the rule would take; stride 1, so that row in is row out."""
    for row in ROWS:
        for wide, out in CHANNELS:
            for kernel in KERNELS:
                torch.manual_seed(0)
                made = DenseConv2d(wide, out, kernel, 1, kernel // 2).to(memory_format=torch.channels_last)
                maps = torch.rand(batch, wide, row, row).contiguous(memory_format=torch.channels_last).requires_grad_()
                other = copy.deepcopy(made)
                made.prefers_product, other.product = (lambda input: True), False
                both = interleaved([layer(each, maps) for each in (other, made)], repeats)
                values = {
                    "threads": torch.get_num_threads(),
                    "batch": batch,
                    "repeats": repeats,
                    "convolution_ms": round(1000 * median(both[0]), 2),
                    "product_ms": round(1000 * median(both[1]), 2),
                    "speed_up": round(median_ratio(*both), 3),
                }
                record(f"encapnet/rows of {row}, {wide} to {out} channels, kernel {kernel}", values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("networks", "rows"), default="networks")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, help="each network has its own where it is not given; rows: 128")
    flags = parser.parse_args()
    if flags.what == "rows":
        time_rows(flags.repeats, flags.batch or 128)
    else:
        time_networks(flags.repeats, flags.batch)


if __name__ == "__main__":
    main()
