"""The complexity claims of EncapNet (Li et al. 2018), section 2.2 and 3.1: the capsule layers of Table 1, a and b."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torchcaps.cost.published import PublishedCost


class Mapping(NamedTuple):
    """A layer of convolutional capsules whose children all vote for all parents."""

    types: int = 32  # n1 and n2 at one position
    side: int = 8  # S, of the map
    in_pose: int = 8  # d1
    out_pose: int = 16  # d2

    @property
    def capsules(self) -> int:
        """Return how many there are at all positions."""
        return self.types * self.side**2


def mapping_channels(layer: Mapping) -> int:
    """Return the output channels of the transform kernel: each type of child makes a pose for each parent."""
    return layer.out_pose * layer.types * layer.capsules


def mapping_parameters(layer: Mapping) -> int:
    """Return the parameters of the transform kernel, which all positions of a type share."""
    return layer.in_pose * mapping_channels(layer)


def routing_coefficients(layer: Mapping) -> int:
    """Return the number of the c_ij: one for each child and parent."""
    return layer.capsules**2


def unshared_factor(layer: Mapping) -> int:
    """Return how many times more parameters the kernel would have, were it not shared by the positions."""
    return layer.side**2


def mapping_reduction(layer: Mapping) -> int:
    """Return n2^2 (section 3.1), with n2 types: two 1x1 mappings, each type to itself alone, have so many times fewer
    operations.
    """
    two_branches = 2 * layer.types * layer.in_pose * layer.out_pose
    return mapping_parameters(layer) // two_branches


def routing_reduction(layer: Mapping) -> int:
    """Return S^4 / d2 (section 3.1)."""
    return layer.side**4 // layer.out_pose


def cells() -> Iterator[PublishedCost]:
    layer = Mapping()
    for row, column, printed, computed in (
        ("section 2.2", "kernel parameters without sharing, at a side of 8", "64x", unshared_factor(layer)),
        ("section 2.2", "output channels of the transform kernel", "1,048,576", mapping_channels(layer)),
        ("section 3.1", "parameters of the mapping", "8,388,608", mapping_parameters(layer)),
        ("section 3.1", "parameters of the routing", "4,194,304", routing_coefficients(layer)),
        ("section 3.1", "mapping, times fewer", "1024x", mapping_reduction(layer)),
        ("section 3.1", "routing, times fewer", "256x", routing_reduction(layer)),
    ):
        quantity = "ratio" if printed.endswith("x") else "parameters"
        yield PublishedCost("encapnet", "text", row, column, quantity, printed, computed)
