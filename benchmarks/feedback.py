"""The share of a training step that EncapNet's feedback costs: whole steps of networks with and without it.

Forward, backward and Adam on random images of 32x32; the networks are narrowed, since whole ones need a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median

import torch
from report import interleaved, median_ratio, record

from torchcaps.losses import margin_loss, multi_hot
from torchcaps.models import create_model

NETWORKS = {"encapnet-v1": {"types": 4, "lengths": (1, 1, 1, 1)}, "encapnet-resnet": {"channels": 8}}
SETTINGS = {"ot": {"units": 1}, "two-ots": {"units": 2}, "kl": {"divergence": "kl"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    flags = parser.parse_args()
    for name, options in NETWORKS.items():
        plain = step(name, options, flags.batch, flags.device)
        fed = [step(f"{name}-feedback", {**options, **more}, flags.batch, flags.device) for more in SETTINGS.values()]
        without, *seconds = interleaved([plain, *fed], flags.repeats)
        for setting, each in zip(SETTINGS, seconds, strict=True):
            record(
                f"feedback/{name}/{setting}",
                {
                    "device": flags.device,
                    "threads": torch.get_num_threads(),
                    "batch": flags.batch,
                    "repeats": flags.repeats,
                    "options": options,
                    "step_ms": round(1000 * median(each), 1),
                    "without_ms": round(1000 * median(without), 1),
                    "share_of_step": round(1 - 1 / median_ratio(each, without), 3),
                },
            )


def step(name: str, options: dict, batch: int, device: str) -> Callable[[], None]:
    """One training step of the network `name`."""
    torch.manual_seed(0)
    model = create_model(name, in_channels=3, image_size=32, **options).to(device).to(memory_format=torch.channels_last)
    images = torch.rand(batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    targets = multi_hot(torch.randint(10, (batch,), device=device), 10)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)

    def run() -> None:
        output = model(images)
        loss = margin_loss(output.scores, targets) + output.aux.get("penalty", 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


if __name__ == "__main__":
    main()
