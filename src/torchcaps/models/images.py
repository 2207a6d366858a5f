"""What models that are named after a data set are built for when they are not told, as `create_model` takes it."""

from typing import TypedDict


class Images(TypedDict):
    """Classes, channels and the side in pixels."""

    num_classes: int
    in_channels: int
    image_size: int


CIFAR10 = Images(num_classes=10, in_channels=3, image_size=32)
CIFAR100 = Images(num_classes=100, in_channels=3, image_size=32)
DIVERSE_MULTIMNIST = Images(num_classes=10, in_channels=3, image_size=36)
MULTIMNIST = Images(num_classes=10, in_channels=1, image_size=36)
AFFNIST = Images(num_classes=10, in_channels=1, image_size=40)
SMALLNORB = Images(num_classes=5, in_channels=1, image_size=32)
