"""Speed of the data: composing MultiMNIST, changing CIFAR-10 beside torchvision, and what a training loop waits.

Run it on two cores while nothing else runs; TORCHCAPS_DATA must hold MNIST and CIFAR-10.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from report import interleaved, median_ratio, record
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from torchcaps.config import AugmentConfig, DataConfig
from torchcaps.data import Data, load_data
from torchcaps.losses import margin_loss, multi_hot
from torchcaps.models import create_model
from torchcaps.papers import create_recipe

BATCH = 128
WORKERS = 2
PAD_CROP_FLIP = AugmentConfig(crop=4, flip=True)


class PerImage(Dataset):
    """CIFAR-10 as torchvision serves it: one PIL image, transformed, at a time."""

    def __init__(self, pixels: Tensor, labels: Tensor):
        steps = [transforms.ToPILImage(), transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        self.pixels, self.labels = pixels, labels.tolist()
        self.transform = transforms.Compose([*steps, transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.pixels[index]), self.labels[index]


def compose(name: str, images: int, repeats: int) -> None:
    """Images and label sets in batches, as training takes them, with the conversion to floats and without."""
    data = load_data(DataConfig(name=name))
    source, steps = data.train, images // BATCH

    def pixels() -> None:
        for step in range(steps):
            indices = torch.arange(step * BATCH, (step + 1) * BATCH)
            source.fetch(indices)
            source.targets(indices)

    def batches() -> None:
        for _ in zip(data.training(DataConfig(), BATCH, seed=0).epoch(0), range(steps), strict=False):
            pass

    for what, seconds in zip(("pixels", "batches"), interleaved([pixels, batches], repeats), strict=True):
        rate = round(steps * BATCH / median(seconds))
        record(f"data/compose-{name}/{what}", {"batch": BATCH, "repeats": repeats, "images_per_second": rate})


def augment(images: int, repeats: int) -> None:
    """Pad, crop and flip of CIFAR-10: whole batches against per-image transforms in a DataLoader."""
    data = load_data(DataConfig(name="cifar10", validation=0.0))
    steps = images // BATCH
    indices = torch.arange(steps * BATCH)
    loader = DataLoader(
        PerImage(data.train.fetch(indices), data.train.targets(indices)), BATCH, shuffle=True, num_workers=WORKERS
    )
    config = DataConfig(augment=PAD_CROP_FLIP)

    def per_image() -> None:
        for _ in loader:
            pass

    def whole_batches() -> None:
        for _ in zip(data.training(config, BATCH, seed=0).epoch(0), range(steps), strict=False):
            pass

    slow, fast = interleaved([per_image, whole_batches], repeats)
    record(
        "data/pad-crop-flip-cifar10",
        {
            "batch": BATCH,
            "repeats": repeats,
            "workers_of_torchvision": WORKERS,
            "torchvision_images_per_second": round(steps * BATCH / median(slow)),
            "images_per_second": round(steps * BATCH / median(fast)),
            "ratio": round(median_ratio(slow, fast), 1),
        },
    )


def wait(recipe: str) -> None:
    """The share of an epoch of the demo's training that goes into its batches, measured around each `next`."""
    config = create_recipe(recipe)
    data = load_data(config.data)
    model = create_model(
        config.model.name,
        num_classes=data.num_classes,
        in_channels=data.channels,
        image_size=data.image_size,
        **config.model.options,
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=config.optimiser.lr)
    _epoch(data, config.data, model, optimiser, config.batch_size)  # warms up
    waited, whole = _epoch(data, config.data, model, optimiser, config.batch_size)
    values = {"batch": config.batch_size, "seconds": round(whole, 3), "waited_percent": round(100 * waited / whole, 2)}
    record(f"data/wait-{recipe}", values)


def _epoch(data: Data, config: DataConfig, model: nn.Module, optimiser: torch.optim.Optimizer, batch_size: int):
    """Seconds spent waiting for batches, and all seconds of an epoch."""
    batches = data.training(config, batch_size, seed=0).epoch(0)
    waited, begin = 0.0, time.perf_counter()
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        waited += time.perf_counter() - asked
        if batch is None:
            return waited, time.perf_counter() - begin
        images, labels = batch
        optimiser.zero_grad()
        margin_loss(model(images, labels).scores, multi_hot(labels, data.num_classes)).backward()
        optimiser.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=51_200)
    flags = parser.parse_args()
    for name in ("multimnist", "diverse-multimnist", "expanded-mnist", "affine-digits"):
        compose(name, flags.images if name != "affine-digits" else flags.images // 10, flags.repeats)
    augment(min(flags.images, 49_920), flags.repeats)
    wait("digits")


if __name__ == "__main__":
    main()
