"""EncapNet's capsule convolution (Li, Guo, Dai, Ouyang and Wang 2018, section 3.1): one pass in place of routing.

s = m1 v1 + m2 v2 (Eq. 6): the master v1 is a convolution of the capsule's own channels, the aide v2 one of all others,
and m1, m2 are learnt from them, one number per capsule and position. Then skip, batch norm, ReLU, squash.

Maps stay channels first, [b, (g d), h, w] with the d of a capsule side by side. Every default is the paper's rule, but
for the size of the aide's kernel, which it does not give: the authors' code takes the master's + 4, and so do we.
The convolutions of branches and skip may do without a bias (`affine`), since a batch norm follows; a coefficient's not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchcaps.capsules import Capsules, squash, transformed
from torchcaps.encapnet.aide import AideConv2d, DenseConv2d
from torchcaps.layers.transforms import flatten_space
from torchcaps.names import check_choice

Source = Literal["master", "aide", "input"]
Skip = Literal["none", "type-1", "type-2", "both"]


class Wiring(NamedTuple):
    """What each coefficient is a grouped convolution of; an empty `aide` stands for 1 - m1."""

    master: tuple[Source, ...]
    aide: tuple[Source, ...]


VERSIONS: dict[str, Wiring | None] = {
    "master": None,  # no aide, no coefficients: the baseline of Table 3
    "v1": Wiring(("master",), ("aide",)),
    "v2": Wiring(("aide",), ("master",)),
    "v3": Wiring(("master", "aide"), ("master", "aide")),
    "route1": Wiring(("master",), ()),  # this and the next two: the authors' code
    "route2": Wiring(("input",), ()),
    "route3": Wiring(("aide",), ("master",)),  # called v3 there, and wired as v2
}


def squash_maps(maps: Tensor, capsules: int) -> Tensor:
    """Squash each capsule of maps [b, (g d), h, w]."""
    return squash(maps.unflatten(1, (capsules, -1)), dim=2).flatten(1, 2)


def to_capsules(maps: Tensor, capsules: int) -> Capsules:
    """Map maps [b, (g d), h, w] -> capsules [b, h, w, g, d], a view."""
    return Capsules(maps.unflatten(1, (capsules, -1)).permute(0, 3, 4, 1, 2))


def to_maps(capsules: Capsules) -> Tensor:
    """Map capsules [b, h, w, g, d] -> maps [b, (g d), h, w]."""
    return capsules.poses.permute(0, 3, 4, 1, 2).flatten(1, 2)


def over_channels(change: Callable[[list[Tensor], int], Tensor], *maps: Tensor) -> Tensor:
    """Return `change(maps, dim)`, whose channels are `dim`, in the layout in memory that the first of `maps` [b, c,
    h, w] has.

    Where channels are split, a result that torch lays out anew is channels first, and with it every map that follows.
    """
    first = maps[0]  # `is_contiguous` cannot be asked under vmap
    last = first.stride(1) == 1 if transformed() else first.is_contiguous(memory_format=torch.channels_last)
    if not last:
        return change(list(maps), 1)
    return change([each.movedim(1, -1) for each in maps], 3).movedim(-1, 1)


class MasterAideConv2d(nn.Module):
    """One capConv layer: master and aide, their coefficients, skip, batch norm, ReLU, squash.

    Type I of the paper is a kernel of 3 and a larger pose, `skip` then being a convolution 3x3 of all channels; type II
    is a kernel of 1 and the same pose, `skip` then being the input itself.

    Args:
        capsules: types per position, in and out; at least 2 where there is an aide.
        in_pose, out_pose: elements of a pose.
        kernel: of the master; odd.
        stride: of both branches.
        version: where the coefficients come from: "v1" each from its own branch, "v2" each from the other, "v3" each
            from both; "master" has no aide; "route1" (m2 = 1 - m1), "route2" (the same, m1 from the input) and "route3"
            (the same as v2) are the authors' code.
        aide: what the aide sees, "others" (the paper) or "all" channels (the authors' code).
        aide_extra: how much larger than the master's the aide's kernel is; even (Route1 and Route2 of the code: 0).
        branch_norm: batch norm, ReLU and squash in each branch too, before the coefficients (the authors' code).
        skip: whether the input is added before the last batch norm.
        affine: whether the convolutions of branches and skip have a bias, and the batch norms a scale and a shift.

    Raises:
        ValueError: for even kernels, sizes below 1, unknown names, and an aide of a single capsule that has no others.
    """

    def __init__(
        self,
        capsules: int,
        in_pose: int,
        out_pose: int,
        kernel: int = 3,
        stride: int = 1,
        version: str = "v3",
        aide: Literal["others", "all"] = "others",
        aide_extra: int = 4,
        branch_norm: bool = False,
        skip: bool = True,
        affine: bool = True,
    ):
        super().__init__()
        _check(capsules, in_pose, out_pose, kernel, aide_extra, stride, version, aide)
        self.capsules, self.wiring = capsules, VERSIONS[version]
        wide, out = capsules * in_pose, capsules * out_pose
        self.master = nn.Conv2d(wide, out, kernel, stride, kernel // 2, groups=capsules, bias=affine)
        if self.wiring is not None:
            wider = kernel + aide_extra
            self.aide = (
                AideConv2d(capsules, in_pose, out_pose, wider, stride, affine)
                if aide == "others"
                else DenseConv2d(wide, out, wider, stride, wider // 2, bias=affine)
            )
            widths = {"master": out_pose, "aide": out_pose, "input": in_pose}
            near = (kernel, stride) if "input" in self.wiring.master else (3, 1)
            self.master_coefficient = self._coefficient(self.wiring.master, widths, *near)
            self.aide_coefficient = self._coefficient(self.wiring.aide, widths, 3, 1)
            branches = ("master", "aide") if branch_norm else ()
            self.branch_norms = nn.ModuleDict({name: nn.BatchNorm2d(out, affine=affine) for name in branches})
        self.skip = _skip(wide, out, stride, affine) if skip else None
        self.norm = nn.BatchNorm2d(out, affine=affine)

    def _coefficient(self, sources: tuple[Source, ...], widths: dict, kernel: int, stride: int) -> nn.Conv2d | None:
        """Map [b, (g d), h, w] of the sources, a capsule's side by side -> [b, g, h, w]."""
        channels = self.capsules * sum(widths[source] for source in sources)
        groups = self.capsules
        return nn.Conv2d(channels, groups, kernel, stride, kernel // 2, groups=groups) if sources else None

    def forward(self, maps: Tensor) -> Tensor:
        """Map maps [b, (g d), h, w] -> [b, (g d'), h', w'], of length below one."""
        total = self.master(maps) if self.wiring is None else self._interact(maps, self.wiring)
        if self.skip is not None:
            total = total + self.skip(maps)
        return squash_maps(F.relu(self.norm(total)), self.capsules)

    def _interact(self, maps: Tensor, wiring: Wiring) -> Tensor:
        """Return m1 v1 + m2 v2 (Eq. 6)."""
        branches = {"input": maps, "master": self.master(maps), "aide": self.aide(maps)}
        for name, norm in self.branch_norms.items():
            branches[name] = squash_maps(F.relu(norm(branches[name])), self.capsules)
        m1, m2 = self._coefficients(branches, wiring)
        master, aide = (branches[name].unflatten(1, (self.capsules, -1)) for name in ("master", "aide"))
        return (m1 * master + m2 * aide).flatten(1, 2)  # of [b, g, d, h, w]

    def _coefficients(self, branches: dict[str, Tensor], wiring: Wiring) -> tuple[Tensor, Tensor]:
        """Return m1 and m2, both [b, g, 1, h, w]; two that are read from the same maps are one convolution."""
        first, second = self.master_coefficient, self.aide_coefficient
        assert first is not None
        maps = self._beside([branches[name] for name in wiring.master])
        if second is None:
            m1 = first(maps).unsqueeze(2)
            return m1, 1 - m1
        if wiring.master != wiring.aide:
            others = self._beside([branches[name] for name in wiring.aide])
            return first(maps).unsqueeze(2), second(others).unsqueeze(2)
        weight, bias = (
            torch.stack(pair, 1).flatten(0, 1) for pair in zip(_affine(first), _affine(second), strict=True)
        )
        both = F.conv2d(maps, weight, bias, padding=first.padding, groups=self.capsules)  # [b, (g 2), h, w]
        m1, m2 = both.unflatten(1, (self.capsules, 2)).split(1, 2)
        return m1, m2

    def _beside(self, sources: list[Tensor]) -> Tensor:
        """Return maps [b, (g d), h, w] as one, each capsule's side by side."""

        def join(maps: list[Tensor], dim: int) -> Tensor:
            return torch.cat([each.unflatten(dim, (self.capsules, -1)) for each in maps], dim + 1).flatten(dim, dim + 1)

        return over_channels(join, *sources)


class CapConvModule(nn.Sequential):
    """One module of EncapNet (figure 3a): a type I layer, which widens the pose, and `length` type II layers.

    Args:
        capsules, in_pose, out_pose: see `MasterAideConv2d`.
        length: number of type II layers (N), at least 0.
        stride: of the type I layer.
        skip: which layers have one: "none", "type-1", "type-2", or "both" (Table 3, 5 to 7).
        options: further keyword arguments of every `MasterAideConv2d`.
    """

    def __init__(
        self,
        capsules: int,
        in_pose: int,
        out_pose: int,
        length: int = 3,
        stride: int = 2,
        skip: Skip = "both",
        **options,
    ):
        check_choice("skip", skip, ("none", "type-1", "type-2", "both"))
        if length < 0:
            raise ValueError(f"length is {length}; it must be at least 0")
        first, others = skip in ("type-1", "both"), skip in ("type-2", "both")
        super().__init__(
            MasterAideConv2d(capsules, in_pose, out_pose, 3, stride, skip=first, **options),
            *(MasterAideConv2d(capsules, out_pose, out_pose, 1, 1, skip=others, **options) for _ in range(length)),
        )


class CapFC(nn.Module):
    """One fully connected layer per element of the pose, without bias, then squash: class capsules without routing.

    Args:
        children: capsules in all, positions included; the paper's 32-pixel networks have 512.
        parents: class capsules.
        pose: elements, the same for both.
    """

    def __init__(self, children: int, parents: int, pose: int):
        super().__init__()
        if min(children, parents, pose) < 1:
            raise ValueError(
                f"{children} children, {parents} parents of {pose} were asked for; each must be at least 1"
            )
        bound = 1 / math.sqrt(children)
        self.weight = nn.Parameter(torch.empty(pose, children, parents).uniform_(-bound, bound))

    def forward(self, children: Capsules) -> Capsules:
        """Map [b, h, w, i, d] or [b, i, d] -> [b, j, d]; positions are flattened as (capsule, height, width)."""
        poses = flatten_space(children).poses
        if poses.shape[1:] != (self.weight.shape[1], self.weight.shape[0]):
            raise ValueError(
                f"the children are {tuple(poses.shape[1:])} (capsules, pose), but the layer takes "
                f"({self.weight.shape[1]}, {self.weight.shape[0]})"
            )
        return Capsules(squash(torch.einsum("bid,dij->bjd", poses, self.weight)))


def _affine(convolution: nn.Conv2d) -> tuple[Tensor, Tensor]:
    assert convolution.bias is not None
    return convolution.weight, convolution.bias


def _skip(wide: int, out: int, stride: int, bias: bool) -> nn.Module:
    """Return the input where shapes agree (type II), a dense convolution 3x3 otherwise (type I)."""
    return nn.Identity() if wide == out and stride == 1 else nn.Conv2d(wide, out, 3, stride, 1, bias=bias)


def check_aide(version: str, aide: str, aide_extra: int, branch_norm: bool) -> None:
    """Raise ValueError where a network whose `version` has no aide is told how it is built."""
    given = {"aide": aide, "aide_extra": aide_extra, "branch_norm": branch_norm}
    usual = {"aide": "others", "aide_extra": 4, "branch_norm": False}
    for name, value in given.items():
        if version == "master" and value != usual[name]:
            raise ValueError(f"{name} is {value!r}, but version is 'master', which has no aide: leave it out")


def _check(
    capsules: int, in_pose: int, out_pose: int, kernel: int, aide_extra: int, stride: int, version: str, aide: str
) -> None:
    if min(capsules, in_pose, out_pose, stride) < 1:
        raise ValueError(
            f"{capsules} capsules of {in_pose} -> {out_pose}, stride {stride}, were asked for; each must be at least 1"
        )
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel is {kernel}; it must be odd (1, 3, 5, ...), so that a stride of 1 keeps the size")
    if kernel + aide_extra < 1 or aide_extra % 2:
        raise ValueError(f"aide_extra is {aide_extra}; it must be even, and leave a kernel of at least 1")
    check_choice("version", version, VERSIONS)
    check_choice("aide", aide, ("others", "all"))
    if capsules == 1 and aide == "others" and VERSIONS[version] is not None:
        raise ValueError("a single capsule has no others for an aide to see: use version 'master', or aide 'all'")
